import pytest
import torch
from tensordict import TensorDict

from hooks.log_scalar import LogScalar
from runner.spec import ConfigError
from tests.toys import trainer


def batch(values, **fields):
    values = torch.as_tensor(values)
    return TensorDict({"next": {"reward": values}, "a": values * 2, **fields}, batch_size=values.shape)


def logged(hook, given):
    return {name: float(value) for name, value in hook(given).items() if name != "log_pbar"}


@pytest.mark.pins("LogScalar")
@pytest.mark.parametrize(("reduction", "expected"), [("mean", 3.0), ("sum", 9.0), ("min", 1.0), ("max", 6.0)])
def test_an_entry_is_reduced_and_its_deviation_logged(reduction, expected):
    found = logged(LogScalar(reduction=reduction), batch([1.0, 2.0, 6.0]))
    assert found == {"train/next_reward": expected, "train/next_reward_std": pytest.approx((14 / 3) ** 0.5)}


@pytest.mark.pins("LogScalar")
def test_key_name_bar_and_deviation_can_be_chosen():
    hook = LogScalar("a", "train/twice", log_pbar=True, include_std=False)
    assert hook(batch([1.0, 3.0])) == {"train/twice": torch.tensor(4.0), "log_pbar": True}


def test_one_value_has_no_deviation():
    assert logged(LogScalar(), batch([5]))["train/next_reward_std"] == 0


def test_whole_numbers_and_truth_values_can_be_logged():
    assert logged(LogScalar(include_std=False), batch([True, False]))["train/next_reward"] == 0.5


@pytest.mark.pins("LogScalar")
def test_invalid_steps_are_left_out():
    mask = {"mask": torch.tensor([True, False, True])}
    assert logged(LogScalar(reduction="max"), batch([1.0, 9.0, 2.0], collector=mask))["train/next_reward"] == 2.0
    nothing = {"mask": torch.zeros(3, dtype=torch.bool)}
    assert LogScalar()(batch([1.0, 9.0, 2.0], collector=nothing)) is None


@pytest.mark.parametrize("key", ["speed", "next"])
def test_an_entry_that_is_not_there_is_named(key):
    with pytest.raises(ConfigError, match=rf"log_scalar: the batch has no {key}; it has .*'reward'"):
        LogScalar(key)(batch([1.0]))


def test_another_reduction_is_refused():
    with pytest.raises(ValueError, match="no reduction 'median'; there are mean, sum, min and max"):
        LogScalar(reduction="median")


@pytest.mark.pins("LogScalar", excludes="a synchronization with the device for each value")
def test_values_stay_tensors_until_a_row_is_written():
    one = trainer(8)
    LogScalar(["next", "reward"], "train/reward").register(one)
    one.train()
    # Rewards 1 2 3 4 of the first batch, 5 1 2 3 of the second, whose memory is the same.
    assert [float(value) for value in one.metrics._pending["train/reward"]] == [2.5, 2.75]
    assert isinstance(one.metrics.latest["train/reward"], torch.Tensor)
