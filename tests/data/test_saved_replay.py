"""A saved replay buffer, opened as a dataset."""

import pytest
import torch
from tensordict import TensorDict

from runner.builders import make_mixture, make_replay_buffer
from runner.checkpoint.store import CheckpointStore
from runner.data.dataset import DatasetError
from runner.dataset_builders import open_dataset
from runner.spec import Deferred

STORAGES = ("tensor", "memmap")
REWARD = ("next", "reward")


def batch(first, num_envs, steps):
    """Env ``n`` sees ``100 n + t`` at step ``t``."""
    seen = torch.arange(first, first + steps) + 100 * torch.arange(num_envs)[:, None]
    flag = torch.zeros(num_envs, steps, dtype=torch.bool)
    wide = torch.stack([seen.float()] * 300, -1)  # more than a page each
    after = {"observation": wide + 1, "reward": seen / 8, "terminated": flag, "done": seen % 5 == 0}
    return TensorDict({"observation": wide, "action": seen % 2, "next": after}, batch_size=[num_envs, steps])


def save(run, storage, total, num_envs=2, capacity=20):
    source = make_replay_buffer(capacity=capacity, storage=storage, run=run)
    for first in range(0, total, 5):
        source.extend(batch(first, num_envs, min(5, total - first)))
    CheckpointStore(run, backend="torch").save({"source": source.state_dict()}, {"env_steps": total * num_envs})
    return source


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(("total", "kept"), [(3, [0, 1, 2]), (10, range(10)), (25, range(15, 25)), (23, range(13, 23))])
def test_it_holds_the_rows_that_the_buffer_held(tmp_path, storage, total, kept):
    save(tmp_path, storage, total)
    dataset = open_dataset(tmp_path)
    expected = [step + 100 * env for step in kept for env in (0, 1)]
    in_order = dataset.tensor("observation").roll(-dataset.about["oldest"], 0)
    assert in_order[:, 0].tolist() == expected
    assert torch.equal(dataset.tensor(REWARD), dataset.tensor("observation")[:, 7] / 8)
    assert torch.equal(dataset.tensor(("next", "done")), dataset.tensor("observation")[:, 0] % 5 == 0)
    assert (len(dataset), dataset.about["num_envs"]) == (len(expected), 2)


@pytest.mark.parametrize("storage", STORAGES)
def test_what_is_known_of_the_environment_is_told(tmp_path, storage):
    save(tmp_path, storage, 5)
    spec = open_dataset(tmp_path).spec
    assert (spec["observation_shape"], spec["observation_dtype"]) == ([300], "float32")
    assert (spec["action_shape"], spec["action_dtype"], spec["num_actions"]) == ([], "int64", None)


def test_looking_leaves_the_files_as_they_are_and_the_buffer_goes_on(tmp_path):
    source = save(tmp_path, "memmap", 12)
    files = {path: path.read_bytes() for path in (tmp_path / "replay").iterdir()}
    dataset = open_dataset(tmp_path)
    assert {path: path.read_bytes() for path in (tmp_path / "replay").iterdir()} == files
    before = dataset.tensor("observation").clone()
    source.extend(batch(12, 2, 5))
    assert torch.equal(dataset.tensor("observation"), before)


def test_the_largest_buffer_of_a_mixture_is_taken(tmp_path):
    sources = {name: make_replay_buffer(capacity=size) for name, size in (("small", 4), ("large", 20))}
    mixture = make_mixture(sources, {"small": 0.5, "large": 0.5}, 8)
    for first in range(0, 6, 2):
        mixture.extend(batch(first, 2, 2))
    CheckpointStore(tmp_path, backend="torch").save({"source": mixture.state_dict()}, {"env_steps": 12})
    assert len(open_dataset(tmp_path)) == 12


def test_rows_that_changed_on_the_disk_are_refused_in_one_line(tmp_path):
    save(tmp_path, "memmap", 12)
    path = tmp_path / "replay" / "observation.rows"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DatasetError, match=r"replay/observation\.rows: the SHA-256 of its block"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"total": -1},
        {"total": 2**60},
        {"num_envs": 3},
        {"capacity": "20"},
        {"capacity": 2**47},
        {"journal": {"../../x": {"dtype": "bool", "shape": [], "blocks": []}}},
        {"journal": {"observation": {"dtype": "float32", "shape": [-1], "blocks": []}}},
        {"journal": {"observation": {"dtype": "object", "shape": [], "blocks": []}}},
        {"journal": {"observation": {"dtype": "float32", "shape": [300]}}},
    ],
)
def test_a_made_up_state_is_refused_in_one_line(tmp_path, changes):
    source = save(tmp_path, "memmap", 12)
    state = source.state_dict()["storage"]
    assert type(state["journal"]) is Deferred
    state = {**state, "journal": state["journal"].work(), **changes}
    CheckpointStore(tmp_path, backend="torch", keep=1).save({"source": {"storage": state}}, {"env_steps": 99})
    with pytest.raises(DatasetError) as caught:
        open_dataset(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_without_rows_is_refused_in_one_line(tmp_path):
    with pytest.raises(DatasetError, match="no run's folder"):
        open_dataset(tmp_path)
    CheckpointStore(tmp_path, backend="torch").save({"source": {}}, {"env_steps": 1})
    with pytest.raises(DatasetError, match=r"holds no replay rows; hooks=\[default,record_tensordict\]"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("storage", STORAGES)
def test_of_several_modules_one_has_to_be_named(tmp_path, storage):
    parts = {}
    for rows, module_id in ((5, "left"), (10, "right")):
        parts[module_id] = make_replay_buffer(capacity=20, storage=storage, run=tmp_path / "modules" / module_id)
        parts[module_id].extend(batch(0, 2, rows))
    state = {"source": {module_id: part.state_dict() for module_id, part in parts.items()}}
    learner = {"rl_module": {module_id: {} for module_id in parts}}
    CheckpointStore(tmp_path, backend="torch").save({**state, "learner": learner}, {"env_steps": 20})
    assert [len(open_dataset(tmp_path / "modules" / module_id)) for module_id in parts] == [10, 20]
    for wrong in (tmp_path, tmp_path / "modules" / "middle"):
        with pytest.raises(DatasetError, match=r"which module's data\? there is .*modules/left, .*modules/right"):
            open_dataset(wrong)


def test_of_a_module_that_came_back_the_rows_are_in_a_folder_of_its_own(tmp_path):
    folder = tmp_path / "modules" / "right-700"
    for place, rows in ((tmp_path / "modules" / "right", 5), (folder, 10)):
        part = make_replay_buffer(capacity=20, storage="memmap", run=place)
        part.extend(batch(0, 2, rows))
    state = {"source": {"right": part.state_dict()}, "learner": {"rl_module": {"right": {}}}}
    members = {"members": {"right": ["add_module", 300, 700]}}
    CheckpointStore(tmp_path, backend="torch").save({**state, "collector": members}, {"env_steps": 20})
    assert [len(open_dataset(tmp_path / "modules" / name)) for name in ("right", "right-700")] == [20, 20]
    with pytest.raises(DatasetError, match=r"which module's data\? there is .*modules/right-700"):
        open_dataset(tmp_path / "modules" / "right-600")


def test_a_run_may_lie_in_a_folder_called_modules(tmp_path):
    save(tmp_path / "modules" / "a", "tensor", 5)
    assert len(open_dataset(tmp_path / "modules" / "a")) == 10


def test_a_run_of_one_module_has_no_others(tmp_path):
    save(tmp_path, "tensor", 5)
    with pytest.raises(DatasetError, match=r"which module's data. there is only"):
        open_dataset(tmp_path / "modules" / "left")
