"""The hook that lets one more module take part from some point of a run on."""

from typing import Any

from runner.hook import Hook
from runner.spec import ConfigError
from runner.types import Every, ModuleTree


class AddModule(Hook):
    """Adds a module at the end of the first batch that reaches ``at``; nothing of the other modules changes.

    A resumed run has every module again that was added before. One whose id was in use before, and was removed, is
    made anew: it remembers nothing.

    Args:
        module_id: what the new module is called.
        at: when, for example ``{"env_steps": 10_000}`` of all modules together.
        overrides: what it has otherwise than the run, by group, as in ``learner.modules``.
        like: a module whose weights it begins with; drawn anew if not given.
    """

    point = "post_steps"
    remembers = ("is_done",)

    def __init__(
        self, module_id: str, at: Every, overrides: ModuleTree, like: str | None = None, roster: Any = None
    ) -> None:
        super().__init__()
        if roster is None:
            raise ConfigError("add_module: this run has one agent; learner.modules={left: {}, right: {}} names several")
        self.at = at
        self.module_id, self.like, self.roster, self.tree = module_id, like, roster, overrides
        self.is_done = False

    def register(self, trainer: Any, name: str | None = None) -> None:
        self.name = name or self.default_name()
        self.roster.offer(self.name, self.at, self.module_id, self.tree, self.like, maker=self)
        super().register(trainer, name)

    def __call__(self) -> None:
        self.roster.make_changes()
