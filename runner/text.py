"""Words of others, made fit to be shown."""


def legible(text: str, most: int = 400) -> str:
    """``text`` in one line, and nothing in it that a terminal obeys: what is read from a file may be made up."""
    words = " ".join(text[: most + 1].split())
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in words)
    return shown if len(text) <= most else f"{shown[:most]}..."
