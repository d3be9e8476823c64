import asyncio
import hashlib
import json
import os
import pickle
import zipfile

import pytest
import torch
import torchsnapshot

from runner.checkpoint.backends import BACKENDS


@pytest.fixture(params=sorted(BACKENDS))
def backend(request):
    return BACKENDS[request.param]


def row(*numbers):
    return torch.tensor(numbers, dtype=torch.uint8)


def read(backend, folder, **sizes):
    rows = {name: torch.zeros(size, dtype=torch.uint8) for name, size in sizes.items()}
    backend.read(folder, rows)
    return {name: value.tolist() for name, value in rows.items()}


def test_rows_come_back(backend, tmp_path):
    backend.write(tmp_path, {"packed": row(1, 2, 255), "t3": row(0)})
    assert read(backend, tmp_path, packed=3, t3=1) == {"packed": [1, 2, 255], "t3": [0]}


def test_a_write_is_over_when_it_returns(backend, tmp_path):
    one = torch.zeros(4_000_000, dtype=torch.uint8)
    backend.write(tmp_path, {"x": one})
    one.fill_(1)
    assert sum(read(backend, tmp_path, x=4_000_000)["x"]) == 0


def test_the_digests_are_those_of_the_files(backend, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHSNAPSHOT_MAX_CHUNK_SIZE_BYTES_OVERRIDE", "1000")
    digests = backend.write(tmp_path, {"packed": torch.arange(2500).to(torch.uint8), "t1": row(1)})
    assert len(digests) >= 1
    for name, digest in digests.items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest


def test_it_works_inside_a_running_event_loop(backend, tmp_path):
    async def notebook():
        backend.write(tmp_path, {"x": row(4)})
        return read(backend, tmp_path, x=1)

    assert asyncio.run(notebook()) == {"x": [4]}


def test_rows_other_than_those_stored_are_refused(backend, tmp_path):
    backend.write(tmp_path, {"x": row(1, 2, 3, 4)})
    for sizes in ({"x": 5}, {"x": 3}, {"y": 4}, {"x": 4, "y": 1}):
        with pytest.raises(ValueError):
            read(backend, tmp_path, **sizes)


class Evil:
    def __reduce__(self):
        return os.system, (f"touch {os.environ['EVIL_MARK']}",)


def test_torch_does_not_run_what_a_file_asks_for(tmp_path, monkeypatch):
    monkeypatch.setenv("EVIL_MARK", str(tmp_path / "ran"))
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save({"x": Evil()}, tmp_path / "tensors.pt")
    with pytest.raises(pickle.UnpicklingError):
        read(BACKENDS["torch"], tmp_path, x=1)
    assert not (tmp_path / "ran").exists()


def test_torch_refuses_a_compressed_file(tmp_path):
    torch.save({"x": torch.zeros(100, dtype=torch.uint8)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "tensors.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry))
    with pytest.raises(ValueError, match="compress"):
        read(BACKENDS["torch"], tmp_path, x=100)


def test_torchsnapshot_reads_large_rows_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHSNAPSHOT_MAX_CHUNK_SIZE_BYTES_OVERRIDE", "1000")
    one = torch.arange(8000).to(torch.uint8)
    BACKENDS["torchsnapshot"].write(tmp_path, {"packed": one})
    assert len(list((tmp_path / "0/state").iterdir())) == 8
    assert read(BACKENDS["torchsnapshot"], tmp_path, packed=8000)["packed"] == one.tolist()
    next((tmp_path / "0/state").iterdir()).write_bytes(b"short")
    with pytest.raises(ValueError, match="does not have 1000 bytes"):
        read(BACKENDS["torchsnapshot"], tmp_path, packed=8000)


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
    BACKENDS["torchsnapshot"].write(tmp_path, {"x": row(1, 2, 3, 4)})
    path = tmp_path / ".snapshot_metadata"
    index = json.loads(path.read_text())
    index["manifest"]["0/state/x"] |= change
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match="index"):
        read(BACKENDS["torchsnapshot"], tmp_path, x=4)


def test_what_is_written_by_either_backend_is_what_that_library_reads(tmp_path):
    rows = {"packed": torch.arange(50, dtype=torch.uint8), "t1": torch.full((3000,), 7, dtype=torch.uint8)}
    for name in ("torch", "torchsnapshot"):
        (tmp_path / name).mkdir()
        BACKENDS[name].write(tmp_path / name, rows)
    found = torch.load(tmp_path / "torch" / "tensors.pt", weights_only=True)
    state = torchsnapshot.StateDict(**{name: torch.zeros_like(row) for name, row in rows.items()})
    torchsnapshot.Snapshot(str(tmp_path / "torchsnapshot")).restore({"state": state})
    for name, row in rows.items():
        assert torch.equal(found[name], row)
        assert torch.equal(state[name], row)


def test_torch_refuses_an_archive_whose_parts_are_of_other_sizes(tmp_path):
    torch.save({"x": torch.zeros(100, dtype=torch.uint8)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "tensors.pt", "w") as other:
        for entry in plain.infolist():
            raw = plain.read(entry)
            other.writestr(entry.filename, raw[:50] if entry.filename.endswith("data/0") else raw)
    with pytest.raises(ValueError, match="has 50 bytes instead of 100"):
        read(BACKENDS["torch"], tmp_path, x=100)
