"""Updates on what was just collected."""

from tensordict import TensorDictBase

from runner.spec import StateDict


class BatchSource:
    """Updates on the collected batch itself: the source of a trainer that was given none."""

    warmup = 0

    def __init__(self, optim_steps: int) -> None:
        self._optim_steps = optim_steps

    def extend(self, batch: TensorDictBase) -> None:
        pass

    def optim_steps(self) -> int:
        return self._optim_steps

    def sample(self, batch: TensorDictBase) -> TensorDictBase:
        return batch

    def update_priority(self, sub_batch: TensorDictBase) -> None:
        pass

    def state_dict(self) -> StateDict:
        return {}

    def load_state_dict(self, state: StateDict) -> None:
        pass
