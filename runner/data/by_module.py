"""Data sources of several modules, each fed and drawn from by itself."""

from collections.abc import Callable, Mapping
from typing import Any

from tensordict import TensorDict, TensorDictBase

from runner.spec import CheckpointError, DataSource, StateDict


class SourceByModule:
    """Takes and gives batches keyed by module id; all parts have as many updates for each batch.

    Args:
        parts: sources by module id.
        env_steps_of: how many env steps a module has played, which its own warm-up is compared with.
    """

    warmup = 0
    """The run waits for nothing: a module that has not played enough is left out of updates, the others are not."""

    def __init__(self, parts: Mapping[str, DataSource], env_steps_of: Callable[[str], int]) -> None:
        self.parts: dict[str, DataSource] = {}
        self._env_steps_of = env_steps_of
        for module_id, part in parts.items():
            self.add(module_id, part)

    def add(self, module_id: str, part: DataSource) -> None:
        """One more; it has to make as many updates as the others."""
        self.check(module_id, part)
        self.parts[module_id] = part

    def check(self, module_id: str, part: DataSource) -> None:
        """Raise ``ValueError`` for a source that makes more or fewer updates than the others."""
        for other_id, other in self.parts.items():
            if (own := part.optim_steps()) != (steps := other.optim_steps()):
                raise ValueError(
                    f"modules {other_id} and {module_id} are updated together: {steps} updates for each batch of "
                    f"{other_id} are not {own} (source.optim_steps, or source.epochs and source.batch_size)"
                )

    def remove(self, module_id: str) -> None:
        del self.parts[module_id]

    def warm(self) -> list[str]:
        """The modules that have played enough to be updated."""
        return [module_id for module_id, part in self.parts.items() if self._env_steps_of(module_id) >= part.warmup]

    def optim_steps(self) -> int:
        """Updates for each batch; none as long as no module is warm."""
        warm = self.warm()
        return self.parts[warm[0]].optim_steps() if warm else 0

    def extend(self, batch: TensorDictBase) -> None:
        for module_id, part in self._parts_in(batch):
            part.extend(batch.get(module_id))

    def sample(self, batch: TensorDictBase) -> TensorDictBase:
        """A sub-batch of each module that ``batch`` has."""
        drawn: dict[str, Any] = {
            module_id: part.sample(batch.get(module_id)) for module_id, part in self._parts_in(batch)
        }
        return TensorDict(drawn, [])

    def update_priority(self, sub_batch: TensorDictBase) -> None:
        for module_id, part in self._parts_in(sub_batch):
            part.update_priority(sub_batch.get(module_id))

    def _parts_in(self, batch: TensorDictBase) -> list[tuple[str, DataSource]]:
        present = set(batch.keys())
        return [(module_id, part) for module_id, part in self.parts.items() if module_id in present]

    def __str__(self) -> str:
        return ", ".join(f"{module_id}: {type(part).__name__}" for module_id, part in self.parts.items())

    def state_dict(self) -> StateDict:
        return {module_id: part.state_dict() for module_id, part in self.parts.items()}

    def load_state_dict(self, state: StateDict) -> None:
        if state.keys() != self.parts.keys():
            raise CheckpointError(f"the data is of modules {', '.join(state)}; there are {', '.join(self.parts)}")
        for module_id, part in self.parts.items():
            part.load_state_dict(state[module_id])
