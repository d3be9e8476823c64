"""Running what was checked: one run, a resumed run, or the jobs of a sweep."""

import logging
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from runner.config.arguments import command_line
from runner.config.composer import HYDRA_VERSION_BASE, Composer
from runner.config.continued import nearly_the_same
from runner.config.experiment import PREEMPTED, NotStarted, Outcome, explain, run_experiment
from runner.config.modules import expand
from runner.config.names import OUTPUTS, run_names
from runner.config.origins import Origins
from runner.config.report import Problem, Rejected
from runner.config.resume import Resumed
from runner.config.summary import command_to, shown
from runner.config.validate import validate
from runner.loggers.files import open_regular
from runner.runs import RunFolder, config_hash, find_unfinished, remove_unstarted, unreadable_runs
from runner.spec import HooklineError
from runner.text import legible

log = logging.getLogger(__name__)
logging.getLogger("hydra").setLevel(logging.WARNING)  # hydra.verbose sets it again
logging.raiseExceptions = False  # a full disk would print a traceback for each line of run.log
logging.getLogger("torchsnapshot").setLevel(logging.WARNING)  # it writes 14 lines about every checkpoint

__all__ = ["Job", "Jobs", "explain", "resume_run"]


@dataclass
class Job:
    """One job of a sweep, and how it ended."""

    number: int
    overrides: str
    folder: Path
    status: str = "running"
    objective: float = math.nan
    exit_code: int = 0

    def row(self) -> str:
        score = "-" if math.isnan(self.objective) else f"{self.objective:.1f}"
        return f"{self.number:>4}  {self.status:<10} {score:>10}  {self.overrides or '-'}  {self.folder}"


@dataclass
class Jobs:
    """The task that Hydra calls for each job; ``done`` collects how they ended."""

    command: str
    composer: Composer
    conf: Path
    is_id_typed: bool
    is_sweep: bool
    swept: tuple[str, ...] = ()
    total: int = 0  # jobs of the sweep, where that is known
    argv: tuple[str, ...] = ()
    done: list[Job] = field(default_factory=list)

    def launch(self, argv: Sequence[str], config_name: str) -> int:
        """Let Hydra run everything; returns the exit code."""
        decorate = hydra.main(version_base=HYDRA_VERSION_BASE, config_path=str(self.conf), config_name=config_name)
        try:
            with command_line(argv):
                decorate(self.task)()
        except SystemExit as ended:  # a preempted job, or a launcher that Hydra gave up on
            if self.is_sweep:
                self._print_table()
                self._print_rest()
            return ended.code if isinstance(ended.code, int) else 1
        if self.is_sweep:
            self._print_table()
            return int(any(job.exit_code for job in self.done))
        return self.done[0].exit_code

    def task(self, tree: DictConfig) -> float:
        """Run one job; the objective, or nan where the job failed."""
        job = self._describe()
        self.done.append(job)
        if self.is_sweep:
            print(f"job {job.number}: {job.overrides}", file=sys.stderr, flush=True)
        try:
            outcome = self._run(tree, job)
            job.status, job.objective, job.exit_code = outcome.status, outcome.objective, outcome.exit_code
        except Exception as error:  # the other jobs of a sweep still run
            job.status, job.exit_code = "failed", getattr(error, "exit_code", 1)
            report_failure(error, job, self.is_sweep)
            if isinstance(error, NotStarted) and not self.is_sweep:
                remove_unstarted(job.folder)
        if self.is_sweep and job.exit_code == PREEMPTED:
            raise SystemExit(PREEMPTED)
        return job.objective

    def _describe(self) -> Job:
        settings = HydraConfig.get()
        number = int(settings.job.num) if self.is_sweep else 0
        typed = [text for text in settings.overrides.task if not text.startswith("~")]
        own = [text for text in typed if text.partition("=")[0].lstrip("+") in self.swept] or typed
        return Job(number, " ".join(own), shown(Path(settings.runtime.output_dir)))

    def _run(self, tree: DictConfig, job: Job) -> Outcome:
        job.folder.joinpath("command.txt").write_text(f"{self.command}\n")
        config, problems = validate(tree, Origins(), self.composer.groups())
        if problems:
            raise NotStarted("; ".join(map(str, problems)))
        algo, env = run_names(HydraConfig.get().runtime.choices, config, self.is_id_typed)
        if config["resume"] == "auto" and (folder := find_resumable(config, is_told=not self.is_sweep)):
            log.info("going on in %s", folder)
            job.folder = folder
            return run_experiment(config, folder, resume=True, algo=algo, env=env)
        keep = partial(_store_modules, tree) if config["modules"] else lambda run: None
        return run_experiment(config, job.folder, resume=False, algo=algo, env=env, on_start=keep)

    def _print_rest(self) -> None:
        """After an interruption: what was not even begun, and what to type to go on."""
        left = self.total - len(self.done)
        if left > 0:
            jobs = f"job {self.total - 1}" if left == 1 else f"jobs {len(self.done)} to {self.total - 1}"
            print(f"not started {jobs}, of {self.total}", flush=True)
        words = [word for word in self.argv if not word.startswith("resume=")]
        again = "  (jobs that are done are run again)" if any(job.status == "done" for job in self.done) else ""
        print(f"go on       {command_to(*words, 'resume=auto')}{again}", flush=True)

    def _print_table(self) -> None:
        rows = [f"{'job':>4}  {'status':<10} {'return':>10}  overrides  folder", *(job.row() for job in self.done)]
        print("\n".join(rows), flush=True)


def _store_modules(tree: DictConfig, run: RunFolder) -> None:
    """Show each module in full in the stored configuration, where all that was typed of it can be found again."""
    run.store_config(OmegaConf.to_yaml(expand(tree)))


def find_resumable(config: dict[str, Any], is_told: bool = False) -> Path | None:
    """The one unfinished run with this configuration; raises ``Rejected`` where there are several.

    Where there is none this is said, unless it was before: ``is_told``.
    """
    found = find_unfinished(OUTPUTS, config_hash(config))
    if len(found) > 1:
        listed = ", ".join(map(str, found))
        raise Rejected([Problem("resume=auto", "command line", f"{len(found)} unfinished runs fit: {listed}",
                                "choose one with resume=<folder>")])  # fmt: skip
    if found or is_told:
        return found[0] if found else None
    for line in unreadable_runs(OUTPUTS):
        print(f"note: resume=auto passes over a run: {line}", file=sys.stderr, flush=True)
    other = nearly_the_same(OUTPUTS, config)
    words = "resume=auto finds no unfinished run with these settings, a new one begins"
    print(f"note: {words}{f'; {other}' if other else ''}", file=sys.stderr, flush=True)
    return None


def report_failure(error: Exception, job: Job, is_sweep: bool) -> None:
    """One line for the user; the traceback of what explains itself badly goes to the log."""
    if not isinstance(error, HooklineError | Rejected):
        log.error("the run failed", exc_info=error)
    line = legible(_words_of(error), most=2000)
    where = "nothing was started" if isinstance(error, NotStarted) else f"log: {job.folder / 'run.log'}"
    line = f"{line}; {where}"
    message = f"job {job.number} ({job.overrides}) failed: {line}" if is_sweep else line
    print(message, file=sys.stderr, flush=True)
    if go_on := getattr(error, "go_on", ""):
        print(go_on, file=sys.stderr, flush=True)


def _words_of(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error) if isinstance(error, HooklineError | Rejected) else f"{type(error).__name__}: {error}"


def resume_run(resumed: Resumed, command: str) -> int:
    """Go on in the run's own folder; returns the exit code."""
    job = Job(0, "", resumed.folder)

    def keep(run: RunFolder) -> None:
        """What was typed holds from now on, once the run has taken it."""
        for line in resumed.changes:
            log.info("changed on resume: %s", line)
        resumed.store(run)
        with _appending(resumed.folder / "command.txt") as file:
            file.write(f"{command}\n")

    with _appending(resumed.folder / "run.log") as file, _logging_to(file):
        try:
            more: dict[str, Any] = {"resume": True, "on_start": keep, "take": resumed.take}
            return run_experiment(resumed.config, resumed.folder, **more).exit_code
        except Exception as error:
            report_failure(error, job, is_sweep=False)
            return int(getattr(error, "exit_code", 1))


def _appending(path: Path) -> TextIO:
    """A file of the run's folder that is written for people; where it cannot be, a note says so and that is all."""
    try:
        return open(open_regular(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "a", encoding="utf-8")
    except OSError as error:
        print(f"note: {path} cannot be written: {error.strerror or error}", file=sys.stderr, flush=True)
        return open(os.devnull, "w")


@contextmanager
def _logging_to(file: TextIO) -> Iterator[None]:
    handler = logging.StreamHandler(file)
    handler.setFormatter(logging.Formatter("[%(asctime)s][%(name)s][%(levelname)s] - %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
