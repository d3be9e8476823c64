"""Hooks that need few words: key selection, the GPU's cache, advantages."""

import pytest
import torch
from tensordict import TensorDict

from hooks.clear_cuda_cache import ClearCudaCache
from hooks.count_frames_log import CountFramesLog
from hooks.select_keys import SelectKeys
from hooks.value_estimator import ValueEstimatorHook
from runner.spec import ConfigError, ContractError
from tests.toys import RewardToGo, trainer

KEPT = ["observation", ["next", "reward"]]


@pytest.mark.pins("SelectKeys")
def test_later_hooks_and_updates_see_what_is_selected():
    one, seen = trainer(4), []
    SelectKeys(KEPT).register(one)
    one.register_op("post_loss", lambda batch: seen.append(set(batch.keys(include_nested=True, leaves_only=True))))
    one.train()
    assert seen == [{"observation", ("next", "reward")}]


@pytest.mark.pins("SelectKeys", excludes="a text is taken for a list of letters")
@pytest.mark.parametrize("keys", ["observation", [], ()])
def test_keys_are_a_list(keys):
    with pytest.raises(ValueError, match="keys is a list of entries"):
        SelectKeys(keys)


@pytest.mark.pins("SelectKeys", excludes="dropping the mask changes the count of frames")
@pytest.mark.pins("CountFramesLog", excludes="frames are counted on the processed batch")
def test_selection_does_not_change_what_is_counted():
    one = trainer(8)
    SelectKeys(KEPT).register(one)
    CountFramesLog(log_pbar=True).register(one)
    one.train()
    assert (one.progress.env_steps, one.progress.episodes) == (8, 1)
    assert one.pbar_values == {"train/n_frames": 8}


def test_a_key_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match=r"the batch has no \['speed'\]; it has \['a'\]"):
        SelectKeys(["a", "speed"])(TensorDict({"a": torch.ones(2)}, batch_size=[2]))


@pytest.mark.pins("ClearCudaCache", excludes="the count is not saved")
def test_the_cache_is_emptied_now_and_then_and_the_count_is_saved(monkeypatch):
    one, hook, emptied = trainer(24), ClearCudaCache({"batches": 2}), []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(one.progress.batches))
    hook.register(one)
    one.train()
    assert emptied == [2, 4, 6]
    other = ClearCudaCache({"batches": 2})
    other.load_state_dict(hook.state_dict())
    assert other.count == 3


@pytest.mark.pins("ClearCudaCache", excludes="no register, no state")
def test_without_a_gpu_only_the_count_moves():
    one, hook = trainer(8), ClearCudaCache()
    hook.register(one)
    one.train()
    assert hook.count == 2


@pytest.mark.pins("ValueEstimatorHook", excludes="advantages are estimated anew in every epoch")
def test_advantages_are_estimated_once_for_each_batch():
    one, estimator, seen = trainer(8, optim_steps_per_batch=3), RewardToGo(), []
    ValueEstimatorHook(estimator).register(one)
    one.register_op("post_loss", lambda batch: seen.append((batch["value_target"][0], batch["advantage"][0])))
    one.train()
    rewards = [[1, 2, 3, 4], [5, 1, 2, 3]]
    expected = [[sum(row[step:]) for step in range(4)] for row in rewards]
    targets, advantages = ([part.tolist() for part in parts] for parts in zip(*seen, strict=True))
    assert targets == [expected[0]] * 3 + [expected[1]] * 3
    assert advantages[0] == pytest.approx([10 - 7.5, 9 - 7.5, 7 - 7.5, 4 - 7.5])
    assert estimator.calls == 2


@pytest.mark.pins("ValueEstimatorHook")
def test_what_an_estimator_remembers_is_saved():
    one, other = (ValueEstimatorHook(RewardToGo()) for _ in range(2))
    one.estimator.calls = 5
    other.load_state_dict(one.state_dict())
    assert other.estimator.calls == 5
    plain = ValueEstimatorHook(lambda batch: batch)
    plain.load_state_dict(plain.state_dict())


def test_no_batch_can_be_left_without_advantages():
    """The loss reads them of every batch: an interval could only end the run."""
    with pytest.raises(TypeError, match="every"):
        ValueEstimatorHook(RewardToGo(), every={"batches": 2})


@pytest.mark.parametrize("estimator", [lambda batch: None, lambda batch: batch])
def test_an_estimator_that_leaves_out_the_target_is_refused(estimator):
    with pytest.raises(ContractError, match="advantage and value_target; "):
        ValueEstimatorHook(estimator)(TensorDict({"advantage": torch.ones(2)}, batch_size=[2]))
