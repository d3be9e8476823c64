"""The collector that plays nothing, and trainers made of it in Python."""

import re
from functools import partial

import pytest
import torch
from tensordict import TensorDict

from hooks.optimizer import OptimizerHook
from hooks.progress_bar import ProgressBar
from hooks.replay_buffer import ReplayBufferTrainer
from runner.builders import (
    make_environment,
    make_learner,
    make_q_network,
    make_replay_buffer,
    make_target_updater,
    make_trainer,
)
from runner.collectors.offline import OfflineCollector
from runner.data.dataset import Dataset
from runner.data.offline import OfflineSource
from runner.losses.cql import CQLLoss
from runner.schedules import Cosine, OverUpdates
from runner.seeding import Streams
from runner.spec import ACTION, NEXT_DONE, NEXT_OBSERVATION, NEXT_REWARD, NEXT_TERMINATED, OBSERVATION, Progress


@pytest.fixture
def environment():
    made = make_environment(streams=Streams(0), id="CartPole-v1", num_envs=3)
    yield made
    made.close()


def source(rows=50):
    draw = torch.Generator().manual_seed(0)
    columns = {
        OBSERVATION: torch.randn(rows, 4, generator=draw),
        ACTION: torch.randint(2, (rows,), generator=draw),
        NEXT_OBSERVATION: torch.randn(rows, 4, generator=draw),
        NEXT_REWARD: torch.ones(rows),
        NEXT_TERMINATED: torch.zeros(rows, dtype=torch.bool),
        NEXT_DONE: torch.zeros(rows, dtype=torch.bool),
    }
    return OfflineSource(Dataset.of_tensors("here", columns, {}), draw, batch_size=8)


def trainer(environment, folder=None, data=None, **options):
    networks = make_q_network(environment.spec, hidden=[8], activation="relu")
    collector, data = OfflineCollector(environment), data or source()
    learner = make_learner(
        networks,
        CQLLoss(),
        optimizer=partial(torch.optim.Adam, lr=1e-3),
        target_updater=make_target_updater(update_frequency=5),
        progress=collector.progress,
    )
    hooks = {"replay_buffer": ReplayBufferTrainer(data), "optimizer": OptimizerHook(learner), "bar": ProgressBar()}
    return make_trainer(collector, learner, data, hooks=hooks, save_trainer_file=folder, **options)


def test_batches_are_empty_and_have_every_entry_of_played_ones(environment):
    batch = next(iter(OfflineCollector(environment)))
    assert batch.batch_size == (3, 0)
    assert {OBSERVATION, ACTION, NEXT_OBSERVATION, NEXT_REWARD, NEXT_DONE} <= set(batch.keys(True, True))
    progress = Progress()
    progress.count(batch)
    assert (progress.env_steps, progress.frames, progress.episodes, progress.batches) == (0, 0, 0, 1)


def test_whoever_s_progress_it_is_given_is_counted_in_updates(environment):
    collector = OfflineCollector(environment)
    assert collector.progress.axis == "updates"
    collector.progress = own = Progress(updates=1234)
    assert (own.axis, own.place, own.place_in_words) == ("updates", 1234, "update 1,234")
    assert Progress(env_steps=5).place_in_words == "env step 5"
    assert "axis" not in own.state_dict()


def test_a_trainer_in_python_ends_after_so_many_updates_and_saves_by_them(environment, tmp_path, capsys):
    progress = trainer(environment, tmp_path, stop_after={"updates": 40}).train()
    assert (progress.updates, progress.frames) == (40, 0)
    assert [path.name for path in (tmp_path / "ckpt").iterdir()] == ["step-40"]
    lines = capsys.readouterr().err.splitlines()
    assert [re.split(r" +", line.strip())[:3] for line in lines[-2:]] == [
        ["36", "updates", "90"],
        ["40", "updates", "100"],
    ]


def test_what_was_saved_goes_on_to_the_bit(environment, tmp_path):
    whole, half = (
        trainer(environment, tmp_path / name, stop_after={"updates": n}) for name, n in (("a", 40), ("b", 25))
    )
    torch.manual_seed(0)
    rest = trainer(environment, tmp_path / "b", stop_after={"updates": 40})
    for one in (half, rest):  # begun with the same weights
        one.learner.load_state_dict(whole.learner.state_dict())
    whole.train()
    half.train()
    rest.load_from_file(tmp_path / "b").train()
    ours, theirs = (one.learner.modules["default"].networks["q"].model.state_dict() for one in (rest, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("options", "words"),
    [({}, "stop_after={'updates': n} ends a run"), ({"total_frames": 9}, "not total_frames")],
)
def test_a_trainer_that_would_never_end_is_refused(environment, options, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        trainer(environment, **options)


def test_a_source_that_waits_for_env_steps_is_refused(environment):
    with pytest.raises(ValueError, match="a warm-up never ends"):
        trainer(environment, data=make_replay_buffer(warmup=10), stop_after={"updates": 1})


def test_the_schedule_of_a_ready_loss_module_goes_over_updates(environment):
    class Loss(torch.nn.Linear):
        def forward(self, batch):
            return TensorDict({"loss_a": super().forward(batch[OBSERVATION]).mean()}, [])

    made = make_trainer(
        OfflineCollector(environment), source=source(), loss_module=Loss(4, 1), stop_after={"updates": 10}
    )
    (optimization,) = made.learner.optimizations()
    assert isinstance(optimization.schedule, OverUpdates)
    assert isinstance(optimization.schedule.schedule, Cosine)
    made.train()
    assert optimization.lr == pytest.approx(3e-4 * (1 + torch.cos(torch.tensor(torch.pi * 0.9)).item()) / 2)
