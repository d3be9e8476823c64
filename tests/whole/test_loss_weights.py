"""Each loss that an update tells of can be weighted by its name."""

import pytest
import torch

from runner.spec import ConfigError
from tests.whole.runs import compose_on_policy, train, weights


@pytest.mark.parametrize("algo", ["ppo", "a2c"])
def test_a_weight_counts_like_the_losss_own_factor(algo):
    settings = [f"algo={algo}", "total_frames=64"]
    doubled = train(compose_on_policy(*settings, "learner.loss_weights={value: 2.0}", "loss.critic_coeff=0.25"))
    factor = train(compose_on_policy(*settings, "loss.critic_coeff=0.5"))
    other = train(compose_on_policy(*settings, "loss.critic_coeff=0.25"))
    assert all(torch.equal(*pair) for pair in zip(weights(doubled).values(), weights(factor).values(), strict=True))
    assert doubled.trainer.progress.updates == other.trainer.progress.updates > 0


def test_a_weight_for_what_is_no_loss_is_answered_with_those_that_there_are():
    with pytest.raises(
        ConfigError, match=r"loss_weights\.ppo: the loss has no such term; it has policy, value, entropy"
    ):
        train(compose_on_policy("learner.loss_weights={ppo: 2.0}"))
