"""The hooks of all modules at the points of the loop: each has its part of every batch."""

from collections.abc import Mapping
from typing import Any

from tensordict import TensorDict, TensorDictBase

from runner.config.member import Member
from runner.points import POINTS
from runner.spec import parts_of


class HooksOfModules:
    """Stands at every point of the loop but ``optimizer``, for whoever takes part when it fires.

    Args:
        members: by module id; who comes and goes does so in there.
        trainer: the run's.
    """

    def __init__(self, members: Mapping[str, Member], trainer: Any) -> None:
        self.members, self.trainer = members, trainer
        for point, kind in POINTS.items():
            if kind != "optimization":
                trainer.register_op(point, AtPoint(self, point))

    def call(self, point: str, *batches: TensorDictBase) -> Any:
        """What the modules' hooks do at a point of the loop."""
        if point == "process_optim_batch":
            return self._draw(*batches)
        if point == "batch_process":
            return self._process(*batches)
        if point == "pre_optim_steps":
            for member in self.members.values():
                member.optim_stopped = False
        if point == "post_optim":
            for member in self.members.values():
                member.progress.updates += member.is_updated
        for module_id, member in list(self.members.items()):
            _call_one(point, module_id, member, *batches)
        if point in ("post_loss", "post_optim") and self._have_all_stopped():
            self.trainer.optim_stopped = True
        return None

    def _process(self, batch: TensorDictBase) -> TensorDictBase:
        parts: dict[str, Any] = {
            module_id: self.members[module_id].process("batch_process", part)
            for module_id, part in parts_of(batch).items()
        }
        return TensorDict(parts, [])

    def _draw(self, batch: TensorDictBase) -> TensorDictBase:
        """A sub-batch of each module that takes part in this update."""
        chosen, parts = self.trainer.learner.select_modules(batch), dict[str, Any]()
        for module_id, part in parts_of(batch).items():
            member = self.members[module_id]
            member.is_updated = module_id in chosen and member.is_warm and not member.optim_stopped
            if member.is_updated:
                parts[module_id] = member.process("process_optim_batch", part)
        return TensorDict(parts, [])

    def _have_all_stopped(self) -> bool:
        """Whether there is nobody left who may be updated with this batch: who is chosen may change with each."""
        chosen = self.trainer.learner.modules_to_train
        waiting = [
            member.optim_stopped
            for module_id, member in self.members.items()
            if member.is_warm and (chosen is None or callable(chosen) or module_id in chosen)
        ]
        return bool(waiting) and all(waiting)


class AtPoint:
    """What stands for all modules' hooks at one point; shown by their names."""

    def __init__(self, hooks: HooksOfModules, point: str) -> None:
        self.hooks, self.point = hooks, point

    def __call__(self, *batches: TensorDictBase) -> Any:
        return self.hooks.call(self.point, *batches)

    @property
    def shown_as(self) -> str:
        named = {module_id: member.names(self.point) for module_id, member in self.hooks.members.items()}
        return "; ".join(f"{module_id}: {', '.join(names)}" for module_id, names in named.items() if names) or "-"


def _call_one(point: str, module_id: str, member: Member, *batches: TensorDictBase) -> None:
    if batches and module_id not in batches[0].keys():
        return  # it came later, or is not in this update
    parts = [batch.get(module_id) for batch in batches]
    if POINTS[point] == "log":
        member.log(point, *parts)
    elif point != "post_optim" or member.is_updated:
        member.operate(point, *parts)
