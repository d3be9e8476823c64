"""What is evaluated, exported and sent to collectors: a network, what it makes of an observation, and exploration."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from runner.distributions import Argmax, Distribution, masked
from runner.spec import (
    ACTION,
    ACTION_LOG_PROB,
    IS_INIT,
    NEXT_EPISODE_LENGTH,
    NO_EXTRA,
    POLICY_OUTPUT,
    EnvSpec,
    Exploration,
    Extra,
    StateDict,
)

MOST_NUMPY_ROWS = 16
"""Above this many observations at once, torch is as fast."""


class Policy:
    """Chooses actions for ``N`` environments at once.

    Args:
        network: ``[N, *observation] -> [N, size]``, shared with the learner or a copy of its network. A recurrent one
            has a ``memory_size`` and ``step(observation, memory) -> (outputs, memory)``, ``[N, memory_size]`` each.
        spec: of the environment.
        exploration: ``None`` for a policy that never explores.
        distribution: what the network's outputs mean; the network's own, or values of actions, where not given.
    """

    def __init__(
        self,
        network: nn.Module,
        spec: EnvSpec,
        exploration: Exploration | None = None,
        distribution: Distribution | None = None,
        device: str = "cpu",
    ) -> None:
        self.network, self.spec, self.exploration, self.device = network, spec, exploration, device
        self.distribution = distribution or distribution_of(network, spec)
        self.memory_size = int(getattr(network, "memory_size", 0))
        is_small = device == "cpu" and spec.observation_dtype == np.float32 and not self.memory_size
        self._numpy: Any = network.forward_numpy if is_small and getattr(network, "has_numpy", False) else None

    @property
    def extra(self) -> Extra:
        """What playing a batch needs room for."""
        if self.exploration is None:
            return Extra(memory=self.memory_size)
        outputs = self.distribution.size if self.exploration.records else 0
        return Extra(self.exploration.noise_size, outputs, self.memory_size)

    def begin(self, arrays: Any, planned: Any, memory: np.ndarray) -> "Acting":
        """What plays the next batch into ``arrays``; ``memory`` ``[N, memory_size]`` is moved on."""
        is_simple = self.extra == NO_EXTRA and not self.spec.has_action_mask
        return _Simple(self, arrays, planned) if is_simple else _Exploring(self, arrays, planned, memory)

    def greedy(
        self, observation: np.ndarray, memory: np.ndarray | None = None, mask: np.ndarray | None = None
    ) -> list[Any]:
        """The best actions for ``[N, *observation]``, as environments take them: numbers, or arrays where vectors.

        ``memory`` ``[N, memory_size]`` is moved on; only actions where ``mask`` ``[N, A]`` is true are taken.
        """
        if self._numpy is not None and len(observation) == 1 and mask is None and self.spec.num_actions is not None:
            return [self.distribution.mode(self._numpy(observation[0])).item()]  # cheaper than a matrix of one row
        outputs = self.outputs(observation, memory)
        return self.played(self.distribution.mode(outputs if mask is None else masked(outputs, mask)))

    def played(self, actions: np.ndarray) -> list[Any]:
        """Actions ``[N, ...]`` as environments take them, within the bounds."""
        within = self.distribution.played(actions)
        if self.spec.num_actions is not None:
            return within.tolist()
        return list(within.reshape(-1, *self.spec.action_shape))

    def outputs(self, observation: np.ndarray, memory: np.ndarray | None = None) -> np.ndarray:
        """What the network says, ``[N, *observation] -> [N, size]``; a recurrent one moves ``memory`` on."""
        if self._numpy is not None and len(observation) <= MOST_NUMPY_ROWS:
            return self._numpy(observation)
        return self._outputs_by_torch(observation, memory)

    @torch.inference_mode()
    def _outputs_by_torch(self, observation: np.ndarray, memory: np.ndarray | None) -> np.ndarray:
        if not self.memory_size:
            return self.network(self._tensor(observation)).cpu().numpy()
        if memory is None:
            raise ValueError("a recurrent policy acts by a memory [N, memory_size], zeros where an episode begins")
        outputs, after = self.network.step(self._tensor(observation), self._tensor(memory))  # type: ignore[operator]
        memory[...] = after.cpu().numpy()
        return outputs.cpu().numpy()

    def _tensor(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor if self.device == "cpu" else tensor.to(self.device)

    def describe(self, batch: TensorDictBase) -> None:
        """Add to a played batch how likely its actions were, and where episodes begin, if that is of use."""
        if POLICY_OUTPUT in batch.keys():
            batch.set(ACTION_LOG_PROB, self.distribution.log_prob(batch.get(POLICY_OUTPUT), batch.get(ACTION)))
        if self.memory_size:
            batch.set(IS_INIT, batch.get(NEXT_EPISODE_LENGTH) == 1)

    def copy(self, device: str | None = None, explores: bool = False) -> "Policy":
        """A frozen copy in evaluation mode, on another device if one is given; without exploration unless asked for."""
        place = device or self.device
        network = deepcopy(self.network).to(place).eval()
        return Policy(network, self.spec, self.exploration if explores else None, self.distribution, place)

    def tensors(self) -> list[Tensor]:
        """All that the network is made of: what a copy of it needs to act alike."""
        return [*self.network.parameters(), *self.network.buffers()]

    def metrics(self, env_steps: int) -> Mapping[str, float]:
        return self.exploration.metrics(env_steps) if self.exploration else {}

    def state_dict(self) -> StateDict:
        """Exploration alone: the network belongs to the learner."""
        return {"exploration": self.exploration.state_dict()} if self.exploration else {}

    def load_state_dict(self, state: StateDict) -> None:
        if self.exploration:
            self.exploration.load_state_dict(state["exploration"])


def distribution_of(network: nn.Module, spec: EnvSpec) -> Distribution:
    """What a network says that its outputs mean; else they are values of actions."""
    own = getattr(network, "distribution", None)
    if own is None and spec.num_actions is None:
        raise ValueError(f"{spec.id} takes vectors of shape {spec.action_shape}, and the network has no distribution")
    return own or Argmax(spec.num_actions or 0)


class _Simple:
    """Plays a batch of the best actions, or planned random ones."""

    def __init__(self, policy: Policy, arrays: Any, planned: Any) -> None:
        self._greedy, self._arrays, self._planned = policy.greedy, arrays, planned
        self._played: list[list[Any]] = []

    def __call__(self, observation: np.ndarray, t: int) -> list[Any]:
        is_random, actions = self._planned.is_random[t], self._planned.actions[t]
        if not all(is_random):
            best = self._greedy(observation)
            pairs = zip(is_random, actions, best, strict=True)
            actions = [other if chosen else one for chosen, other, one in pairs] if any(is_random) else best
        self._played.append(actions)
        return actions

    def finish(self) -> None:
        self._arrays.action[:] = self._played


class _Exploring:
    """Plays a batch of actions by noise, memory and masks, and writes down what the network said."""

    def __init__(self, policy: Policy, arrays: Any, planned: Any, memory: np.ndarray) -> None:
        self._policy, self._arrays, self._planned, self._memory = policy, arrays, planned, memory
        self._exploration = policy.exploration
        self._records = policy.extra.outputs > 0

    def __call__(self, observation: np.ndarray, t: int) -> list[Any]:
        arrays, policy = self._arrays, self._policy
        if self._memory.size:
            self._forget_ended(t - 1)
            arrays.memory[t] = self._memory
        outputs = policy.outputs(observation, self._memory)
        if policy.spec.has_action_mask:
            outputs = masked(outputs, arrays.action_mask[t])
        if self._exploration is None:
            actions = policy.distribution.mode(outputs)
        else:
            actions = self._exploration.explore(outputs, self._planned.noise[t])
        if any(self._planned.is_random[t]):
            actions = self._replaced(actions, t)
        arrays.action[t] = actions.reshape(arrays.action[t].shape)
        if self._records:
            arrays.policy_output[t] = outputs
        return policy.played(actions)

    def _forget_ended(self, t: int) -> None:
        if t >= 0:
            self._memory[self._arrays.terminated[t] | self._arrays.truncated[t]] = 0

    def _replaced(self, actions: np.ndarray, t: int) -> np.ndarray:
        """``actions``, but for those that are to be random; of those that can be taken, where not all can."""
        is_random, others = np.array(self._planned.is_random[t]), np.array(self._planned.actions[t])
        if self._policy.spec.has_action_mask:
            others = masked(self._planned.noise[t], self._arrays.action_mask[t]).argmax(-1)
        return np.where(is_random.reshape(-1, *[1] * (actions.ndim - 1)), others.reshape(actions.shape), actions)

    def finish(self) -> None:
        if self._memory.size:
            self._forget_ended(len(self._arrays.reward) - 1)


Acting = _Simple | _Exploring
