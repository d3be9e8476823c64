"""The hook that evaluates the policy as training goes on."""

from typing import Any

from tensordict import TensorDictBase

from runner.hook import Interval, TrainerHookBase
from runner.spec import Abandoned, EnvFault, StateDict


class Recorder(TrainerHookBase):
    """Plays greedy episodes each so often, and logs ``eval/return_mean``, ``eval/return_std``, ``eval/length_mean``.

    ``best`` remembers the highest mean and when it was reached.
    """

    def __init__(self, evaluation: Any) -> None:
        self.evaluation = evaluation
        self.interval = Interval(evaluation.every)
        self.best: dict[str, float] = {}

    def register(self, trainer: Any, name: str | None = None) -> None:
        self.progress = trainer.progress
        trainer.register_module(name or self.default_name(), self)
        trainer.register_op("post_steps_log", self)

    def __call__(self, batch: TensorDictBase) -> dict[str, Any] | None:
        before = self.interval.state_dict()
        if not self.interval.fires(self.progress):
            return None
        try:
            metrics = self.evaluation.run().metrics()
        except (Abandoned, EnvFault):
            self.interval.load_state_dict(before)
            raise
        if metrics["eval/return_mean"] > self.best.get("eval/return_mean", float("-inf")):
            self.best = {"eval/return_mean": metrics["eval/return_mean"], "env_steps": self.progress.env_steps}
        return {**metrics, "log_pbar": True}

    def state_dict(self) -> StateDict:
        return {"interval": self.interval.state_dict(), "best": dict(self.best)}

    def load_state_dict(self, state: StateDict) -> None:
        self.interval.load_state_dict(state["interval"])
        self.best = dict(state["best"])
