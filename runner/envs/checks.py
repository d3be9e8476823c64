"""Whether what an environment returns is what its spaces declare."""

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from runner.envs.watch import Hung
from runner.spec import EnvSpec

FAULTS: tuple[type[BaseException], ...] = (Exception, SystemExit, Hung)
"""Whatever foreign code may end with; an environment that calls ``exit`` must not end the run as if it were done."""
LARGEST = float(np.finfo(np.float32).max)
RETURNS = {
    "step": "step must return (observation, reward, terminated, truncated, info)",
    "reset": "reset must return (observation, info)",
}
MOST_CHARACTERS = 300
FEW = 32
"""Python adds up to so many numbers faster than numpy."""


class Wrong(Exception):
    """What an environment returned is not what it declares."""


class Checker:
    """Looks closely at what a step or a reset returned; the fast look is in :meth:`Single.step`."""

    def __init__(self, spec: EnvSpec) -> None:
        self.shape, self.dtype = spec.observation_shape, spec.observation_dtype
        self.is_small = self.dtype.kind == "f" and len(self.shape) == 1 and self.shape[0] <= FEW
        self.returned: np.dtype | None = None
        """The type of the last observation that was looked at."""
        self.total = _summation(self.shape, self.dtype, self.is_small)
        """Of the numbers of an observation and a reward; not finite, or nearly so, if one of them is not finite."""

    def check_step(self, outcome: tuple[Any, Any, Any, Any]) -> np.ndarray:
        """The observation of a step as an array of the declared shape; raises ``Wrong`` naming what is wrong."""
        observation, reward, *ends = outcome
        checked = self.check_observation(observation)
        try:
            value = float(reward)
        except (TypeError, ValueError):
            raise Wrong(f"the reward is {_shown(reward)}, which is no number") from None
        if not abs(value) <= LARGEST:
            raise Wrong(f"the reward is {value}")
        for name, end in zip(("terminated", "truncated"), ends, strict=True):
            if np.size(end) != 1 or np.asarray(end).dtype.kind not in "bui":
                raise Wrong(f"{name} is {_shown(end)}, neither true nor false; {RETURNS['step']}")
        return checked

    def check_reset(self, answer: Any) -> np.ndarray:
        """The observation that a reset returned; raises ``Wrong``."""
        if not isinstance(answer, tuple) or len(answer) != 2 or not isinstance(answer[1], dict):
            raise Wrong(f"{RETURNS['reset']}; it returned {_shown(answer)}")
        return self.check_observation(answer[0])

    def check_observation(self, observation: Any) -> np.ndarray:
        """It as an array; raises ``Wrong`` unless it has the declared shape, a fitting type and finite values."""
        try:
            array = np.asarray(observation)
        except ValueError as error:
            raise Wrong(f"the observation is no array: {error}") from None
        if array.dtype.kind not in "biuf":
            raise Wrong(f"the observation has the dtype {array.dtype}; its space declares {self.dtype}")
        if array.shape != self.shape:
            raise Wrong(f"the observation has the shape {array.shape}; its space declares {self.shape}")
        self.returned = array.dtype
        if self.dtype.kind == "f":
            self._check_finite(array)
        else:
            self._check_whole(array)
        return array

    def fits(self, dtype: np.dtype) -> bool:
        """Whether every finite value of that type can be written down as the declared one."""
        return dtype.kind == "f" if self.dtype.kind == "f" else bool(np.can_cast(dtype, self.dtype, "safe"))

    def _check_finite(self, array: np.ndarray) -> None:
        if -LARGEST < self.total(array, 0.0) < LARGEST:
            return
        bad = ~(np.abs(array.astype(np.float64)) <= LARGEST)
        if bad.any():
            at = _first(bad)
            raise Wrong(f"the observation is {array[at]} at {list(map(int, at))}")

    def _check_whole(self, array: np.ndarray) -> None:
        """A fraction, or a number too large, would be cut to another number without a word."""
        limits = (0, 1) if self.dtype.kind == "b" else (np.iinfo(self.dtype).min, np.iinfo(self.dtype).max)
        if array.dtype.kind == "f":
            raise Wrong(f"the observation has the dtype {array.dtype}; its space declares {self.dtype}")
        if array.size and not (limits[0] <= array.min() and array.max() <= limits[1]):
            raise Wrong(f"the observation goes from {array.min()} to {array.max()}; its space declares {self.dtype}")


def _summation(shape: tuple[int, ...], dtype: np.dtype, is_small: bool) -> Callable[[Any, Any], Any]:
    """Adds the numbers of an observation to a reward, quickly."""
    if dtype.kind != "f":
        return lambda observation, reward: reward
    if is_small:
        return lambda observation, reward: sum(observation.tolist(), reward)
    zeros = {np.dtype(kind): np.zeros(shape, kind).ravel() for kind in (np.float32, np.float64)}

    def add_products_with_zero(observation: Any, reward: Any) -> Any:
        """0 for every finite number, however large, and nan for the others."""
        with np.errstate(invalid="ignore"):
            return observation.ravel().dot(zeros.get(observation.dtype, zeros[np.dtype(np.float64)])) + reward

    return add_products_with_zero


class Bounds:
    """The bounds of an observation space, a little widened for rounding to float32; false where there are none."""

    def __init__(self, space: spaces.Box) -> None:
        low, high = np.asarray(space.low, np.float64), np.asarray(space.high, np.float64)
        self.low, self.high = ((end + way * 1e-5 * np.maximum(1, abs(end))) for end, way in ((low, -1), (high, 1)))
        self.low, self.high = self.low.astype(np.float32), self.high.astype(np.float32)

    def __bool__(self) -> bool:
        return bool(np.isfinite(self.low).any() or np.isfinite(self.high).any())

    def first_outside(self, observations: np.ndarray) -> tuple[int, ...] | None:
        """Where in ``[T, N, ...]`` the first value beyond the bounds is, if there is one."""
        # count_nonzero takes a quarter of the time of any().
        if not (np.count_nonzero(observations < self.low) or np.count_nonzero(observations > self.high)):
            return None
        return _first((observations < self.low) | (observations > self.high))


def described(doing: str, error: BaseException, seconds: float | None = None) -> str:
    """In one line what an environment did wrong while it was ``doing`` something."""
    if isinstance(error, Wrong):
        return str(error)
    if isinstance(error, Hung):
        return late(doing, seconds, str(error))
    frames = traceback.extract_tb(error.__traceback__)
    where = Path(frames[-1].filename) if frames else Path("foreign code")
    words = _words_of(error)
    if doing in RETURNS and "unpack" in words and (where.parent == Path(__file__).parent or "gymnasium" in where.parts):
        return f"{RETURNS[doing]}: {words}"
    line = f":{frames[-1].lineno}" if frames else ""
    return f"{doing} raised {type(error).__name__} in {where.name}{line}: {words}"


def late(doing: str, seconds: float | None, where: str) -> str:
    """In one line that a call hangs."""
    return f"{doing} has not come back within {seconds:g} s (env.step_timeout), it is in {where}"


def _words_of(error: BaseException) -> str:
    try:
        return " ".join(str(error).split())[:MOST_CHARACTERS]
    except Exception:  # not even that can be relied on
        return "(it cannot say why)"


def _shown(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of the shape {value.shape}"
    return " ".join(repr(value).split())[:60]


def _first(bad: np.ndarray) -> tuple[int, ...]:
    return tuple(int(at) for at in np.unravel_index(int(np.argmax(bad)), bad.shape))
