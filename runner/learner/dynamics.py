"""A learned model of an environment: what an action leads to, by an ensemble of networks."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runner.learner.approximation import Approximation
from runner.learner.optimizers import Adam
from runner.seeding import Streams
from runner.spec import ACTION, NEXT_OBSERVATION, NEXT_REWARD, NEXT_TERMINATED, OBSERVATION, EnvSpec, StateDict
from runner.types import PositiveFloat, PositiveInt

KEYS = (OBSERVATION, ACTION, NEXT_OBSERVATION, NEXT_REWARD, NEXT_TERMINATED)


class Predicted(NamedTuple):
    """Outcomes of ``B`` steps: ``[B, *observation]``, ``[B]`` and ``[B]``."""

    next_observation: Tensor
    reward: Tensor
    terminated: Tensor


class Members(nn.Module):
    """Perceptrons of one shape with weights of their own, evaluated together: ``[E, B, inputs] -> [E, B, outputs]``."""

    def __init__(self, members: int, inputs: int, hidden: list[int], outputs: int) -> None:
        super().__init__()
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for size, following in pairwise([inputs, *hidden, outputs]):
            bound = size**-0.5
            self.weights.append(torch.empty(members, following, size).uniform_(-bound, bound))
            self.biases.append(torch.zeros(members, following))

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.vmap(_perceptron)(list(self.weights), list(self.biases), inputs)


def _perceptron(weights: list[Tensor], biases: list[Tensor], x: Tensor) -> Tensor:
    *hidden, last = zip(weights, biases, strict=True)
    for weight, bias in hidden:
        x = F.silu(F.linear(x, weight, bias))
    return F.linear(x, *last)


class DynamicsEnsemble:
    """Predicts how an observation changes, the reward, and whether the episode terminates (Janner et al. 2019).

    Each member learns from sub-batches of its own; a prediction is that of one drawn at random for each step, so that
    what they do not agree on stays uncertain. Inputs and changes are normalized by the data of each :meth:`fit`.

    Args:
        members, hidden: networks, and the widths of each.
        batch_size: transitions of each update of each member.
    """

    def __init__(
        self,
        spec: EnvSpec,
        streams: Streams,
        members: PositiveInt = 5,
        hidden: list[PositiveInt] | None = None,
        lr: PositiveFloat = 1e-3,
        batch_size: PositiveInt = 128,
    ) -> None:
        if len(spec.observation_shape) != 1 or spec.observation_dtype.kind != "f":
            raise ValueError(f"a model of the environment needs vectors as observations; {spec.id} has other ones")
        self.num_actions, self.members, self.batch_size = spec.num_actions, members, batch_size
        self.generator = streams.torch("dynamics")
        size = spec.observation_shape[0]
        inputs = size + (spec.num_actions or int(torch.Size(spec.action_shape).numel()))
        model = Members(members, inputs, hidden or [128, 128], size + 2)
        optimizer = Adam(model.parameters(), lr=lr, fused=True)
        self.approximation = Approximation(model, optimizer, name="dynamics")
        self._scales = {"inputs": torch.zeros(2, inputs), "changes": torch.zeros(2, size + 1)}

    def fit(self, data: Mapping[Any, Tensor], updates: int) -> Tensor:
        """Go on learning from transitions ``[R, ...]`` by the keys of ``KEYS``; the loss of the last update, ``[]``."""
        inputs = self._inputs(data[OBSERVATION], data[ACTION])
        changes = torch.cat([data[NEXT_OBSERVATION] - data[OBSERVATION], data[NEXT_REWARD].unsqueeze(-1)], -1)
        for name, values in (("inputs", inputs), ("changes", changes)):
            self._scales[name] = torch.stack([values.mean(0), values.std(0, correction=0).clamp(min=1e-6)])
        inputs, changes = self._normalized("inputs", inputs), self._normalized("changes", changes)
        terminated, loss = data[NEXT_TERMINATED].float(), torch.zeros(())
        for _ in range(updates):
            rows = torch.randint(0, len(inputs), (self.members, self.batch_size), generator=self.generator)
            predicted = self.approximation(inputs[rows])
            ends = F.binary_cross_entropy_with_logits(predicted[..., -1], terminated[rows])
            loss = F.mse_loss(predicted[..., :-1], changes[rows]) + ends
            self.approximation.reinforce(loss)
        return loss.detach()

    @torch.no_grad()
    def predict(self, observation: Tensor, action: Tensor) -> Predicted:
        """What follows each of ``B`` steps, each by another member."""
        inputs = self._normalized("inputs", self._inputs(observation, action))
        every = self.approximation(inputs.expand(self.members, *inputs.shape))
        member = torch.randint(0, self.members, (len(inputs),), generator=self.generator)
        one = every[member, torch.arange(len(inputs))]
        mean, deviation = self._scales["changes"]
        changes = one[:, :-1] * deviation + mean
        return Predicted(observation + changes[:, :-1], changes[:, -1], one[:, -1] > 0)

    def _inputs(self, observation: Tensor, action: Tensor) -> Tensor:
        if self.num_actions is not None:
            return torch.cat([observation, F.one_hot(action, self.num_actions).to(observation.dtype)], -1)
        return torch.cat([observation, action.flatten(1)], -1)

    def _normalized(self, name: str, values: Tensor) -> Tensor:
        mean, deviation = self._scales[name]
        return (values - mean) / deviation

    def state_dict(self) -> StateDict:
        state = {"approximation": self.approximation.state_dict(), "generator": self.generator.get_state()}
        return {**state, "scales": {name: scale.clone() for name, scale in self._scales.items()}}

    def load_state_dict(self, state: StateDict) -> None:
        self.approximation.load_state_dict(state["approximation"])
        self.generator.set_state(state["generator"])
        self._scales = {name: scale.clone() for name, scale in state["scales"].items()}
