"""The hook that estimates how good each action of a collected batch was."""

from collections.abc import Callable
from typing import Any

from tensordict import TensorDictBase

from runner.hook import Hook
from runner.spec import ADVANTAGE, VALUE_TARGET, ContractError, StateDict


class ValueEstimatorHook(Hook):
    """Lets an ``estimator(batch) -> batch`` add ``advantage`` and ``value_target``, once for each collected batch.

    What the estimator remembers, if it has a ``state_dict``, is saved here.
    """

    point = "batch_process"

    def __init__(self, estimator: Callable[[TensorDictBase], TensorDictBase]) -> None:
        super().__init__()
        self.estimator = estimator

    def __call__(self, batch: TensorDictBase) -> TensorDictBase:
        estimated = self.estimator(batch)
        for key in (ADVANTAGE, VALUE_TARGET):
            if not isinstance(estimated, TensorDictBase) or key not in estimated.keys():
                raise ContractError(f"estimators return the batch with {ADVANTAGE} and {VALUE_TARGET}; no {key} here")
        return estimated

    def state_dict(self) -> StateDict:
        state: Any = getattr(self.estimator, "state_dict", dict)()
        return {**super().state_dict(), "estimator": dict(state)}

    def load_state_dict(self, state: StateDict) -> None:
        super().load_state_dict(state)
        if hasattr(self.estimator, "load_state_dict"):
            self.estimator.load_state_dict(state["estimator"])
