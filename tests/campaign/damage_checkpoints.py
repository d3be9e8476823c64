"""Damage that concerns a whole checkpoint: files that change places, folders that do, and manifests that lie."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from runner.checkpoint.manifest import MANIFEST, write_manifest
from tests.campaign.damage import Damage, NotApplicable, copy_over, damages_of_file, regular_files, remove

Change = Callable[[dict[str, Any]], None]


def damages_of_files(run: Path, newest: Path, rng: Random, flips: int = 4) -> Iterator[Damage]:
    """Each kind of damage to each file of a checkpoint; one of many small files of a kind stands for the others."""
    folder = str(newest.relative_to(run))
    for name in regular_files(newest):
        yield from damages_of_file(run, folder, name, rng, flips)


def damages_of_pairs(run: Path, newest: Path, previous: Path, rng: Random, count: int) -> Iterator[Damage]:
    """Files that change places: with each other, or with another checkpoint's."""
    names, folder = regular_files(newest), newest.relative_to(run)
    for _ in range(count):
        one, other = rng.sample(names, 2)
        yield _exchange("swap two files", folder / one, folder / other, folder.name, (one, other))
        common = [name for name in names if (previous / name).exists()]
        name = rng.choice(common)
        yield _replace("put in a file of another checkpoint", previous.relative_to(run) / name, folder / name, name)
        yield _move("move a file", folder / one, folder / rng.choice(["elsewhere", "payload/elsewhere"]), one)
        yield _mix(run, newest, previous, rng.randrange(2**32))


def _exchange(kind: str, one: Path, other: Path, checkpoint: str, files: tuple[str, ...]) -> Damage:
    def apply(run: Path) -> None:
        if (run / one).read_bytes() == (run / other).read_bytes():
            raise NotApplicable
        (run / one).rename(run / "swapping")
        (run / other).rename(run / one)
        (run / "swapping").rename(run / other)

    return Damage(kind, f"{one} and {other}", apply, (checkpoint,), files)


def _replace(kind: str, source: Path, target: Path, name: str) -> Damage:
    def apply(run: Path) -> None:
        if (run / source).read_bytes() == (run / target).read_bytes():
            raise NotApplicable
        copy_over(run / source, run / target)

    return Damage(kind, str(target), apply, (target.parts[1],), (name,))


def _move(kind: str, source: Path, target: Path, name: str) -> Damage:
    def apply(run: Path) -> None:
        (run / source).rename(run / target)

    return Damage(kind, str(source), apply, (source.parts[1],), (name, target.name))


def _mix(run: Path, newest: Path, previous: Path, seed: int) -> Damage:
    """A checkpoint with about half of its files from another one."""
    names = regular_files(newest)

    def apply(copied: Path) -> None:
        rng, changed = Random(seed), False
        here, there = copied / newest.relative_to(run), copied / previous.relative_to(run)
        for name in rng.sample(names, len(names)):
            if (there / name).exists() and rng.random() < 0.5:
                changed |= (here / name).read_bytes() != (there / name).read_bytes()
                copy_over(there / name, here / name)
        if not changed:
            raise NotApplicable

    target = f"{newest.name} with files of {previous.name} (seed {seed})"
    return Damage("mix two checkpoints", target, apply, (newest.name,), tuple(names))


def damages_of_folders(run: Path, newest: Path, previous: Path, rng: Random) -> Iterator[Damage]:
    """What may happen to a checkpoint's folder as a whole."""
    here, there = newest.relative_to(run), previous.relative_to(run)
    steps = int(newest.name.removeprefix("step-"))
    inside = sorted({Path(name).parts[0] for name in regular_files(newest) if "/" in name})

    def folder(kind: str, apply: Callable[[Path], None], *names: str, files: tuple[str, ...] = ()) -> Damage:
        return Damage(kind, here.name, apply, names or (here.name,), files)

    for name in (f"step-{steps + 1}", f"step-{steps - 1}", "step-0", f"step-{10**18}"):
        yield folder("rename a checkpoint to another step", _renames(here, here.with_name(name)), name)
    for name in (f"{here.name}.bak", f"{here.name} (copy)", f"old-{here.name}", here.name.upper(), f"{here.name}.r0"):
        yield folder("rename a checkpoint to no step at all", _renames(here, here.with_name(name)), name)
    yield folder("rename a checkpoint to its second name", _renames(here, here.with_name(f"{here.name}.r7")))
    yield folder("copy another checkpoint over it", _copies(there, here))
    for name in (f"step-{steps + 1}", f"step-{10**18}"):
        yield folder("copy a checkpoint as a newer step", _copies(there, here.with_name(name)), name)
        yield folder("copy itself as a newer step", _copies(here, here.with_name(name)), name)
    yield folder("copy it over the older one", _copies(here, there), there.name)
    yield folder("make the checkpoint a link", _links(here))
    yield folder("make the checkpoint a file", lambda run: (remove(run / here), (run / here).write_bytes(b"x"))[0])
    yield folder("make the checkpoint a pipe", lambda run: (remove(run / here), os.mkfifo(run / here))[0])
    yield folder("empty the checkpoint", lambda run: (remove(run / here), (run / here).mkdir())[0])
    for name in inside:
        yield folder("delete a folder inside", _removes(here / name), files=(name,))
        yield folder("move a folder inside", _renames(here / name, here / "elsewhere"), files=(name, "elsewhere"))
    yield from _extras(here, inside, rng)


def _renames(source: Path, target: Path) -> Callable[[Path], None]:
    return lambda run: (run / source).rename(run / target) and None


def _copies(source: Path, target: Path) -> Callable[[Path], None]:
    return lambda run: copy_over(run / source, run / target)


def _removes(target: Path) -> Callable[[Path], None]:
    return lambda run: remove(run / target)


def _links(target: Path) -> Callable[[Path], None]:
    def apply(run: Path) -> None:
        outside = run.with_name(f"{run.name}-outside")
        outside.mkdir(exist_ok=True)
        (run / target).rename(outside / target.name)
        (run / target).symlink_to(outside / target.name)

    return apply


def _extras(checkpoint: Path, inside: list[str], rng: Random) -> Iterator[Damage]:
    """Files that nobody wrote."""
    places = [Path(), *(Path(name) for name in inside)]
    for name in ("extra", ".hidden", "manifest.json.bak", "tensors.pt.1", "core.1234", "new/deep/file"):
        place = rng.choice(places) / name

        def apply(run: Path, place: Path = place) -> None:
            (run / checkpoint / place).parent.mkdir(parents=True, exist_ok=True)
            (run / checkpoint / place).write_bytes(rng.randbytes(10))

        yield Damage("add a file", str(checkpoint / place), apply, (checkpoint.name,), (str(place),))
    yield Damage("add a pipe", str(checkpoint), lambda run: os.mkfifo(run / checkpoint / "pipe"),
                 (checkpoint.name,), ("pipe",))  # fmt: skip
    yield Damage("add a link", str(checkpoint), lambda run: (run / checkpoint / "link").symlink_to("/"),
                 (checkpoint.name,), ("link",))  # fmt: skip
    yield Damage("add an empty folder", str(checkpoint), lambda run: (run / checkpoint / "none").mkdir())


def manifest_changes(manifest: dict[str, Any], rng: Random) -> Iterator[tuple[str, Change]]:
    """Edits of a manifest that contradict the rest of the checkpoint, found by what the manifest has."""
    for key, value in manifest.items():
        yield f"no {key}", lambda fields, key=key: fields.pop(key, None)
        yield f"{key} of another type", lambda fields, key=key: fields.update({key: [[]]})
        if type(value) is int:
            yield f"{key} + 1", lambda fields, key=key, value=value: fields.update({key: value + 1})
    steps = manifest["counters"]["env_steps"]
    for wrong in (steps + 1, steps - 1, -steps, float(steps), str(steps), None):
        yield f"step {wrong!r}", lambda fields, wrong=wrong: fields["counters"].update(env_steps=wrong)
    other = {"torch": "torchsnapshot", "torchsnapshot": "torch"}.get(manifest["backend"], "torch")
    for wrong in (other, "pickle", ""):
        yield f"backend {wrong!r}", lambda fields, wrong=wrong: fields.update(backend=wrong)
    yield "components turned round", lambda fields: fields["components"].reverse()
    yield "a component less", lambda fields: fields["components"].pop()
    yield "a component more", lambda fields: fields["components"].append("other")
    names = sorted(manifest["files"])
    for name in rng.sample(names, min(4, len(names))):
        yield from _entry_changes(name, manifest["files"][name])


def _entry_changes(name: str, entry: dict[str, Any]) -> Iterator[tuple[str, Change]]:
    wrong_hash = ("0" if entry["sha256"][0] != "0" else "1") + entry["sha256"][1:]
    yield "a hash", lambda fields: fields["files"][name].update(sha256=wrong_hash)
    yield "no hash", lambda fields: fields["files"][name].pop("sha256")
    yield "a size", lambda fields: fields["files"][name].update(bytes=entry["bytes"] + 1)
    yield "a size of another type", lambda fields: fields["files"][name].update(bytes=str(entry["bytes"]))
    yield "a file not listed", lambda fields: fields["files"].pop(name)
    yield "a file listed twice", lambda fields: fields["files"].update({f"{name}.2": entry})
    yield "a file outside", lambda fields: fields["files"].update({f"../{name}": entry})


def damages_of_manifest(run: Path, newest: Path, rng: Random) -> Iterator[Damage]:
    """Edits of the manifest as they are, and again with a digest that fits them."""
    target = newest.relative_to(run) / MANIFEST
    for words, change in manifest_changes(json.loads((newest / MANIFEST).read_bytes()), rng):
        for kind, sealed in (("edit the manifest", False), ("edit and seal the manifest", True)):
            yield _edit(kind, target, words, change, sealed)


def _edit(kind: str, target: Path, words: str, change: Change, sealed: bool) -> Damage:
    def apply(run: Path) -> None:
        before = (run / target).read_bytes()
        fields = json.loads(before)
        change(fields)
        if sealed:
            fields.pop("digest", None)
            write_manifest((run / target).parent, fields)
        else:
            (run / target).write_text(json.dumps(fields, indent=1))
        if (run / target).read_bytes() == before:
            raise NotApplicable

    return Damage(kind, f"{target}: {words}", apply, (target.parts[1],))
