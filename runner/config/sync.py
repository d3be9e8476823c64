"""Sending MLflow the rows of a run that it did not get while the run went on; needs no torch."""

import sys
from pathlib import Path

from runner.config.arguments import Arguments
from runner.config.folder import check_folder
from runner.config.relations import wrong_address
from runner.config.report import COMMAND_LINE, ENVIRONMENT, Problem, Rejected
from runner.loggers.journal import JOURNAL, read_lines
from runner.loggers.mlflow_client import FOLDER, MARK, first_line
from runner.loggers.mlflow_database import address, without_password
from runner.loggers.mlflow_sender import STATUSES, Message, Opening, Sender
from runner.runs import RunFolder

KEY = "sync="
ADDRESS = "logger.mlflow.tracking_uri="


def folder_to_sync(arguments: Arguments) -> Path | None:
    """The folder of ``sync=<folder>``, if that is typed; nothing but MLflow's address may stand beside it."""
    folders = [text.removeprefix(KEY) for text in arguments.overrides if text.startswith(KEY)]
    others = [text for text in arguments.overrides if not text.startswith((KEY, ADDRESS))]
    if not folders:
        return None
    if others or arguments.multirun:
        words = f"sync=<folder> sends what is there; only {ADDRESS}... can be typed besides it"
        raise Rejected([Problem(text, COMMAND_LINE, words, "leave it out") for text in others or ["-m"]])
    if len(folders) > 1:
        words = f"one folder is sent at a time; {KEY}{folders[0]} is typed too"
        raise Rejected([Problem(f"{KEY}{folders[-1]}", COMMAND_LINE, words)])
    return Path(folders[-1])


def sync(arguments: Arguments, folder: Path) -> int:
    """Send the rows that wait in a run's folder, and the run's status; the exit code says whether all arrived."""
    typed = [text.removeprefix(ADDRESS) for text in arguments.overrides if text.startswith(ADDRESS)]
    uri = address(typed[-1] if typed else None)
    if wrong := wrong_address(uri):
        raise Rejected([Problem(uri, COMMAND_LINE if typed else ENVIRONMENT, *wrong)])
    run = _open(folder)
    try:
        if not typed:
            _check_address(run.path, uri)
        return _send(run, uri)
    finally:
        run.unlock()


def _open(folder: Path) -> RunFolder:
    try:
        check_folder(folder)
        run = RunFolder.open(folder)
        run.lock()
    except ValueError as error:
        raise Rejected([Problem(f"{KEY}{folder}", COMMAND_LINE, str(error))]) from None
    return run


def _check_address(folder: Path, uri: str) -> None:
    """Rows do not go anywhere else than they were meant for, unless that is typed; the folder chooses nothing."""
    lines = [line for line, _ in read_lines(folder / JOURNAL) if isinstance(line, dict)]
    named = [line["run"].get("uri") for line in lines if isinstance(line.get("run"), dict)]
    meant = named[-1] if named else None
    if isinstance(meant, str) and meant != without_password(uri):
        words = f"this run sent its metrics to {meant}, and this would send them to {without_password(uri)}"
        hint = f"type {ADDRESS}... to say where to"
        raise Rejected([Problem(f"{KEY}{folder}", COMMAND_LINE, words, hint)])


def _send(run: RunFolder, uri: str) -> int:
    journal = run.path / JOURNAL
    if not journal.exists():
        print("there is nothing to send: no rows of metrics wait in this folder")
        return 0
    tags = {MARK: run.record["id"], FOLDER: str(run.path)}  # a journal that was put here cannot name another run
    sender = Sender(Opening(str(journal), uri, run.mlflow_run_id, may_exist=True, tags=tags), _ignore)
    try:
        sender.send_all()
        sender.finish(STATUSES.get(run.record["status"], "KILLED"))
    except Exception as error:  # whatever the server, or the folder, made of it
        print(f"MLflow at {uri} fails ({first_line(error)}); the rows stay where they are", file=sys.stderr)
        return 1
    journal.unlink()
    print(f"sent {sender.rows} rows of metrics to MLflow at {uri}")
    return 0


def _ignore(message: Message) -> None:
    """What is told of the progress."""
