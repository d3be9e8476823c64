"""Pushes files and folders to the disk, so that they outlive a power cut."""

import os
from pathlib import Path

from runner.checkpoint.manifest import MANIFEST, list_files


def make_folder(path: Path) -> None:
    """Make ``path`` where it is missing; its entry in the folder above is as safe as what will be in it."""
    if not path.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        sync(path.parent)


def sync_tree(folder: Path) -> None:
    """Push every file and folder under ``folder`` to the disk, its manifest and itself last."""
    files = sorted(list_files(folder), key=lambda name: name == MANIFEST)
    inside = {name[:end] for name in files for end, letter in enumerate(name) if letter == "/"}
    for name in (*files, *sorted(inside, reverse=True), ""):
        sync(folder / name)


def sync(path: Path) -> None:
    """Push one file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
