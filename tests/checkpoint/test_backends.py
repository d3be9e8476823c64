import asyncio
import json
import os
import pickle
import zipfile

import pytest
import torch

from runner.checkpoint.backends import BACKENDS, TensorMeta


@pytest.fixture(params=sorted(BACKENDS))
def backend(request):
    return BACKENDS[request.param]


def metas_of(tensors):
    return {name: TensorMeta(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def same_bytes(one, other):
    def raw(tensor):
        return tensor.contiguous().reshape(-1).view(torch.uint8)

    return (one.dtype, one.shape) == (other.dtype, other.shape) and torch.equal(raw(one), raw(other))


DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32,
    torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64,
    torch.complex128, torch.float8_e4m3fn,
]  # fmt: skip


def samples():
    numbers = torch.arange(12).reshape(3, 4)
    tensors = {str(dtype): numbers.to(dtype) for dtype in DTYPES}
    tensors["empty"] = torch.empty(0, 3)
    tensors["zero-dimensional"] = torch.tensor(float("nan"))
    tensors["transposed"] = torch.arange(6.0).reshape(2, 3).t()
    tensors["expanded"] = torch.tensor([1.0]).expand(5)
    tensors["../../up"] = torch.tensor([7])
    return tensors


def test_every_type_and_shape_comes_back_bit_for_bit(backend, tmp_path):
    tensors = samples()
    backend.write(tmp_path, tensors)
    restored = backend.read(tmp_path, metas_of(tensors), {})
    assert list(restored) == list(tensors)
    assert [name for name in tensors if not same_bytes(restored[name], tensors[name])] == []


def test_a_write_is_over_when_it_returns(backend, tmp_path):
    tensor = torch.zeros(1_000_000)
    backend.write(tmp_path, {"x": tensor})
    tensor.fill_(1)
    assert backend.read(tmp_path, metas_of({"x": tensor}), {})["x"].count_nonzero() == 0


def test_given_tensors_are_filled_in_place_even_where_they_have_gaps(backend, tmp_path):
    tensors = {"dense": torch.arange(6.0), "gaps": torch.arange(6.0).reshape(3, 2), "new": torch.tensor(3.0)}
    backend.write(tmp_path, tensors)
    memory = torch.full((3, 4), -1.0)
    into = {"dense": torch.empty(6), "gaps": memory[:, ::2]}
    restored = backend.read(tmp_path, metas_of(tensors), into)
    assert into["dense"].tolist() == [0, 1, 2, 3, 4, 5]
    assert memory.tolist() == [[0, -1, 1, -1], [2, -1, 3, -1], [4, -1, 5, -1]]
    assert restored["dense"].data_ptr() == into["dense"].data_ptr()
    assert restored["new"].item() == 3


def test_a_given_tensor_of_another_shape_is_refused(backend, tmp_path):
    tensors = {"x": torch.zeros(2, 3)}
    backend.write(tmp_path, tensors)
    with pytest.raises(ValueError, match="x: cannot restore"):
        backend.read(tmp_path, metas_of(tensors), {"x": torch.zeros(3, 2)})


def test_no_tensors_at_all_is_a_state_too(backend, tmp_path):
    backend.write(tmp_path, {})
    assert backend.read(tmp_path, {}, {}) == {}


def test_it_works_inside_a_running_event_loop(backend, tmp_path):
    async def notebook():
        backend.write(tmp_path, {"x": torch.tensor([4])})
        return backend.read(tmp_path, {"x": TensorMeta(torch.int64, (1,))}, {})

    assert asyncio.run(notebook())["x"].item() == 4


def test_tensors_declared_otherwise_than_stored_are_refused(backend, tmp_path):
    backend.write(tmp_path, {"x": torch.zeros(4)})
    for meta in (TensorMeta(torch.float32, (5,)), TensorMeta(torch.float64, (4,))):
        with pytest.raises(ValueError):
            backend.read(tmp_path, {"x": meta}, {})
    with pytest.raises(ValueError):
        backend.read(tmp_path, {"x": TensorMeta(torch.float32, (4,)), "y": TensorMeta(torch.float32, (1,))}, {})


def test_torch_writes_a_view_without_the_memory_around_it(tmp_path):
    BACKENDS["torch"].write(tmp_path, {"x": torch.zeros(1_000_000)[:2]})
    assert (tmp_path / "tensors.pt").stat().st_size < 10_000


class Evil:
    def __reduce__(self):
        return os.system, (f"touch {os.environ['EVIL_MARK']}",)


def test_torch_does_not_run_what_a_file_asks_for(tmp_path, monkeypatch):
    monkeypatch.setenv("EVIL_MARK", str(tmp_path / "ran"))
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save({"x": Evil()}, tmp_path / "tensors.pt")
    with pytest.raises(pickle.UnpicklingError):
        BACKENDS["torch"].read(tmp_path, {"x": TensorMeta(torch.float32, (1,))}, {})
    assert not (tmp_path / "ran").exists()


def test_torch_refuses_a_compressed_file(tmp_path):
    torch.save({"x": torch.zeros(100)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "tensors.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry))
    with pytest.raises(ValueError, match="compress"):
        BACKENDS["torch"].read(tmp_path, {"x": TensorMeta(torch.float32, (100,))}, {})


def test_torchsnapshot_reads_large_tensors_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHSNAPSHOT_MAX_CHUNK_SIZE_BYTES_OVERRIDE", "1000")
    tensors = {"x": torch.arange(1000, dtype=torch.float64)}
    BACKENDS["torchsnapshot"].write(tmp_path, tensors)
    assert len(list((tmp_path / "0/state").iterdir())) == 8
    assert torch.equal(BACKENDS["torchsnapshot"].read(tmp_path, metas_of(tensors), {})["x"], tensors["x"])
    next((tmp_path / "0/state").iterdir()).write_bytes(b"short")
    with pytest.raises(ValueError, match="does not have 1000 bytes"):
        BACKENDS["torchsnapshot"].read(tmp_path, metas_of(tensors), {})


@pytest.mark.parametrize(
    "change",
    [
        {"location": "../secret"},
        {"location": "/etc/passwd"},
        {"serializer": "torch_save"},
        {"type": "object", "obj_type": "torch.Tensor"},
        {"byte_range": [0, 16]},
        {"shape": [10**12]},
        {"dtype": "torch.float32", "shape": [4]},
    ],
    ids=str,
)
def test_torchsnapshot_does_not_follow_an_index_that_was_changed(change, tmp_path):
    BACKENDS["torchsnapshot"].write(tmp_path, {"x": torch.zeros(4)})
    path = tmp_path / ".snapshot_metadata"
    index = json.loads(path.read_text())
    index["manifest"]["0/state/packed"] |= change
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match="index"):
        BACKENDS["torchsnapshot"].read(tmp_path, {"x": TensorMeta(torch.float32, (4,))}, {})
