"""Small environments and parts whose numbers can be worked out by hand."""

from functools import partial
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import nn

from runner.builders import make_collector_offpolicy
from runner.envs.vector import make_environment
from runner.exploration import EpsilonGreedy
from runner.hook import StatelessHook
from runner.networks.mlp import make_q_network
from runner.points import POINTS
from runner.policy import Policy
from runner.seeding import Streams
from runner.spec import NEXT_REWARD, OBSERVATION, Deferred, Progress
from runner.trainer import Trainer


class Counter(gymnasium.Env):
    """Observation ``[steps, 0.1]`` as float64, reward = steps, an end after ``length`` steps; remembers its resets."""

    def __init__(self, length: int = 5, end: str = "terminated") -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = spaces.Discrete(3)
        self.length, self.end = length, end
        self.seeds: list[int | None] = []
        self.actions: list[Any] = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.steps = 0
        return self._observation(), {}

    def step(self, action):
        self.actions.append(action)
        self.steps += 1
        is_over = self.steps >= self.length
        ends = (is_over, False) if self.end == "terminated" else (False, is_over)
        return self._observation(), float(self.steps), *ends, {}

    def _observation(self):
        return np.array([self.steps, 0.1])


class Made:
    """Makes environments and keeps them for a look inside."""

    def __init__(self, kind=Counter, *arguments: Any, **kwargs: Any) -> None:
        self.one, self.envs = partial(kind, *arguments, **kwargs), []

    def __call__(self) -> Any:
        self.envs.append(self.one())
        return self.envs[-1]


def environment(make=Counter, num_envs: int = 1, seed: int = 0, **options: Any):
    given = {"id": make} if isinstance(make, str) else {"make": make}
    made = make_environment(streams=Streams(seed), num_envs=num_envs, **given, **options)
    made.complete()
    return made


def policy(env, epsilon: float = 0.0, seed: int = 0) -> Policy:
    torch.manual_seed(seed)
    network = make_q_network(env.spec, [8], "tanh")["q"]
    for layer in network.layers:
        nn.init.zeros_(layer.bias)  # an odd function: no action is best everywhere
    return Policy(network, env.spec, EpsilonGreedy(Streams(seed).numpy("exploration"), env.spec, epsilon, epsilon, 0))


def turn_around(network: nn.Module) -> None:
    """Change the sign of every action value, so that other actions are best."""
    with torch.no_grad():
        for parameter in network.layers[-1].parameters():
            parameter.neg_()


def collector(env=None, frames_per_batch: int = 4, epsilon: float = 0.0, **options: Any):
    env = env or environment()
    return make_collector_offpolicy(env, policy(env, epsilon), frames_per_batch, **options)


class RewardModel(nn.Module):
    """``loss_model``: squared error of a linear model of the reward, starting from zero weights."""

    def __init__(self, inputs: int = 2) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, batch):
        error = self.linear(batch[OBSERVATION]).squeeze(-1) - batch[NEXT_REWARD]
        return {"loss_model": error.square().mean()}


def trainer(total_frames: int = 8, loss: nn.Module | None = None, **options: Any) -> Trainer:
    """A trainer as plain as the one of the reference page, on batches of 4 env steps of ``Counter``."""
    loss = loss or RewardModel()
    options.setdefault("collector", collector())
    return Trainer(
        total_frames=total_frames, loss_module=loss, optimizer=torch.optim.Adam(loss.parameters(), lr=0.1), **options
    )


class Tape(StatelessHook):
    """Writes down each point of the loop as it fires."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def register(self, trainer, name=None) -> None:
        trainer.register_module(name or self.default_name(), self)
        for point, kind in POINTS.items():
            trainer.register_op(point, getattr(self, kind if kind == "data" else "note"), at=point)

    def data(self, batch, at):
        self.events.append(at)
        return batch

    def note(self, *arguments, at) -> None:
        self.events.append(at)


class Call(StatelessHook):
    """Calls a function at one point."""

    def __init__(self, point: str, function) -> None:
        self.point, self.function = point, function

    def register(self, trainer, name=None) -> None:
        trainer.register_module(name or self.default_name(), self)
        trainer.register_op(self.point, self)

    def __call__(self, *arguments):
        return self.function(*arguments)


class Rows:
    """A logger that keeps its rows."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def log_hparams(self, parameters) -> None:
        self.parameters = parameters

    def log_row(self, row) -> None:
        self.rows.append(dict(row))

    def flush(self) -> None:
        self.is_flushed = True

    def close(self, status) -> None:
        self.status = status

    def state_dict(self):
        return {"rows": len(self.rows)}

    def load_state_dict(self, state) -> None:
        self.rows = self.rows[: state["rows"]]


def at(env_steps: int = 0, **counters: Any) -> Progress:
    return Progress(env_steps=env_steps, **counters)


def same_tree(one: Any, other: Any) -> bool:
    """Whether two nested states hold the same values, bit for bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_tree(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same_tree(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, Deferred):
        return same_tree(one.work(), other.work())
    return np.array_equal(one, other)


class RewardToGo:
    """An estimator: rewards to come in the batch ``[N, T]``, and how much more than their mean; counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, batch):
        self.calls += 1
        to_go = batch[NEXT_REWARD].flip(-1).cumsum(-1).flip(-1)
        return batch.set("value_target", to_go).set("advantage", to_go - to_go.mean())

    def state_dict(self):
        return {"calls": self.calls}

    def load_state_dict(self, state) -> None:
        self.calls = state["calls"]
