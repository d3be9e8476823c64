"""From episodes to a batch, in steps that a user can add to."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase

from runner.spec import IMPORTANCE_WEIGHT, IS_INIT, MASK

Episodes = Sequence[TensorDictBase]
Connector = Callable[[Episodes, TensorDictBase | None], TensorDictBase]
"""Makes a batch of episodes ``[T]`` each, or adds to the one that those before it have made."""


class EpisodesToBatch:
    """Connectors one after the other; at first the one that joins episodes, then what was given or added.

    Args:
        first: makes the batch.
        more: called in their order, with the episodes and the batch so far.
    """

    def __init__(self, first: Connector | None = None, more: Sequence[Connector] = ()) -> None:
        self.connectors: list[Connector] = [first or join_steps, *more]

    def append(self, connector: Connector) -> None:
        self.connectors.append(connector)

    def prepend(self, connector: Connector) -> None:
        """Right after the first, which makes the batch."""
        self.connectors.insert(1, connector)

    def __call__(self, episodes: Episodes) -> TensorDictBase:
        """The batch of one module."""
        if not episodes:
            raise ValueError("there are no episodes to make a batch of")
        batch: TensorDictBase | None = None
        for connector in self.connectors:
            batch = connector(episodes, batch)
            if not isinstance(batch, TensorDictBase):
                name = getattr(connector, "__name__", type(connector).__name__)
                raise TypeError(f"{name} has to return a TensorDict; it returned {type(batch).__name__}")
        assert batch is not None
        return batch


def join_steps(episodes: Episodes, batch: TensorDictBase | None = None) -> TensorDictBase:
    """All steps one after the other, ``[sum of T]``, with ``is_init`` at the first of each episode."""
    joined = TensorDict.cat([episode.copy() for episode in episodes])
    is_init = torch.zeros(joined.batch_size, dtype=torch.bool, device=joined.device)
    starts = torch.tensor([0, *(len(episode) for episode in episodes[:-1])]).cumsum(0)
    is_init[starts] = True
    return joined.set(IS_INIT, is_init)


def pad_sequences(episodes: Episodes, batch: TensorDictBase | None = None) -> TensorDictBase:
    """One row for each episode, ``[E, longest T]``, zeros after its end, where the collector's mask is false.

    Importance weights, 0 there, make means over all what those over the steps alone would be, and let each step count
    alike in minibatches of rows; in those, advantages that a loss normalizes are not, for which batches stay whole.
    """
    longest = max(len(episode) for episode in episodes)
    batch = TensorDict.stack([_padded(episode, longest) for episode in episodes])
    mask = batch.get(MASK)
    weight = batch.get(IMPORTANCE_WEIGHT, torch.ones_like(mask, dtype=torch.float32))
    return batch.set(IMPORTANCE_WEIGHT, weight * mask * (mask.numel() / mask.sum()))


def _padded(episode: TensorDictBase, length: int) -> TensorDictBase:
    steps = len(episode)
    is_init = torch.zeros(steps, dtype=torch.bool, device=episode.device)
    is_init[:1] = True
    row = episode.copy().set(IS_INIT, is_init)
    row.set(MASK, torch.ones(steps, dtype=torch.bool, device=episode.device))
    if steps == length:
        return row
    empty: Any = row[-1:].expand(length - steps).apply(torch.zeros_like)
    return TensorDict.cat([row, empty])
