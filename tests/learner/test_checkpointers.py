import os
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from runner.learner.approximation import Approximation
from runner.learner.checkpointers import (
    Checkpointer,
    DummyCheckpointer,
    PeriodicCheckpointer,
    load_weights,
    save_weights,
)
from runner.learner.optimization import NonFiniteError
from runner.learner.targets import FixedTarget
from runner.spec import CheckpointError
from tests.learner.small import copies, linear, same_state, sgd

ONE = torch.ones(1, 1)


def scalar(value=0.0):
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, value)
    return model


def descending(checkpointer, **kwargs):
    """An approximation whose only weight is -1, -2, -3, ... after its updates."""
    model = scalar()
    return Approximation(model, sgd(model, 1.0), checkpointer=checkpointer, **kwargs)


def descend(v):
    return v.reinforce(v(ONE).sum())


def weight_in(path):
    return float(np.load(path, allow_pickle=False)["weight"].item())


def test_nothing_is_written_unless_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    v = descending(None)
    descend(v)
    assert type(v.checkpointer) is DummyCheckpointer
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_renewed_after_every_so_many_updates(tmp_path):
    v = descending(PeriodicCheckpointer(3, tmp_path / "weights"), name="critic")
    path = tmp_path / "weights" / "critic.npz"
    seen = []
    for _ in range(7):
        descend(v)
        seen.append(weight_in(path) if path.exists() else None)
    assert seen == [None, None, -3.0, -3.0, -3.0, -6.0, -6.0]
    assert [one.name for one in path.parent.iterdir()] == ["critic.npz"]  # nothing unfinished beside it


def test_what_was_written_is_loaded_again(tmp_path):
    checkpointer = PeriodicCheckpointer(2, tmp_path)
    v = descending(checkpointer)
    for _ in range(3):
        descend(v)
    checkpointer.load()
    assert v.model.weight.item() == -2.0


def test_a_period_goes_on_where_it_was_saved(tmp_path):
    first, second = descending(PeriodicCheckpointer(3, tmp_path)), descending(PeriodicCheckpointer(3, tmp_path))
    descend(descend(first))
    second.load_state_dict(first.state_dict())
    descend(second)  # the third of the period, not the first
    assert weight_in(tmp_path / "approximation.npz") == -3.0


class Mixed(nn.Module):
    """Tensors of many types, shapes and names, one of them no number by design."""

    def __init__(self, fill=0.0):
        super().__init__()
        self.low = nn.Parameter(torch.full((2, 3), fill, dtype=torch.bfloat16))
        self.file = nn.Parameter(torch.tensor(fill, dtype=torch.float64))
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
        self.register_buffer("seen", torch.tensor([bool(fill)] * 2))
        self.register_buffer("empty", torch.empty(0, 4))
        self.turned = nn.Parameter(torch.arange(6.0).reshape(2, 3).T * fill)
        self.inner = nn.Sequential(nn.BatchNorm1d(2))
        self.inner[0].num_batches_tracked.fill_(int(fill))


def test_every_type_and_shape_comes_back_to_the_bit(tmp_path):
    first, second = Mixed(1 / 3 + 1), Mixed()
    save_weights(first, tmp_path / "m.npz")
    load_weights(second, tmp_path / "m.npz")
    assert same_state(dict(first.state_dict()), dict(second.state_dict()))
    assert second.low.dtype == torch.bfloat16


def test_a_model_without_weights_has_an_empty_file(tmp_path):
    save_weights(nn.ReLU(), tmp_path / "m.npz")
    load_weights(nn.ReLU(), tmp_path / "m.npz")


def test_weights_that_are_no_numbers_do_not_replace_good_ones(tmp_path):
    v = descending(PeriodicCheckpointer(1, tmp_path))
    descend(v)
    with pytest.raises(NonFiniteError, match=r"approximation.npz are no longer finite"):
        v.reinforce(v(ONE).sum() * torch.inf)
    assert weight_in(tmp_path / "approximation.npz") == -1.0


@pytest.mark.parametrize("fails_at", ["write", "replace"])
def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path, monkeypatch, fails_at):
    path = tmp_path / "m.npz"
    save_weights(scalar(1.0), path)

    def fail(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((os, "replace") if fails_at == "replace" else (np.lib.format, "write_array")), fail)
    with pytest.raises(CheckpointError, match=r"m.npz cannot be written: No space left on device"):
        save_weights(scalar(2.0), path)
    assert weight_in(path) == 1.0
    assert [one.name for one in tmp_path.iterdir()] == ["m.npz"]


def is_loaded(model, path):
    try:
        load_weights(model, path)
    except CheckpointError:
        return False
    return True


def test_each_flipped_bit_is_found_or_harmless(tmp_path):
    path, found = tmp_path / "m.npz", 0
    save_weights(linear(2, 2), path)
    raw = path.read_bytes()
    for place in range(0, len(raw), 3):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 1 << place % 8]) + raw[place + 1 :])
        model = linear(2, 2, seed=9)
        before = copies(model)
        loaded = is_loaded(model, path)
        assert same_state(copies(model), copies(linear(2, 2)) if loaded else before)
        found += not loaded
    assert found > len(raw) / 6


class Trap:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_loading_never_unpickles(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("array.npz", weight=np.array([[Trap()]], object))
    torch.save({"weight": Trap()}, "torch.npz")
    with zipfile.ZipFile("named.npz", "w") as archive:
        archive.writestr("weight.npy", b"not an array")
    for name in ("array.npz", "torch.npz", "named.npz"):
        with pytest.raises(CheckpointError, match=name):
            load_weights(scalar(), name)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Linear(1, 1), "there is no bias in the file"),
        (nn.ReLU(), "there is no weight in the model"),
        (nn.Linear(2, 1, bias=False), r"weight is torch.float32 \[1, 1\], and the model has torch.float32 \[1, 2\]"),
        (scalar().double(), r"weight is torch.float32 \[1, 1\], and the model has torch.float64 \[1, 1\]"),
    ],
)
def test_a_file_of_another_model_is_refused(tmp_path, model, words):
    save_weights(scalar(), tmp_path / "m.npz")
    with pytest.raises(CheckpointError, match=words):
        load_weights(model, tmp_path / "m.npz")


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(CheckpointError, match=r"m.npz cannot be read: .*No such file"):
        load_weights(scalar(), tmp_path / "m.npz")


def test_a_part_that_is_no_tensor_is_refused(tmp_path):
    class Odd(nn.Linear):
        def get_extra_state(self):
            return {"anything"}

    with pytest.raises(CheckpointError, match="_extra_state is set"):
        save_weights(Odd(1, 1), tmp_path / "m.npz")


def test_a_frequency_has_to_be_one_or_more():
    with pytest.raises(ValueError, match="every 0 updates"):
        PeriodicCheckpointer(0)


class Best(Checkpointer):
    """A user's own: remembers the largest weight there was; says nothing of files or state."""

    def init(self, model, filename):
        self.model, self.filename, self.seen = model, filename, []

    def update(self):
        self.seen.append(self.model.weight.item())


def test_a_checkpointer_of_ones_own_is_given_the_network_and_told_of_each_update():
    best = Best()
    v = descending(best, name="critic", target=FixedTarget(1))
    for _ in range(3):
        descend(v)
    assert (best.model is v.model, best.filename, best.seen) == (True, "critic.npz", [-1.0, -2.0, -3.0])
    again = descending(Best())
    again.load_state_dict(v.state_dict())
    assert again.updates == 3
    with pytest.raises(CheckpointError, match="Best keeps no state"):
        best.load_state_dict({"updates": 3})


def test_two_that_would_write_over_one_another_are_told_apart(tmp_path):
    one, other = (descending(PeriodicCheckpointer(1, tmp_path), name="q") for _ in range(2))
    descend(one)
    descend(one)
    descend(other)  # the file of an earlier run may be there
    with pytest.raises(CheckpointError, match=r"q.npz was written by another one: give each"):
        descend(one)


def test_a_file_that_was_removed_is_written_again(tmp_path):
    one = descending(PeriodicCheckpointer(1, tmp_path), name="q")
    descend(one)
    (tmp_path / "q.npz").unlink()
    descend(one)
    assert weight_in(tmp_path / "q.npz") == -2.0
