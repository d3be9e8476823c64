"""The hook that learns a model of the environment, and lets the policy play in it."""

from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from runner.hook import Interval, TrainerHookBase
from runner.metrics import Gauge
from runner.seeding import Streams
from runner.spec import (
    ACTION,
    NEXT_DONE,
    NEXT_OBSERVATION,
    NEXT_REWARD,
    NEXT_TERMINATED,
    OBSERVATION,
    ConfigError,
    StateDict,
    as_key,
)
from runner.types import Every, PositiveInt


class ModelRollouts(TrainerHookBase):
    """Dyna (Sutton 1991) with short rollouts from stored states (Janner et al. 2019): updates see imagined steps too.

    Each so often the model learns from the source ``real`` of a mixture, and then the policy plays ``steps`` steps in
    it from ``starts`` stored observations; those go into the source ``model``.

    Args:
        dynamics: has ``fit(data, updates)`` and ``predict(observation, action)``.
        updates: of the model, each time.
    """

    def __init__(
        self,
        dynamics: Any,
        source: Any,
        policy: Any,
        streams: Streams,
        every: Every,
        updates: PositiveInt = 100,
        starts: PositiveInt = 400,
        steps: PositiveInt = 1,
    ) -> None:
        sources = getattr(source, "sources", {})
        if not {"real", "model"} <= sources.keys():
            raise ConfigError("model_rollouts: needs a mixture of sources called real and model")
        if getattr(policy, "device", "cpu") != "cpu":
            raise ConfigError(f"model_rollouts: works on the CPU alone so far; device={policy.device}")
        self.dynamics, self.policy, self.warmup = dynamics, policy, source.warmup
        self.real, self.model = sources["real"], sources["model"]
        self.interval, self.updates, self.starts, self.steps = Interval(every), updates, starts, steps
        self.generator, self.noise = streams.torch("model rollouts"), streams.numpy("model rollouts")
        self._loss: Tensor | None = None

    def register(self, trainer: Any, name: str | None = None) -> None:
        self.progress = trainer.progress
        trainer.register_module(name or self.default_name(), self)
        trainer.register_op("batch_process", self)
        trainer.register_op("pre_steps_log", self.log)

    def __call__(self, batch: TensorDictBase) -> TensorDictBase:
        is_first = not len(self.model.storage)
        if (
            len(self.real.storage)
            and self.progress.env_steps >= self.warmup
            and (self.interval.fires(self.progress) or is_first)
        ):
            stored = {key: self.real.storage.flat[key][: len(self.real.storage)] for key in self.real.storage.flat}
            self._loss = self.dynamics.fit(stored, self.updates)
            self.model.extend(self.imagine(stored[OBSERVATION]))
        return batch

    @torch.no_grad()
    def imagine(self, observations: Tensor) -> TensorDict:
        """Rollouts ``[starts, steps]`` from some of ``observations``; where an episode ends, another one begins."""
        observation, rows = self._draw(observations), []
        for step in range(self.steps):
            action = self._act(observation)
            following, reward, terminated = self.dynamics.predict(observation, action)
            is_last = torch.full_like(terminated, step == self.steps - 1)
            rows.append((observation, action, following, reward, terminated, terminated | is_last))
            observation = torch.where(terminated.unsqueeze(-1), self._draw(observations), following)
        keys = (OBSERVATION, ACTION, NEXT_OBSERVATION, NEXT_REWARD, NEXT_TERMINATED, NEXT_DONE)
        batch = TensorDict(batch_size=[self.starts, self.steps])
        for key, column in zip(keys, zip(*rows, strict=True), strict=True):
            batch.set(as_key(key), torch.stack(column).transpose(0, 1))
        return batch

    def _draw(self, observations: Tensor) -> Tensor:
        return observations[torch.randint(0, len(observations), (self.starts,), generator=self.generator)].clone()

    def _act(self, observation: Tensor) -> Tensor:
        distribution = self.policy.distribution
        noise = torch.from_numpy(np.asarray(distribution.draw(self.noise, (self.starts,))))
        return distribution.played(distribution.sample(self.policy.network(observation), noise))

    def log(self, batch: TensorDictBase) -> dict[str, Any] | None:
        loss, self._loss = self._loss, None
        return None if loss is None else {"loss/dynamics": Gauge(loss.item())}

    def state_dict(self) -> StateDict:
        return {
            "dynamics": self.dynamics.state_dict(),
            "interval": self.interval.state_dict(),
            "generator": self.generator.get_state(),
            "noise": self.noise.bit_generator.state,
        }

    def load_state_dict(self, state: StateDict) -> None:
        self.dynamics.load_state_dict(state["dynamics"])
        self.interval.load_state_dict(state["interval"])
        self.generator.set_state(state["generator"])
        self.noise.bit_generator.state = state["noise"]
