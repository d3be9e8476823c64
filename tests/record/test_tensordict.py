"""What a TensorDictRecorder keeps of the batches it is shown."""

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from runner.data.dataset import Dataset, DatasetWriter
from runner.dataset_builders import make_tensordict_recorder
from runner.record.tensordict import TRANSITION, TensorDictRecorder
from runner.spec import MASK, TRAJ_IDS, ConfigError, EnvSpec

SPEC = EnvSpec("Toy-v0", (), np.dtype(np.int64), (), np.dtype(np.int64), num_actions=2)


def batch(first, num_envs=2, steps=3, ends=(), **more):
    """Steps ``first, first + 1, ...`` of each environment: the observation is 100 for each environment and the step."""
    step = torch.arange(first, first + steps).repeat(num_envs, 1)
    observation = step + 100 * torch.arange(num_envs)[:, None]
    done = torch.zeros(num_envs, steps, dtype=torch.bool)
    for env, at in ends:
        done[env, at] = True
    after = {"observation": observation + 1, "reward": observation / 10, "terminated": done, "truncated": ~done & False}
    content = {"observation": observation, "action": step % 2, "next": {**after, "done": done}, **more}
    return TensorDict(content, batch_size=[num_envs, steps])


def recorded(folder, batches, **options):
    recorder = TensorDictRecorder(DatasetWriter(folder, SPEC), **{"skip": 1, **options})
    for one in batches:
        recorder.record(one)
    recorder.close()
    return Dataset(folder)


@pytest.mark.pins("TensorDictRecorder", excludes="dump always fails: it reads an attribute that is never set")
def test_rows_are_the_steps_in_the_order_in_which_they_were_taken(tmp_path):
    dataset = recorded(tmp_path, [batch(0), batch(3)])
    assert dataset.tensor("observation").tolist() == [0, 100, 1, 101, 2, 102, 3, 103, 4, 104, 5, 105]
    assert torch.equal(dataset.tensor(("next", "observation")), dataset.tensor("observation") + 1)
    assert torch.equal(dataset.tensor(("next", "reward")), dataset.tensor("observation") / 10)
    assert set(dataset.keys) == set(TRANSITION)
    assert dataset.about == {"num_envs": 2, "skip": 1}


def test_what_the_policy_said_is_kept_only_where_it_is_asked_for(tmp_path):
    one = batch(0, action_log_prob=torch.full((2, 3), -0.5), policy_output=torch.ones(2, 3, 2), other=torch.ones(2, 3))
    assert set(recorded(tmp_path / "all", [one]).keys) == set(TRANSITION)
    asked = ["action", "action_log_prob"]
    assert set(recorded(tmp_path / "asked", [one], in_keys=asked).keys) == set(asked)


def test_actions_are_those_that_the_environment_took(tmp_path):
    bounds = {"action_low": np.array([-2.0, -np.inf], np.float32), "action_high": np.array([1.0, np.inf], np.float32)}
    spec = EnvSpec("Toy-v0", (), np.dtype(np.int64), (2,), np.dtype(np.float32), **bounds)
    chosen = torch.tensor([[[-3.0, -3.0], [-2.0, 9.0], [0.5, 0.0]], [[1.5, 1.0], [1.0, 2.0], [-0.5, 7.0]]])
    one = batch(0).set("action", chosen.clone())
    dataset = recorded(tmp_path, [one], spec=spec)
    expected = [[-2.0, -3.0], [1.0, 1.0], [-2.0, 9.0], [1.0, 2.0], [0.5, 0.0], [-0.5, 7.0]]
    assert dataset.tensor("action").tolist() == expected
    assert torch.equal(one["action"], chosen)  # the batch itself is still what the policy chose


@pytest.mark.pins("TensorDictRecorder", excludes="skip counts calls and not steps")
def test_skip_keeps_one_step_in_so_many_across_batches(tmp_path):
    dataset = recorded(tmp_path, [batch(first) for first in range(0, 12, 3)], skip=5)
    assert dataset.tensor("observation").tolist() == [0, 100, 5, 105, 10, 110]
    assert dataset.about["skip"] == 5


@pytest.mark.pins("TensorDictRecorder")
def test_in_keys_are_what_is_kept(tmp_path):
    dataset = recorded(tmp_path, [batch(0)], in_keys=["action", ("next", "reward")])
    assert set(dataset.keys) == {"action", ("next", "reward")}
    with pytest.raises(ConfigError, match="the batch has no \\['nothing'\\]"):
        recorded(tmp_path, [batch(0)], in_keys=["nothing"])


@pytest.mark.pins("TensorDictRecorder")
def test_without_skip_reset_rows_say_where_episodes_begin(tmp_path):
    ended = [(0, 1), (1, 2)]
    dataset = recorded(tmp_path, [batch(0, ends=ended), batch(3)], skip_reset=False)
    begins = dataset.tensor("is_init").view(-1, 2)
    assert begins[:, 0].tolist() == [True, False, True, False, False, False]
    assert begins[:, 1].tolist() == [True, False, False, True, False, False]


def test_the_first_kept_row_of_an_episode_begins_it_where_its_first_step_is_left_out(tmp_path):
    # Episodes of environment 0 begin at 0, 10 and 11, of environment 1 at 0 and 12; kept are 0, 4, 8, 12, 16.
    batches = [batch(first, ends=[(0, 0), (0, 1), (1, 2)] if first == 9 else ()) for first in range(0, 18, 3)]
    begins = recorded(tmp_path, batches, skip=4, skip_reset=False).tensor("is_init").view(-1, 2)
    assert begins.tolist() == [[1, 1], [0, 0], [0, 0], [1, 1], [0, 0]]


def test_so_it_does_where_batches_of_workers_come_in_turns(tmp_path):
    def of(first, ids, ends=()):
        return batch(first, 1, 2, ends, collector={"traj_ids": torch.tensor([ids])})

    # Kept are the steps 0, 3, 6, 9 of all: 9 is the first that is kept of trajectory 5, which begins at 5.
    batches = [of(0, [1, 1]), of(50, [2, 2]), of(2, [1, 5], [(0, 0)]), of(52, [2, 2]), of(4, [5, 5])]
    dataset = recorded(tmp_path, batches, skip=3, skip_reset=False)
    assert dataset.tensor(TRAJ_IDS).tolist() == [1, 2, 2, 5]
    assert dataset.tensor("is_init").tolist() == [1, 1, 0, 1]


def test_batches_of_workers_in_turns_begin_an_episode_where_its_number_is_new(tmp_path):
    def of(first, ids, ends=()):
        return batch(first, 1, 2, ends, collector={"traj_ids": torch.tensor([ids])})

    batches = [of(0, [7, 7]), of(50, [8, 8], [(0, 1)]), of(2, [7, 9], [(0, 0)]), of(52, [10, 10]), of(4, [9, 9])]
    dataset = recorded(tmp_path, batches, skip_reset=False)
    assert dataset.tensor(TRAJ_IDS).tolist() == [7, 7, 8, 8, 7, 9, 10, 10, 9, 9]
    assert dataset.tensor("is_init").tolist() == [1, 0, 1, 0, 0, 1, 1, 0, 0, 0]


def test_rows_that_were_not_played_are_left_out(tmp_path):
    mask = torch.tensor([[True, True, False], [True, False, False]])
    one = batch(0)
    one.set(MASK, mask)
    dataset = recorded(tmp_path, [one])
    assert dataset.tensor("observation").tolist() == [0, 100, 1]
    assert dataset.about["num_envs"] is None


@pytest.mark.parametrize(
    "options", [{}, {"skip": 4}, {"skip_reset": False, "skip": 2}, {"skip_reset": False, "skip": 5}]
)
def test_one_that_goes_on_leaves_the_same_dataset(tmp_path, options):
    batches = [batch(first, ends=[(0, 2)]) for first in range(0, 15, 3)]
    recorded(tmp_path / "through", batches, **options)
    options = {"skip": 1, **options}
    recorder = TensorDictRecorder(DatasetWriter(tmp_path / "half", SPEC), **options)
    for one in batches[:2]:
        recorder.record(one)
    state = recorder.state_dict()
    state["writer"]["fields"] = state["writer"]["fields"].work()
    recorder.record(batches[0])
    other = TensorDictRecorder(DatasetWriter(tmp_path / "half", SPEC), **options)
    other.load_state_dict(state)
    for one in batches[2:]:
        other.record(one)
    other.close()
    for path in (tmp_path / "through").iterdir():
        assert path.read_bytes() == (tmp_path / "half" / path.name).read_bytes(), path.name


def test_the_folder_of_something_else_is_refused_and_without_a_run_nothing_is_kept(tmp_path):
    with pytest.raises(ValueError, match="out_file_base=replay"):
        make_tensordict_recorder(SPEC, tmp_path, "replay")
    assert make_tensordict_recorder(SPEC) is None
    recorder = make_tensordict_recorder(SPEC, tmp_path, "rows")
    recorder.record(batch(0))
    assert (recorder.skip, recorder.skip_reset) == (4, True)
    assert (tmp_path / "rows" / "observation.rows").exists()
