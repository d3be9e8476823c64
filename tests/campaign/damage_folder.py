"""Damage to what a run's folder holds besides its checkpoints, and what a resume by ``run.py`` makes of it."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from tests.campaign.damage import Damage, NotApplicable, damages_of_file, regular_files, remove
from tests.campaign.damaged_runs import Ended, Scene, Table, damaged_copy, is_told, lines_of, resume_by_command

CONFIG = (".hydra/config.yaml", "run.json")
TABLE = "metrics.csv"
NOTHING_STARTED = "one mistake in the configuration, nothing was started"


def damages_of_folder(run: Path, rng: Random, flips: int) -> Iterator[Damage]:
    """Every kind of damage to every file that is in no checkpoint; more flipped bits where they could be believed."""
    for name in regular_files(run):
        if not name.startswith(("ckpt/", "replay/")) and name != ".the-run":
            folder, _, file = name.rpartition("/")
            yield from damages_of_file(run, folder or ".", file, rng, flips if name in (*CONFIG, TABLE) else 1)
    yield from _edits_of_config(rng)
    yield from _edits_of_table()


def _edits_of_config(rng: Random) -> Iterator[Damage]:
    for before, after in (("lr: 0.001", "lr: 0.003"), ("gamma: 0.99", "gamma: 0.9"), ("batch_size: 32", "")):
        yield _edit("edit config.yaml", ".hydra/config.yaml", before, after)
    for before, after in (('"seed": 0', '"seed": 1'), ('"preempted"', '"crashed"'), ('"env_steps": 750', '"x": 1')):
        yield _edit("edit run.json", "run.json", before, after)


def _edit(kind: str, target: str, before: str, after: str) -> Damage:
    def apply(run: Path) -> None:
        text = (run / target).read_text()
        if before not in text:
            raise NotApplicable
        (run / target).write_text(text.replace(before, after, 1))

    return Damage(kind, f"{target}: {before} -> {after}", apply, (), (Path(target).name,))


def _edits_of_table() -> Iterator[Damage]:
    changes: dict[str, Callable[[list[str]], list[str]]] = {
        "without its last row": lambda lines: lines[:-1],
        "without a row": lambda lines: [*lines[:2], *lines[3:]],
        "with a row twice": lambda lines: [*lines[:2], *lines[1:]],
        "with two rows in another order": lambda lines: [lines[0], lines[2], lines[1], *lines[3:]],
        "without its header": lambda lines: lines[1:],
        "with another value": lambda lines: [*lines[:-1], lines[-1].replace("750", "751", 1)],
        "with other line ends": lambda lines: [line.replace("\n", "\r\n") for line in lines],
        "with a row more": lambda lines: [*lines, lines[-1]],
    }
    for words, change in changes.items():

        def apply(run: Path, change: Callable[[list[str]], list[str]] = change) -> None:
            lines = (run / TABLE).read_text().splitlines(keepends=True)
            (run / TABLE).write_text("".join(change(lines)), newline="")

        yield Damage("edit metrics.csv", f"{TABLE} {words}", apply, (), (TABLE,))


def damages_of_all_checkpoints() -> Iterator[Damage]:
    """The folder of the checkpoints is gone, or something else."""

    def replaced(make: Callable[[Path], object]) -> Callable[[Path], None]:
        def apply(run: Path) -> None:
            remove(run / "ckpt")
            make(run / "ckpt")

        return apply

    kinds: dict[str, Callable[[Path], object]] = {
        "delete": lambda path: None,
        "empty": Path.mkdir,
        "make it a file": lambda path: path.write_bytes(b"x"),
        "make it a pipe": os.mkfifo,
        "make it a link to nothing": lambda path: path.symlink_to("nothing-is-here"),
    }
    for kind, make in kinds.items():
        yield Damage("the folder of the checkpoints", f"ckpt: {kind}", replaced(make), ("ckpt",))


def judge(scene: Scene, damage: Damage, run: Path) -> tuple[str, Ended]:
    """Resume by ``run.py`` and say what became of the damage.

    A refusal is one line, exit code 2 or 3. ``told``: the run goes on from its newest state, and says that the file
    was changed; what was found there is kept. ``harmless``: nothing that is read was changed.
    """
    found = _content(run / TABLE)
    whole = _content(scene.folder / TABLE)
    ended = resume_by_command(run)
    lines = [line for line in lines_of(ended) if line != NOTHING_STARTED]
    if ended.code in (2, 3):
        is_clear = len(lines) == 1 and is_told(damage, ended.output)
        return ("refused" if is_clear else "unclear"), ended
    if ended.code != 0:
        return "lost", ended
    if ended.result.but_loggers != scene.newest.but_loggers:
        return "silent", ended
    if _content(run / TABLE) == whole:
        return "harmless", ended
    if not is_told(damage, ended.output):
        return "silent", ended
    is_kept = not found or found in [_content(path) for path in run.glob("metrics*.csv")]
    return ("told" if is_kept else "lost"), ended


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def run_folder_campaign(scene: Scene, damages: Iterator[Damage], table: Table, place: Path) -> None:
    """Do each damage to a fresh copy of the run, resume it by ``run.py``, and put down what became of it."""
    for damage in damages:
        try:
            run = damaged_copy(scene, damage, place)
        except NotApplicable:
            continue
        table.add(damage, *judge(scene, damage, run))
