"""Collectors of several modules, each with environments and a policy of its own, that play in turn."""

from collections.abc import Callable, Iterator, Mapping

from tensordict import TensorDict, TensorDictBase

from runner.kept_batches import put_together, take_apart
from runner.spec import CheckpointError, Collector, EnvFault, Progress, StateDict


class CollectorByModule:
    """Yields ``TensorDict({module_id: [N, T] batch}, [])``: one batch of each part, in the order of their ids' arrival.

    Each part has counters of its own, but for the clock, which its exploration and its schedules follow: nothing that
    it does depends on which other modules there are. Where an environment fails for good, what other parts had played
    of the same round is kept, so that the state is that of a run which plays on from there.

    Args:
        parts: collectors by module id; each counts in its own ``progress``.
        progress: the run's counters.
        members: gives what is saved besides, of who takes part and why.
        prepare: called with that before anything is loaded; afterwards the parts are those of the saved state.
    """

    def __init__(
        self,
        parts: Mapping[str, Collector],
        progress: Progress,
        members: Callable[[], StateDict] = dict,
        prepare: Callable[[StateDict], None] = lambda members: None,
    ) -> None:
        self.parts = dict(parts)
        self.progress = progress
        self._members, self._prepare = members, prepare
        self._iterators: dict[str, Iterator[TensorDictBase]] = {}
        self._waiting: dict[str, TensorDictBase] = {}

    @property
    def batch(self) -> TensorDictBase:
        return TensorDict({module_id: part.batch for module_id, part in self.parts.items()}, [])

    @property
    def frames_per_batch(self) -> int:
        return sum(part.frames_per_batch for part in self.parts.values())

    @property
    def resume_mode(self) -> str:
        """That of each part, where they differ by module: ``tape``, or ``left=tape,right=none``."""
        modes = {module_id: part.resume_mode for module_id, part in self.parts.items()}
        if len(set(modes.values())) == 1:
            return next(iter(modes.values()))
        return ",".join(f"{module_id}={mode}" for module_id, mode in modes.items())

    def __iter__(self) -> Iterator[TensorDictBase]:
        while True:
            for module_id, part in list(self.parts.items()):
                if module_id not in self._waiting:
                    batch = self._next(module_id, part)
                    if batch is None:  # this part has played all that it is to play
                        return
                    self._waiting[module_id] = batch
            batches, self._waiting = self._waiting, {}
            for module_id, batch in batches.items():
                own = self.parts[module_id].progress
                own.count(batch)
                own.seconds = self.progress.seconds
            yield TensorDict(batches, [])  # type: ignore[arg-type]

    def _next(self, module_id: str, part: Collector) -> TensorDictBase | None:
        if module_id not in self._iterators:
            self._iterators[module_id] = iter(part)
        try:
            return next(self._iterators[module_id], None)
        except EnvFault as fault:
            del self._iterators[module_id]  # a generator that has raised gives nothing more
            raise EnvFault(f"module {module_id}: {fault}") from fault

    def add(self, module_id: str, part: Collector) -> None:
        """Let one more module play from the next round on."""
        self.parts[module_id] = part

    def remove(self, module_id: str) -> None:
        """Let a module play no more, and close its environments."""
        self._iterators.pop(module_id, None)
        self._waiting.pop(module_id, None)
        self.parts.pop(module_id).shutdown()

    def row_metrics(self) -> dict[str, float]:
        """``perf/*`` summed over the parts, as what is said of the whole run; all else by module."""
        metrics: dict[str, float] = {}
        for module_id, part in self.parts.items():
            for name, value in part.row_metrics().items():
                key = name if name.startswith("perf/") else f"{module_id}/{name}"
                metrics[key] = metrics.get(key, 0.0) + value
        return metrics

    def update_policy_weights_(self) -> None:
        for part in self.parts.values():
            part.update_policy_weights_()

    def shutdown(self) -> None:
        for part in self.parts.values():
            part.shutdown()

    def __str__(self) -> str:
        return ", ".join(f"{module_id} {part}" for module_id, part in self.parts.items())

    def state_dict(self) -> StateDict:
        parts = {
            module_id: {"collector": part.state_dict(), "progress": {**part.progress.state_dict(), "seconds": 0.0}}
            for module_id, part in self.parts.items()
        }
        waiting = {module_id: take_apart(batch) for module_id, batch in self._waiting.items()}
        return {"members": self._members(), "parts": parts, "waiting": waiting}

    def load_state_dict(self, state: StateDict) -> None:
        self._prepare(state["members"])
        if state["parts"].keys() != self.parts.keys():
            words = f"modules {', '.join(state['parts'])}, and this run has {', '.join(self.parts)}"
            raise CheckpointError(f"the checkpoint is of {words}")
        for module_id, part in self.parts.items():
            part.progress.load_state_dict(state["parts"][module_id]["progress"])
            part.progress.seconds = self.progress.seconds
            part.load_state_dict(state["parts"][module_id]["collector"])
        self._waiting = {module_id: put_together(batch) for module_id, batch in state["waiting"].items()}
