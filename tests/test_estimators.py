"""Which numbers of a batch go into which formula, and what is written back."""

import pytest
import torch
from tensordict import TensorDict

from runner import returns
from runner.distributions import Categorical
from runner.estimators import GAE, ReturnsToGo, TDLambda, VTrace

GAMMA = 0.5
ENDS = {"terminated": [[False, True, False, False], [False, False, False, False]]}
ENDS["done"] = [[False, True, False, False], [False, False, True, False]]  # the second episode is truncated


def value(observation):
    """Of a state ``x``: ``10 x``."""
    return 10 * observation


def batch():
    observation = torch.tensor([[1.0, 2.0, 5.0, 6.0], [3.0, 4.0, 5.0, 7.0]]).unsqueeze(-1)
    following = {
        "observation": observation + 1,
        "reward": torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]),
        "terminated": torch.tensor(ENDS["terminated"]),
        "done": torch.tensor(ENDS["done"]),
    }
    now = {"observation": observation, "action": torch.zeros(2, 4, dtype=torch.int64)}
    return TensorDict({**now, "next": TensorDict(following, [2, 4])}, [2, 4])


def given(one):
    following = one["next"]
    values = value(one["observation"]).squeeze(-1), value(following["observation"]).squeeze(-1)
    return following["reward"], *values, following["terminated"], following["done"]


def test_gae_of_a_batch():
    one = GAE({"value": value}, GAMMA, 0.75)(batch())
    expected = returns.gae(*given(batch()), GAMMA, 0.75)
    assert torch.equal(one["advantage"], expected.advantage)
    assert torch.equal(one["value_target"], expected.value_target)
    assert one["state_value"].tolist() == [[10, 20, 50, 60], [30, 40, 50, 70]]


def test_gae_of_a_batch_by_hand():
    one = GAE({"value": value}, GAMMA, 0.0)(batch())
    # reward + next value / 2 - value, where the episode did not terminate: 1 + 10 - 10, 2 - 20, 3 + 30 - 50, ...
    assert one["advantage"].tolist() == [[1, -18, -17, -21], [-5, -9, -13, -22]]


def test_lambda_returns_of_a_batch():
    one = TDLambda({"value": value}, GAMMA, 0.75)(batch())
    other = GAE({"value": value}, GAMMA, 0.75)(batch())
    for key in ("advantage", "value_target", "state_value"):
        torch.testing.assert_close(one[key], other[key])


def policy(observation):
    """Action 0 has the probability 1/2 of two."""
    return torch.zeros(*observation.shape[:-1], 2)


def test_v_trace_of_a_batch_compares_the_policy_with_the_one_that_played():
    played = batch().set("action_log_prob", torch.full((2, 4), 0.25).log())
    one = VTrace({"value": value, "policy": policy}, Categorical(2), GAMMA, rho_max=1.5, c_max=10.0)(played)
    expected = returns.v_trace(*given(batch()), torch.full((2, 4), 2.0).log(), GAMMA, 1.5, 10.0)
    torch.testing.assert_close(one["advantage"], expected.advantage)
    torch.testing.assert_close(one["value_target"], expected.value_target)


def test_returns_of_episodes_whose_end_was_not_seen_do_not_count():
    one = ReturnsToGo({"value": value}, GAMMA)(batch())
    # 1 + 2 / 2, 2; then nothing ends. The other is cut in a state worth 60: 7 + 60 / 2, 6 + 37 / 2, 5 + 24.5 / 2.
    weight = torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]])
    torch.testing.assert_close(one["importance_weight"], weight * 8 / 5)
    seen = weight.bool()
    assert one["value_target"][seen].tolist() == [2, 2, 17.25, 24.5, 37]
    assert one["advantage"][seen].tolist() == [2 - 10, 2 - 20, 17.25 - 30, 24.5 - 40, 37 - 50]


def test_without_a_baseline_the_advantage_is_the_return():
    one = ReturnsToGo({"policy": policy}, GAMMA)(batch())
    assert torch.equal(one["advantage"], one["value_target"])


def test_a_batch_without_any_end_weighs_nothing():
    played = batch()
    played["next", "done"].zero_()
    weight = ReturnsToGo({}, GAMMA)(played)["importance_weight"]
    assert weight.tolist() == [[0.0] * 4] * 2


@pytest.mark.parametrize("kind", [GAE, TDLambda])
def test_a_network_that_is_missing_is_named(kind):
    with pytest.raises(ValueError, match=f"{kind.__name__} needs a network called value; there are policy"):
        kind({"policy": policy})


def test_nothing_remembers_a_gradient():
    weight = torch.ones((), requires_grad=True)
    one = GAE({"value": lambda x: weight * x}, GAMMA)(batch())
    assert not any(one[key].requires_grad for key in ("advantage", "value_target", "state_value"))
