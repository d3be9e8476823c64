"""What the folders of checkpoints are called, and which of them is the newest."""

import os
import re
import shutil
from pathlib import Path
from typing import NamedTuple

from runner.checkpoint.manifest import DamagedError, read_manifest

NAME = re.compile(r"step-(0|[1-9]\d{0,18})(?:\.r([1-9]\d{0,5}))?", re.ASCII)
TEMPORARY = re.compile(r"step-.*\.tmp-(\d+)-[0-9a-f]+", re.ASCII)


class Age(NamedTuple):
    """A checkpoint's place in time; steps do not tell, where a second run was started in the same folder."""

    is_unreadable: bool
    sequence: int
    step: int
    repeat: int


def remove(path: Path) -> None:
    """Remove a folder, or whatever lies in its place; ``rmtree`` would wait for ever for a pipe."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def age_of(folder: Path, sequence: int | None = None) -> Age:
    """The place in time of the checkpoint ``folder``, as its manifest says if no ``sequence`` is given."""
    step, repeat = NAME.fullmatch(folder.name).groups("0")  # type: ignore[union-attr]
    try:
        found = read_manifest(folder)["sequence"] if sequence is None else sequence
        return Age(False, int(found), int(step), int(repeat))
    except (DamagedError, OSError):
        return Age(True, 0, int(step), int(repeat))


def is_alive(pid: int) -> bool:
    """Whether there is such a process on this host."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
