"""Data sources of several modules, each fed and drawn from by hooks of its own."""

from collections.abc import Callable, Mapping

from runner.spec import CheckpointError, DataSource, StateDict


class SourceByModule:
    """Sources that hooks of their modules feed and draw from; all have as many updates for each batch.

    Args:
        parts: by module id.
        is_warm: whether the module of that id has played enough to be updated.
    """

    warmup = 0
    """The run waits for nothing: a module that has not played enough is left out of updates, the others are not."""

    def __init__(self, parts: Mapping[str, DataSource], is_warm: Callable[[str], bool]) -> None:
        self.parts: dict[str, DataSource] = {}
        self._is_warm = is_warm
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

    def optim_steps(self) -> int:
        """Updates for each batch; none as long as no module is warm."""
        return next((part.optim_steps() for module_id, part in self.parts.items() if self._is_warm(module_id)), 0)

    def __str__(self) -> str:
        return ", ".join(f"{module_id}: {type(part).__name__}" for module_id, part in self.parts.items())

    def state_dict(self) -> StateDict:
        return {module_id: part.state_dict() for module_id, part in self.parts.items()}

    def load_state_dict(self, state: StateDict) -> None:
        if state.keys() != self.parts.keys():
            raise CheckpointError(f"the data is of modules {', '.join(state)}; there are {', '.join(self.parts)}")
        for module_id, part in self.parts.items():
            part.load_state_dict(state[module_id])
