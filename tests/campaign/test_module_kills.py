"""A run of several modules survives kills: with schedules, targets, one that comes in mid-run and one that goes."""

import signal

import pytest

from tests.campaign.kill_chains import Kind, OnPolicy
from tests.campaign.test_kills import BACKENDS, survive
from tests.whole.children import fork
from tests.whole.modules import compose_modules, die_at
from tests.whole.runs import differences, end_of

HOOKS = "hooks=[default,early_stopping,count_frames,drawn,add_module,remove_module%s]"
SEVERAL = (
    "env=two_tasks", "scheduler=linear", "hooks.add_module.overrides.env.kwargs.task=right",
    "learner.modules={left: {}, right: {env: {kwargs: {task: right}}, optimizer: {lr: 3e-4}}}",
    "hooks.remove_module.module_id=right",
)  # fmt: skip
OTHERS = (HOOKS % "", "hooks.add_module.at.env_steps=700", "hooks.remove_module.at.env_steps=1100")
AGAIN = (
    "hooks.add_module.module_id=right", "hooks.remove_module.at.env_steps=600", "hooks.add_module.at.env_steps=700",
)  # fmt: skip
"""The right one goes, and comes back as a new one of the same name."""


def with_modules(overrides, *more):
    return [*(one for one in overrides if not one.startswith("hooks=[")), *SEVERAL, *(more or OTHERS)]


class Modules(Kind):
    """Two that replay, with scaled losses and targets that are copied; another one comes, and the right one goes."""

    def overrides(self):
        return [*with_modules(super().overrides()), "learner.precision=fp16"]


class OnPolicyModules(OnPolicy):
    """The same of runs that learn from what was just played."""

    def overrides(self):
        return with_modules(super().overrides())


class ComesAgain(Kind):
    """Two whose rows and records are in files, one of which goes and comes back; another run of the same names."""

    def overrides(self):
        return with_modules(super().overrides(), HOOKS % ",record_tensordict", *AGAIN)


def test_two_kills_change_nothing(tmp_path):
    survive(tmp_path, [Modules("torchsnapshot", "tensor", 0, frames=1500)], 2, 2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Modules, OnPolicyModules])
def test_twelve_kills_of_a_run_of_several_modules_change_nothing(kind, tmp_path):
    survive(tmp_path, [kind(backend, "tensor", 0, frames=1800) for backend in BACKENDS], 12, 6)


@pytest.mark.slow
def test_six_kills_of_modules_whose_rows_are_in_files_change_nothing(tmp_path):
    survive(tmp_path, [Modules("torch", "memmap", 0, frames=1500)], 6, 3)


@pytest.mark.slow
def test_six_kills_of_a_module_that_goes_and_comes_back_change_nothing(tmp_path):
    survive(tmp_path, [ComesAgain("torch", storage, 0, frames=1500) for storage in ("tensor", "memmap")], 6, 3)


@pytest.mark.parametrize("kind", ["off_policy", "on_policy"])
def test_a_checkpoint_from_before_a_module_went_is_gone_on_from_after_it_has_come_back(kind, tmp_path):
    storage = ("source.storage=memmap",) if kind == "off_policy" else ()
    records = "hooks=[default,remove_module,add_module,record_tensordict]"
    more = (*SEVERAL[2:3], "hooks.remove_module.module_id=right", "checkpoint.every.env_steps=500", *storage, *AGAIN)
    config = compose_modules(records, *more, kind=kind)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert fork(config, whole).wait() == 0
    assert fork(config, killed, lambda: die_at(900)).wait() == -signal.SIGKILL
    child = fork(config, killed)
    assert child.wait() == 0, child.output()
    assert "going on from env step 5" in child.output()
    assert differences(end_of(config, killed), end_of(config, whole)) == []
    assert differences(written_by_modules(killed), written_by_modules(whole)) == []


def written_by_modules(folder):
    """All that modules keep in files: rows, records."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in (folder / "modules").rglob("*.*")}
