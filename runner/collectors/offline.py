"""The collector of runs that learn from recorded data alone."""

from collections.abc import Iterator
from typing import Any

from tensordict import TensorDictBase

from runner.collectors.arrays import Arrays
from runner.spec import Progress, StateDict


class OfflineCollector:
    """Plays nothing: yields empty batches ``[N, 0]``, without end, so that the one loop goes on.

    The environment is there for its spec and for the evaluation; none of it is stepped. The run's progress is counted
    in updates from here on.
    """

    frames_per_batch = 0
    resume_mode = "none"

    def __init__(self, environment: Any, progress: Progress | None = None) -> None:
        self.environment = environment
        self.progress = progress or Progress(frame_skip=environment.spec.frame_skip)
        one_step = Arrays.allocate(1, environment.num_envs, environment.spec).as_batch()
        self.batch: TensorDictBase = one_step[:, :0]  # with every entry of a batch that was played

    @property
    def progress(self) -> Progress:
        """The run's counters."""
        return self._progress

    @progress.setter
    def progress(self, progress: Progress) -> None:
        progress.axis = "updates"
        self._progress = progress

    def __iter__(self) -> Iterator[TensorDictBase]:
        self.environment.guard.watch.start()  # over the evaluation
        while True:
            yield self.batch.copy()

    def __str__(self) -> str:
        return "for evaluation alone"

    def row_metrics(self) -> dict[str, float]:
        """For every row: how often environments of the evaluation failed."""
        return self.environment.row_metrics()

    def update_policy_weights_(self) -> None:
        """Nobody acts by them."""

    def shutdown(self) -> None:
        self.environment.close()

    def state_dict(self) -> StateDict:
        return {"faults": self.environment.guard.state_dict()}

    def load_state_dict(self, state: StateDict) -> None:
        self.environment.count_faults(state["faults"])
