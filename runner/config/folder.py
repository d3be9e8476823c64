"""A run's folder before anything in it is read or written: nobody vouches for what lies there."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from runner.runs import CONFIG_FILE, MENDED, RUN_FILE

CHECKPOINTS = "ckpt"
"""What is in these is checked by who reads them; one that is not as it should be is passed over for the one before."""

REMOVED = "wandb"
"""What a run has in this is removed before W&B writes there again, and nobody reads it: W&B puts links into it."""


def check_folder(folder: Path) -> None:
    """Raise ``ValueError``, in one line, where going on with this run would read or write what is not in its folder.

    There may be folders, regular files, and links to what is in the folder too. A pipe would keep us waiting; what is
    added to a file would change it under all of its names.
    """
    root = Path(os.path.realpath(folder))
    if not os.path.lexists(root / RUN_FILE):  # then it is none of ours, and may hold anything
        if (root / CHECKPOINTS).is_dir() or (root / CONFIG_FILE).is_file():
            raise ValueError(f"{folder} is damaged: its {RUN_FILE} is gone; {MENDED}")
        raise ValueError(f"{folder} is not a run's folder: it has no {RUN_FILE}")
    try:
        for path, status in _entries(root):
            if reason := _reason(root, path, status):
                raise ValueError(f"{folder} cannot be gone on with: {path.relative_to(root)} {reason}")
    except OSError as error:
        raise ValueError(f"{folder} cannot be gone on with: {error.strerror} ({str(error.filename)[:200]})") from None


def _entries(root: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Everything there is but what is in checkpoints or will be removed; links are not followed."""
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        for entry in os.scandir(folder):
            path, status = Path(entry.path), entry.stat(follow_symlinks=False)
            yield path, status
            if stat.S_ISDIR(status.st_mode) and folder != root / CHECKPOINTS and path != root / REMOVED:
                waiting.append(path)


def _reason(root: Path, path: Path, status: os.stat_result) -> str | None:
    if path.parent == root / CHECKPOINTS:
        return None
    if stat.S_ISLNK(status.st_mode):
        target = os.path.realpath(path)
        if not os.path.lexists(target) or not Path(target).is_relative_to(root):
            return "is a link that leads out of it: put there what it leads to (the folder itself may be a link)"
    elif stat.S_ISREG(status.st_mode):
        if status.st_nlink > 1:
            return "is a file with other names elsewhere, which would change with it: cp -r makes a copy to go on with"
    elif not stat.S_ISDIR(status.st_mode):
        return "is neither a file nor a folder"
    return None


def split_checkpoint(folder: Path) -> tuple[Path, str | None]:
    """A run's folder and, where ``folder`` is a checkpoint in it (``<run>/ckpt/step-1000``), the name of that."""
    path = Path(os.path.abspath(folder))
    is_checkpoint = path.parent.name == CHECKPOINTS and path.name.startswith("step-")
    return (path.parent.parent, path.name) if is_checkpoint else (folder, None)
