"""One rule by which epochs over collected data are cut into minibatches."""

from collections.abc import Iterator, Mapping

import torch
from tensordict import TensorDictBase
from torch import Tensor


def new_order(rows: int, generator: torch.Generator, last: Tensor | None = None) -> Tensor:
    """The numbers of ``rows`` rows in a random order ``[rows]``; those in ``last`` come at its end."""
    order = torch.randperm(rows, generator=generator)
    if last is None or not len(last):
        return order
    is_late = torch.isin(order, last)
    return torch.cat([order[~is_late], order[is_late]])


class Cycle:
    """Goes through rows in minibatches of ``size``, over and over; one that reaches the end goes on at the beginning.

    With a ``generator``, each time in another random order, the first included. A minibatch has a row twice only where
    it is larger than all rows.
    """

    def __init__(self, rows: int, size: int, generator: torch.Generator | None = None) -> None:
        self.rows, self.size, self.generator = rows, size, generator
        self.epochs, self._at = 0, 0
        self._order = new_order(rows, generator) if generator is not None else torch.arange(rows)

    def take(self) -> Tensor:
        """The rows of the next minibatch, ``[size]``."""
        parts: list[Tensor] = []
        missing = self.size
        while missing:
            part = self._order[self._at : self._at + missing]
            parts.append(part)
            missing -= len(part)
            self._at += len(part)
            if self._at == self.rows:
                self.epochs, self._at = self.epochs + 1, 0
                if self.generator is not None:
                    self._order = new_order(self.rows, self.generator, torch.cat(parts) if missing else None)
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def cyclic_minibatches(
    batches: Mapping[str, TensorDictBase],
    num_epochs: int,
    minibatch_size: int | None,
    generators: Mapping[str, torch.Generator] | None = None,
    num_total_minibatches: int | None = None,
) -> Iterator[dict[str, TensorDictBase]]:
    """Minibatches by module: in each one ``minibatch_size`` rows of every module's batch ``[R, ...]``.

    The module with the most rows is gone through ``num_epochs`` times, and ends it: for R rows and minibatches of M
    there are ``ceil(num_epochs * R / M)``, all of full size, or ``num_total_minibatches`` if that is given. Modules
    with fewer rows see more epochs. Rows are what the first dimension counts, so that sequences ``[R, T]`` stay whole.

    Args:
        minibatch_size: ``None`` for the whole of each batch.
        generators: each shuffles the rows of its module anew in every epoch.

    Source: the minibatch rule of RLlib's Learner, with what is random from the first epoch on.
    """
    if empty := [module_id for module_id, batch in batches.items() if not batch.batch_size or not batch.batch_size[0]]:
        raise ValueError(f"the batch of module {empty[0]!r} has no rows")
    if minibatch_size is None:
        for _ in range(num_total_minibatches or num_epochs):
            yield {module_id: batch.copy() for module_id, batch in batches.items()}
        return
    own = generators or {}
    cycles = {one: Cycle(batch.batch_size[0], minibatch_size, own.get(one)) for one, batch in batches.items()}
    done = 0
    while done < num_total_minibatches if num_total_minibatches else _least_epochs(cycles) < num_epochs:
        yield {module_id: _rows_of(batches[module_id], cycle.take()) for module_id, cycle in cycles.items()}
        done += 1


def _least_epochs(cycles: Mapping[str, Cycle]) -> int:
    return min(cycle.epochs for cycle in cycles.values())


def _rows_of(batch: TensorDictBase, rows: Tensor) -> TensorDictBase:
    if batch.device is not None:
        rows = rows.to(batch.device)
    return batch[rows]
