import json
import struct
from collections import OrderedDict
from enum import IntEnum

import numpy as np
import pytest
import torch

from runner.checkpoint.tree import MAX_DEPTH, flatten, unflatten


def round_trip(state):
    skeleton, tensors = flatten(state)
    return unflatten(json.loads(json.dumps(skeleton, allow_nan=False)), tensors)


def bits(value):
    return struct.pack(">d", value)


NAN_WITH_PAYLOAD = struct.unpack(">d", bytes.fromhex("7ff8000000000abc"))[0]


@pytest.mark.parametrize(
    "value", [0.1, -0.0, 5e-324, 1.7976931348623157e308, float("inf"), float("-inf"), NAN_WITH_PAYLOAD]
)
def test_floats_keep_every_bit(value):
    assert bits(round_trip({"x": value})["x"]) == bits(value)


@pytest.mark.parametrize(
    "value",
    [0, -1, 2**63 - 1, 2**63, -(2**64), 2**20_000, True, False, None, "", "é\ud800\n$"],
    ids=lambda value: type(value).__name__,
)
def test_other_plain_values_keep_value_and_type(value):
    restored = round_trip([value])[0]
    assert restored == value
    assert type(restored) is type(value)


def test_containers_keep_their_kind_and_order():
    state = {"b": [1, (2, [], ()), {}], "a": (), "$": {"$": "tensor"}, "": 3, "x/y": {"~": 1}}
    restored = round_trip(state)
    assert restored == state
    assert list(restored) == list(state)
    assert type(restored["b"][1]) is tuple


def test_integer_keys_stay_integers_beside_their_texts():
    state = {"state": {0: torch.tensor(1.0), "0": torch.tensor(2.0)}}
    restored = round_trip(state)["state"]
    assert list(restored) == [0, "0"]
    assert (restored[0].item(), restored["0"].item()) == (1.0, 2.0)


def test_names_of_tensors_are_their_paths_and_never_clash():
    _, tensors = flatten({"a": {"b/c": torch.tensor(1), "b": {"c": torch.tensor(2)}}, "w": [torch.tensor(3)]})
    assert {name: tensor.item() for name, tensor in tensors.items()} == {"a/b~1c": 1, "a/b/c": 2, "w/0": 3}


def test_module_and_optimizer_states_fit():
    network = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    restored = round_trip({"network": network.state_dict(), "optimizer": optimizer.state_dict()})
    assert restored["optimizer"]["param_groups"][0]["betas"] == (0.9, 0.999)
    assert torch.equal(restored["network"]["weight"], network.weight)
    assert restored["optimizer"]["state"][0]["step"].item() == 1


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.uint32).reshape(2, 3),
        np.arange(6.0).reshape(2, 3).T,
        np.arange(4)[::-1],
        np.array(2.5, dtype=np.float16),
        np.empty((0, 3), dtype=np.int8),
        np.array([True, False]),
        np.array([1 + 2j]),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_arrays_keep_type_shape_and_values(array):
    restored = round_trip({"x": array})["x"]
    assert isinstance(restored, np.ndarray)
    assert (restored.dtype, restored.shape) == (array.dtype, array.shape)
    assert np.array_equal(restored, array)


def test_numpy_scalars_and_read_only_arrays_work():
    frozen = np.arange(3)
    frozen.flags.writeable = False
    restored = round_trip({"scalar": np.float32(0.1), "frozen": frozen})
    assert type(restored["scalar"]) is np.float32
    assert restored["scalar"] == np.float32(0.1)
    assert restored["frozen"].tolist() == [0, 1, 2]


class Level(IntEnum):
    HIGH = 1


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ({1, 2}, "set"),
        (b"x", "bytes"),
        (Level.HIGH, "tests.checkpoint.test_tree.Level"),
        (torch.Size([1]), "torch.Size"),
        (torch.float32, "torch.dtype"),
        (object(), "object"),
        (np.array(["a"]), "numpy <U1 array"),
        (np.array([object()]), "numpy object array"),
        (torch.ones(2, 2).to_sparse(), "sparse"),
        (torch.empty(2, device="meta"), "meta"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_saved_is_refused_by_type_and_path(value, named):
    with pytest.raises(TypeError, match=r"^hooks\.my_hook\.1\.cache: .*") as caught:
        flatten({"hooks": {"my_hook": [0, {"cache": value}]}})
    assert named in str(caught.value)


def test_other_keys_than_texts_and_integers_are_refused():
    with pytest.raises(TypeError, match=r"^hooks: a dict key of type tuple"):
        flatten({"hooks": {(1, 2): 3}})


def test_a_state_that_contains_itself_is_refused():
    state = {}
    state["me"] = state
    with pytest.raises(TypeError, match=f"deeper than {MAX_DEPTH} levels"):
        flatten(state)


def test_an_ordered_dict_comes_back_as_a_dict():
    assert round_trip(OrderedDict(b=1, a=2)) == {"b": 1, "a": 2}


@pytest.mark.parametrize(
    "skeleton",
    [
        {"$": "eval", "code": "1"},
        {"$": ["tuple"]},
        {"$": "tuple"},
        {"$": "tuple", "items": 3},
        {"$": "tensor", "name": "absent"},
        {"$": "tensor", "name": {}},
        {"$": "float", "bits": "00"},
        {"$": "float", "bits": "zz"},
        {"$": "int", "hex": 5},
        {"$": "dict", "items": [[1]]},
        {"$": "dict", "items": [[[], 1]]},
    ],
    ids=str,
)
def test_a_skeleton_that_was_not_made_here_is_refused(skeleton):
    with pytest.raises(ValueError):
        unflatten({"a": [skeleton]}, {})


def test_a_skeleton_nested_without_end_is_refused():
    skeleton = []
    for _ in range(500):
        skeleton = [skeleton]
    with pytest.raises(ValueError, match="deeper"):
        unflatten(skeleton, {})
