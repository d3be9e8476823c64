"""CartPole that does one thing wrong, at a step that is known or at random: raises, hangs, returns what it must not."""

import ctypes
import os
import random
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

ALWAYS = 10**9


def _raise(outcome: Any) -> Any:
    raise RuntimeError("the simulator lost\nits connection")


def _exit(outcome: Any) -> Any:
    sys.exit(0)


def _sleep(outcome: Any) -> Any:
    time.sleep(ALWAYS)


def _spin(outcome: Any) -> Any:
    """In a loop that swallows every Exception."""
    while True:
        try:
            time.sleep(0.001)
        except Exception:
            continue


def _deadlock_in_c(outcome: Any) -> Any:
    """Waits for a mutex that it holds itself: no signal gets it out of there."""
    mutex, libc = ctypes.create_string_buffer(64), ctypes.CDLL(None)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)


def _print_binary(outcome: Any) -> Any:
    os.write(1, bytes(range(256)))
    print("\x1b[2J\x00\x07 done: total_frames", flush=True)
    return outcome


def _observe(change: Any) -> Any:
    return lambda outcome: (change(outcome[0]), *outcome[1:])


def _reward(value: Any) -> Any:
    return lambda outcome: (outcome[0], value, *outcome[2:])


def _with(observation: np.ndarray, at: int, value: float) -> np.ndarray:
    observation = observation.copy()
    observation[at] = value
    return observation


IN_STEP: dict[str, Any] = {
    "step raises": _raise,
    "step exits": _exit,
    "step sleeps": _sleep,
    "step spins": _spin,
    "step locks up in C": _deadlock_in_c,
    "observation NaN": _observe(lambda array: _with(array, 2, np.nan)),
    "observation inf": _observe(lambda array: _with(array, 1, -np.inf)),
    "observation too short": _observe(lambda array: array[:3]),
    "observation would be broadcast": _observe(lambda array: array[:1]),
    "observation of strings": _observe(lambda array: array.astype(str)),
    "observation None": _observe(lambda array: None),
    "observation out of space": _observe(lambda array: _with(array, 0, 100.0)),
    "reward NaN": _reward(float("nan")),
    "reward None": _reward(None),
    "old tuple": lambda outcome: (outcome[0], outcome[1], outcome[2] or outcome[3], outcome[4]),
    "info before truncated": lambda outcome: (*outcome[:3], outcome[4], outcome[3]),
    "prints binary": _print_binary,
    "none": lambda outcome: outcome,
    "never ends": lambda outcome: (outcome[0], outcome[1], False, False, outcome[4]),
}
IN_RESET: dict[str, Any] = {
    "reset raises": _raise,
    "reset sleeps": _sleep,
    "reset NaN": _observe(lambda array: _with(array, 3, np.nan)),
    "reset returns no info": lambda answer: answer[0],
}


class Faulty(CartPoleEnv):
    """Does ``kind`` from its ``at``-th call of step (or reset) on, ``times`` times; all instances count together.

    Args:
        kind: of IN_STEP or IN_RESET, or ``make raises``, ``close raises``, ``leaks files``.
        mended: as long as there is no such file, it is faulty.
        instance: from that one on, in the order in which they are made, they are faulty.
    """

    calls = 0
    faults = 0
    made = 0

    def __init__(
        self,
        kind: str = "step raises",
        at: int = 1,
        times: int = 1,
        mended: str | None = None,
        instance: int = 0,
    ) -> None:
        super().__init__()
        self.kind, self.at, self.times, self.mended = kind, at, times, mended
        self.is_chosen = type(self).made >= instance
        type(self).made += 1
        self.file = open(os.devnull) if kind == "leaks files" else None  # noqa: SIM115
        if kind == "make raises" and self._is_due():
            raise OSError("no license")

    def step(self, action: Any) -> Any:
        outcome = super().step(action)
        return IN_STEP[self.kind](outcome) if self.kind in IN_STEP and self._is_due() else self._leaking(outcome)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        answer = super().reset(seed=seed, options=options)
        return IN_RESET[self.kind](answer) if self.kind in IN_RESET and self._is_due() else answer

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
        if self.kind == "close raises" and self.is_chosen:
            raise RuntimeError("closed already")

    def _leaking(self, outcome: Any) -> Any:
        return _raise(outcome) if self.kind == "leaks files" and self._is_due() else outcome

    def _is_due(self) -> bool:
        """Whether this call is one of the faulty ones."""
        counts = type(self)
        counts.calls += 1
        if not self.is_chosen or (self.mended is not None and Path(self.mended).exists()):
            return False
        is_due = counts.calls >= self.at and counts.faults < self.times
        counts.faults += is_due
        return is_due


class Unreliable(gymnasium.Wrapper):
    """CartPole with faults by chance, at the rates of RLlib's tests: 1e-4 of the steps and 1e-3 of the resets raise.

    ``stall`` of the steps do not come back.
    """

    chances: random.Random | None = None

    def __init__(self, seed: int, step: float = 1e-4, reset: float = 1e-3, stall: float = 0.0) -> None:
        super().__init__(gymnasium.make("CartPole-v1", disable_env_checker=True))
        self.rates = {"step": step, "reset": reset, "stall": stall}
        type(self).chances = type(self).chances or random.Random(seed)  # one sequence for all instances of a process

    def step(self, action: Any) -> Any:
        if self._happens("step"):
            raise ConnectionError("a step failed by chance")
        if self._happens("stall"):
            time.sleep(ALWAYS)
        return self.env.step(action)

    def reset(self, **options: Any) -> Any:
        if self._happens("reset"):
            raise ConnectionError("a reset failed by chance")
        return self.env.reset(**options)

    def _happens(self, what: str) -> bool:
        assert self.chances is not None
        return self.chances.random() < self.rates[what]


def faulty(kind: str, at: int, times: int = 1, **more: Any) -> Any:
    """A function that makes faulty environments, which count together, and apart from all others."""
    counting = type("Faulty", (Faulty,), {"calls": 0, "faults": 0, "made": 0})
    return partial(counting, kind, at, times, **more)
