"""Words of others, made fit to be shown, and the words with which we were started."""

import os
import shlex
import sys


def legible(text: str, most: int = 400) -> str:
    """``text`` in one line, and nothing in it that a terminal obeys: what is read from a file may be made up."""
    words = " ".join(text[: most + 1].split())
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in words)
    return shown if len(text) <= most else f"{shown[:most]}..."


def own_command() -> str:
    """How this program is started here, for the lines that say what to type next."""
    if command := os.environ.get("HOOKLINE_COMMAND"):
        return command
    typed = sys.argv[0]
    return f"python {shlex.quote(typed)}" if os.path.basename(typed) == "run.py" else "python run.py"
