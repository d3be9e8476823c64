"""One module of a run as its hooks see it: a trainer that trains this module alone."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tensordict import TensorDictBase
from torch import nn

from runner.config.build import Builder
from runner.config.parts import Config
from runner.hook import Interval, TrainerHookBase
from runner.learner.learner import Learner
from runner.learner.module import Module
from runner.learner.optimization import Optimization
from runner.metrics import Metrics
from runner.points import POINTS, Intervals, Operation, Registered, make_registered, name_of, operate, process
from runner.spec import ConfigError, StateDict, Stateful


class Member:
    """Hooks of a module are registered here as with a trainer, and work on its part of every batch.

    What belongs to the run (limits, the request to stop) is the trainer's; counters, source, collector, learner and
    metrics are the module's own.

    Args:
        config: the module's own tree.
        builder: its runtime has what was built of it.
    """

    def __init__(self, module_id: str, config: Config, builder: Builder) -> None:
        self.module_id, self.config, self.builder = module_id, config, builder
        runtime = builder.runtime
        self.progress, self.collector, self.source = runtime["progress"], runtime["collector"], runtime["source"]
        self.environment, self.evaluation = runtime["environment"], runtime["evaluation"]
        self.networks: Mapping[str, nn.Module] = runtime["networks"]
        self.hooks: dict[str, TrainerHookBase] = {}
        self.optim_stopped = self.is_updated = False
        self._operations: dict[str, list[Registered]] = {point: [] for point in POINTS}
        self._states: dict[str, Stateful] = {"intervals": Intervals(self._operations)}

    def join(self, trainer: Any) -> None:
        """The run's trainer is there now."""
        self.trainer = trainer
        self.learner = LearnerOfModule(trainer.learner, self.module_id)
        self.metrics = MetricsOfModule(trainer.metrics, self.module_id)
        self.builder.runtime |= {"learner": self.learner, "trainer": self, "metrics": self.metrics}

    def __getattr__(self, name: str) -> Any:
        if name == "trainer":
            raise AttributeError(name)
        return getattr(self.trainer, name)

    @property
    def module(self) -> Module:
        """What is learnt of it, as :func:`make_learner` has put it together."""
        (module,) = self.builder.runtime["made"].modules.values()
        return module

    @property
    def is_warm(self) -> bool:
        return bool(self.progress.env_steps >= self.source.warmup)

    @property
    def batch(self) -> TensorDictBase:
        """Its part of the batch collected last."""
        return self.trainer.batch.get(self.module_id)

    def register_op(
        self, point: str, operation: Operation, *, every: Interval | Mapping[str, float] | None = None, **kwargs: Any
    ) -> None:
        """Call ``operation`` with this module's part of what the point has, counted by its own progress."""
        if point == "optimizer":
            raise ConfigError(f"{name_of(operation)}: one hook applies the updates of all modules")
        is_owned = isinstance(every, Mapping)
        clock = Interval(every) if isinstance(every, Mapping) else every
        self._operations[point].append(make_registered(point, operation, clock, is_owned, kwargs, self))

    def register_module(self, name: str, module: Stateful) -> None:
        if name in self._states:
            raise ValueError(f"a module named {name!r} is registered already; give another name")
        self._states[name] = module

    def operations(self, point: str) -> list[Operation]:
        if point == "optimizer":
            return self.trainer.operations(point)
        return [one.original for one in self._operations[point]]

    def names(self, point: str) -> list[str]:
        return [str(one) for one in self._operations[point]]

    def process(self, point: str, part: TensorDictBase) -> TensorDictBase:
        return process(point, self._operations[point], part)

    def log(self, point: str, part: TensorDictBase) -> None:
        for operation, kwargs, hook, _, _ in self._operations[point]:
            values = operation(part, **kwargs)
            if values:
                prefixed = {f"{self.module_id}/{name}": value for name, value in values.items() if name != "log_pbar"}
                self.trainer.log({**prefixed, "log_pbar": values.get("log_pbar", False)}, hook)

    def operate(self, point: str, *arguments: Any) -> None:
        operate(self._operations[point], *arguments)

    def close(self) -> None:
        """It takes part no more: its hooks give back what they hold."""
        for hook in self.hooks.values():
            getattr(hook, "close", lambda: None)()
            hook.release()

    def state_dict(self) -> StateDict:
        return {name: module.state_dict() for name, module in self._states.items()}

    def load_state_dict(self, state: StateDict) -> None:
        for name, module in self._states.items():
            if name in state:
                module.load_state_dict(state[name])


class LearnerOfModule:
    """A learner with one module where the run has several; updates are the run's."""

    def __init__(self, learner: Learner, module_id: str) -> None:
        self._learner, self._id = learner, module_id

    @property
    def modules(self) -> dict[str, Module]:
        return {self._id: self._learner.modules[self._id]}

    def optimizations(self) -> list[Optimization]:
        return list(self._learner.modules[self._id].optimizations)

    def follower_of(self, network: nn.Module) -> str | None:
        return self._learner.follower_of(network)

    def is_due(self) -> bool:
        return self._learner.is_due(self._id)


class MetricsOfModule:
    """The run's metrics, with the module's id before the names of histograms and videos."""

    def __init__(self, metrics: Metrics, module_id: str) -> None:
        self._metrics, self._id = metrics, module_id

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        found = getattr(self._metrics, name)
        return self._prefixed(found) if name in ("log_histogram", "log_video") else found

    def _prefixed(self, log: Callable[..., None]) -> Callable[..., None]:
        return lambda name, *more: log(f"{self._id}/{name}", *more)


class RunOfModule:
    """A run's folder, with a place in it for what a module writes."""

    def __init__(self, run: Any, module_id: str) -> None:
        self._run = run
        self.path = Path(run.path) / "modules" / module_id

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._run, name)
