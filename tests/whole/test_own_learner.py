"""A learner of the user's own, and modules that begin with what another run has learnt."""

import signal
import sys

import pytest
import torch

from runner.checkpoint.store import CheckpointStore
from runner.config.arguments import parse_arguments
from runner.config.check import check
from runner.spec import ConfigError
from tests.whole.children import fork
from tests.whole.modules import die_at
from tests.whole.runs import OFF_POLICY, differences, end_of, train, weights

MINE = """
import torch
from runner.learner.learner import Learner


class Noting(Learner):
    def __init__(self, modules, factor: float = 1.0):
        super().__init__(modules)
        self.factor, self.calls = factor, []

    def build(self):
        self.calls.append("build")
        return super().build()

    def configure_optimizers_for_module(self, module_id, config):
        self.calls.append("configure")
        super().configure_optimizers_for_module(module_id, config)

    def before_gradient_based_update(self, timesteps):
        self.calls.append(("before", timesteps["env_steps"]))

    def compute_losses(self, batch):
        self.calls.append("losses")
        return super().compute_losses(batch)

    def compute_loss_for_module(self, module_id, terms, batch):
        losses = super().compute_loss_for_module(module_id, terms, batch)
        return losses.set("loss_q", losses["loss_q"] * self.factor)

    def compute_gradients(self, optimization, losses):
        self.calls.append("gradients")
        return super().compute_gradients(optimization, losses)

    def postprocess_gradients_for_module(self, module_id, optimization, gradients):
        self.calls.append("postprocess")
        return super().postprocess_gradients_for_module(module_id, optimization, gradients)

    def apply_gradients(self, optimization, gradients):
        self.calls.append("apply")
        super().apply_gradients(optimization, gradients)

    def after_gradient_based_update(self, timesteps):
        self.calls.append(("after", timesteps["updates"]))


class Particular(Learner):
    def __init__(self, modules, **options):
        super().__init__(modules, **options)


class NoLearner:
    def __init__(self, modules):
        pass
"""


@pytest.fixture
def my_learner(tmp_path, monkeypatch):
    (tmp_path / "my_learner.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_learner"
    sys.modules.pop("my_learner", None)


def compose(*overrides):
    short = ["logger=null", "evaluation.final_episodes=1", "~hooks.progress_bar", "source.warmup=20"]
    settings = [*OFF_POLICY, *short, "total_frames=40", "collector.frames_per_batch=10", "source.optim_steps=2"]
    return check(parse_arguments([*settings, *overrides])).config


def run(*overrides):
    return train(compose(*overrides))


def test_a_subclass_named_in_the_configuration_sees_every_step_of_a_run(my_learner):
    calls = run(f"learner.kind={{_target_: {my_learner}.Noting}}").trainer.learner.calls
    update = ["losses", "gradients", "postprocess", "apply"]
    expected = [
        "build",
        "configure",
        *[one for number, steps in enumerate((20, 30, 40)) for one in (
            ("before", steps), *update, *update, ("after", 2 * (number + 1))
        )],
    ]  # fmt: skip
    assert calls == expected


def test_what_a_subclass_does_changes_what_is_learnt_and_its_parameters_are_keys(my_learner):
    kind = f"learner.kind={{_target_: {my_learner}.Noting, factor: %s}}"
    plain, same, other = run(), run(kind % 1.0), run(kind % 0.0)
    assert all(torch.equal(*pair) for pair in zip(weights(plain).values(), weights(same).values(), strict=True))
    assert not all(torch.equal(*pair) for pair in zip(weights(plain).values(), weights(other).values(), strict=True))


def test_what_is_no_learner_is_refused_in_one_line(my_learner):
    with pytest.raises(ConfigError, match=r"learner\.kind: a NoLearner is no"):
        run(f"learner.kind={{_target_: {my_learner}.NoLearner}}")


def saved_run(folder, *overrides):
    """A run that has left a checkpoint."""
    experiment = run(*overrides)
    folder.mkdir()
    CheckpointStore(run=folder).save(experiment.trainer.state_dict(), experiment.trainer.progress.state_dict(), {})
    return experiment


def test_a_module_begins_with_the_weights_of_another_run_and_with_nothing_else_of_it(tmp_path):
    before = saved_run(tmp_path / "before", "seed=5")
    after = run("seed=1", f"learner.restore={{default: {tmp_path / 'before'}}}", "source.warmup=1000")
    assert all(torch.equal(*pair) for pair in zip(weights(before).values(), weights(after).values(), strict=True))
    assert not after.trainer.learner.get_optimizer().state
    assert after.trainer.learner.weights_seq_no == 0


@pytest.mark.parametrize("place", [".", "ckpt"])
def test_the_log_says_whose_weights_a_module_begins_with(place, tmp_path, caplog):
    saved_run(tmp_path / "before", "seed=5")
    with caplog.at_level("INFO"):
        run(f"learner.restore={{default: {tmp_path / 'before' / place}}}", "source.warmup=1000")
    line = f"module default begins with the weights of module default of {tmp_path / 'before'}, saved after"
    assert any(record.getMessage().startswith(line) for record in caplog.records)


@pytest.mark.parametrize("killed_at", [20, 40])
def test_a_run_killed_before_or_after_its_first_checkpoint_has_begun_with_the_weights_of_another(killed_at, tmp_path):
    saved_run(tmp_path / "before", "seed=5")
    saves = ["checkpoint.every.env_steps=30", "source.warmup=1000", "logger=csv"]
    config = compose("seed=1", f"learner.restore={{default: {tmp_path / 'before'}}}", *saves)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert fork(config, whole).wait() == 0
    assert fork(config, killed, lambda: die_at(killed_at)).wait() == -signal.SIGKILL
    if killed_at == 40:  # what is not needed any more may be gone
        (tmp_path / "before").rename(tmp_path / "moved")
    child = fork(config, killed)
    assert child.wait() == 0, child.output()
    assert ("begins anew" in child.output()) == (killed_at == 20)
    if killed_at == 40:
        (tmp_path / "moved").rename(tmp_path / "before")
    assert differences(end_of(config, killed), end_of(config, whole)) == []


def test_weights_that_do_not_fit_are_refused_in_one_line(tmp_path):
    saved_run(tmp_path / "before")
    for settings, words in (
        ([f"learner.restore={{default: {tmp_path / 'none'}}}"], "there is no such folder"),
        ([f"learner.restore={{left: {tmp_path / 'before'}}}"], "this run has no such module; it has default"),
        ([f"learner.restore={{default: {tmp_path / 'before'}}}", "network.hidden=[3]"], "do not fit: .*size mismatch"),
        ([f"learner.restore={{default: {tmp_path}}}"], "do not fit: no usable checkpoint"),
    ):
        with pytest.raises(ConfigError, match=words) as raised:
            run(*settings)
        assert "\n" not in str(raised.value)


def test_arguments_that_a_learner_of_ones_own_does_not_take_are_a_mistake_in_the_configuration(my_learner):
    with pytest.raises(ConfigError, match=r"learner\.kind cannot be made: .* unexpected keyword argument 'factr'"):
        run("learner.kind={_target_: my_learner.Particular, factr: 0.1}")
