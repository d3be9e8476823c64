import pytest
import torch

from runner.checkpoint.rows import LARGE_BYTES, TensorMeta, Unpacking, pack, row_sizes

DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32,
    torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64,
    torch.complex128, torch.float8_e4m3fn,
]  # fmt: skip
LARGE = LARGE_BYTES // 4


def metas_of(tensors):
    return {name: TensorMeta(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def unpacked(tensors, into=None):
    unpacking = Unpacking(metas_of(tensors), into or {})
    for name, row in pack(tensors).items():
        unpacking.rows[name].copy_(row)
    return unpacking.finish()


def same_bytes(one, other):
    def raw(tensor):
        return tensor.contiguous().reshape(-1).view(torch.uint8)

    return (one.dtype, one.shape) == (other.dtype, other.shape) and torch.equal(raw(one), raw(other))


def samples():
    numbers = torch.arange(12).reshape(3, 4)
    tensors = {str(dtype): numbers.to(dtype) for dtype in DTYPES}
    tensors["odd"] = torch.tensor([True])  # what follows begins at an odd byte
    tensors["zero-dimensional"] = torch.tensor(float("nan"))
    tensors["empty"] = torch.empty(0, 3)
    tensors["transposed"] = torch.arange(6.0).reshape(2, 3).t()
    tensors["expanded"] = torch.tensor([1.0]).expand(5)
    tensors["large"] = torch.randn(LARGE)
    tensors["large and transposed"] = torch.randn(2, LARGE).t()
    return tensors


def test_every_type_and_shape_comes_back_bit_for_bit():
    tensors = samples()
    restored = unpacked(tensors)
    assert list(restored) == list(tensors)
    assert [name for name in tensors if not same_bytes(restored[name], tensors[name])] == []


def test_a_large_tensor_has_a_row_of_its_own_and_the_others_share_one():
    tensors = {"a": torch.zeros(3), "b": torch.zeros(LARGE), "c": torch.zeros(2), "d": torch.zeros(LARGE - 1)}
    rows = pack(tensors)
    assert {name: len(row) for name, row in rows.items()} == {
        "packed": 12 + 8 + 4 * (LARGE - 1),
        "t1": LARGE_BYTES,
    }
    assert row_sizes(metas_of(tensors)) == {name: len(row) for name, row in rows.items()}


def test_a_large_tensor_is_neither_copied_when_it_is_packed_nor_when_it_is_unpacked():
    tensor, into = torch.randn(LARGE), torch.zeros(LARGE)
    assert pack({"x": tensor})["t0"].data_ptr() == tensor.data_ptr()
    assert Unpacking(metas_of({"x": tensor}), {"x": into}).rows["t0"].data_ptr() == into.data_ptr()


@pytest.mark.parametrize("size", [3, LARGE])
def test_given_tensors_are_filled_in_place_even_where_they_have_gaps(size):
    tensors = {"dense": torch.randn(size), "gaps": torch.randn(size, 2), "new": torch.tensor(3.0)}
    memory = torch.full((size, 4), -1.0)
    into = {"dense": torch.empty(size), "gaps": memory[:, ::2]}
    restored = unpacked(tensors, into)
    assert torch.equal(into["dense"], tensors["dense"])
    assert torch.equal(memory[:, ::2], tensors["gaps"])
    assert (memory[:, 1::2] == -1).all()
    assert restored["dense"].data_ptr() == into["dense"].data_ptr()
    assert restored["new"].item() == 3


def test_a_given_tensor_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="x: cannot restore"):
        unpacked({"x": torch.zeros(2, 3)}, {"x": torch.zeros(3, 2)})


def test_no_tensors_at_all_have_no_rows():
    assert pack({}) == {}
    assert pack({"empty": torch.empty(0)}) == {}
    assert unpacked({}) == {}
