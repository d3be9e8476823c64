"""Runs that learn from what their current policy does survive kills as any others."""

import pytest

from tests.campaign.kill_chains import OnPolicy
from tests.campaign.test_kills import BACKENDS, survive


class Penalized(OnPolicy):
    """With vector actions, statistics of observations, and a penalty that adapts."""

    def overrides(self):
        learning = "learning=[gae,on_policy,adaptive_kl,kl_stop]"
        return [
            *super().overrides(),
            "env=pendulum",
            "loss.kind=kl_penalty",
            learning,
            "network.normalize_observations=true",
        ]


class ByWorkers(OnPolicy):
    """Played by two processes."""

    def overrides(self):
        return [*super().overrides(), "collector.num_collectors=2"]


def test_two_kills_change_nothing(tmp_path):
    survive(tmp_path, [OnPolicy("torchsnapshot", "tensor", 0, frames=400)], 2, 2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [OnPolicy, Penalized, ByWorkers])
def test_twelve_kills_change_nothing(kind, tmp_path):
    survive(tmp_path, [kind(backend, "tensor", 0) for backend in BACKENDS], 12, 6)
