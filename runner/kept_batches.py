"""Batches as checkpoints hold them."""

from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from runner.spec import StateDict


def take_apart(batch: TensorDictBase) -> StateDict:
    """A batch as a checkpoint can hold it."""
    leaves = batch.items(include_nested=True, leaves_only=True)
    tensors = [(key, value) for key, value in leaves if isinstance(value, Tensor)]
    return {"batch_size": list(batch.batch_size), "tensors": tensors}


def put_together(state: StateDict) -> TensorDict:
    """The batch that :func:`take_apart` took apart."""
    batch = TensorDict(batch_size=state["batch_size"])
    for key, tensor in state["tensors"]:
        batch.set(key, tensor)
    return batch
