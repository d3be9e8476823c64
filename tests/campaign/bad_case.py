"""What a wrong command line is, how makers of them are registered, and how names are misspelt."""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from math import ceil
from typing import Any

from tests.campaign.config_space import Space

LETTERS = "abcdefghijklmnopqrstuvwxyz_"
TRIES = 60
COMMAND_LINE = "(command line)"

Draw = random.Random


@dataclass(frozen=True)
class Case:
    """A wrong command line, with ``files`` in the folder it is typed in.

    The first line of the report must name one of ``names`` and ``origin``. ``answers`` are the right suggestions;
    ``edits`` is how far a typo is from what was meant. A report may have up to ``mistakes`` lines: what is wrong in
    one place may make something else wrong.
    """

    argv: tuple[str, ...]
    names: tuple[str, ...]
    answers: tuple[str, ...] = ()
    edits: int = 0
    origin: str = COMMAND_LINE
    files: dict[str, str] = field(default_factory=dict)
    mistakes: int = 1
    kind: str = ""

    def given(self) -> tuple[Any, ...]:
        return (*self.argv, *self.files.values())

    def asked(self) -> dict[str, Any]:
        return {"argv": self.argv, "files": self.files}


Maker = Callable[[Space, Draw], Case | None]
MAKERS: dict[str, tuple[int, Maker]] = {}
"""By kind: its share of all cases, and what makes one (``None`` where the draw is valid after all)."""


def kind(name: str, weight: int) -> Callable[[Maker], Maker]:
    """Register a maker of cases."""

    def enter(maker: Maker) -> Maker:
        MAKERS[name] = weight, maker
        return maker

    return enter


def make_cases(space: Space, count: int, seed: int) -> Iterator[Case]:
    """About ``count`` cases, of every kind in proportion to its weight, no two alike."""
    total = sum(weight for weight, _ in MAKERS.values())
    for name, (weight, maker) in MAKERS.items():
        rng = random.Random(f"{seed} {name}")
        seen: set[tuple[Any, ...]] = set()
        wanted = ceil(count * weight / total)
        for _ in range(TRIES * wanted):
            case = maker(space, rng)
            if case is not None and case.given() not in seen:
                seen.add(case.given())
                yield Case(**{**asdict(case), "kind": name})
            if len(seen) == wanted:
                break


def edit(word: str, rng: Draw) -> str:
    """One deletion, insertion, substitution or transposition."""
    place = rng.randrange(len(word))
    match rng.randrange(4):
        case 0:
            return word[:place] + word[place + 1 :]
        case 1:
            return word[:place] + rng.choice(LETTERS) + word[place:]
        case 2:
            return word[:place] + rng.choice(LETTERS) + word[place + 1 :]
    return word[:place] + word[place : place + 2][::-1] + word[place + 2 :]


def misspell(word: str, rng: Draw, edits: int = 1) -> str:
    """``edits`` edits one after the other."""
    for _ in range(edits):
        word = edit(word, rng) if word else word
    return word


def is_one_edit(one: str, other: str) -> bool:
    """Whether one deletion, insertion, substitution or transposition turns one word into the other."""
    if len(one) > len(other):
        one, other = other, one
    place = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))
    rest, more = one[place:], other[place:]
    if len(one) < len(other):
        return rest == more[1:]
    return rest[1:] == more[1:] or (rest[:2] == more[:2][::-1] and rest[2:] == more[2:])


def right_answers(typed: str, meant: str, valid: Sequence[str]) -> tuple[str, ...]:
    """What was meant, and every valid name that is just as close to what was typed."""
    return (meant, *(name for name in valid if name != meant and is_one_edit(typed, name)))


def is_name(text: str) -> bool:
    """Whether a shell and Hydra's grammar take this for a name."""
    return bool(re.fullmatch(r"[a-z]\w*([./][a-z]\w*)*", text))
