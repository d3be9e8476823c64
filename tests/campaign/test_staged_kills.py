"""A run whose loss is minimized in stages, with noise of its own and sampled vectors as actions, survives kills too."""

import pytest

from tests.campaign.kill_chains import Kind
from tests.campaign.test_kills import BACKENDS, survive


class Staged(Kind):
    """The same with another algorithm: three optimizers, two values and a temperature."""

    def overrides(self):
        own = [one for one in super().overrides() if not one.startswith("target_updater")]  # its targets are averaged
        return [*own, "algo=sac", "env=pendulum"]


@pytest.mark.slow
def test_twelve_kills_of_staged_optimizations_change_nothing(tmp_path):
    survive(tmp_path, [Staged(backend, "tensor", 0, frames=900) for backend in BACKENDS], 12, 6)
