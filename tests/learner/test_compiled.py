"""``compile=update``: one compiled function for a whole update, equal to the step-by-step one but for rounding."""

import copy
import logging

import pytest
import torch

from runner.learner.approximation import Approximation
from runner.learner.gradients import Clip
from runner.learner.learner import Learner, Module
from runner.learner.optimization import Optimization
from runner.learner.optimizers import adam, rmsprop, sgd
from runner.learner.targets import PolyakTarget
from runner.losses.dqn import DQNLoss
from runner.networks.mlp import MLP
from runner.schedules import Linear
from tests.learner.test_tracing import transitions, update, weights

OPTIMIZERS = {"adam": adam, "adamw": lambda p, lr: adam(p, lr, weight_decay=0.1), "sgd": sgd, "rmsprop": rmsprop}


def make_learner(compile, optimizer="adam", **optimization):
    torch.manual_seed(0)
    target = PolyakTarget(0.1)
    q = Approximation(MLP((4,), [8, 8], 2, "tanh"), target=target)
    moving = OPTIMIZERS[optimizer](q.model.parameters(), lr=1e-2)
    moved = Optimization(moving, schedule=Linear(20, 0.0, None), targets=[target], **optimization)
    loss = DQNLoss(0.9, double=True, loss_function="smooth_l1")
    return Learner({"default": Module({"q": q}, loss, (moved,))}, compile=compile)


def run(learner, updates):
    metrics = []
    for n in updates:
        learner.progress.env_steps = n
        metrics.append(update(learner, transitions(seed=n)))
    return metrics


def is_compiled(learner):
    (recorders,) = learner._recorders.values()
    return len(recorders[0]._updates) == 1


def tensors(tree):
    if isinstance(tree, dict):
        return [found for value in tree.values() for found in tensors(value)]
    return [tree] if isinstance(tree, torch.Tensor) else []


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [pytest.param("adam", marks=pytest.mark.ci), "adamw", "sgd", "rmsprop"])
def test_compiled_updates_are_the_others_but_for_rounding_and_resume_to_the_bit(optimizer):
    compiled, plain = (make_learner(kind, optimizer, clip=Clip(0.5)) for kind in ("update", "none"))
    state = None
    for first in (0, 5):
        ours, theirs = run(compiled, range(first, first + 5)), run(plain, range(first, first + 5))
        for (mine, mine_errors), (other, other_errors) in zip(ours, theirs, strict=True):
            assert mine == pytest.approx(other, rel=1e-4)
            assert mine.keys() == other.keys() == {"loss/q", "grad_norm/default"}
            torch.testing.assert_close(mine_errors, other_errors, rtol=1e-4, atol=1e-5)
        if first == 0:
            state = copy.deepcopy(compiled.state_dict())
    assert is_compiled(compiled)
    for mine, other in zip(tensors(compiled.state_dict()), tensors(plain.state_dict()), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5)
    resumed = make_learner("update", optimizer, clip=Clip(0.5))
    resumed.load_state_dict(state)
    run(resumed, range(5, 10))
    assert is_compiled(resumed)
    for mine, other in zip(tensors(resumed.state_dict()), tensors(compiled.state_dict()), strict=True):
        assert torch.equal(mine, other)


def test_what_cannot_be_compiled_is_done_step_by_step_and_a_warning_says_so(caplog):
    compiled, plain = (make_learner(kind, non_finite="skip") for kind in ("update", "trace"))
    with caplog.at_level(logging.WARNING):
        run(compiled, range(3))
    run(plain, range(3))
    assert not is_compiled(compiled)
    assert all(torch.equal(*pair) for pair in zip(weights(compiled), weights(plain), strict=True))
    assert caplog.text.count("compile=update: default is not compiled") == 1
