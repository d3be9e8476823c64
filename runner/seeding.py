"""One seed fans out to named streams, so that no part's randomness depends on another part's."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from runner.spec import StateDict


def stream_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream of that name: a pure function of its arguments."""
    words = tuple(name if isinstance(name, str) else int(name) for name in names)  # numpy's integers print differently
    digest = hashlib.sha256(repr((int(seed), *words)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def env_seed(seed: int, *names: str | int) -> int:
    """A 31-bit seed, which every environment accepts."""
    return stream_seed(seed, *names) >> 32


class Streams:
    """Makes generators by name; who gets one saves its state. The process-wide generators are saved here."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def numpy(self, name: str) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(stream_seed(self.seed, name)))

    def torch(self, name: str, device: str = "cpu") -> torch.Generator:
        return torch.Generator(device).manual_seed(stream_seed(self.seed, name))

    def seed_globals(self, name: str) -> None:
        """Seed the process-wide generators, for libraries that know no other (layer initialization, user code)."""
        value = stream_seed(self.seed, name)
        random.seed(value)
        np.random.seed(value & 0xFFFFFFFF)
        torch.manual_seed(value)

    def state_dict(self) -> StateDict:
        return _global_state()

    def load_state_dict(self, state: StateDict) -> None:
        _load_global_state(state)


@contextmanager
def unchanged_globals() -> Iterator[None]:
    """Whatever the block draws from the process-wide generators, they are afterwards as they were before."""
    before = _global_state()
    try:
        yield
    finally:
        _load_global_state(before)


def _global_state() -> StateDict:
    version, numbers, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # type: ignore[misc]
    return {
        "python": {"version": version, "numbers": torch.tensor(numbers, dtype=torch.int64), "gauss": gauss},
        "numpy": {
            "keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
            "at": [int(position), int(has_gauss), float(cached)],
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def _load_global_state(state: dict[str, Any]) -> None:
    python = state["python"]
    random.setstate((python["version"], tuple(python["numbers"].tolist()), python["gauss"]))
    keys, (position, has_gauss, cached) = state["numpy"]["keys"].numpy().astype(np.uint32), state["numpy"]["at"]
    if type(position) is not int or not 0 <= position <= len(keys):  # numpy would read there, wherever that is
        raise ValueError(f"numpy's generator has no position {position!r:.40}")
    np.random.set_state(("MT19937", keys, position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
