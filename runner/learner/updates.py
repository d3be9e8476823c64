"""A Learner used without a Trainer: epochs and minibatches of batches, of episodes, of what an iterator gives."""

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import chain
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase

from runner.learner.connectors import Episodes, EpisodesToBatch
from runner.learner.metrics import LearnerMetrics
from runner.learner.module import ALL_MODULES
from runner.learner.pipeline import Pipeline, Select
from runner.minibatches import cyclic_minibatches
from runner.spec import MASK, Progress
from runner.types import Compile, PrecisionName

Batches = TensorDictBase | Mapping[str, TensorDictBase]
Timesteps = Mapping[str, int]
"""``env_steps``, ``frames`` and ``updates`` of the whole training so far."""
TIMESTEPS = ("env_steps", "frames", "updates")

WEIGHTS_SEQ_NO = "weights_seq_no"


MOST_RUNNING = 16
"""Iterators that are remembered; whoever gives a new one to each call would keep them all alive."""
_NOTHING = object()


class Feeds:
    """Iterators that go on where an earlier call has left them; several of them take turns."""

    def __init__(self) -> None:
        self._running: list[tuple[Any, Iterator[Any]]] = []
        """Those used last at the end."""

    def take(self, source: Any, number: int) -> Iterator[Any]:
        """The next ``number`` elements of an iterable, or of a mapping of them by name.

        Fewer where one has ended and gives nothing when it is begun anew, as generators do; a ``ValueError`` where
        that leaves none.
        """
        sources = list(source.values()) if isinstance(source, Mapping) else [source]
        self._running = self._running[-max(MOST_RUNNING, len(sources)) :]
        for count in range(number):
            element = self._next(sources[count % len(sources)])
            if element is _NOTHING and not count:
                raise ValueError("the iterator has ended, and gives nothing when it is begun anew")
            if element is _NOTHING:
                return
            yield element

    def _next(self, source: Any) -> Any:
        begun = [running for known, running in self._running if known is source]
        for running in chain(begun, (iter(one) for one in (source,))):  # which is begun where nothing is left
            self._running = [pair for pair in self._running if pair[0] is not source]
            element = next(running, _NOTHING)
            if element is not _NOTHING:
                self._running.append((source, running))
                return element
        return _NOTHING


class Updates(Pipeline):
    """What is around the updates with a batch.

    Args:
        connectors: make batches of episodes.
        shuffling: its seed is what minibatches are shuffled by, those of each module by themselves.
    """

    def __init__(
        self,
        progress: Progress | None,
        compile: Compile,
        modules_to_train: Select,
        connectors: EpisodesToBatch | None,
        shuffling: torch.Generator | None,
        precision: PrecisionName = "fp32",
    ) -> None:
        super().__init__(progress, compile, modules_to_train, precision)
        self._parameter_counts: dict[str, dict[str, int]] = {}
        self.connectors, self.shuffling = connectors or EpisodesToBatch(), shuffling or torch.Generator()
        self.metrics, self.weights_seq_no = LearnerMetrics(), 0
        self._feeds = Feeds()

    def before_gradient_based_update(self, timesteps: Timesteps) -> None:
        """Called before the updates with a batch; override it for what has nothing to do with gradients."""

    def after_gradient_based_update(self, timesteps: Timesteps) -> None:
        """Called after the updates with a batch, even if no module was updated."""

    def begin_updates(self) -> None:
        """A batch is about to be learnt from: the Trainer says so, and ``update_from_*``."""
        self._chosen = None
        self.before_gradient_based_update(self._timesteps())

    def end_updates(self) -> None:
        """The batch has been learnt from."""
        self.weights_seq_no += 1
        self.after_gradient_based_update(self._timesteps())

    def _timesteps(self) -> Timesteps:
        progress = self.progress
        return {"env_steps": progress.env_steps, "frames": progress.frames, "updates": progress.updates}

    def update_from_batch(
        self,
        batch: Batches,
        *,
        timesteps: Timesteps | None = None,
        num_epochs: int = 1,
        minibatch_size: int | None = None,
        shuffle_batch_per_epoch: bool = False,
        num_total_minibatches: int | None = None,
    ) -> dict[str, Any]:
        """Go through a batch in minibatches, an update for each, and return metrics by module; the batch stays.

        Args:
            batch: of the only module, or by module id; ``[R, ...]`` each. See :func:`cyclic_minibatches`.
            timesteps: ``env_steps`` of the whole training so far, for schedules; a ``ValueError`` for others.

        Raises:
            NonFiniteError: where weights are no numbers any more.
        """
        if num_epochs < 1 or any(one is not None and one < 1 for one in (minibatch_size, num_total_minibatches)):
            raise ValueError("num_epochs, minibatch_size and num_total_minibatches have to be >= 1")
        self._begin_call(timesteps)
        batches = self._selected(batch)
        if batches:
            self._count_steps(batches)
            own = {one: self._own[one].shuffling for one in batches} if shuffle_batch_per_epoch else None
            for minibatch in cyclic_minibatches(batches, num_epochs, minibatch_size, own, num_total_minibatches):
                self._learn(minibatch)
        return self._end_call(list(batches))

    def update_from_episodes(
        self, episodes: Episodes | Mapping[str, Episodes], *, timesteps: Timesteps | None = None, **options: Any
    ) -> dict[str, Any]:
        """The same from episodes ``[T]`` of the only module, or by module id, which ``connectors`` make a batch of."""
        self._check_is_built()
        if not isinstance(episodes, Mapping):
            episodes = {self._only_module("episodes are given"): episodes}
        batches = {module_id: self.connectors(some) for module_id, some in episodes.items()}
        return self.update_from_batch(batches, timesteps=timesteps, **options)

    def update_from_iterator(
        self,
        iterator: Any,
        *,
        timesteps: Timesteps | None = None,
        minibatch_size: int | None = None,
        num_iters: int | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """``num_iters`` updates, each with the next minibatch that the iterator gives; a later call goes on there.

        Args:
            iterator: gives batches as for :meth:`update_from_batch`, all of one is a minibatch; or several such by
                name, which take turns. A loader that has ended begins anew.
            minibatch_size: rows that each minibatch has to have.
        """
        if "num_epochs" in options:
            raise ValueError("num_epochs: an iterator has none; say num_iters, how many minibatches it is to give")
        if options:
            raise TypeError(f"update_from_iterator takes no {', '.join(options)}")
        if num_iters is None or num_iters < 1:
            raise ValueError("num_iters: how many minibatches the iterator is to give, at least 1")
        self._begin_call(timesteps)
        seen: dict[str, None] = {}
        for given in self._feeds.take(iterator, num_iters):
            batches = self._selected(given)
            if batches:
                _check_rows(batches, minibatch_size)
                self._count_steps(batches)
                self._learn({module_id: batch.copy() for module_id, batch in batches.items()})
                seen |= dict.fromkeys(batches)
            self.metrics.log_value((ALL_MODULES, "dataset_num_iters_trained"), 1, "sum")
            self.metrics.log_value((ALL_MODULES, "dataset_num_iters_trained_lifetime"), 1, "lifetime_sum")
        return self._end_call(list(seen))

    def _begin_call(self, timesteps: Timesteps | None) -> None:
        self._check_is_built()
        for name, number in (timesteps or {}).items():
            if name not in TIMESTEPS:
                guess = next(iter(get_close_matches(name, TIMESTEPS, 1)), ", ".join(TIMESTEPS))
                raise ValueError(f"timesteps: there are no {name}; did you mean {guess}?")
            if name != "updates":  # counted here
                setattr(self.progress, name, int(number))
        self.begin_updates()

    def _end_call(self, updated: Sequence[str]) -> dict[str, Any]:
        self.end_updates()
        self.check_finite()
        for module_id in (*updated, ALL_MODULES):
            own: dict[str, Any] = {**self._parameter_counts[module_id]}
            if module_id != ALL_MODULES:
                own |= {WEIGHTS_SEQ_NO: self.weights_seq_no, **self._row_metrics(module_id)}
            for name, value in own.items():
                self.metrics.log_value((module_id, name), value, "last")
        return self.metrics.reduce()

    def _selected(self, batch: Batches) -> dict[str, TensorDictBase]:
        """The batches of the modules to be updated, in the order of the modules, where the weights are."""
        parts = self._parts(batch)
        self._check_known(parts)
        device = self.device
        every = TensorDict(parts, batch_size=[]) if self.is_keyed else next(iter(parts.values()), None)
        chosen = [one for one in self.modules if one in parts and self.should_module_be_updated(one, every)]
        return {one: parts[one] if device.type == "cpu" else parts[one].to(device) for one in chosen}

    def _parts(self, batch: Any) -> dict[str, TensorDictBase]:
        if not isinstance(batch, TensorDictBase) or not batch.batch_size:
            return dict(batch.items())
        return {self._only_module("a batch is keyed"): batch}

    def _only_module(self, otherwise: str) -> str:
        if self.is_keyed:
            raise ValueError(f"there are several modules: {otherwise} by their ids, {', '.join(self.modules)}")
        return next(iter(self.modules))

    def _count_steps(self, batches: Mapping[str, TensorDictBase]) -> None:
        """Once for each batch, however many minibatches it is cut into."""
        steps = {module_id: _steps_in(batch) for module_id, batch in batches.items()}
        for module_id, number in [*steps.items(), (ALL_MODULES, sum(steps.values()))]:
            self.metrics.log_value((module_id, "num_module_steps_trained"), number, "sum")
            self.metrics.log_value((module_id, "num_module_steps_trained_lifetime"), number, "lifetime_sum")
        self.metrics.log_value((ALL_MODULES, "num_env_steps_trained"), sum(steps.values()), "sum")
        self.metrics.log_value((ALL_MODULES, "num_env_steps_trained_lifetime"), sum(steps.values()), "lifetime_sum")
        for module_id, batch in batches.items():
            played_by = batch.get(WEIGHTS_SEQ_NO, None)
            if played_by is not None:
                age = self.weights_seq_no - _valid(batch, played_by).double().mean()
                self.metrics.log_value((module_id, "diff_num_grad_updates_vs_sampler_policy"), age, "last")

    def _learn(self, minibatch: Mapping[str, TensorDictBase]) -> None:
        """One update; how the last one went is what is told."""
        batch = TensorDict(dict(minibatch), batch_size=[]) if self.is_keyed else next(iter(minibatch.values()))
        self._chosen = tuple(minibatch)
        metrics = self.step(self.compute_losses(batch), batch)
        self.progress.updates += 1
        for module_id, part in minibatch.items():
            self.metrics.log_value((module_id, "module_train_batch_size_mean"), part.batch_size[0])
        only, totals = next(iter(self.modules)), dict[str, Any]()
        for name, value in metrics.items():
            module_id, _, rest = name.partition("/") if self.is_keyed else (only, "", name)
            self.metrics.log_value((module_id, rest), value, "last")
            if rest.startswith("loss/"):
                totals[module_id] = totals.get(module_id, 0.0) + self._weight(module_id, rest[5:]) * value
        for module_id, total in [*totals.items(), (ALL_MODULES, sum(totals.values()))] if totals else ():
            self.metrics.log_value((module_id, "total_loss"), total, "last")

    def _weight(self, module_id: str, term: str) -> float:
        """That of a term in what is minimized, whichever optimization has it."""
        weights = (one.loss_weights for one in self.modules[module_id].optimizations)
        return next((own[term] for own in weights if term in own), 1.0)


def _steps_in(batch: TensorDictBase) -> int:
    mask = batch.get(MASK, None)
    return batch.batch_size.numel() if mask is None else int(mask.sum())


def _valid(batch: TensorDictBase, values: torch.Tensor) -> torch.Tensor:
    mask = batch.get(MASK, None)
    return values if mask is None else values[mask]


def _check_rows(batches: Mapping[str, TensorDictBase], minibatch_size: int | None) -> None:
    for module_id, batch in batches.items():
        if minibatch_size is not None and batch.batch_size[0] != minibatch_size:
            raise ValueError(
                f"minibatch_size={minibatch_size}: the iterator gives {batch.batch_size[0]} rows for {module_id!r}"
            )
