"""Words of others, made fit to be shown or read, and the words with which we were started."""

import json
import math
import os
import re
import shlex
import sys
from typing import Any


def legible(text: str, most: int = 400) -> str:
    """``text`` in one line, and nothing in it that a terminal obeys: what is read from a file may be made up."""
    words = " ".join(text[: most + 1].split())
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in words)
    return shown if len(text) <= most else f"{shown[:most]}..."


def file_name(name: str) -> str:
    """``name`` as that of a file, in one folder: without what such a name cannot have, or begin with."""
    return re.sub(r"[^\w\-. ]", "_", name, flags=re.ASCII).lstrip(".")[:100] or "unnamed"


def own_command() -> str:
    """How this program is started here, for the lines that say what to type next."""
    if command := os.environ.get("HOOKLINE_COMMAND"):
        return command
    typed = sys.argv[0]
    return f"python {shlex.quote(typed)}" if os.path.basename(typed) == "run.py" else "python run.py"


def strict_json(raw: bytes) -> Any:
    """JSON without its surprises, ``ValueError`` where it has any: no repeated keys, no nan or infinity.

    Raises:
        RecursionError: where it is nested too deeply.
    """
    return json.loads(raw, object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key appears twice")
    return result


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse_constant(text[:20])
