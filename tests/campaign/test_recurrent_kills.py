"""Runs whose policy remembers, and runs that learn a model of their environment, survive kills as any others."""

import pytest

from tests.campaign.kill_chains import ANYWHERE, Kind, OnPolicy
from tests.campaign.test_kills import BACKENDS, survive
from tests.whole.runs import RECURRENT


class Remembering(OnPolicy):
    def arguments(self):
        return [*RECURRENT, *self.overrides()]


class RememberingInProcesses(Remembering):
    def overrides(self):
        return [*super().overrides(), "collector.num_collectors=2"]


class Imagining(Kind):
    def overrides(self):
        own = ["algo=dyna", "env=pendulum", "source.capacity=400", "source.sources.model.capacity=80"]
        own += ["source.optim_steps=2", "source.warmup=100", "collector.init_random_frames=100"]
        model = ["updates=5", "starts=20", "steps=2", "every.env_steps=70", "dynamics.hidden=[8]"]
        own += [f"learning.model_rollouts.{word}" for word in model]
        return [*ANYWHERE, *own, *self.settings()]


def test_two_kills_change_nothing(tmp_path):
    survive(tmp_path, [Remembering("torchsnapshot", "tensor", 0, frames=400)], 2, 2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Remembering, RememberingInProcesses, Imagining])
def test_twelve_kills_change_nothing(kind, tmp_path):
    frames = 900 if kind is Imagining else 2400
    survive(tmp_path, [kind(backend, "tensor", 0, frames=frames) for backend in BACKENDS], 12, 6)
