"""The least a replay buffer can cost in torch: preallocated tensors, written by index, read by ``index_select``."""

import torch

from scripts.benchmark.loops import ACTION, BATCH_SIZE, CAPACITY, OBSERVATION, measure

torch.set_num_threads(1)
widths = (OBSERVATION, ACTION, OBSERVATION, 1, 1)
fields = [torch.zeros(CAPACITY, width) for width in widths]
row = [torch.randn(width) for width in widths]
batch = [torch.empty(BATCH_SIZE, width) for width in widths]
stored = 0


def add() -> None:
    global stored
    for field, value in zip(fields, row, strict=True):
        field[stored % CAPACITY] = value
    stored += 1


def sample() -> None:
    indices = torch.randint(0, min(stored, CAPACITY), (BATCH_SIZE,))
    for field, out in zip(fields, batch, strict=True):
        torch.index_select(field, 0, indices, out=out)


measure(add, sample)
