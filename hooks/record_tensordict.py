"""The hook that keeps the collected transitions."""

from typing import Any

from tensordict import TensorDictBase

from runner.hook import Hook
from runner.spec import StateDict


class RecordTensorDict(Hook):
    """Writes each batch into a dataset as it comes, and closes that at the end of the run.

    A checkpoint holds how far it was; going on from there leaves the dataset of a run that was never stopped.

    Args:
        recorder: see ``runner.record.tensordict.TensorDictRecorder``; ``None`` where nothing is kept of a run.
    """

    point = "pre_steps_log"

    def __init__(self, recorder: Any) -> None:
        super().__init__(None)
        self.recorder = recorder

    def __call__(self, batch: TensorDictBase) -> None:
        if self.recorder is not None:
            self.recorder.record(batch)

    def close(self) -> None:
        """Say in the dataset that it is complete."""
        if self.recorder is not None:
            self.recorder.close()

    def state_dict(self) -> StateDict:
        return {} if self.recorder is None else self.recorder.state_dict()

    def load_state_dict(self, state: StateDict) -> None:
        if self.recorder is not None and state:
            self.recorder.load_state_dict(state)
