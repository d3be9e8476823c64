"""A real short run, the states it saved as they were in memory, and what becomes of damaged copies of its folder."""

import ctypes
import faulthandler
import importlib
import os
import pickle
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from runner.config.experiment import run_experiment
from runner.config.main import main
from runner.config.targets import resolve_target
from runner.metrics import Metrics
from runner.spec import HooklineError
from runner.trainer import Trainer
from tests.campaign.damage import Damage, NotApplicable, remove
from tests.campaign.images import digest, files_under, image_of
from tests.whole.runs import SHORT as SHORT_RUN
from tests.whole.runs import compose

STEPS_BEFORE_THE_END = 750
SHORT = (
    "total_frames=1500", "source.warmup=200", "source.capacity=500", "network.hidden=[8,8]", "log_every.env_steps=150",
    "checkpoint.every.env_steps=150", "scheduler=constant",
)  # fmt: skip
MEMORY = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
DEADLINE_SECONDS = 30
CAPABILITY_VERSION = 0x20080522
"""``_LINUX_CAPABILITY_VERSION_3`` of ``linux/capability.h``."""
CRASHED = 99
"""Exit code of a child that raised what no user should ever see."""


@dataclass(frozen=True)
class Ended:
    """How a forked child ended: its exit code (negative: the signal), what it returned, and what it printed."""

    code: int
    result: Any
    output: str


@dataclass(frozen=True)
class Forked:
    """A forked child that runs; what it prints and returns goes to files."""

    pid: int
    output: Any
    result: Any

    def wait(self) -> Ended:
        """How it ended."""
        _, status = os.waitpid(self.pid, 0)
        texts = []
        for file in (self.output, self.result):
            file.seek(0)
            texts.append(file.read())
            file.close()
        result = pickle.loads(texts[1]) if texts[1] else None
        return Ended(os.waitstatus_to_exitcode(status), result, texts[0].decode(errors="replace"))


def fork(work: Callable[[], Any], seconds: int = DEADLINE_SECONDS) -> Forked:
    """Run ``work`` in a child; one that hangs is ended by SIGALRM. Errors of ours are printed as users see them."""
    output, result = (tempfile.TemporaryFile(dir=MEMORY) for _ in range(2))  # noqa: SIM115
    pid = os.fork()
    if pid == 0:
        code = CRASHED
        try:
            _leave_pytest(output.fileno(), seconds)
            code = _run(work, result)
        finally:
            os._exit(code)
    return Forked(pid, output, result)


def in_child(work: Callable[[], Any], seconds: int = DEADLINE_SECONDS) -> Ended:
    """How a child ended that ran ``work``."""
    return fork(work, seconds).wait()


def _leave_pytest(output: int, seconds: int) -> None:
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    faulthandler.register(signal.SIGALRM, file=output, chain=True)  # says where it hangs
    signal.alarm(seconds)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)


def _run(work: Callable[[], Any], result: Any) -> int:
    code = 0
    try:
        pickle.dump(work(), result)
    except HooklineError as error:
        print(error, flush=True)
        code = error.exit_code
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = CRASHED
    for file in (result, sys.stdout, sys.stderr):
        file.flush()
    return code


class State(NamedTuple):
    """Digests of a run's state: of all of it, and of all but what its loggers know of their files."""

    whole: str
    but_loggers: str

    @classmethod
    def of(cls, trainer: Trainer, state: Any = None) -> "State":
        image = image_of(trainer, state)
        return cls(digest(image), digest(image, leaving_out="/metrics/loggers"))


@dataclass(frozen=True)
class Scene:
    """A run that was stopped, and the states it saved, by env step."""

    folder: Path
    config: dict[str, Any]
    saved: dict[int, State]

    @property
    def checkpoints(self) -> list[Path]:
        """Newest first."""
        found = (self.folder / "ckpt").glob("step-*")
        return sorted(found, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)

    @property
    def newest(self) -> State:
        return self.saved[int(self.checkpoints[0].name.removeprefix("step-"))]

    @property
    def previous(self) -> State:
        return self.saved[int(self.checkpoints[1].name.removeprefix("step-"))]


def make_scene(folder: Path, *overrides: str) -> Scene:
    """Train until SIGTERM at step 750: checkpoints of steps 600 and 750 stay."""
    config = compose(*SHORT, *overrides)
    _import_targets(config)  # here, once, and not in every child
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        importlib.import_module("torchsnapshot")
    folder.mkdir(parents=True)
    (folder / ".the-run").touch()
    ended = in_child(lambda: _train_and_remember(folder, overrides))
    assert ended.code == 0, ended.output
    scene = Scene(folder, config, ended.result)
    assert len(scene.checkpoints) == 2, ended.output
    return scene


def _import_targets(tree: Any) -> None:
    if isinstance(tree, dict):
        if "_target_" in tree:
            resolve_target(tree["_target_"])
        for part in tree.values():
            _import_targets(part)


def _train_and_remember(folder: Path, overrides: tuple[str, ...]) -> dict[int, State]:
    saved: dict[int, State] = {}
    state_dict, write_row = Trainer.state_dict, Metrics.write_row

    def remember(trainer: Trainer) -> Any:
        state = state_dict(trainer)
        saved[trainer.progress.env_steps] = State.of(trainer, state)
        return state

    def stop_in_time(metrics: Metrics, progress: Any, extra: Any = None) -> Any:
        if progress.env_steps >= STEPS_BEFORE_THE_END:
            signal.raise_signal(signal.SIGTERM)
        return write_row(metrics, progress, extra)

    Trainer.state_dict, Metrics.write_row = remember, stop_in_time  # type: ignore[method-assign]
    assert main([*SHORT_RUN, *SHORT, *overrides, f"hydra.run.dir={folder}"]) == 75
    return saved


class _Looked(BaseException):
    """Ends a resumed run at its first batch, with the state it goes on from."""


def _look(trainer: Trainer) -> Any:
    raise _Looked(State.of(trainer))


def _until_first_batch(work: Callable[[], int]) -> State:
    """The state that a run has at its first batch."""
    Trainer.train = _look  # type: ignore[method-assign]
    try:
        code = work()
    except _Looked as looked:
        return looked.args[0]
    raise SystemExit(code)


def resume(config: dict[str, Any], folder: Path, prepare: Callable[[], Any] = lambda: None) -> Ended:
    """Go on with the run in ``folder`` up to the first batch; the result is the state it would go on from."""

    def work() -> int:
        prepare()
        return run_experiment(config, folder, resume=True, algo="dqn", env="cartpole").exit_code

    return in_child(lambda: _until_first_batch(work))


def resume_by_command(folder: Path, *typed: str) -> Ended:
    """The same by ``run.py resume=<folder>``, with all that it reads."""

    def work() -> int:
        os.chdir(folder.parent)
        return main([f"resume={folder.name}", *typed])

    return in_child(lambda: _until_first_batch(work))


def drop_privileges() -> None:
    """Let go of root's right to read what nobody may read, and of all others; root's own files stay root's."""
    version_and_pid, no_capabilities = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(version_and_pid, no_capabilities):
        raise OSError(ctypes.get_errno(), "capset")


def damaged_copy(scene: Scene, damage: Damage, place: Path) -> Path:
    """A copy of the run's folder with that damage done to it; ``NotApplicable`` where it would change nothing."""
    run = place / "run"
    for path in (run, place / "run-outside"):
        remove(path)
    shutil.copytree(scene.folder, run, symlinks=True)
    damage.apply(run)
    return run


GOOD = ("fell back", "refused", "told", "harmless")
BAD = ("silent", "lost", "unclear", "touched")


def judge(
    scene: Scene, damage: Damage, run: Path, is_spared: bool = True, resumed: Callable[[], Ended] | None = None
) -> tuple[str, Ended]:
    """Resume a damaged run and say what became of it.

    Args:
        is_spared: whether a checkpoint is certainly left to fall back to.
        resumed: how to resume it, if not as usual.
    """
    before = files_under(run / "ckpt")
    ended = resumed() if resumed else resume(scene.config, run)
    if files_under(run / "ckpt") != before:
        return "touched", ended
    if ended.code == 0 and ended.result == scene.newest:
        return "harmless", ended
    if ended.code == 0 and ended.result != scene.previous:
        return "silent", ended
    if ended.code != 0 and (is_spared or ended.code not in (2, 3)):
        return "lost", ended
    told = is_told(damage, ended.output) and "Traceback" not in ended.output
    if ended.code != 0:
        return ("refused" if told and len(lines_of(ended)) == 1 else "unclear"), ended
    return ("fell back" if told else "silent"), ended


def lines_of(ended: Ended) -> list[str]:
    """What was printed, without warnings."""
    return [line for line in ended.output.splitlines() if not line.startswith(("warning: ", "go on "))]


def is_told(damage: Damage, output: str) -> bool:
    """Whether one line names the damaged checkpoint and, where it is a file that is damaged, that file."""
    return any(
        all(name in line for name in damage.names) and (not damage.files or any(name in line for name in damage.files))
        for line in output.splitlines()
    )


@dataclass
class Table:
    """What became of damages, by kind."""

    title: str
    rows: dict[str, dict[str, int]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def add(self, damage: Damage, verdict: str, ended: Ended) -> None:
        row = self.rows.setdefault(damage.kind, dict.fromkeys((*GOOD, *BAD), 0))
        row[verdict] += 1
        if verdict in BAD:
            self.wrong.append(f"{verdict}: {damage}: exit {ended.code}: {ended.output.strip()[-600:]}")

    def count(self, *verdicts: str) -> int:
        return sum(row[verdict] for row in self.rows.values() for verdict in verdicts or (*GOOD, *BAD))

    def __str__(self) -> str:
        heads = ("damages", "detected", *GOOD, *BAD)
        lines = [f"{self.title:<44}" + "".join(f"{head:>11}" for head in heads)]
        for kind, row in sorted(self.rows.items()):
            lines.append(self._line(kind, row))
        total = {verdict: self.count(verdict) for verdict in (*GOOD, *BAD)}
        return "\n".join([*lines, self._line("all", total)])

    @staticmethod
    def _line(kind: str, row: dict[str, int]) -> str:
        numbers = (sum(row.values()), row["fell back"] + row["refused"] + row["told"], *row.values())
        return f"{kind:<44}" + "".join(f"{number:>11}" for number in numbers)


def run_campaign(scene: Scene, damages: Any, table: Table, place: Path, is_spared: bool = True) -> None:
    """Do each damage to a fresh copy of the run, resume it, and put down what became of it."""
    for damage in damages:
        try:
            run = damaged_copy(scene, damage, place)
        except NotApplicable:
            continue
        table.add(damage, *judge(scene, damage, run, is_spared))
