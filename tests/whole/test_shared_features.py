"""Features with an optimizer of their own, from the command line on."""

import pytest
import torch

from tests.whole.children import fork
from tests.whole.runs import compose_on_policy, differences, end_of, train, weights
from tests.whole.test_resume import wait_until, whole

SETTINGS = "algo=a2c", "network=shared_features", "learner.optimizations.features.lr=1e-3", "total_frames=2000"


def test_a_run_stopped_by_sigterm_resumes_bit_for_bit(tmp_path):
    uninterrupted = whole(compose_on_policy(*SETTINGS), tmp_path / "uninterrupted")
    config, folder = compose_on_policy(*SETTINGS), tmp_path / "run"
    child = fork(config, folder)
    wait_until((folder / "ckpt" / "step-1000").exists, child)
    child.send(15)
    assert child.wait() == 75, child.output()
    assert differences(whole(config, folder), uninterrupted) == []
    assert end_of(config, folder)["state"]["learner"]["optimizer"]["default"]["optimizations"].keys() == {
        "default",
        "features",
    }


def test_a_run_without_clipping_is_that_of_one_optimizer_over_shared_layers():
    few = "algo=a2c", "total_frames=400", "learner.clip=null", "logger={}", "hooks={}"
    apart = weights(train(compose_on_policy("network=shared_features", *few)))
    together = weights(
        train(compose_on_policy("network=actor_critic", "network.shared=true", "loss.critic_coeff=0.01", *few))
    )
    assert apart.keys() == together.keys()
    for name, value in apart.items():
        torch.testing.assert_close(value, together[name], rtol=0, atol=1e-6)
    clipped = weights(train(compose_on_policy("network=shared_features", *few, "learner.clip=0.01")))
    with pytest.raises(AssertionError):  # the comparison notices what moves otherwise
        torch.testing.assert_close(clipped, together, rtol=0, atol=1e-6)
