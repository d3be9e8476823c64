"""A recorder keeps little in memory, however much it records."""

import numpy as np
import torch

from runner.data.dataset import Dataset, DatasetWriter
from runner.data.dataset_writer import PENDING_BYTES
from runner.spec import EnvSpec

SPEC = EnvSpec("Toy-v0", (1024,), np.dtype(np.float32), (), np.dtype(np.int64))


def test_no_more_than_a_part_of_each_column_waits_to_be_written(tmp_path):
    writer, rows = DatasetWriter(tmp_path, SPEC), torch.ones(7, 1024)
    waiting = []
    for _ in range(200):
        writer.append({"observation": rows})
        waiting.append(writer.rows * 4096 - (tmp_path / "observation.rows").stat().st_size)
    assert 0 < max(waiting) < PENDING_BYTES + rows.nbytes
    writer.close()
    assert len(Dataset(tmp_path)) == 1400
