"""Datasets: written as rows come, cut back when a run goes on, and never trusted when they are read."""

import hashlib
import json
import os

import numpy as np
import pytest
import torch

from runner.data.dataset import Dataset, DatasetWriter
from runner.data.dataset_header import DTYPES, DatasetError
from runner.spec import CheckpointError, Deferred, EnvSpec, HooklineError

REWARD, DONE = ("next", "reward"), ("next", "done")
SPEC = EnvSpec("Toy-v0", (2,), np.dtype(np.float32), (), np.dtype(np.int64), num_actions=3, observation_high=np.inf)


def rows(first, count):
    number = torch.arange(first, first + count)
    return {"observation": torch.stack([number, -number], 1).float(), REWARD: number.double(), DONE: number % 3 == 0}


def written(folder, *counts, close=True):
    writer, first = DatasetWriter(folder, SPEC, {"num_envs": 1}), 0
    for count in counts:
        writer.append(rows(first, count))
        first += count
    if close:
        writer.close()
    return writer


def saved(writer):
    """The state as a checkpoint holds it."""
    state = writer.state_dict()
    return json.loads(json.dumps(state, default=lambda value: value.work() if type(value) is Deferred else 1 / 0))


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_was_written_is_read_row_by_row(tmp_path):
    written(tmp_path / "d", 3, 0, 4)
    dataset = Dataset(tmp_path / "d")
    assert len(dataset) == 7
    assert set(dataset.keys) == {"observation", REWARD, DONE}
    for key, expected in rows(0, 7).items():
        assert torch.equal(dataset.tensor(key), expected)
        assert dataset.tensor(key).dtype == expected.dtype
    assert torch.equal(dataset[torch.tensor([5, 1])][REWARD], torch.tensor([5.0, 1.0], dtype=torch.float64))
    assert torch.equal(dataset[2:4]["observation"], rows(2, 2)["observation"])


def test_the_spec_comes_back_as_plain_values(tmp_path):
    written(tmp_path, 1)
    dataset = Dataset(tmp_path)
    assert dataset.spec["id"] == "Toy-v0"
    assert dataset.spec["observation_shape"] == [2]
    assert dataset.spec["observation_dtype"] == "float32"
    assert (dataset.spec["num_actions"], dataset.spec["action_low"], dataset.spec["observation_high"]) == (
        3,
        None,
        "inf",
    )
    assert dataset.about == {"num_envs": 1}


def test_each_file_holds_plain_bytes_and_the_header_their_digests(tmp_path):
    written(tmp_path, 5)
    raw = (tmp_path / "next.reward.rows").read_bytes()
    assert raw == np.arange(5, dtype=np.float64).tobytes()
    header = json.loads((tmp_path / "dataset.json").read_text())
    assert header["fields"]["next.reward"]["sha256"] == hashlib.sha256(raw).hexdigest()
    assert header["rows"] == 5


def test_columns_show_the_files_and_take_no_copy(tmp_path):
    written(tmp_path, 5)
    dataset = Dataset(tmp_path)
    with open(tmp_path / "next.reward.rows", "r+b") as file:
        file.write(np.array([9.0]).tobytes())
    assert dataset.tensor(REWARD)[0] == 9


def test_a_writer_that_goes_on_leaves_the_same_bytes_as_one_that_was_never_stopped(tmp_path):
    written(tmp_path / "through", 4, 3, 2)
    writer = written(tmp_path / "resumed", 4, close=False)
    state = saved(writer)
    writer.append(rows(100, 50))  # after the checkpoint, and lost with the kill
    writer.close()
    other = DatasetWriter(tmp_path / "resumed", SPEC)
    other.load_state_dict(state)
    other.append(rows(4, 3))
    other.append(rows(7, 2))
    other.close()
    assert content(tmp_path / "resumed") == content(tmp_path / "through")


def test_a_writer_goes_on_from_before_its_first_row_too(tmp_path):
    state = saved(DatasetWriter(tmp_path / "resumed", SPEC, {"num_envs": 1}))
    written(tmp_path / "resumed", 9, close=False)
    other = DatasetWriter(tmp_path / "resumed", SPEC)
    other.load_state_dict(state)
    other.append(rows(0, 2))
    other.close()
    written(tmp_path / "through", 2)
    assert content(tmp_path / "resumed") == content(tmp_path / "through")


def test_a_dataset_whose_writer_was_killed_is_read_as_far_as_it_goes(tmp_path, caplog):
    writer = written(tmp_path, 4, close=False)
    saved(writer)
    with open(tmp_path / "observation.rows", "ab") as file:
        file.write(b"half")
    dataset = Dataset(tmp_path)
    assert len(dataset) == 4
    assert torch.equal(dataset.tensor("observation"), rows(0, 4)["observation"])
    assert "was not closed" in caplog.text


def test_looking_at_a_state_changes_no_file_and_closing_then_cuts_them_back(tmp_path):
    written(tmp_path / "through", 4)
    state = saved(writer := written(tmp_path / "other", 4, close=False))
    writer.append(rows(4, 3))
    writer.close()
    before = content(tmp_path / "other")
    other = DatasetWriter(tmp_path / "other", SPEC)
    other.load_state_dict(state)
    assert content(tmp_path / "other") == before
    other.close()
    assert content(tmp_path / "other") == content(tmp_path / "through")


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_checkpoint_whose_rows_are_not_there_any_more_is_refused(tmp_path, damage):
    state = saved(written(tmp_path, 4, close=False))
    path = tmp_path / "next.reward.rows"
    raw = bytearray(path.read_bytes())
    raw[5] ^= 1
    path.write_bytes({"flip": raw, "cut": raw[:-1], "gone": b""}[damage])
    if damage == "gone":
        path.unlink()
    with pytest.raises(CheckpointError, match=r"next\.reward\.rows"):
        DatasetWriter(tmp_path, SPEC).load_state_dict(state)


def reseal(folder, change):
    """Write the header as an attacker would, with its digest in order."""
    header = json.loads((folder / "dataset.json").read_text())
    header.pop("digest")
    change(header)
    raw = json.dumps(header, sort_keys=True).encode()
    (folder / "dataset.json").write_bytes(raw[:-1] + f', "digest": "{hashlib.sha256(raw).hexdigest()}"}}\n'.encode())


def rename(header, name):
    header["fields"][name] = header["fields"].pop("observation")


HOSTILE = {
    "a name that leads out": lambda header: rename(header, "../observation"),
    "an absolute name": lambda header: rename(header, "/etc/passwd"),
    "a name with a line break": lambda header: rename(header, "observation\n"),
    "a huge shape": lambda header: header["fields"]["observation"].update(shape=[2**31] * 8),
    "a negative shape": lambda header: header["fields"]["observation"].update(shape=[-2]),
    "too many dimensions": lambda header: header["fields"]["observation"].update(shape=[1] * 100),
    "a shape of texts": lambda header: header["fields"]["observation"].update(shape=["2"]),
    "a truth value as a size": lambda header: header["fields"]["observation"].update(shape=[True, 2]),
    "objects as a type": lambda header: header["fields"]["observation"].update(dtype="object"),
    "a type that is no text": lambda header: header["fields"]["observation"].update(dtype=["float32"]),
    "another type": lambda header: header["fields"]["observation"].update(dtype="float64"),
    "more rows than there are": lambda header: header.update(rows=2**47),
    "fewer rows than there are": lambda header: header.update(rows=1),
    "a negative number of rows": lambda header: header.update(rows=-1),
    "rows that are no number": lambda header: header.update(rows="5"),
    "no fields": lambda header: header.update(fields={}),
    "fields that are a list": lambda header: header.update(fields=[1]),
    "a field that is a text": lambda header: header["fields"].update(observation="pickle"),
    "no digest of a file": lambda header: header["fields"]["observation"].update(sha256=None),
    "another schema": lambda header: header.update(schema=2),
    "a spec that is a text": lambda header: header.update(spec="os.system"),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_a_made_up_header_is_refused_in_one_line(tmp_path, change):
    written(tmp_path, 5)
    reseal(tmp_path, lambda header: None)
    Dataset(tmp_path)  # resealing alone is no damage
    reseal(tmp_path, change)
    with pytest.raises(DatasetError) as caught:
        Dataset(tmp_path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600 + len(str(tmp_path))


def fifo(path):
    path.unlink()
    os.mkfifo(path)


def link(path):
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def edit(old, new):
    def damage(path):
        raw = path.read_bytes()
        assert old in raw
        path.write_bytes(raw.replace(old, new, 1))

    return damage


DAMAGE = {
    "gone": lambda path: path.unlink(),
    "a pipe": fifo,
    "a link": link,
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "one byte more": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "a flipped bit": lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
}


@pytest.mark.parametrize("name", ["dataset.json", "observation.rows"])
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_noticed(tmp_path, damage, name):
    written(tmp_path, 5)
    damage(tmp_path / name)
    with pytest.raises(DatasetError) as caught:
        Dataset(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "damage",
    [edit(b'"rows": 5', b'"rows": 4'), edit(b'"rows": 5', b'"rows": NaN'), edit(b'{"about"', b'{"rows": 5, "about"')],
    ids=["unsealed", "nan", "twice"],
)
def test_a_header_that_was_edited_is_noticed(tmp_path, damage):
    written(tmp_path, 5)
    damage(tmp_path / "dataset.json")
    with pytest.raises(DatasetError):
        Dataset(tmp_path)


def test_a_header_of_endless_depth_or_size_is_refused(tmp_path):
    written(tmp_path, 5)
    for raw in (b"[" * 200_000, b" " * 2**21):
        (tmp_path / "dataset.json").write_bytes(raw)
        with pytest.raises(DatasetError):
            Dataset(tmp_path)


def test_a_truth_value_of_two_is_refused(tmp_path):
    written(tmp_path, 5)
    path = tmp_path / "next.done.rows"
    path.write_bytes(b"\2" + path.read_bytes()[1:])
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    reseal(tmp_path, lambda header: header["fields"]["next.done"].update(sha256=digest))
    with pytest.raises(DatasetError, match="neither true nor false"):
        Dataset(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": -1},
        {"rows": "4"},
        {"rows": 5},
        {"fields": {"../x": {"dtype": "bool", "shape": [], "sha256": "0" * 64}}},
        {"fields": {"observation": {"dtype": "float32", "shape": [-2], "sha256": "0" * 64}}},
        {"fields": {"observation": {"dtype": "object", "shape": [2], "sha256": "0" * 64}}},
        {"fields": {"observation": []}},
        {"fields": 3},
    ],
)
def test_a_made_up_state_is_refused(tmp_path, changes):
    state = saved(written(tmp_path, 4, close=False))
    before = content(tmp_path)
    with pytest.raises(CheckpointError):
        DatasetWriter(tmp_path, SPEC).load_state_dict({**state, **changes})
    assert content(tmp_path) == before


def test_rows_unlike_the_first_ones_are_refused(tmp_path):
    writer = written(tmp_path, 2, close=False)
    first = rows(2, 2)
    for wrong in (
        {key: first[key] for key in ("observation", REWARD)},
        {**first, REWARD: first[REWARD].float()},
        {**first, "observation": first["observation"][:, :1]},
        {**first, REWARD: first[REWARD][:1]},
    ):
        with pytest.raises(ValueError, match="not like the first ones"):
            writer.append(wrong)
    with pytest.raises(ValueError, match="letters, digits"):
        DatasetWriter(tmp_path / "other", SPEC).append({"../x": torch.ones(1)})


def test_a_folder_that_is_a_link_is_not_written_to(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "d").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(HooklineError, match="not a folder"):
        DatasetWriter(tmp_path / "d", SPEC).append(rows(0, 1))
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("name", DTYPES)
def test_numbers_of_every_type_come_back_with_their_bits(tmp_path, name):
    raw = torch.arange(240).to(torch.uint8) % (2 if name == "bool" else 255)
    values = raw.view(DTYPES[name])[: 240 // DTYPES[name].itemsize // 3 * 3].view(-1, 3)
    writer = DatasetWriter(tmp_path, SPEC)
    writer.append({"x": values.t().contiguous().t()})  # in another order in memory
    writer.append({"x": values[:0]})
    writer.close()
    found = Dataset(tmp_path).tensor("x")
    assert found.dtype is DTYPES[name]
    assert torch.equal(found.contiguous().view(torch.uint8), values.contiguous().view(torch.uint8))
