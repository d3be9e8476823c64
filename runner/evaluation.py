"""Greedy episodes on environments and seeds of their own, which training never notices."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from runner.seeding import unchanged_globals
from runner.spec import Abandoned, Actor
from runner.types import Every, PositiveInt

MAX_EPISODE_STEPS = 100_000
"""An evaluation episode of an environment without a time limit is cut here."""


class Evaluated(NamedTuple):
    """Returns and lengths of the episodes of one evaluation, each ``[E]``."""

    returns: np.ndarray
    lengths: np.ndarray

    def metrics(self) -> dict[str, float]:
        return {
            "eval/return_mean": float(self.returns.mean()),
            "eval/return_std": float(self.returns.std()),
            "eval/length_mean": float(self.lengths.mean()),
        }


@dataclass(frozen=True)
class EvaluatedByModule:
    """What was evaluated of each module; ``eval/return_mean`` of the whole is the mean of the modules' own."""

    parts: Mapping[str, Evaluated]

    def metrics(self) -> dict[str, float]:
        """``eval/<id>/*`` of each module, and the mean over modules as ``eval/*``."""
        of_parts = {module_id: part.metrics() for module_id, part in self.parts.items()}
        names = next(iter(of_parts.values()))
        means = {name: float(np.mean([metrics[name] for metrics in of_parts.values()])) for name in names}
        by_module = {
            f"eval/{module_id}/{name.removeprefix('eval/')}": value
            for module_id, metrics in of_parts.items()
            for name, value in metrics.items()
        }
        return means | by_module


class Evaluation:
    """Plays each episode from its own fixed seed, all of them side by side.

    Args:
        make: makes the environment of that number, whose ``step`` returns no info, and which has a ``mask()`` where its
            spec says so.
        policy: copied, with its current weights, at every evaluation.
        seed_of: seed of an episode of a stream: ``"evaluation"`` during training, ``"final_evaluation"`` after it.
        every: how often during training.
        episodes, final_episodes: episodes of one evaluation during training, and of the final weights.
    """

    def __init__(
        self,
        make: Callable[[int], Any],
        policy: Actor,
        seed_of: Callable[[str, int], int],
        every: Every,
        episodes: PositiveInt,
        final_episodes: PositiveInt,
    ) -> None:
        self.make, self.policy, self.seed_of = make, policy, seed_of
        self.every, self.episodes, self.final_episodes = every, episodes, final_episodes
        self.should_stop: Callable[[], bool] = lambda: False
        self._envs: list[Any] = []

    def run(self, stream: str = "evaluation") -> Evaluated:
        """Play ``episodes`` (or ``final_episodes``) with the weights as they are now.

        Raises:
            Abandoned: once ``should_stop``, however far it has come; nothing of it is kept.
        """
        episodes = self.final_episodes if stream == "final_evaluation" else self.episodes
        self._envs += [self.make(index) for index in range(len(self._envs), episodes)]
        seeds = [self.seed_of(stream, episode) for episode in range(episodes)]
        with unchanged_globals():
            return play(self.policy.copy(), self._envs[:episodes], seeds, self.should_stop)

    def watch(self, envs: list[Any], seeds: list[int], goes_on: Callable[[], bool]) -> Evaluated:
        """Play an episode in each of ``envs`` as long as ``goes_on``, which is asked at every step and at the end."""
        with unchanged_globals():
            return play(self.policy.copy(), envs, seeds, self.should_stop, goes_on)

    def close(self) -> None:
        for env in self._envs:
            env.close()
        self._envs.clear()


def play(
    policy: Actor,
    envs: list[Any],
    seeds: list[int],
    should_stop: Callable[[], bool],
    goes_on: Callable[[], bool] = lambda: True,
) -> Evaluated:
    """One greedy episode in each environment: the first started, however long, so that short ones do not count more."""
    dtype = policy.spec.observation_dtype
    observation = np.stack([env.reset(seed) for env, seed in zip(envs, seeds, strict=True)]).astype(dtype)
    returns, lengths = np.zeros(len(envs)), np.zeros(len(envs), np.int64)
    memory = np.zeros((len(envs), policy.extra.memory), np.float32)
    running = list(range(len(envs)))
    while goes_on() and running:
        if should_stop():
            raise Abandoned("the evaluation was given up")
        remembered = memory[running]
        mask = np.stack([envs[index].mask() for index in running]) if policy.spec.has_action_mask else None
        actions = policy.greedy(observation[running], remembered, mask)
        memory[running] = remembered
        still_running = []
        for index, action in zip(running, actions, strict=True):
            observation[index], reward, terminated, truncated = envs[index].step(action)
            returns[index] += reward
            lengths[index] += 1
            if not (terminated or truncated or lengths[index] >= MAX_EPISODE_STEPS):
                still_running.append(index)
        running = still_running
    return Evaluated(returns, lengths)


class EvaluationByModule:
    """Evaluates the modules one after the other, each by its own :class:`Evaluation`, as often as ``every`` says."""

    def __init__(self, parts: Mapping[str, Evaluation], every: Every) -> None:
        self.parts, self.every = dict(parts), every
        self._should_stop: Callable[[], bool] = lambda: False

    @property
    def should_stop(self) -> Callable[[], bool]:
        return self._should_stop

    @should_stop.setter
    def should_stop(self, should_stop: Callable[[], bool]) -> None:
        self._should_stop = should_stop
        for part in self.parts.values():
            part.should_stop = should_stop

    def add(self, module_id: str, part: Evaluation) -> None:
        part.should_stop = self._should_stop
        self.parts[module_id] = part

    def remove(self, module_id: str) -> None:
        self.parts.pop(module_id).close()

    def run(self, stream: str = "evaluation") -> EvaluatedByModule:
        return EvaluatedByModule({module_id: part.run(stream) for module_id, part in self.parts.items()})

    def close(self) -> None:
        for part in self.parts.values():
            part.close()
