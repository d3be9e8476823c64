"""Resumes hostile run folders, each in a forked child of a warm process: watched by an audit hook, timed, weighed."""

import contextlib
import gc
import importlib
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torchsnapshot  # noqa: F401  (children find it warm)
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton

from runner.config import jobs  # noqa: F401  (children find it warm)
from runner.config.arguments import parse_arguments
from runner.config.check import check
from runner.config.main import main
from runner.loggers.mlflow_client import prepare
from tests.campaign.hostile_watch import Known, Watch

RUN = "run"
STEPS = 300
SHORT = (
    f"total_frames={STEPS}", "source.warmup=100", "source.capacity=100", "source.batch_size=4", "network.hidden=[4]",
    "collector.frames_per_batch=10", "evaluation.every.env_steps=1000", "evaluation.episodes=1",
    "evaluation.final_episodes=1", "log_every.env_steps=100", "checkpoint.every.env_steps=100", "tuned=null",
    f"hydra.run.dir={RUN}",
)  # fmt: skip
MORE = f"total_frames={STEPS + 10}"
LIMIT_SECONDS = 60
LIMIT_CPU_SECONDS = 20
POLL_SECONDS = 0.005
ALLOWANCE_BYTES = 192 * 2**20
"""What a resume may take besides twice its checkpoints: parsed JSON, libraries' first use, parts of the run itself."""
MOST_MEMORY_BYTES = 4 * 2**30
ALSO = (
    "encodings.utf_8_sig", "encodings.cp437", "encodings.utf_16", "encodings.utf_32", "encodings.unicode_escape",
    "encodings.raw_unicode_escape", "encodings.idna", "encodings.punycode", "netrc", "IPython", "dbruntime",
    "dbruntime.databricks_repl_context", "mlflow.tracking.request_header", "mlflow.tracking.request_header.registry",
    "mlflow.tracking.request_header.abstract_request_header_provider",
    "mlflow.tracking.request_header.databricks_request_header_provider",
    "mlflow.tracking.request_header.default_request_header_provider",
)  # fmt: skip
"""Modules that may be imported besides: Python's for odd files, and what MLflow looks for to talk to a server."""
MLFLOW, MEMMAP = "mlflow", "memmap"
ADDRESS = "logger.mlflow.tracking_uri="
NO_SERVER = "http://127.0.0.1:9"
SECRET = "secret"
CANARY = "executed"


@dataclass(frozen=True)
class Payload:
    """One way to spoil a run's folder. ``apply`` is given a copy of it, which lies in the working directory.

    Args:
        argv: what is typed besides ``resume=``, or besides ``sync=`` for the runs with ``mlflow``.
        expect: outcomes that are right: ``refused``, ``fell back``, ``harmless``.
        template: which stored run is spoilt: written by ``torchsnapshot`` or by ``torch``, one with replay rows in
            files (``memmap``), or one with rows that ``mlflow`` did not get, which are then sent.
        is_inside: whether the shell is in the run's folder.
        addresses: what the command line allows to connect to.
    """

    kind: str
    name: str
    apply: Callable[[Path], Any]
    argv: tuple[str, ...] = ()
    expect: tuple[str, ...] = ("refused", "fell back", "harmless")
    template: str = "torchsnapshot"
    is_inside: bool = False
    addresses: tuple[tuple[str, int], ...] = ()

    def command(self) -> list[str]:
        folder = "." if self.is_inside else RUN
        if self.template != MLFLOW:
            return [f"resume={folder}", MORE, *self.argv]
        elsewhere = any(word.startswith(ADDRESS) for word in self.argv)
        return [f"sync={folder}", *self.argv, *([] if elsewhere else [f"{ADDRESS}sqlite:///outputs/mlflow.db"])]


@dataclass
class Outcome:
    """What became of one resume: what it should not have done is in ``events``, ``faults`` is anything else amiss."""

    payload: Payload
    result: str = ""
    code: int = 0
    seconds: float = 0.0
    memory_bytes: int = 0
    events: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    said: str = ""

    def __str__(self) -> str:
        name = f"{self.payload.kind}: {self.payload.name}"
        figures = f"{self.result}, exit {self.code}, {self.seconds:.1f} s, {self.memory_bytes / 2**20:.0f} MiB"
        return "\n    ".join([f"{name} ({figures})", *self.events[:4], *self.faults, *self.said.splitlines()[-4:]])


class Arena:
    """A warm process with stored runs to spoil. ``attack`` resumes a spoilt copy."""

    def __init__(self, folder: Path, templates: Sequence[str] = ("torchsnapshot", "torch", MEMMAP, MLFLOW)) -> None:
        self.folder = folder
        self.known = Known()
        torch.set_num_threads(1)
        if MLFLOW in templates:
            prepare(with_database=True)  # as every process of ours imports MLflow, told not to talk
        self._templates = {name: self._make(name) for name in templates}
        for name in templates:
            self._learn(name)
        gc.collect()
        gc.freeze()

    def _make(self, name: str) -> Path:
        """Train a short run, elsewhere, and keep its working directory."""
        work = self.folder / f"template-{name}"
        work.mkdir(parents=True)
        more = ["logger=csv", f"+checkpoint.backend={'torch' if name == 'torch' else 'torchsnapshot'}"]
        if name == MEMMAP:
            more = ["logger=csv", "source.storage=memmap"]
        if name == MLFLOW:
            more = [f"{ADDRESS}{NO_SERVER}"]
        with _in(work):
            check(parse_arguments([*SHORT, *more]))  # read here, signatures need not be read in every child
        code, _ = self._fork(work, [*SHORT, *more], None)
        assert code == 0, (work / "out.txt").read_text()
        return work

    def _learn(self, name: str) -> None:
        """Find out what is right to do; what is imported for it is imported here, so that children need not."""
        work = self._copy(name)
        plain = Payload("plain", "nothing", lambda run: None, template=name)
        code, report = self._fork(work, plain.command(), Watch([work], self.known, learning=True))
        assert code == 0, (work / "out.txt").read_text()
        assert report is not None
        self.known.pieces |= set(report["pieces"])
        self.known.modules |= {*report["modules"], *ALSO}
        for module in (*report["modules"], *ALSO):
            with contextlib.suppress(Exception):
                importlib.import_module(module)
        if name == MLFLOW:  # the database is there now, as on most days
            shutil.copytree(work / "outputs", self._templates[name] / "outputs")

    def _copy(self, name: str) -> Path:
        work = Path(tempfile.mkdtemp(dir=self.folder, prefix="case-"))
        shutil.copytree(self._templates[name] / RUN, work / RUN)
        if (outputs := self._templates[name] / "outputs").exists():
            shutil.copytree(outputs, work / "outputs")
        (work / SECRET).mkdir()
        (work / SECRET / "bashrc").write_text("# nothing here yet\n")
        return work

    def attack(self, payload: Payload, run: Callable[[list[str]], int] = main) -> Outcome:
        """Spoil a copy of the payload's template, resume it with ``run``, and judge what happened."""
        outcome = Outcome(payload)
        work = self._copy(payload.template)
        try:
            with _in(work):
                payload.apply(Path(RUN))
            before, sized = self._outside(work), _size_of(work / RUN)
            writable = [work / RUN, work / "outputs" / "mlflow.db"]
            secret = [work / SECRET, Path("/etc/passwd")]
            watch = Watch(writable, self.known, secret, payload.addresses)
            start = time.monotonic()
            outcome.code, report = self._fork(work, payload.command(), watch, run, payload.is_inside)
            outcome.seconds = time.monotonic() - start
            self._judge(outcome, report, work, sized)
            if (after := self._outside(work)) != before:
                outcome.events.append(f"files outside the run changed: {sorted(set(after) ^ set(before))}")
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return outcome

    def _outside(self, work: Path) -> list[tuple[str, int, int]]:
        """Every file beside the run's folder, and when it changed."""
        names = [*work.glob("*"), *(work / SECRET).glob("*")]
        skipped = (RUN, "outputs", "out.txt", "tmp")
        return sorted((path.name, os.lstat(path).st_mtime_ns, os.lstat(path).st_size)
                      for path in names if path.name not in skipped)  # fmt: skip

    def _judge(self, outcome: Outcome, report: dict[str, Any] | None, work: Path, size: int) -> None:
        text = outcome.said = (work / "out.txt").read_text(errors="backslashreplace")
        log = work / RUN / "run.log"
        logged = log.read_text(errors="replace") if log.is_file() and not log.is_symlink() else ""
        if report is None:
            outcome.faults.append("took too long, or too much, or died")
        else:
            outcome.events += report["events"]
            outcome.memory_bytes = report["memory_bytes"]
        went_back = "is not used" in logged.rpartition("going on from")[0][-20_000:]
        refusals = (1, 2, 3) if outcome.payload.template == MLFLOW else (2, 3)
        done = {0: "fell back" if went_back else "harmless"} | dict.fromkeys(refusals, "refused")
        outcome.result = done.get(outcome.code, "crashed")
        if outcome.result not in outcome.payload.expect:
            outcome.faults.append(f"expected {' or '.join(outcome.payload.expect)}")
        if outcome.memory_bytes > 2 * size + ALLOWANCE_BYTES:
            outcome.faults.append(f"{outcome.memory_bytes / 2**20:.0f} MiB for {size / 2**20:.1f} MiB of files")
        outcome.faults += list(_unclear(text, outcome.result))

    def _fork(
        self,
        work: Path,
        argv: list[str],
        watch: Watch | None,
        run: Callable[[list[str]], int] = main,
        is_inside: bool = False,
    ) -> tuple[int, dict[str, Any] | None]:
        """The exit code and the report of ``run(argv)`` in a child; no report where it had to be killed."""
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            try:
                _child(work, argv, watch, run, writing, is_inside)
            finally:
                os._exit(99)  # whatever became of it, there is only one pytest
        os.close(writing)
        return _wait(pid, reading, LIMIT_SECONDS if watch is not None and not watch.learning else 120)


def _child(
    work: Path, argv: list[str], watch: Watch | None, run: Callable[[list[str]], int], pipe: int, is_inside: bool
) -> None:
    (work / "tmp").mkdir(exist_ok=True)
    os.environ |= {"HOME": str(work / "tmp"), "TMPDIR": str(work / "tmp")}
    tempfile.tempdir = None
    os.chdir(work / RUN if is_inside else work)
    with open(work / "out.txt", "w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)  # not pytest's
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if watch is not None and not watch.learning:
        resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_CPU_SECONDS, LIMIT_CPU_SECONDS))
    Singleton._instances.pop(Plugins, None)  # as in a new process, Hydra looks for plugins
    Path("/proc/self/clear_refs").write_text("5")
    before = _memory("VmRSS")
    if watch is not None:
        watch.install()
    code = 99
    try:
        code = run(argv)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    report: dict[str, Any] = {"memory_bytes": _memory("VmHWM") - before}
    if watch is not None:
        report |= {"events": list(watch.seen)}
        if watch.learning:
            report |= {"pieces": sorted(watch.known.pieces), "modules": sorted({*sys.modules, *watch.known.modules})}
    with open(pipe, "w") as file:
        json.dump(report, file)
    os._exit(code)


def _wait(pid: int, reading: int, limit_seconds: float) -> tuple[int, dict[str, Any] | None]:
    killed, polls = False, 0
    with open(reading, "rb", buffering=0) as pipe:
        os.set_blocking(reading, False)
        raw = b""
        while True:
            raw += pipe.read() or b""
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                raw += pipe.read() or b""
                break
            polls += 1  # and not a clock, which would go on where both processes are stopped for a while
            if not killed and (polls * POLL_SECONDS > limit_seconds or _memory("VmHWM", pid) > MOST_MEMORY_BYTES):
                os.kill(pid, signal.SIGKILL)
                killed = True
            time.sleep(POLL_SECONDS)
    return os.waitstatus_to_exitcode(status), json.loads(raw) if raw and not killed else None


def _memory(name: str, pid: int | str = "self") -> int:
    try:
        match = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(match[1]) * 1024 if match else 0


def _unclear(text: str, result: str) -> Iterator[str]:
    """What a person would not understand, or should not be shown."""
    if "Traceback" in text:
        yield "a traceback"
    if any(not character.isprintable() and character != "\n" for character in text):
        yield "characters that are not for reading"
    lines = [line for line in text.splitlines() if not line.startswith("note: ")]
    most = 30 if "mistakes in the configuration" in text else 4
    if result == "refused" and not (0 < len(lines) <= most and max(map(len, lines)) < 2500):
        yield f"{len(lines)} lines, the longest of {max(map(len, lines), default=0)} characters"


def _size_of(folder: Path) -> int:
    size = 0
    for entry in _entries(folder):
        with contextlib.suppress(OSError):  # too deep
            size += entry.stat(follow_symlinks=False).st_size
    return size


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    with contextlib.suppress(OSError):  # too deep, or not for reading
        for entry in os.scandir(folder):
            yield entry
            if entry.is_dir(follow_symlinks=False):
                yield from _entries(Path(entry.path))


@contextlib.contextmanager
def _in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
