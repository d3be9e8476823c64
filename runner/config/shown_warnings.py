"""Warnings of a run as lines on the terminal, whatever else its log is configured to do with them."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from runner.text import legible

OURS = ("runner", "hooks")


class _Terminal(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno != logging.WARNING:  # an error ends the run, and is told as its last line
            return
        try:
            line = legible(record.getMessage(), most=2000)
            tqdm.write(f"warning: {line}", file=sys.stderr)  # above a progress bar, not into it
            sys.stderr.flush()
        except Exception:
            self.handleError(record)


@contextmanager
def shown_warnings() -> Iterator[None]:
    """While entered, warnings of ours are printed, once, besides what is done with them anyway."""
    if any(_is_terminal(handler) for handler in logging.getLogger().handlers):
        yield
        return
    handler = _Terminal(logging.WARNING)
    loggers = [logging.getLogger(name) for name in OURS]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


def _is_terminal(handler: logging.Handler) -> bool:
    return isinstance(handler, logging.StreamHandler) and getattr(handler, "stream", None) in (sys.stdout, sys.stderr)
