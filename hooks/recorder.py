"""The hook that evaluates the policy as training goes on."""

from typing import Any

from tensordict import TensorDictBase

from runner.hook import Hook


class Recorder(Hook):
    """Plays greedy episodes each so often, and logs ``eval/return_mean``, ``eval/return_std``, ``eval/length_mean``.

    The interval is the evaluation's. ``best`` remembers the highest mean and when it was reached.
    """

    point = "post_steps_log"
    remembers = ("best",)

    def __init__(self, evaluation: Any) -> None:
        super().__init__(evaluation.every)
        self.evaluation = evaluation
        self.best: dict[str, float] = {}

    def __call__(self, batch: TensorDictBase) -> dict[str, Any]:
        metrics = self.evaluation.run().metrics()
        if metrics["eval/return_mean"] > self.best.get("eval/return_mean", float("-inf")):
            self.best = {"eval/return_mean": metrics["eval/return_mean"], self.progress.axis: self.progress.place}
        return {**metrics, "log_pbar": True}
