"""The hook that shows collected observations to the networks that normalize them."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from tensordict import TensorDictBase

from runner.hook import StatelessHook
from runner.spec import OBSERVATION, played
from runner.types import NonNegativeInt


class NormalizeObservations(StatelessHook):
    """Updates running means and variances once for each collected batch; without effect where no network has any.

    Where the source is a dataset, they begin with all of its observations. Every network and every target takes the
    same batch, so that all of them normalize alike. The statistics belong to the networks, which the learner saves;
    nothing here is random but the first steps.

    Args:
        init_env_steps: random steps in an environment of their own that the statistics begin from; they do not count.
        until_env_steps: the statistics stay as they are from then on; ``None``: they never stop.
        after_updates: take the batch once the updates on it are done, so that they see what the policy acted by.
    """

    def __init__(
        self,
        learner: Any,
        environment: Any = None,
        init_env_steps: NonNegativeInt = 0,
        until_env_steps: NonNegativeInt | None = None,
        after_updates: bool = False,
    ) -> None:
        self.environment, self.after_updates = environment, after_updates
        self.init_env_steps, self.until_env_steps = init_env_steps, until_env_steps
        self.normalizers = normalizers_of(learner)
        self._has_begun = False
        if init_env_steps and self.normalizers and environment is None:
            raise ValueError(f"init_env_steps={init_env_steps} needs an environment to take them in")

    def register(self, trainer: Any, name: str | None = None) -> None:
        self.progress = trainer.progress
        source = getattr(trainer, "source", None)
        self._recorded: Callable[[], Iterable[torch.Tensor]] = getattr(source, "observations", tuple)
        if self.normalizers:
            trainer.register_module(name or self.default_name(), self)
            if self.after_updates:
                trainer.register_op("post_steps", self.observe)
            else:
                trainer.register_op("batch_process", self)

    def __call__(self, batch: TensorDictBase) -> TensorDictBase:
        self.observe(batch)
        return batch

    def observe(self, batch: TensorDictBase) -> None:
        """Take a batch into the statistics, unless they are to stay as they are."""
        if self.until_env_steps is not None and self.progress.env_steps > self.until_env_steps:
            return
        if not self._has_begun:
            self._begin()
        self._observe(played(batch, OBSERVATION, self.default_name()))

    def _begin(self) -> None:
        self._has_begun = True
        if self.normalizers[0].count:  # the run goes on
            return
        for part in self._recorded():
            self._observe(part)
        if self.init_env_steps:
            self._observe(torch.from_numpy(self.environment.random_observations(self.init_env_steps)))

    def _observe(self, observations: torch.Tensor) -> None:
        for normalizer in self.normalizers:
            normalizer.observe(observations)


def normalizers_of(learner: Any) -> list[Any]:
    """All parts of all networks, and of the copies that follow them, that keep statistics."""
    networks = [network for module in learner.modules.values() for network in module.networks.values()]
    models = [model for network in networks for model in (network.model, network.target.model)]
    parts = [part for model in models for part in model.modules() if callable(getattr(part, "observe", None))]
    return list({id(part): part for part in parts}.values())
