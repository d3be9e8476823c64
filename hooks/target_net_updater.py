"""The hook that lets a target follow a network."""

from collections.abc import Mapping
from typing import Any

from runner.hook import Hook
from runner.spec import StateDict
from runner.types import Every


class TargetNetUpdaterHook(Hook):
    """Updates a target network after each update of the network it follows, and saves it.

    For trainers made by hand. A target of a learner is moved by its optimization: such a network is refused here.

    Args:
        target: a ``TargetNetwork``, which knows its network already where none is given here.
        follow: the network, or its name among ``networks``.
    """

    point = "post_optim"

    def __init__(
        self,
        target: Any,
        follow: Any = None,
        networks: Mapping[str, Any] | None = None,
        every: Every | None = None,
    ) -> None:
        super().__init__(every)
        if isinstance(follow, str) and follow not in (networks or {}):
            raise ValueError(f"no network {follow!r} to follow; there are {', '.join(networks or {}) or 'none'}")
        self.target = target
        if follow is not None:
            target.init((networks or {})[follow] if isinstance(follow, str) else follow)
        if getattr(target, "network", None) is None:
            raise ValueError(f"a {type(target).__name__} that follows no network: give it one, follow=...")

    def register(self, trainer: Any, name: str | None = None) -> None:
        owner = trainer.learner.follower_of(self.target.network) if trainer.learner else None
        if owner is not None:
            raise ValueError(
                f"{name or self.default_name()}: optimization {owner!r} updates a target of this network already "
                "(target_updater=trivial, or null, takes it out)"
            )
        super().register(trainer, name)

    def __call__(self) -> None:
        self.target.update()

    def state_dict(self) -> StateDict:
        return {**super().state_dict(), "target": self.target.state_dict()}

    def load_state_dict(self, state: StateDict) -> None:
        super().load_state_dict(state)
        self.target.load_state_dict(state["target"])
