"""The price of moving follows how far the policy went."""

import pytest
import torch
from tensordict import TensorDict

from hooks.adaptive_kl import AdaptiveKL
from hooks.kl_stop import KLStop
from runner.distributions import Categorical
from runner.losses.ppo import PPOLoss
from runner.spec import ConfigError
from tests.toys import RewardModel, trainer


def hooked(beta=1.0, dtarg=0.01, **options):
    loss = PPOLoss(Categorical(2), kind="kl_penalty", beta=beta)
    return AdaptiveKL(loss, dtarg, **options), loss


def went(hook, *divergences):
    """One batch with an update for each of these mean divergences."""
    for kl in divergences:
        hook(TensorDict({"kl": torch.tensor([0.0, 2 * kl])}, [2]))
    hook.adapt()
    return hook.beta.item()


@pytest.mark.parametrize(
    ("divergence", "beta"),
    [(0.0151, 2.0), (0.0149, 1.0), (0.01, 1.0), (0.0067, 1.0), (0.0066, 0.5), (0.0, 0.5)],  # 1.5 x and 0.01 / 1.5
)
def test_beta_doubles_beyond_the_band_and_halves_below_it(divergence, beta):
    assert went(hooked()[0], divergence) == beta


def test_only_the_last_update_of_a_batch_counts():
    assert went(hooked()[0], 1.0, 1.0, 0.01) == 1.0
    assert went(hooked()[0], 0.01, 1.0) == 2.0


def test_beta_goes_on_from_batch_to_batch_by_its_own_factors():
    hook, loss = hooked(3.0, increment=4.0, decrement=0.25)
    assert [went(hook, one) for one in (1.0, 1.0, 0.0, 0.01)] == [12, 48, 12, 12]
    assert loss.hyper_parameters["beta"] is hook.beta


def test_a_batch_without_updates_changes_nothing():
    hook, _ = hooked()
    assert went(hook, 1.0) == 2
    hook.adapt()
    assert hook.beta.item() == 2


def test_beta_is_saved():
    hook, (other, loss) = hooked()[0], hooked()
    went(hook, 1.0)
    other.load_state_dict(hook.state_dict())
    assert loss.hyper_parameters["beta"].item() == 2
    assert hook.state_dict()["beta"] == 2.0


@pytest.mark.parametrize("loss", [RewardModel(), PPOLoss(Categorical(2))])
def test_a_loss_without_a_penalty_is_refused(loss):
    with pytest.raises(ConfigError, match=r"adaptive_kl: .* loss\.kind=kl_penalty has"):
        AdaptiveKL(loss)


class Divergent(RewardModel):
    """Tells ``kl`` of each sample: 0 and twice as much as ``mean``, alternately."""

    def __init__(self, mean):
        super().__init__()
        self.mean = mean

    def forward(self, batch):
        return {**super().forward(batch), "kl": torch.arange(batch.numel()).view(batch.shape) % 2 * 2 * self.mean}


@pytest.mark.parametrize(("mean", "updates"), [(0.031, 1), (0.029, 5)])
def test_the_mean_over_the_sub_batch_decides_whether_updates_stop(mean, updates):
    one = trainer(4, Divergent(mean), optim_steps_per_batch=5)
    KLStop(0.03).register(one)
    assert one.train().updates == updates
