"""The command line, split into Hydra's flags and overrides."""

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra

from runner.config.report import COMMAND_LINE, Problem, Rejected, did_you_mean, nearest

FLAGS = ("--help", "--multirun", "--config-dir", "--config-name", "--cfg", "--info", "--hydra-help")
ALL_FLAGS = "see python run.py --help"


@dataclass(frozen=True)
class Arguments:
    """What was typed. ``passes_through`` marks the flags that are Hydra's own business."""

    overrides: tuple[str, ...] = ()
    config_dir: Path | None = None
    config_name: str = "config"
    multirun: bool = False
    help: bool = False
    passes_through: bool = False


def parse_arguments(argv: Sequence[str]) -> Arguments:
    """Read the command line; raises ``Rejected`` for flags that do not exist."""
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise Rejected([_flag_problem(argv, message)])

    parser.error = refuse  # type: ignore[method-assign]
    found = parser.parse_intermixed_args(list(argv))
    for flag, value in (("--config-path", found.config_path), ("--experimental-rerun", found.experimental_rerun)):
        if value is not None:
            raise Rejected([Problem(flag, COMMAND_LINE, "is not supported", "--config-dir adds a folder of configs")])
    return Arguments(
        overrides=tuple(found.overrides),
        config_dir=_folder(found.config_dir),
        config_name=found.config_name or "config",
        multirun=found.multirun,
        help=found.help,
        passes_through=bool(found.hydra_help or found.cfg or found.info is not None or found.shell_completion),
    )


@contextmanager
def command_line(argv: Sequence[str]) -> Iterator[None]:
    """Hydra reads ``sys.argv`` itself: put ``argv`` there for a while."""
    before = sys.argv
    sys.argv = [before[0], *argv]
    try:
        yield
    finally:
        sys.argv = before
        GlobalHydra.instance().clear()


def _folder(typed: str | None) -> Path | None:
    if typed == "":
        raise Rejected([Problem("--config-dir=", COMMAND_LINE, "expected a folder of configs")])
    return None if typed is None else Path(typed)


def _flag_problem(argv: Sequence[str], message: str) -> Problem:
    flags = [text for text in argv if text.startswith("-") and (text in message or re.match(r"-\w[\w.]+=", text))]
    if not flags:
        return Problem("arguments", COMMAND_LINE, message, ALL_FLAGS)
    name, _, value = flags[0].lstrip("-").partition("=")
    if not value and len(name) > 1 and (guess := nearest(f"--{name}", FLAGS)):
        return Problem(flags[0], COMMAND_LINE, "there is no such flag", did_you_mean(guess))
    hint = f"settings are written without dashes: {name}={value or '...'}" if len(name) > 1 else ALL_FLAGS
    return Problem(flags[0], COMMAND_LINE, "there is no such flag", hint)
