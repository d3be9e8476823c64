"""The command line: help, then every check that needs no torch, and only then the run."""

import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import hydra

from runner.config.arguments import Arguments, command_line, parse_arguments
from runner.config.check import Checked, check, extend_import_path
from runner.config.composer import HYDRA_VERSION_BASE, Composer
from runner.config.folder import split_checkpoint
from runner.config.help import help_text
from runner.config.names import folder_of_run, folder_of_sweep, quote, run_names
from runner.config.overrides import parse_overrides
from runner.config.report import COMMAND_LINE, ENVIRONMENT, Problem, Rejected, did_you_mean, nearest, show
from runner.config.resume import resume
from runner.config.signals import end_with, read_grace_seconds, remove_if_unstarted, stop_at_once
from runner.config.sync import folder_to_sync, sync
from runner.config.targets import CONF
from runner.loggers.mlflow_process import warm_up
from runner.runs import RUN_FILE, claim_folder


def cli() -> None:
    """Run the command line of this process."""
    stop_at_once()
    exit_code = main()
    end_with(exit_code)
    sys.exit(exit_code)


def main(argv: Sequence[str] | None = None, conf: Path = CONF) -> int:
    """Do what the command line says; returns the exit code: 0 done, 1 crash, 2 config, 3 checkpoint, 75 preempted."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _main(words, conf)
    except Rejected as error:
        print(error, file=sys.stderr)
        return error.exit_code


def _main(argv: list[str], conf: Path) -> int:
    arguments = parse_arguments(argv)
    extend_import_path(arguments.config_dir)
    if arguments.help:
        print(help_text(Composer(conf, arguments.config_dir, arguments.config_name)))
        return 0
    if arguments.passes_through:
        return _pass_through(argv, arguments, conf)
    if (folder := folder_to_sync(arguments)) is not None:
        return sync(arguments, folder)
    command = shlex.join([*_program(), *argv])
    folder = _folder_to_resume(arguments, conf)
    if folder is not None:
        return _resume(arguments, folder, command, conf)
    checked = check(arguments, conf)
    for notice in checked.notices:
        print(f"note: {notice}", file=sys.stderr)
    if checked.config["explain"]:
        return _explain(checked.config)
    if checked.config["resume"] == "auto" and not arguments.multirun and (found := _find_resumable(checked.config)):
        trust = [text for text in arguments.overrides if text.startswith("trust=")]
        return _resume(_only(arguments, trust), found, command, conf)
    return _launch(arguments, checked, command, conf)


def _program() -> list[str]:
    name = sys.argv[0]
    return ["python", name] if name.endswith(".py") else [name]


def _only(arguments: Arguments, overrides: list[str]) -> Arguments:
    return Arguments(tuple(overrides), arguments.config_dir, arguments.config_name)


def _folder_to_resume(arguments: Arguments, conf: Path) -> Path | None:
    """The folder of ``resume=<folder>``, if that is typed."""
    composer = Composer(conf, arguments.config_dir, arguments.config_name)
    texts = [text for text in arguments.overrides if text.lstrip("+").startswith("resume=")]
    typed, _ = parse_overrides(texts, composer, multirun=True)
    values = [value for item in typed for value in item.values if value not in (None, "auto")]
    if values and arguments.multirun:
        raise Rejected([Problem(f"resume={values[0]}", COMMAND_LINE, "one run is resumed at a time", "leave out -m")])
    return _folder_named(values[-1]) if values else None


def _folder_named(value: Any) -> Path:
    typed = f"resume={show(value)}".replace('"', "")
    folder = Path(str(value))
    try:
        if folder.is_dir() and isinstance(value, str) and value:
            return folder
        words = "is no folder" if folder.exists() else "there is no such folder"
    except OSError:  # too long a name
        words = "there is no such folder"
    if nearest(str(value).lower(), ["auto"]):
        raise Rejected([Problem(typed, COMMAND_LINE, words, did_you_mean("resume=auto"))])
    raise Rejected([Problem(typed, COMMAND_LINE, words, "resume=auto finds the unfinished run with these settings")])


def _launch(arguments: Arguments, checked: Checked, command: str, conf: Path) -> int:
    _check_grace()  # before a folder is made
    if not arguments.multirun and (typed := _typed_folder(checked)) is not None:
        _refuse_used_folder(typed)  # before what takes long to import
    if not arguments.multirun:
        warm_up(checked.config["logger"])
    from runner.config.jobs import Jobs

    composer = Composer(conf, arguments.config_dir, arguments.config_name)
    jobs = Jobs(command, composer, conf, checked.is_typed("env.id"), arguments.multirun, checked.swept())
    jobs.total, jobs.argv = checked.count_jobs(), tuple(shlex.split(command)[len(_program()) :])
    flags = ["-m"] if arguments.multirun else []
    flags += ["--config-dir", str(arguments.config_dir)] if arguments.config_dir else []
    return jobs.launch([*flags, *_folders(arguments, checked), *checked.overrides], arguments.config_name)


def _check_grace() -> None:
    try:
        read_grace_seconds()
    except ValueError as error:
        name, _, words = str(error).rpartition(": ")
        raise Rejected([Problem(name, ENVIRONMENT, words)]) from None


def _folders(arguments: Arguments, checked: Checked) -> list[str]:
    """Overrides that give the run, or the sweep, a folder of its own."""
    algo, env = run_names(checked.choices, checked.config, checked.is_typed("env.id"))
    added = _quiet(checked)
    if not arguments.multirun:
        if (typed := _typed_folder(checked)) is not None:
            _make_unused_folder(typed)
        else:
            added.append(f"hydra.run.dir={quote(_claim(folder_of_run(algo, env, checked.config['seed'])))}")
        return added
    if not checked.is_typed("hydra.sweep.dir"):
        added.append(f"hydra.sweep.dir={quote(_claim(folder_of_sweep(algo, env)))}")
    if not checked.is_typed("hydra.sweep.subdir"):
        added.append("hydra.sweep.subdir=${hydra.job.num}-s${seed}")
    return added


def _claim(wanted: Path) -> Path:
    try:
        return remove_if_unstarted(claim_folder(wanted))
    except OSError as error:
        elsewhere = "hydra.run.dir=<folder>, or hydra.sweep.dir=<folder> for a sweep, puts it elsewhere"
        words = f"the folder cannot be made: {error.strerror}"
        raise Rejected([Problem(str(wanted), f"in {Path.cwd()}", words, elsewhere)]) from None


def _typed_folder(checked: Checked) -> str | None:
    return next((str(item.values[-1]) for item in reversed(checked.typed) if item.key == "hydra.run.dir"), None)


def _refuse_used_folder(folder: str) -> None:
    if Path(folder, RUN_FILE).exists():
        words = "there is a run in this folder already"
        raise Rejected([Problem(f"hydra.run.dir={folder}", COMMAND_LINE, words, f"resume={folder} goes on with it")])


def _make_unused_folder(folder: str) -> None:
    """A folder that is typed has to be there, or to be made, and has no run in it yet."""
    _refuse_used_folder(folder)
    if "${" in folder:  # known only to Hydra
        return
    try:
        if not Path(folder).exists():
            Path(folder).mkdir(parents=True)
            remove_if_unstarted(Path(folder))
    except OSError as error:
        words = f"the folder cannot be made: {error.strerror}"
        raise Rejected([Problem(f"hydra.run.dir={folder}", COMMAND_LINE, words)]) from None


def _quiet(checked: Checked) -> list[str]:
    """Log lines go to the run's file; the terminal is for the progress bar and the summary."""
    if any(item.key.startswith(("hydra.verbose", "hydra.job_logging", "hydra/job_logging")) for item in checked.typed):
        return []
    return ["hydra/hydra_logging=none", "hydra.job_logging.root.handlers=[file]"]


def _explain(config: dict[str, Any]) -> int:
    from runner.config.jobs import explain
    from runner.spec import HooklineError

    try:
        with suppress(BrokenPipeError):  # whoever reads it has seen enough
            print(explain(config), flush=True)
    except HooklineError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def _find_resumable(config: dict[str, Any]) -> Path | None:
    from runner.config.jobs import find_resumable

    return find_resumable(config)


def _resume(arguments: Arguments, folder: Path, command: str, conf: Path) -> int:
    folder, take = split_checkpoint(folder)
    resumed = resume(arguments, folder, conf, take)
    if resumed.config["explain"]:
        return _explain(resumed.config)
    warm_up(resumed.config["logger"])
    from runner.config.jobs import resume_run

    return resume_run(resumed, command)


def _pass_through(argv: list[str], arguments: Arguments, conf: Path) -> int:
    """Hydra's own flags; nothing runs."""
    if arguments.overrides:
        checked = check(arguments, conf)
        argv = [*(word for word in argv if word not in arguments.overrides), *checked.overrides]
    decorate = hydra.main(version_base=HYDRA_VERSION_BASE, config_path=str(conf), config_name=arguments.config_name)
    with command_line(argv):
        decorate(lambda tree: None)()
    return 0
