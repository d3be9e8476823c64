"""How often per second a replay buffer takes one transition and gives one batch; for ours and for others'.

Imported in the peers' virtual environments too.
"""

import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

CAPACITY, FILLED, BATCH_SIZE = 1_000_000, 100_000, 256
OBSERVATION, ACTION = 17, 6
"""Numbers in each."""

ITERATIONS = 20_000
WARM_UP = 1_000


def measure(add: Callable[[], object], sample: Callable[[], object], *packages: str) -> None:
    """Fill the buffer, clock both alone and together, and write the rates to the file that the first argument names."""
    for _ in range(FILLED):
        add()

    def both() -> None:
        add()
        sample()

    kinds = {"both": both, "add": add, "sample": sample}
    rates = {name: rate(function) for name, function in kinds.items()}
    versions = {name: version(name) for name in (*packages, "torch", "numpy")}
    Path(sys.argv[1]).write_text(json.dumps({**rates, "versions": versions}))


def rate(function: Callable[[], object]) -> float:
    """Calls per second of CPU time: other work on this machine does not count."""
    for _ in range(WARM_UP):
        function()
    started = time.process_time()
    for _ in range(ITERATIONS):
        function()
    return ITERATIONS / (time.process_time() - started)
