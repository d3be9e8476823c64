"""``compile=update``: one compiled function for a whole update, equal to the step-by-step one but for rounding."""

import copy
import logging
import os
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from runner.learner.approximation import Approximation
from runner.learner.compiled import CACHE, own_cache
from runner.learner.gradients import Clip
from runner.learner.learner import Learner
from runner.learner.module import Module
from runner.learner.optimization import Optimization
from runner.learner.optimizers import adam, rmsprop, sgd
from runner.learner.targets import PolyakTarget
from runner.losses.dqn import DQNLoss
from runner.networks.mlp import MLP
from runner.schedules import Linear
from tests.learner.test_tracing import transitions, update, weights

OPTIMIZERS = {
    "adam": adam,
    "adamw": partial(adam, weight_decay=0.1),
    "sgd": sgd,
    "sgd with momentum": partial(sgd, momentum=0.9, weight_decay=0.1),
    "rmsprop": partial(rmsprop, weight_decay=0.1),
    "upwards": lambda parameters, lr: torch.optim.Adam(parameters, lr, weight_decay=0.1, maximize=True),
}


def make_learner(compile, optimizer="adam", lr=1e-2, kind=Learner, **optimization):
    torch.manual_seed(0)
    target = PolyakTarget(0.1)
    q = Approximation(MLP((4,), [8, 8], 2, "tanh"), target=target)
    make = OPTIMIZERS.get(optimizer, optimizer)
    moved = Optimization(
        make(q.model.parameters(), lr), schedule=Linear(20, 0.0, None), targets=[target], **optimization
    )
    loss = DQNLoss(0.9, double=True, loss_function="smooth_l1")
    return kind({"default": Module({"q": q}, loss, (moved,))}, compile=compile).build()


def run(learner, updates):
    metrics = []
    for n in updates:
        learner.progress.env_steps = n
        metrics.append(update(learner, transitions(seed=n)))
    return metrics


def is_compiled(learner):
    (recorders,) = learner._recorders.values()
    return len(recorders[0]._programs) == 1


def tensors(tree):
    if isinstance(tree, dict):
        return [found for value in tree.values() for found in tensors(value)]
    return [tree] if isinstance(tree, torch.Tensor) else []


def assert_same_way(compiled, plain, begun):
    """Each tensor has gone the same way from where it began, but for rounding."""
    for mine, other, start in zip(weights(compiled), weights(plain), begun, strict=True):
        assert (other - start).norm() > 0
        assert (mine - other).norm() <= 1e-3 * (other - start).norm() + 1e-7 * start.norm()


CASES = [
    pytest.param("adam", 1e-2, Clip(0.5), marks=pytest.mark.ci),
    ("adam", 1e-4, None),
    ("adamw", 1e-2, None),
    ("sgd", 1e-2, Clip(0.5)),
    pytest.param("sgd", 1e-4, None, marks=pytest.mark.ci),
    ("sgd with momentum", 1e-3, None),
    ("rmsprop", 1e-3, Clip(0.1, by="value")),
    ("upwards", 1e-3, None),
]


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "lr", "clip"), CASES)
def test_compiled_updates_are_the_others_but_for_rounding_and_resume_to_the_bit(optimizer, lr, clip):
    compiled, plain = (make_learner(kind, optimizer, lr, clip=clip) for kind in ("update", "none"))
    begun, state = weights(plain), None
    for first in (0, 5):
        ours, theirs = run(compiled, range(first, first + 5)), run(plain, range(first, first + 5))
        for (mine, mine_errors), (other, other_errors) in zip(ours, theirs, strict=True):
            assert mine == pytest.approx(other, rel=1e-4)
            assert mine.keys() == other.keys() == {"loss/q", *(["grad_norm/default"] if clip else [])}
            torch.testing.assert_close(mine_errors, other_errors, rtol=1e-4, atol=1e-5)
        assert_same_way(compiled, plain, begun)
        if first == 0:
            state = copy.deepcopy(compiled.state_dict())
    assert is_compiled(compiled)
    for mine, other in zip(tensors(compiled.state_dict()), tensors(plain.state_dict()), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5)
    resumed = make_learner("update", optimizer, lr, clip=clip)
    resumed.load_state_dict(state)
    run(resumed, range(5, 10))
    assert is_compiled(resumed)
    for mine, other in zip(tensors(resumed.state_dict()), tensors(compiled.state_dict()), strict=True):
        assert torch.equal(mine, other)


def freeze(learner):
    learner.modules["default"].networks["q"].model.layers[0].weight.requires_grad_(False)


def ignore_the_loss(learner):
    learner.modules["default"].optimizations[0].loss_weights["q"] = 0.0


def let_weights_decay(learner):
    learner.modules["default"].optimizations[0].optimizer.param_groups[0]["weight_decay"] = 0.5


def clip_more(learner):
    learner.modules["default"].optimizations[0].clip.max = 0.01


def move_to_other_memory(learner):
    parameters = list(learner.modules["default"].networks["q"].model.parameters())
    nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(parameters) * 0.5, parameters)


@pytest.mark.slow
@pytest.mark.parametrize("change", [freeze, ignore_the_loss, let_weights_decay, clip_more, move_to_other_memory])
def test_what_is_changed_in_mid_run_counts_from_the_next_update_on(change):
    compiled, plain = (make_learner(kind, "adam", clip=Clip(0.5)) for kind in ("update", "none"))
    for learner in (compiled, plain):
        run(learner, range(3))
        change(learner)
        run(learner, range(3, 6))
    (recorders,) = compiled._recorders.values()
    assert not recorders[0]._is_hopeless
    for mine, other in zip(weights(compiled), weights(plain), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.ci
def test_nothing_moves_before_the_step():
    learner = make_learner("update")
    run(learner, range(2))
    assert is_compiled(learner)
    before, batch = copy.deepcopy(learner.state_dict()), transitions()
    losses = learner.compute_losses(batch)
    assert all(torch.equal(*pair) for pair in zip(tensors(learner.state_dict()), tensors(before), strict=True))
    learner.step(losses, batch)
    assert not torch.equal(weights(learner)[0], before["rl_module"]["default"]["q"]["model"]["layers.0.weight"])


class Still(Learner):
    """Its gradients are made zero where the docstring says that they may be changed."""

    def postprocess_gradients(self, optimization, gradients):
        told = super().postprocess_gradients(optimization, gradients)
        for gradient in gradients:
            gradient.zero_()
        return told


def test_a_learner_with_steps_of_its_own_for_gradients_does_them():
    learner = make_learner("update", "sgd", kind=Still)
    before = weights(learner)
    run(learner, range(3))
    assert all(torch.equal(*pair) for pair in zip(weights(learner), before, strict=True))


UNKNOWN = {
    "Rprop": torch.optim.Rprop,
    "NAdam": torch.optim.NAdam,
    "ASGD": torch.optim.ASGD,
    "two groups": lambda parameters, lr: torch.optim.SGD(
        [{"params": [one], "lr": lr * number} for number, one in enumerate(parameters, 1)]
    ),
}


@pytest.mark.parametrize("optimizer", UNKNOWN.values(), ids=UNKNOWN)
def test_an_optimizer_that_cannot_be_compiled_is_left_as_it_is(optimizer, caplog):
    compiled, plain = (make_learner(kind, optimizer) for kind in ("update", "trace"))
    run(compiled, range(4)), run(plain, range(4))
    assert all(torch.equal(*pair) for pair in zip(weights(compiled), weights(plain), strict=True))
    assert caplog.text.count("is not compiled") == 1


@pytest.mark.slow
def test_an_optimizer_that_turns_out_to_begin_otherwise_is_left_as_it_is(caplog):
    def dampened(parameters, lr):
        return torch.optim.SGD(parameters, lr, momentum=0.9, dampening=0.5)

    compiled, plain = (make_learner(kind, dampened) for kind in ("update", "trace"))
    run(compiled, range(4)), run(plain, range(4))
    assert "computes something else" in caplog.text
    assert all(torch.equal(*pair) for pair in zip(weights(compiled), weights(plain), strict=True))


@pytest.mark.parametrize("before", [None, default_cache_dir()])
def test_compiled_code_is_kept_where_only_this_user_writes(before, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(CACHE, before) if before else monkeypatch.delenv(CACHE, raising=False)
    with own_cache():
        folder = Path(os.environ[CACHE])
    assert folder.is_relative_to(tmp_path)
    assert folder.stat().st_mode & 0o077 == 0
    assert os.environ[CACHE] == default_cache_dir()
    monkeypatch.setenv(CACHE, "elsewhere")
    with own_cache():
        assert os.environ[CACHE] == "elsewhere"


@pytest.mark.parametrize("policy", ["skip", "zero"])
def test_what_cannot_be_compiled_is_done_step_by_step_and_a_warning_says_so(policy, caplog):
    compiled, plain = (make_learner(kind, non_finite=policy) for kind in ("update", "trace"))
    with caplog.at_level(logging.WARNING):
        run(compiled, range(3))
    run(plain, range(3))
    assert not is_compiled(compiled)
    assert all(torch.equal(*pair) for pair in zip(weights(compiled), weights(plain), strict=True))
    assert caplog.text.count(f"compile=update: default is not compiled (non_finite={policy} looks at") == 1
