"""What is evaluated, exported and sent to collectors: a network, what it makes of an observation, and exploration."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from runner.spec import EnvSpec, Exploration, StateDict

MOST_NUMPY_ROWS = 16
"""Above this many observations at once, torch is as fast."""


def argmax_action(values: Any) -> Any:
    """The best of ``A`` discrete actions: ``[N, A] -> [N]``, of a tensor or an array."""
    return values.argmax(-1)


class Policy:
    """Chooses actions for ``N`` environments at once.

    Args:
        network: ``[N, *observation] -> [N, ...]``, shared with the learner or a copy of its network.
        spec: of the environment.
        exploration: ``None`` for a policy that never explores.
        choose: turns the network's output into greedy actions.
    """

    def __init__(
        self,
        network: nn.Module,
        spec: EnvSpec,
        exploration: Exploration | None = None,
        choose: Callable[[Any], Any] = argmax_action,
        device: str = "cpu",
    ) -> None:
        self.network, self.spec, self.exploration = network, spec, exploration
        self.choose, self.device = choose, device
        is_small = device == "cpu" and spec.num_actions is not None and spec.observation_dtype == np.float32
        self._numpy: Any = network.forward_numpy if is_small and getattr(network, "has_numpy", False) else None

    def greedy(self, observation: np.ndarray) -> list[Any]:
        """The best actions for ``[N, *observation]``: numbers, or arrays where actions are vectors."""
        if self._numpy is not None and len(observation) <= MOST_NUMPY_ROWS:
            if len(observation) == 1:  # a vector times a matrix costs less than a matrix of one row
                return [self.choose(self._numpy(observation[0])).item()]
            return self.choose(self._numpy(observation)).tolist()
        return self._greedy_by_torch(observation)

    @torch.inference_mode()
    def _greedy_by_torch(self, observation: np.ndarray) -> list[Any]:
        tensor = torch.from_numpy(observation)
        actions = self.choose(self.network(tensor if self.device == "cpu" else tensor.to(self.device)))
        return actions.tolist() if self.spec.num_actions is not None else list(actions.cpu().numpy())

    def copy(self, device: str | None = None) -> "Policy":
        """A frozen copy without exploration, in evaluation mode, on another device if one is given."""
        place = device or self.device
        return Policy(deepcopy(self.network).to(place).eval(), self.spec, None, self.choose, place)

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
