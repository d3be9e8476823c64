"""Consecutive rows of a ring: where one environment, in one trajectory, goes on from a row."""

import torch
from torch import Tensor

from runner.data.storage import TensorStorage
from runner.spec import TRAJ_IDS


def windows(storage: TensorStorage, indices: Tensor, length: int) -> Tensor:
    """The flat rows ``[B, length]`` from ``indices`` ``[B]`` on; -1 from where the newest stored row has been passed.

    Where rows say which trajectory they are of, -1 also from where that is another one. Ends of episodes are not looked
    at.
    """
    row, env = indices // storage.num_envs, indices % storage.num_envs
    newer_rows = (storage.cursor - 1 - row) % storage.rows
    ahead = torch.arange(length, device=indices.device)
    rows = (row[:, None] + ahead) % storage.rows * storage.num_envs + env[:, None]
    goes_on = ahead <= newer_rows[:, None]
    ids = storage.flat.get(TRAJ_IDS)
    if ids is not None:
        found = ids[rows]
        goes_on &= torch.cumsum(found != found[:, :1], dim=1) == 0
    return torch.where(goes_on, rows, -1)
