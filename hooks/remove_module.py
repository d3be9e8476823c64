"""The hook that lets a module go at some point of a run."""

from typing import Any

from runner.hook import Hook
from runner.spec import ConfigError
from runner.types import Every


class RemoveModule(Hook):
    """Removes a module at the end of the first batch that reaches ``at``, with all that belongs to it.

    Nothing of the other modules changes, and a run that is resumed goes on without it.

    Args:
        at: when, for example ``{"env_steps": 10_000}`` of all modules together.
    """

    point = "post_steps"
    remembers = ("is_done",)

    def __init__(self, module_id: str, at: Every, roster: Any = None) -> None:
        super().__init__()
        if roster is None:
            raise ConfigError("remove_module: this run has one agent, which nobody can take from it")
        self.module_id, self.at, self.roster = module_id, at, roster
        self.is_done = False

    def register(self, trainer: Any, name: str | None = None) -> None:
        self.roster.expect(name or self.default_name(), self.at, self.module_id, maker=self)
        super().register(trainer, name)

    def __call__(self) -> None:
        self.roster.make_changes()
