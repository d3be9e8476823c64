import pytest
import torch
from torch.optim.lr_scheduler import ExponentialLR

from hooks.lr_scheduler import LRSchedulerHook
from runner.hook import Interval
from runner.learner.optimization import Optimization
from runner.schedules import Linear
from runner.trainer import Trainer
from tests.toys import RewardModel, collector, trainer


def rates(every, total_frames=24, optim_steps=2, schedule=None, warmup=0):
    """The learning rate in each update; batches of 4 env steps with two updates each."""
    loss = RewardModel()
    optimizer = torch.optim.SGD(loss.parameters(), lr=1.0)
    one = Trainer(
        collector=collector(), total_frames=total_frames, loss_module=loss, optim_steps_per_batch=optim_steps,
        optimizer=Optimization(optimizer, schedule=schedule) if schedule else optimizer,
    )  # fmt: skip
    one.source.warmup = warmup
    hook, seen = LRSchedulerHook(ExponentialLR(optimizer, 0.5), every), []
    one.register_op("post_loss", lambda sub_batch: seen.append(optimizer.param_groups[0]["lr"]))
    hook.register(one)
    one.train()
    return seen, hook


@pytest.mark.pins("LRSchedulerHook")
def test_rates_fall_in_every_second_update_or_with_each_batch():
    assert rates({"updates": 2}, 12)[0] == [1, 1, 0.5, 0.5, 0.25, 0.25]
    assert rates({"updates": 1}, 8)[0] == [1, 0.5, 0.25, 0.125]
    assert rates({"batches": 1}, 12)[0] == [1, 1, 0.5, 0.5, 0.25, 0.25]


@pytest.mark.pins("LRSchedulerHook", excludes="rates fall though there was no update")
def test_without_updates_nothing_falls():
    assert rates({"batches": 1}, 20, warmup=12)[0] == [1, 1, 0.5, 0.5, 0.25, 0.25]  # batches 3, 4 and 5


@pytest.mark.pins("LRSchedulerHook", excludes="two owners of one learning rate")
def test_an_optimizer_that_has_a_schedule_is_refused():
    with pytest.raises(ValueError, match="'default' has a Linear schedule already"):
        rates({"updates": 1}, schedule=Linear(10, 0.0, None))


@pytest.mark.pins("LRSchedulerHook")
def test_scheduler_and_rate_are_saved():
    _, hook = rates({"updates": 2}, 8)
    optimizer = torch.optim.SGD(RewardModel().parameters(), lr=1.0)
    other = LRSchedulerHook(ExponentialLR(optimizer, 0.5))
    other.interval = Interval({"updates": 2})
    other.load_state_dict(hook.state_dict())
    assert optimizer.param_groups[0]["lr"] == 0.25
    assert (other.updates, other.lr_scheduler.last_epoch) == (4, 2)


def test_a_maker_is_given_the_only_optimizer():
    one = trainer(8)
    hook = LRSchedulerHook(lambda optimizer: ExponentialLR(optimizer, 0.5))
    hook.register(one)
    one.train()
    assert hook.lr_scheduler.optimizer is one.learner.optimizations()[0].optimizer
    assert one.metrics.latest.keys() >= {"loss/model"}
    assert one.learner.row_metrics()["lr/default"] == pytest.approx(0.1 * 0.25)
