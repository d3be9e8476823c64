import pytest
import torch

from hooks.batch_sub_sampler import BatchSubSampler
from hooks.optimizer import OptimizerHook
from hooks.replay_buffer import ReplayBufferTrainer
from hooks.reward_normalizer import RewardNormalizer
from hooks.update_weights import UpdateWeights
from runner.builders import make_replay_buffer
from runner.data.sampler import UniformSampler
from runner.learner.learner import Learner
from runner.learner.optimization import Optimization
from runner.spec import OBSERVATION, TD_ERROR, ConfigError, HooklineError, Progress
from runner.trainer import Trainer
from tests.toys import Call, Counter, RewardModel, collector, environment, trainer


class Prioritized(UniformSampler):
    """Keeps the priorities it is told."""

    needs = (TD_ERROR,)

    def update_priority(self, priority):
        self.told = self._indices.clone(), priority.clone()


def replaying(total_frames=12, loss=None, **options):
    source = make_replay_buffer(torch.Generator().manual_seed(0), capacity=100, batch_size=16, **options)
    one = trainer(total_frames, loss, source=source)
    ReplayBufferTrainer(source).register(one)
    return one, source


@pytest.mark.pins("ReplayBufferTrainer")
def test_every_batch_goes_into_the_buffer():
    one, source = replaying(12, warmup=8)
    one.train()
    # Episodes of 5 steps in batches of 4.
    assert source.storage.flat[OBSERVATION][:12, 0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]


@pytest.mark.pins("ReplayBufferTrainer")
def test_updates_are_made_on_what_is_sampled():
    one, _ = replaying(8)
    shapes = []
    Call("post_loss", lambda sub_batch: shapes.append(sub_batch.shape)).register(one)
    one.train()
    assert shapes == [(16,), (16,)]


def test_the_buffer_decides_when_updates_begin_and_how_many_there_are():
    one, _ = replaying(16, warmup=10, optim_steps=3)
    assert one.train().updates == 2 * 3  # after the batches that end at 12 and at 16


@pytest.mark.pins("ReplayBufferTrainer", excludes="priorities need the indices, and a loss that writes them in place")
def test_priorities_are_the_errors_of_what_was_sampled():
    one, source = replaying(4, WithError())
    source.sampler = Prioritized(torch.Generator().manual_seed(0))
    one.train()
    indices, priority = source.sampler.told
    assert priority.tolist() == [index + 0.5 for index in indices.tolist()]  # row t holds the observation [t, 0.1]


@pytest.mark.pins("ReplayBufferTrainer", excludes="a loss that returns a copy disabled priorities without a word")
def test_a_sampler_that_needs_errors_ends_a_run_whose_loss_gives_none():
    one, source = replaying(4)
    source.sampler = Prioritized(torch.Generator().manual_seed(0))
    with pytest.raises(HooklineError, match="no td_error in the sub-batch after the loss"):
        one.train()


class WithError(RewardModel):
    def forward(self, batch):
        return {**super().forward(batch), TD_ERROR: batch[OBSERVATION][:, 0] + 0.5}


def prioritized(total_frames, loss, every):
    """A trainer whose updates are applied every ``every`` times, and the priorities its sampler is told."""
    source = make_replay_buffer(torch.Generator().manual_seed(0), capacity=100, batch_size=16)
    source.sampler = Prioritized(torch.Generator().manual_seed(0))
    optimization = Optimization(torch.optim.SGD(loss.parameters(), lr=0.1), every=every)
    learner = Learner.from_loss_module(loss, optimization)
    one, told = Trainer(collector=collector(), total_frames=total_frames, source=source, learner=learner), []
    ReplayBufferTrainer(source).register(one)
    OptimizerHook(one.learner).register(one)
    source.sampler.update_priority = lambda priority: told.append(one.progress.updates)
    return one, told


def test_priorities_are_told_only_by_updates_in_which_a_loss_was_computed():
    one, told = prioritized(24, WithError(), every=2)
    one.train()
    assert (one.progress.updates, told) == (6, [0, 2, 4])


def test_a_loss_that_gives_no_errors_when_it_is_computed_still_ends_the_run():
    one, _ = prioritized(24, RewardModel(), every=2)
    with pytest.raises(HooklineError, match="no td_error in the sub-batch after the loss"):
        one.train()


@pytest.mark.pins("ReplayBufferTrainer", excludes="what is processed before the source samples is thrown away")
@pytest.mark.parametrize(
    ("hook", "name"), [(RewardNormalizer(), "reward_normalizer"), (BatchSubSampler(2), "batch_sub_sampler")]
)
def test_what_works_on_sub_batches_is_registered_after_the_source(hook, name):
    one = trainer(4)
    hook.register(one)
    with pytest.raises(ConfigError, match=rf"learning=\[off_policy,{name}\]"):
        ReplayBufferTrainer(make_replay_buffer()).register(one)


def test_no_batch_can_be_left_out_of_the_buffer():
    """Neighbouring rows count as consecutive steps; a batch between them that is missing would go unnoticed."""
    with pytest.raises(TypeError, match="every"):
        ReplayBufferTrainer(make_replay_buffer(), every={"batches": 2})


@pytest.mark.pins("OptimizerHook")
def test_the_optimizer_hook_moves_the_weights_of_its_learner_and_logs():
    other = trainer()
    one = Trainer(collector=collector(), learner=other.learner, total_frames=4)
    OptimizerHook(one.learner).register(one)
    before = weights(one)
    one.train()
    assert not torch.equal(weights(one), before)
    assert one.metrics.latest["loss/model"].item() == (1 + 4 + 9 + 16) / 4  # rewards 1 2 3 4, predicted 0


def weights(one):
    return one.learner.modules["default"].networks["loss_module"].model.linear.weight.detach().clone()


def test_without_an_optimizer_operation_nothing_moves():
    one = Trainer(collector=collector(), learner=trainer().learner, total_frames=4)
    before = weights(one)
    one.train()
    assert torch.equal(weights(one), before)


@pytest.mark.pins("UpdateWeights")
def test_weights_are_sent_at_their_interval_after_the_updates():
    one = trainer(20, collector=collector(environment(Counter)))
    sent = []
    one.collector.update_policy_weights_ = lambda: sent.append((one.progress.env_steps, one.progress.updates))
    UpdateWeights(one.collector, {"env_steps": 8}).register(one)
    one.train()
    assert sent == [(8, 2), (16, 4)]


@pytest.mark.pins("UpdateWeights", excludes="the counter is not saved")
def test_the_interval_of_sending_weights_survives_a_resume():
    one, other = (UpdateWeights(None, {"env_steps": 8}) for _ in range(2))
    one.interval.fires(Progress(env_steps=15))
    other.load_state_dict(one.state_dict())
    assert not other.interval.fires(Progress(env_steps=15))
