"""Every source in whole runs: built from its group, refused where it cannot work, gone on with to the bit."""

import copy

import pytest
import torch

from runner.config.assemble import assemble
from runner.config.check import CONF
from runner.config.main import main
from runner.losses.dqn import DQNLoss
from runner.spec import ConfigError, HooklineError
from tests.whole.runs import compose, differences, weights

SOURCES = sorted({file.stem for file in (CONF / "source").glob("*.yaml")} - {"offline", "rollout", "dyna"})
"""Of runs that replay and play; the others are tested with what else they need."""
QUIET = ("logger=[]", "total_frames=800", "source.warmup=200", "evaluation.final_episodes=1")
PART_PRIORITIZED = ("source=mixture", "source.sources.all.sampler=prioritized")


def run(*overrides, state=None):
    torch.set_num_threads(1)
    experiment = assemble(compose(*QUIET, *overrides))
    if state is not None:
        experiment.trainer.load_state_dict(state)
    experiment.trainer.train()
    return experiment


@pytest.mark.parametrize("overrides", [*[(f"source={name}",) for name in SOURCES], PART_PRIORITIZED], ids=str)
def test_a_run_that_is_stopped_and_resumed_is_the_same_to_the_bit(overrides):
    whole = run(*overrides)
    first = run(*overrides, "stop_after.env_steps=430")
    second = run(*overrides, state=copy.deepcopy(first.trainer.state_dict()))
    assert first.trainer.progress.env_steps < 450
    assert differences(weights(whole), weights(second)) == []
    assert differences(whole.source.state_dict(), second.source.state_dict()) == []


@pytest.mark.parametrize("overrides", [("source=prioritized",), PART_PRIORITIZED], ids=str)
def test_priorities_change_in_every_update(overrides):
    source = run(*overrides).source
    sampler = source.sampler if hasattr(source, "sampler") else source.sources["all"].sampler
    numbers = sampler.tree.numbers[: len(sampler.storage)]
    assert len(set(numbers.tolist())) > len(numbers) / 4
    assert sampler.beta() == pytest.approx(1.0)


@pytest.mark.parametrize("overrides", [("source=prioritized",), PART_PRIORITIZED], ids=str)
def test_updates_in_which_nothing_is_due_leave_priorities_alone(overrides):
    assert run(*overrides, "learner.update_every=2").trainer.progress.updates > 20


STAGED = ("algo=sac", "env=pendulum", "source=prioritized", "learner.optimizations.critic.every=2")


def test_priorities_that_some_updates_could_not_tell_are_refused_before_the_run():
    with pytest.raises(ConfigError, match=r"critic\.every=2: the source draws by td_error, .* actor \(every=1\)"):
        assemble(compose(*QUIET, *STAGED))
    seldom = [f"learner.optimizations.{name}.every={every}" for name, every in (("actor", 2), ("alpha", 4))]
    assemble(compose(*QUIET, *STAGED, *seldom)).environment.close()


@pytest.mark.parametrize("source", ["prioritized", "slices"])
def test_recorded_updates_are_those_of_autograd_to_the_bit(source):
    one, other = (run(f"source={source}", f"compile={compile}") for compile in ("none", "trace"))
    assert differences(weights(one), weights(other)) == []
    (recorders,) = other.trainer.learner._recorders.values()
    assert len(recorders[0]._programs) == 1


def test_whole_updates_by_priority_can_be_compiled():
    learner = run("source=prioritized", "compile=update", "total_frames=300").trainer.learner
    (recorders,) = learner._recorders.values()
    assert len(recorders[0]._programs) == 1


@pytest.mark.parametrize("overrides", [("source=prioritized",), PART_PRIORITIZED], ids=str)
def test_a_loss_that_names_no_errors_is_refused_before_anything_starts(overrides, monkeypatch):
    monkeypatch.setattr(DQNLoss, "outputs", ())
    with pytest.raises(ConfigError, match="source: it draws by td_error, which DQNLoss does not name"):
        assemble(compose(*overrides))


def test_a_loss_whose_errors_are_missing_after_all_stops_the_run(monkeypatch):
    inner = DQNLoss.q
    monkeypatch.setattr(DQNLoss, "q", lambda self, *given: inner(self, *given).exclude("td_error"))
    with pytest.raises(HooklineError, match="no td_error in the sub-batch after the loss"):
        run("source=prioritized")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("source=prioritized", "source.alpha=-1"), "source.alpha"),
        (("source=prioritized", "source.beta=2"), "source.beta"),
        (("source=replay", "source.alpha=0.5"), "source.alpha"),
        (("source=replay", "+source.alpha=0.5"), "source.alpha goes with source.sampler=prioritized"),
        (("source=slices", "source.slice_length=7"), "is not a multiple of source.slice_length=7"),
        (("source=mixture", "source.fractions.all=0.9"), "source.fractions add up to 1.4"),
        (("source=mixture", "source.fractions.all=1.5"), "source.fractions"),
        (("source=mixture", "source.sources.all.capacty=9"), "capacity"),
        (("source=mixture", "source.sources.newest.capacity=4"), "source.sources.newest: source.capacity=4 is less"),
    ],
)
def test_a_mistake_is_one_line_and_starts_nothing(overrides, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["logger=[]", *overrides], CONF) == 2
    answer = capsys.readouterr().err
    assert words in answer
    assert "Traceback" not in answer
    assert not list(tmp_path.glob("outputs/*/*/ckpt"))
