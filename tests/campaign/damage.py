"""Ways to damage the files of a run, one small function each; what a file is called or holds is never assumed."""

import json
import os
import shutil
import socket
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

BLOCK_BYTES = 4096


class NotApplicable(Exception):
    """This damage would leave this file as it is."""


@dataclass(frozen=True)
class Damage:
    """One thing done to a copy of a run's folder; a report of it has to contain each of ``names``, any of ``files``."""

    kind: str
    target: str
    apply: Callable[[Path], None]
    names: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.kind} of {self.target}"


def truncate_to_nothing(path: Path, rng: Random) -> None:
    _rewrite(path, path.read_bytes(), b"")


def truncate_to_half(path: Path, rng: Random) -> None:
    raw = path.read_bytes()
    _rewrite(path, raw, raw[: len(raw) // 2])


def truncate_by_one_byte(path: Path, rng: Random) -> None:
    raw = path.read_bytes()
    _rewrite(path, raw, raw[:-1])


def flip_a_bit(path: Path, rng: Random) -> None:
    raw = bytearray(path.read_bytes())
    if not raw:
        raise NotApplicable
    raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    path.write_bytes(raw)


def zero_a_block(path: Path, rng: Random) -> None:
    raw = path.read_bytes()
    starts = [at for at in range(0, len(raw), BLOCK_BYTES) if any(raw[at : at + BLOCK_BYTES])]
    if not starts:
        raise NotApplicable
    at = rng.choice(starts)
    zeros = bytes(min(BLOCK_BYTES, len(raw) - at))
    _rewrite(path, raw, raw[:at] + zeros + raw[at + len(zeros) :])


def swap_two_blocks(path: Path, rng: Random) -> None:
    raw = path.read_bytes()
    size = min(BLOCK_BYTES, len(raw) // 2)
    places = range(0, len(raw) - size + 1, max(size, 1))
    for _ in range(20 if len(places) > 1 else 0):
        first, second = sorted(rng.sample(places, 2))
        one, other = raw[first : first + size], raw[second : second + size]
        if one != other:
            swapped = raw[:first] + other + raw[first + size : second] + one + raw[second + size :]
            return _rewrite(path, raw, swapped)
    raise NotApplicable


def append_bytes(path: Path, rng: Random) -> None:
    with open(path, "ab") as file:
        file.write(rng.randbytes(rng.choice([1, 100, BLOCK_BYTES])))


def delete(path: Path, rng: Random) -> None:
    path.unlink()


def make_it_a_folder(path: Path, rng: Random) -> None:
    path.unlink()
    path.mkdir()


def make_it_a_link_to_its_content(path: Path, rng: Random) -> None:
    moved = _outside(path)
    path.rename(moved)
    path.symlink_to(moved)


def make_it_a_link_to_nothing(path: Path, rng: Random) -> None:
    path.unlink()
    path.symlink_to("nothing-is-here")


def make_it_a_pipe(path: Path, rng: Random) -> None:
    path.unlink()
    os.mkfifo(path)


def make_it_a_socket(path: Path, rng: Random) -> None:
    path.unlink()
    folder = os.open(path.parent, os.O_RDONLY)  # a socket's address is short: the folder by its descriptor
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(f"/proc/self/fd/{folder}/{path.name}")
    os.close(folder)


def make_it_a_hard_link(path: Path, rng: Random) -> None:
    """Its content stays: no damage."""
    os.link(path, _outside(path))


FILE_DAMAGES: tuple[Callable[[Path, Random], None], ...] = (
    truncate_to_nothing, truncate_to_half, truncate_by_one_byte, flip_a_bit, zero_a_block, swap_two_blocks,
    append_bytes, delete, make_it_a_folder, make_it_a_link_to_its_content, make_it_a_link_to_nothing, make_it_a_pipe,
    make_it_a_socket, make_it_a_hard_link,
)  # fmt: skip


def repeat_a_key(path: Path, rng: Random) -> None:
    raw = _json_object(path)
    key = next(iter(json.loads(raw)))
    _rewrite(path, raw, raw.replace(b"{", f'{{"{key}": 0, '.encode(), 1))


def put_a_nan(path: Path, rng: Random) -> None:
    raw = _json_object(path)
    _rewrite(path, raw, raw.replace(b"{", b'{"another": NaN, ', 1))


def nest_without_end(path: Path, rng: Random) -> None:
    raw = _json_object(path)
    _rewrite(path, raw, raw.replace(b"{", b'{"another": ' + b"[" * 100_000 + b"]" * 100_000 + b", ", 1))


def reformat(path: Path, rng: Random) -> None:
    raw = _json_object(path)
    _rewrite(path, raw, json.dumps(json.loads(raw), indent=3).encode())


def make_it_a_list(path: Path, rng: Random) -> None:
    raw = _json_object(path)
    _rewrite(path, raw, b"[" + raw + b"]")


JSON_DAMAGES = (repeat_a_key, put_a_nan, nest_without_end, reformat, make_it_a_list)


def _json_object(path: Path) -> bytes:
    raw = path.read_bytes()
    try:
        if isinstance(json.loads(raw), dict):
            return raw
    except (ValueError, UnicodeDecodeError):
        pass
    raise NotApplicable


def _rewrite(path: Path, before: bytes, after: bytes) -> None:
    if before == after:
        raise NotApplicable
    path.write_bytes(after)


def _outside(path: Path) -> Path:
    """A free name beside the run's folder, which a run never looks at."""
    run = next(parent for parent in path.parents if (parent / ".the-run").exists())
    place = run.with_name(f"{run.name}-outside")
    place.mkdir(exist_ok=True)
    return place / f"{len(os.listdir(place))}-{path.name}"


def regular_files(folder: Path) -> list[str]:
    """Paths of the files under ``folder``, relative to it."""
    found = (path for path in sorted(folder.rglob("*")) if stat.S_ISREG(os.lstat(path).st_mode))
    return [str(path.relative_to(folder)) for path in found]


def damages_of_file(
    run: Path, folder: str, name: str, rng: Random, flips: int = 1, kinds: Sequence[str] = ()
) -> Iterator[Damage]:
    """Every kind of damage to the file ``name`` of ``folder``; a report has to name both."""
    target = str(Path(folder, name))
    for function in (*FILE_DAMAGES, *JSON_DAMAGES):
        if function in JSON_DAMAGES and not _is_json(run / target):
            continue
        if kinds and function.__name__ not in kinds:
            continue
        for _ in range(flips if function is flip_a_bit else 1):
            yield _of_file(function, folder, name, rng.randrange(2**32))


def _of_file(function: Callable[[Path, Random], None], folder: str, name: str, seed: int) -> Damage:
    def apply(run: Path) -> None:
        function(run / folder / name, Random(seed))

    kind = function.__name__.replace("_", " ")
    return Damage(kind, f"{folder}/{name} (seed {seed})", apply, (Path(folder).name,), (name,))


def _is_json(path: Path) -> bool:
    try:
        _json_object(path)
    except NotApplicable:
        return False
    return True


def copy_over(source: Path, target: Path) -> None:
    """Replace whatever is at ``target`` by a copy of ``source``."""
    remove(target)
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True)
    else:
        shutil.copy2(source, target)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()
