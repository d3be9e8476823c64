"""What a disk may hold after a power cut: what was pushed to it, and any part of what was not (after ALICE, OSDI 2014).

Of what a program does to files, only a sync promises anything: of a file, that its content is on the disk; of a folder,
that the names in it are. Everything since may be there or not, whatever the order; a rename is there or not as a whole.
"""

import os
import random
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tests.campaign.tracer import Call

Identity = int
"""Of a file or folder, whatever it is called; the folder that is watched is number 0."""


class Content(NamedTuple):
    """A file has this content now."""

    file: Identity
    data: bytes


class Names(NamedTuple):
    """Entries of folders that change together: ``(folder, name, what it is now)``, ``None`` for nothing."""

    entries: tuple[tuple[Identity, str, Identity | None], ...]


class Sync(NamedTuple):
    """What was done to this file, or to the names in this folder, is on the disk now."""

    what: Identity


Step = Content | Names | Sync


@dataclass
class Tree:
    """Files and folders as they are: content by file, names by folder."""

    files: dict[Identity, bytes] = field(default_factory=dict)
    folders: dict[Identity, dict[str, Identity]] = field(default_factory=lambda: {0: {}})

    def copy(self) -> "Tree":
        return Tree(dict(self.files), {folder: dict(names) for folder, names in self.folders.items()})

    def apply(self, step: Step) -> None:
        if isinstance(step, Content):
            self.files[step.file] = step.data
        elif isinstance(step, Names):
            for folder, name, what in step.entries:
                names = self.folders.setdefault(folder, {})
                if what is None:
                    names.pop(name, None)
                else:
                    names[name] = what

    def write(self, to: Path, folder: Identity = 0) -> None:
        """Make real files and folders like these."""
        to.mkdir()
        for name, what in self.folders[folder].items():
            if what in self.folders:
                self.write(to / name, what)
            else:
                (to / name).write_bytes(self.files.get(what, b""))


class Recorder:
    """Notes, by looking at a folder after each call of a traced process, what has been done to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.steps: list[Step] = []
        self.now = Tree()
        self._known: dict[tuple[int, int], Identity] = {}
        self._count = 0
        self._look()
        self.before = self.now.copy()
        self.steps.clear()

    def __call__(self, call: Call) -> bool:
        if call.is_done:
            self._look()
            if "sync" in call.name and (what := self._identity(Path(call.path))) is not None:
                self.steps.append(Sync(what))
        return True

    def _look(self) -> None:
        seen, known = Tree(), {}
        for path, status in _walk(self.folder):
            key = status.st_dev, status.st_ino
            if key not in known:
                known[key] = self._known.get(key) or self._new()
            parent = self._identity_in(known, path.parent)
            seen.folders[parent][path.name] = known[key]
            if stat.S_ISDIR(status.st_mode):
                seen.folders[known[key]] = {}
            else:
                seen.files[known[key]] = _read(path)
        self._known = known
        for step in _difference(self.now, seen):
            self.steps.append(step)
            self.now.apply(step)
        self.now = seen

    def _new(self) -> Identity:
        self._count += 1
        return self._count

    def _identity_in(self, known: dict[tuple[int, int], Identity], path: Path) -> Identity:
        status = os.stat(path)
        return 0 if path == self.folder else known[status.st_dev, status.st_ino]

    def _identity(self, path: Path) -> Identity | None:
        try:
            return self._identity_in(self._known, path)
        except (OSError, KeyError):
            return None


def _walk(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for path in sorted(folder.rglob("*")):
        try:
            yield path, path.lstat()
        except FileNotFoundError:
            continue


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _difference(old: Tree, new: Tree) -> Iterator[Step]:
    for file, data in new.files.items():
        if old.files.get(file, b"") != data:
            yield Content(file, data)
    entries = []
    for folder in old.folders.keys() | new.folders.keys():
        was, names = old.folders.get(folder, {}), new.folders.get(folder, {})
        entries += [
            (folder, name, names.get(name)) for name in was.keys() | names.keys() if was.get(name) != names.get(name)
        ]
    if entries:
        yield Names(tuple(entries))


def crash_states(recorder: Recorder, count: int, draw: random.Random) -> Iterator[tuple[str, Tree]]:
    """``count`` states that a power cut may leave, each with words that say how it came about."""
    steps = recorder.steps
    for number in range(count):
        cut = (len(steps), len(steps) * (number + 1) // count, draw.randint(0, len(steps)))[number % 3]
        share = draw.choice((0.0, 0.5, 0.9))
        loose = [index for index in range(cut) if not _is_synced(steps, index, cut)]
        lost = {index for index in loose if draw.random() >= share}
        tree = recorder.before.copy()
        for index, step in enumerate(steps[:cut]):
            if index not in lost:
                tree.apply(step)
            elif isinstance(step, Content) and draw.random() < 0.5:  # torn: a part of it, or blocks of zeros
                tree.apply(step._replace(data=_torn(step.data, tree.files.get(step.file, b""), draw)))
        yield f"{cut} of {len(steps)} steps, without {sorted(lost)}", tree


def _is_synced(steps: list[Step], index: int, cut: int) -> bool:
    step = steps[index]
    if isinstance(step, Sync):
        return True
    needed = {step.file} if isinstance(step, Content) else {folder for folder, _, _ in step.entries}
    later = {one.what for one in steps[index:cut] if isinstance(one, Sync)}
    return bool(needed & later) if isinstance(step, Names) else needed <= later


def _torn(data: bytes, before: bytes, draw: random.Random) -> bytes:
    """A part of what was written; where the file has grown, what is missing may be zeros. What was there stays."""
    pairs = enumerate(zip(data, before, strict=False))
    same = next((index for index, (new, old) in pairs if new != old), min(len(data), len(before)))
    at = draw.randint(same, len(data))
    rest = before[at:]
    return data[:at] + (rest if draw.random() < 0.5 else rest + bytes(len(data) - at - len(rest)))
