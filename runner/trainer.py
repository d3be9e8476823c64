"""The loop, and the ten points at which hooks plug into it."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tensordict import TensorDictBase

from runner.batch_source import BatchSource
from runner.checkpoint.store import CheckpointStore, make_store, naming_state_of
from runner.hook import Interval, StopRequest, UnfinishedBatch
from runner.learner.learner import Learner
from runner.metrics import Metrics
from runner.points import POINTS, Intervals, Operation, Registered, belongs_to, make_registered, operate, process
from runner.spec import (
    Abandoned,
    CheckpointError,
    Collector,
    ContractError,
    DataSource,
    EnvFault,
    HooklineError,
    Progress,
    StateDict,
    Stateful,
)

log = logging.getLogger(__name__)

PARTS = ("progress", "collector", "learner", "source")
"""The parts without whose state a run cannot go on as it was."""


class Trainer:
    """Collects, learns, logs and saves, until enough frames have passed.

    Args:
        collector: iterable of batches ``[N, T]``; ``None`` for a trainer that only saves and loads.
        total_frames: env steps times the frame skip after which the run is done; ``None`` where nothing is played.
        frame_skip: how often the environment repeats an action, which only multiplies the count; the collector's own
            if not given.
        loss_module: ``loss_module(sub_batch) -> {loss_*: ...}``, for use without a ``learner``.
        optimizer: a torch optimizer, or an ``Optimization``, over the parameters of ``loss_module``; the trainer then
            registers the update at ``optimizer`` itself; without it, one ``OptimizerHook`` or several have to.
        learner: in place of the two; an ``OptimizerHook`` has to apply its updates.
        source: where sub-batches come from; the collected batch itself if not given.
        optim_steps_per_batch: updates for each batch, when there is no source to say so.
        metrics: where metrics go.
        checkpoint: where to save to.
        save_trainer_file, save_trainer_interval: in place of that, a path and how many frames are between two saves.
        stop_after: further limits, ``{"env_steps" | "updates" | "episodes" | "seconds": n}``.
        log_every: one metric row each so often.
        progress: the run's counters; the collector's own if it has them.
    """

    def __init__(
        self,
        *,
        collector: Collector | None = None,
        total_frames: int | None = 0,
        frame_skip: int | None = None,
        loss_module: Callable[..., Any] | None = None,
        optimizer: Any = None,
        learner: Learner | None = None,
        source: DataSource | None = None,
        optim_steps_per_batch: int = 1,
        metrics: Metrics | None = None,
        checkpoint: CheckpointStore | None = None,
        save_trainer_file: str | Path | None = None,
        save_trainer_interval: int = 10_000,
        stop_after: Mapping[str, float] | None = None,
        log_every: Mapping[str, float] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.collector, self.total_frames = collector, total_frames
        self.progress = progress or getattr(collector, "progress", None) or Progress()
        self.progress.frame_skip = frame_skip or self.progress.frame_skip
        self.learner = learner or _make_learner(loss_module, optimizer, self.progress)
        self.source: DataSource = source or BatchSource(optim_steps_per_batch)
        self.metrics = metrics or Metrics()
        self.checkpoint = make_store(checkpoint, save_trainer_file, save_trainer_interval)
        self.stop_after = dict(stop_after or {})
        self.log_every = Interval(log_every or {"env_steps": 1000})
        self.ask_to_stop: Callable[[], str | None] = lambda: None
        self.stop_reason: str | None = None
        self.stop = StopRequest()
        self.unfinished = UnfinishedBatch()
        self.optim_stopped = False
        self.batch: TensorDictBase | None = None
        self.pbar_values: dict[str, Any] = {}
        self._shown_by: dict[str, Operation | None] = {}
        self._operations: dict[str, list[Registered]] = {point: [] for point in POINTS}
        self._modules: dict[str, Stateful] = {}
        self._clock = time.monotonic()
        self._learning_since: tuple[int, float] | None = None
        self._share_progress()
        self._register_parts()
        if self.learner is not None and optimizer is not None and learner is None:
            self.register_op("optimizer", self.learner.step)

    def _share_progress(self) -> None:
        """One set of counters, whoever made the parts: schedules and exploration follow those of this run."""
        parts: tuple[Any, ...] = (self.collector, self.learner)
        for part in parts:
            if hasattr(part, "progress"):
                part.progress = self.progress

    def _register_parts(self) -> None:
        for name in (*PARTS, "metrics", "log_every", "checkpoint", "stop", "unfinished"):
            if getattr(self, name) is not None:
                self.register_module(name, getattr(self, name))

    def train(self) -> Progress:
        """Run until ``total_frames``, ``stop_after`` or a request to stop; returns the counters."""
        if self.collector is None:
            raise RuntimeError("this trainer has no collector: it can save and load, but not train")
        progress, source, learner = self.progress, self.source, self.learner
        if learner is not None and not self._operations["optimizer"]:
            log.warning("nothing is registered at the optimizer point: this run learns nothing")
        self._clock = time.monotonic()
        if self._is_over():
            return progress
        for batch in self._batches():
            progress.count(batch)
            batch = self.batch = self._process("batch_process", batch)
            self._log("pre_steps_log", batch)
            if progress.env_steps >= source.warmup and learner is not None:
                self._operate("pre_optim_steps")
                learner.begin_updates()
                self.optim_stopped = False
                for _ in range(source.optim_steps()):
                    sub_batch = self._process("process_optim_batch", batch)
                    losses = learner.compute_losses(sub_batch)
                    self._operate("post_loss", sub_batch)
                    self._optimize(losses, sub_batch)
                    progress.updates += 1
                    self._operate("post_optim")
                    self._log("post_optim_log", sub_batch)
                    if self.optim_stopped:
                        break
                learner.end_updates()
            self._operate("post_steps")
            if self._end_batch(batch):  # post_steps_log, and the safe point
                break
        else:
            self.stop_reason = "the collector has ended"
            self.save_trainer(force_save=True)
        return progress

    def _batches(self) -> Iterator[TensorDictBase]:
        """Those of the collector; when an environment fails in one, the state before it is saved."""
        try:
            yield from self.collector or ()
        except EnvFault as fault:
            raise self._saved(fault) from fault

    def _saved(self, fault: EnvFault) -> EnvFault:
        """The fault, which comes first whatever else is wrong, and what became of the state before it."""
        try:
            saved = self.save_trainer(force_save=True)
        except HooklineError as error:  # the disk, or weights that are not finite
            return EnvFault(f"{fault}; not saved: {error}")
        return EnvFault(f"{fault}; saved at {self.progress.place_in_words}") if saved else fault

    def _is_over(self) -> bool:
        """Whether there is nothing to do, once the batch is finished that a stop had left unfinished."""
        left = self.unfinished
        return self._should_stop() if left.batch is None else self._end_batch(left.batch, left.done)

    def _end_batch(self, batch: TensorDictBase, done: int = 0) -> bool:
        """What is left of ``post_steps_log`` after ``done`` operations, and the safe point; true if the run is to stop.

        An operation that is given up, or fails for its environment, is saved as not done: the resumed run does it, and
        those after it.
        """
        self.unfinished.forget()
        for operation, kwargs, hook, _, _ in self._operations["post_steps_log"][done:]:
            try:
                values = operation(batch, **kwargs)
            except Abandoned:
                self.unfinished.keep(batch, done)
                self._should_stop()
                self.save_trainer(force_save=True)
                return True
            except EnvFault as fault:
                self.unfinished.keep(batch, done)
                raise self._saved(fault) from fault
            if values:
                self.log(values, hook)
            done += 1
        return self._safe_point()

    def _process(self, point: str, batch: TensorDictBase) -> TensorDictBase:
        return process(point, self._operations[point], batch)

    def _operate(self, point: str, *arguments: Any) -> None:
        operate(self._operations[point], *arguments)

    def _log(self, point: str, batch: TensorDictBase) -> None:
        for operation, kwargs, hook, _, _ in self._operations[point]:
            values = operation(batch, **kwargs)
            if values:
                self.log(values, hook)

    def _optimize(self, losses: TensorDictBase, sub_batch: TensorDictBase) -> None:
        for operation, kwargs, _, _, _ in self._operations["optimizer"]:
            values = operation(losses, sub_batch, **kwargs)
            if values:
                self.metrics.add(values)

    def log(self, values: Mapping[str, Any], hook: Operation | None = None) -> None:
        """Add metrics to the current row; with ``log_pbar`` true among them, the progress bar shows them too."""
        shown = {name: value for name, value in values.items() if name != "log_pbar"}
        if values.get("log_pbar", False):
            self.pbar_values.update(shown)
            self._shown_by.update(dict.fromkeys(shown, hook))
        self.metrics.add(shown)

    def _safe_point(self) -> bool:
        """Everything is consistent here: write a row, save if due or asked to, and say whether to stop."""
        self._count_seconds()
        if self._learning_since is None and self.progress.updates:
            self._learning_since = self.progress.place, self.progress.seconds
        if self.log_every.fires(self.progress):
            self.write_row()
        stopping = self._should_stop()
        is_due = self.checkpoint is not None and self.checkpoint.due(self.progress, self.metrics.latest)
        if stopping:
            self.save_trainer(force_save=True)
        elif is_due:
            self._save_in_background()
        return stopping

    def _should_stop(self) -> bool:
        self.stop_reason = self.ask_to_stop() or self.stop.reason or self._limit_reached()
        return self.stop_reason is not None

    def _limit_reached(self) -> str | None:
        if self.total_frames is not None and self.progress.frames >= self.total_frames:
            return "total_frames"
        reached = (unit for unit, n in self.stop_after.items() if getattr(self.progress, unit) >= n)
        return next((f"stop_after.{unit}" for unit in reached), None)

    def request_stop(self, reason: str) -> None:
        """End the run at the next safe point; a run that is killed in between ends when it is resumed."""
        self.stop.reason = reason

    def forget_stop(self) -> None:
        """Let a run go on that was asked to stop."""
        self.stop.reason = None

    def _count_seconds(self) -> None:
        now = time.monotonic()
        self.progress.seconds += now - self._clock
        self._clock = now

    def steady_rate(self) -> float | None:
        """Env steps (or updates) per second since this process began to learn, evaluation and saving included."""
        if self._learning_since is None or self.progress.seconds <= self._learning_since[1]:
            return None
        place, seconds = self._learning_since
        return (self.progress.place - place) / (self.progress.seconds - seconds)

    def write_row(self) -> dict[str, float]:
        """Write the metrics since the last row; refuses to go on with weights that are no longer finite."""
        extra: dict[str, float] = {}
        if self.learner is not None:
            self.learner.check_finite()
            extra.update(self.learner.row_metrics())
        collected = getattr(self.collector, "row_metrics", None)
        extra.update(collected() if collected is not None else {})
        extra["perf/seconds"] = self.progress.seconds
        return self.metrics.write_row(self.progress, extra)

    def register_op(
        self, point: str, operation: Operation, *, every: Interval | Mapping[str, float] | None = None, **kwargs: Any
    ) -> None:
        """Call ``operation`` at ``point`` from now on, after those registered there before; see ``points.POINTS``.

        Args:
            every: each so often, for example ``{"env_steps": 1000}``; an ``Interval`` where its owner saves it.
        """
        is_owned = isinstance(every, Mapping)
        clock = Interval(every) if isinstance(every, Mapping) else every
        registered = make_registered(point, operation, clock, is_owned, kwargs, self)
        self._operations[point].append(registered)
        if is_owned and "intervals" not in self._modules:
            self.register_module("intervals", Intervals(self._operations))

    def unregister(self, owner: Any) -> None:
        """Take a hook out: its operations at every point, its state, and what it shows in the progress bar."""
        for point, operations in self._operations.items():
            self._operations[point] = [one for one in operations if not one.belongs_to(owner)]
        self._modules = {name: module for name, module in self._modules.items() if module is not owner}
        for name in [name for name, hook in self._shown_by.items() if hook and belongs_to(hook, owner)]:
            del self.pbar_values[name], self._shown_by[name]
        getattr(owner, "release", lambda: None)()

    def register_module(self, name: str, module: Stateful) -> None:
        """Let checkpoints hold ``module`` under ``name``."""
        if not isinstance(name, str):
            raise ContractError(f"register_module(name, module): the name comes first; got {name!r}")
        for method in ("state_dict", "load_state_dict"):
            if not callable(getattr(module, method, None)):
                lacks = f"{name}: a {type(module).__name__} has no {method}()"
                raise ContractError(f"{lacks}, so no checkpoint can hold it")
        if name in self._modules:
            raise ValueError(f"a module named {name!r} is registered already; give another name")
        self._modules[name] = module

    def operations(self, point: str) -> list[Operation]:
        """What is registered at ``point``, in order."""
        return [one.original for one in self._operations[point]]

    def schedule(self) -> dict[str, list[str]]:
        """The operations at each point, in order, by their names."""
        return {point: [str(one) for one in operations] for point, operations in self._operations.items()}

    def state_dict(self) -> dict[str, StateDict]:
        return {name: module.state_dict() for name, module in self._modules.items()}

    def load_state_dict(self, state: Mapping[str, StateDict]) -> None:
        missing = sorted(self._modules.keys() - state.keys())
        lost = [name for name in missing if name in PARTS]
        if lost:
            raise CheckpointError(f"the checkpoint has no state for {', '.join(lost)}: it is not one of this run")
        if missing:
            log.warning("the checkpoint has no state for %s: they start afresh", ", ".join(missing))
        for name, module in self._modules.items():
            if name in state:
                with naming_state_of(name):
                    module.load_state_dict(state[name])

    def save_trainer(self, force_save: bool = False) -> Path | None:
        """Save by force, and return the checkpoint once it is on disk; or, if it is due, in the background."""
        if self.checkpoint is None:
            return None
        if force_save:
            return self.checkpoint.save(*self._what_to_save())
        if self.checkpoint.due(self.progress, self.metrics.latest):
            self._save_in_background()
        return None

    def _save_in_background(self) -> None:
        if self.checkpoint is not None:
            self.checkpoint.save_in_background(*self._what_to_save())

    def _what_to_save(self) -> tuple[StateDict, StateDict, StateDict]:
        """The state, the counters and what else the manifest says; weights that are not finite are not saved."""
        self._count_seconds()
        if self.learner is not None:
            self.learner.check_finite()
        extra = {"env_mode": getattr(self.collector, "resume_mode", None)}
        return self.state_dict(), self.progress.state_dict(), extra

    def load_from_file(self, file: str | Path | None = None, take: str | None = None) -> "Trainer":
        """Load the newest good checkpoint, or the one called ``take``, at ``file`` or at the trainer's own place."""
        store = CheckpointStore(run=file) if file is not None else self.checkpoint
        if store is None:
            raise CheckpointError("nowhere to load from: give a path, or make the trainer with save_trainer_file")
        store.load(accept=self.load_state_dict, take=take)
        return self


def _make_learner(loss_module: Callable[..., Any] | None, optimizer: Any, progress: Progress) -> Learner | None:
    if loss_module is None and optimizer is not None:
        raise ValueError("an optimizer goes together with its loss_module")
    return None if loss_module is None else Learner.from_loss_module(loss_module, optimizer, progress)
