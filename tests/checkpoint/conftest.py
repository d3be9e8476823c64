"""Stores of either backend."""

import pytest

from runner.checkpoint.store import CheckpointStore


@pytest.fixture(params=["torchsnapshot", "torch"])
def backend(request):
    return request.param


@pytest.fixture
def store(tmp_path, backend):
    return CheckpointStore(tmp_path, backend=backend)
