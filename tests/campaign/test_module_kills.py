"""A run of several modules survives kills: with schedules, targets, one that comes in mid-run and one that goes."""

import pytest

from tests.campaign.kill_chains import Kind, OnPolicy
from tests.campaign.test_kills import BACKENDS, survive

HOOKS = "hooks=[default,early_stopping,count_frames,drawn,add_module,remove_module]"
SEVERAL = (
    HOOKS, "env=two_tasks", "scheduler=linear", "hooks.add_module.overrides.env.kwargs.task=right",
    "learner.modules={left: {}, right: {env: {kwargs: {task: right}}, optimizer: {lr: 3e-4}}}",
    "hooks.add_module.at.env_steps=700", "hooks.remove_module.at.env_steps=1100",
    "hooks.remove_module.module_id=right",
)  # fmt: skip


def with_modules(overrides):
    return [*(one for one in overrides if not one.startswith("hooks=[")), *SEVERAL]


class Modules(Kind):
    """Two that replay, with scaled losses and targets that are copied; another one comes, and the right one goes."""

    def overrides(self):
        return [*with_modules(super().overrides()), "learner.precision=fp16"]


class OnPolicyModules(OnPolicy):
    """The same of runs that learn from what was just played."""

    def overrides(self):
        return with_modules(super().overrides())


def test_two_kills_change_nothing(tmp_path):
    survive(tmp_path, [Modules("torchsnapshot", "tensor", 0, frames=1500)], 2, 2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Modules, OnPolicyModules])
def test_twelve_kills_of_a_run_of_several_modules_change_nothing(kind, tmp_path):
    survive(tmp_path, [kind(backend, "tensor", 0, frames=1800) for backend in BACKENDS], 12, 6)


@pytest.mark.slow
def test_six_kills_of_modules_whose_rows_are_in_files_change_nothing(tmp_path):
    survive(tmp_path, [Modules("torch", "memmap", 0, frames=1500)], 6, 3)
