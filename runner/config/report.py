"""What is wrong with a configuration, in words: one line for each mistake."""

import difflib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from runner.text import legible

COMMAND_LINE = "command line"
ENVIRONMENT = "environment"
MOST_PROBLEMS = 10
"""Of a stored configuration: whoever made it may have made thousands."""
FEW = 12


@dataclass(frozen=True)
class Problem:
    """One mistake: the full key, where it was set last, what is wrong, and what to type instead.

    ``key`` may show the value too; ``path`` is the key alone, where other mistakes may follow from this one.
    """

    key: str
    origin: str
    message: str
    hint: str = ""
    path: str = ""

    def __str__(self) -> str:
        ending = f"; {self.hint}" if self.hint else ""
        return legible(f"{self.key} ({self.origin}): {self.message}{ending}", most=2000)


class Rejected(Exception):
    """The configuration cannot be run; carries every mistake found."""

    exit_code = 2

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = list(dict.fromkeys(problems))
        super().__init__(str(self))

    def __str__(self) -> str:
        count = len(self.problems)
        total = "one mistake" if count == 1 else f"{count} mistakes"
        return "\n".join([*map(str, self.problems), f"{total} in the configuration, nothing was started"])


def show(value: Any) -> str:
    """A value as one would write it in JSON."""
    return json.dumps(value, default=str)


def nearest(name: str, names: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The name most like ``name``: one that a slip of one key turns into it first; or ``None``."""
    candidates = sorted(set(names))
    slips = [one for one in candidates if _is_one_slip(name, one) or one.lower() == name.lower()]
    close = difflib.get_close_matches(name, slips or candidates, n=1, cutoff=0.0 if slips else cutoff)
    starts = [candidate for candidate in candidates if len(name) > 1 and candidate.startswith(name)]
    return close[0] if close else (starts[0] if starts else None)


def _is_one_slip(typed: str, meant: str) -> bool:
    """Whether one letter was left out, added, exchanged for another or for its neighbour."""
    pairs = enumerate(zip(typed, meant, strict=False))
    start = next((place for place, (one, other) in pairs if one != other), min(len(typed), len(meant)))
    typed, meant = typed[start:], meant[start:]
    exchanged = typed[1:] == meant[1:] or (typed[:2] == meant[1::-1] and typed[2:] == meant[2:])
    return exchanged or typed[1:] == meant or typed == meant[1:]


def nearest_key(key: str, keys: Sequence[str]) -> str | None:
    """The full key most like ``key``: under the same parent first, then the same last name anywhere, then any."""
    parent, _, leaf = key.rpartition(".")
    siblings = {k.rpartition(".")[2]: k for k in keys if k.rpartition(".")[0] == parent}
    if sibling := nearest(leaf, siblings):
        return siblings[sibling]
    namesakes = sorted((k for k in keys if k.rpartition(".")[2] == leaf), key=lambda k: (k.count("."), k))
    if namesakes:
        return nearest(key, namesakes) or namesakes[0]
    leaves = {k.rpartition(".")[2]: k for k in sorted(keys, reverse=True)}
    close = nearest(key, [k for k in keys if not key.startswith(f"{k}.")])
    return close or (leaves[like] if (like := nearest(leaf, leaves, cutoff=0.8)) else None)


def did_you_mean(name: str | None) -> str:
    """A question about the nearest name, if there is one."""
    return f"did you mean {name}?" if name else ""


def choices_hint(name: str, choices: Sequence[str]) -> str:
    """The nearest choice, and all of them when they are few."""
    guess = did_you_mean(nearest(name, choices))
    listed = f"choices: {', '.join(choices)}" if 0 < len(choices) <= FEW else ""
    return "; ".join(part for part in (guess, listed) if part)
