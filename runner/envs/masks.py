"""Which actions an environment says can be taken."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import gymnasium
import numpy as np
from gymnasium import spaces

from runner.envs.checks import Wrong
from runner.spec import EnvSpec

METHOD = "action_masks"
"""By this name an environment, or a wrapper, says ``[A]`` which actions can be taken now (as in sb3-contrib)."""


def mask_function(env: gymnasium.Env) -> Callable[[], Any] | None:
    """The outermost method ``action_masks`` of an environment with discrete actions, if it or a wrapper has one."""
    if not isinstance(env.action_space, spaces.Discrete):
        return None
    one = env
    while not callable(found := getattr(one, METHOD, None)) and isinstance(one, gymnasium.Wrapper):
        one = one.env
    return found if callable(found) else None


def checked_mask(answer: Any, num_actions: int, is_over: bool) -> np.ndarray:
    """What ``action_masks`` said, as ``[A]`` booleans; raises ``Wrong``.

    Args:
        is_over: the episode has ended: where no action is left, all of them are.
    """
    mask = np.asarray(answer)
    if mask.shape != (num_actions,) or mask.dtype.kind not in "bui":
        shown = " ".join(repr(answer).split())[:100]
        raise Wrong(f"{METHOD} must return {num_actions} truth values, one for each action; it returned {shown}")
    mask = mask.astype(np.bool_)
    if not mask.any():
        if not is_over:
            raise Wrong(f"{METHOD} allows no action, and the episode goes on")
        mask[:] = True
    return mask


class Masked(Protocol):
    """One environment; see ``runner.envs.single.Single``."""

    def mask(self, is_over: bool = False) -> np.ndarray: ...


class Masks:
    """Which actions can be taken in each of several environments: ``now`` ``[N, A]``, empty where they do not say."""

    def __init__(self, num_envs: int, spec: EnvSpec) -> None:
        self.now = np.ones((num_envs, (spec.num_actions or 0) if spec.has_action_mask else 0), np.bool_)

    def read(self, singles: Sequence[Masked]) -> None:
        """Ask all of them."""
        if self.now.size:
            for index, single in enumerate(singles):
                self.now[index] = single.mask()

    def ended(self, index: int, single: Masked, following: np.ndarray) -> None:
        """Before the next episode begins: what could have followed the last step, into ``following`` ``[N, A]``."""
        following[index] = single.mask(is_over=True)

    def stepped(self, singles: Sequence[Masked], goes_on: np.ndarray, following: np.ndarray) -> None:
        """After a step in all of them, when the next episodes have begun; ``goes_on`` ``[N]``: where none did."""
        self.read(singles)
        following[goes_on] = self.now[goes_on]
