"""Whole updates in bf16 and fp16, and what a learner says of gradients that are not finite."""

from copy import deepcopy
from functools import partial

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import nn, optim
from torch.nn import functional as F

from runner.builders import make_learner
from runner.learner.approximation import Approximation
from runner.learner.learner import Learner
from runner.learner.module import Module, ModuleLoss
from runner.learner.optimization import NonFiniteError, Optimization
from runner.learner.optimizers import adam
from runner.learner.targets import PolyakTarget
from runner.losses.dqn import DQNLoss
from runner.losses.sac import SACLoss
from runner.networks.continuous import make_stochastic_policy_and_values
from runner.networks.mlp import MLP
from runner.spec import ConfigError, EnvSpec
from tests.learner.test_tracing import transitions, update

INF = float("inf")
LR, GAMMA, CLIP, RATE = 1e-2, 0.9, 0.5, 0.1
SCALE = 2.0**8


def network():
    torch.manual_seed(0)
    return MLP((4,), [8, 8], 2, "tanh")


def learner_of(precision, compile="trace", growth_interval=2, **options):
    settings = {"clip": CLIP, **options}
    learner = make_learner(
        {"q": network()},
        DQNLoss(GAMMA, False, "l2"),
        partial(adam, lr=LR),
        target_updater=PolyakTarget(RATE),
        precision=precision,
        compile=compile,
        **settings,
    )
    return begun(learner, growth_interval)


def begun(learner, growth_interval):
    """With a scale that leaves room for some growth."""
    for module_id in learner.modules:
        scaler = scaler_of(learner, module_id)
        if scaler is not None:
            scaler.scale.fill_(SCALE)
            scaler.growth_interval = growth_interval
    return learner


def scaler_of(learner, module_id="default"):
    return learner.modules[module_id].optimizations[0].scaler


def batch(n, bad=()):
    """Of update ``n``; in a bad one a reward is infinite, and with it some gradients."""
    made = transitions(seed=n)
    if n in bad:
        made["next", "reward"][3] = INF
    return made


def tensors(tree):
    if isinstance(tree, dict):
        return [found for value in tree.values() for found in tensors(value)]
    return [tree] if isinstance(tree, torch.Tensor) else []


def assert_same_state(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    assert len(tensors(ours)) == len(tensors(theirs)) > 10
    assert all(torch.equal(*pair) for pair in zip(tensors(ours), tensors(theirs), strict=True))
    scales = [one["optimizer"]["default"].get("scale") for one in (ours, theirs)]
    assert scales[0] == scales[1]


BAD = (3, 7, 8)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_recorded_updates_are_those_of_autograd_to_the_bit_whatever_the_scale(precision):
    policy = "skip" if precision == "bf16" else "raise"
    traced, plain = (learner_of(precision, compile, non_finite=policy) for compile in ("trace", "none"))
    for n in range(14):
        ours, theirs = (update(learner, batch(n, BAD)) for learner in (traced, plain))
        assert ours[0] == pytest.approx(theirs[0], nan_ok=True, rel=0, abs=0)
        assert torch.equal(ours[1], theirs[1])
    assert_same_state(traced, plain)
    (recorders,) = traced._recorders.values()
    assert recorders[0]._programs
    assert traced.optimizations()[0].skipped == len(BAD)


def by_hand(updates):
    """The same in fp16 with torch's own scaler, unscaled before it is clipped."""
    q = network()
    target = deepcopy(q)
    optimizer = optim.Adam(q.parameters(), lr=LR, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE, growth_interval=2)
    for n in updates:
        data = batch(n, BAD)
        with torch.autocast("cpu", torch.float16), torch.no_grad():
            following = target(data["next", "observation"])
        with torch.autocast("cpu", torch.float16):
            values = q(data["observation"])
        chosen = values.float().gather(-1, data["action"].unsqueeze(-1)).squeeze(-1)
        discount = GAMMA * (~data["next", "terminated"]).float()
        loss = F.mse_loss(chosen, data["next", "reward"] + discount * following.float().amax(-1))
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = torch.stack([one.grad.norm() for one in q.parameters()]).norm()
        for one in q.parameters():
            one.grad *= CLIP / torch.clamp(norm + 1e-6, min=CLIP)
        before = [one.detach().clone() for one in q.parameters()]
        scaler.step(optimizer)
        if not all(torch.equal(*pair) for pair in zip(before, q.parameters(), strict=True)):
            with torch.no_grad():
                torch._foreach_lerp_(list(target.parameters()), list(q.parameters()), RATE)
        scaler.update()
    return [*q.parameters(), *target.parameters()], scaler.get_scale()


@pytest.mark.parametrize("compile", ["none", "trace"])
def test_an_update_in_fp16_is_the_one_with_torchs_scaler_to_the_bit(compile):
    learner = learner_of("fp16", compile)
    for n in range(14):
        update(learner, batch(n, BAD))
    q = learner.modules["default"].networks["q"]
    theirs, scale = by_hand(range(14))
    ours = [*q.model.parameters(), *q.target.model.parameters()]
    assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))
    assert learner.row_metrics()["train/loss_scale"] == scale != SCALE


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_weights_moments_and_outputs_stay_in_full_and_learn_nearly_the_same(precision):
    half, full = learner_of(precision), learner_of("fp32")
    for n in range(10):
        outputs = [update(learner, batch(n))[1] for learner in (half, full)]
        assert [one.dtype for one in outputs] == [torch.float32] * 2
    ours, theirs = (tensors(learner.state_dict()) for learner in (half, full))
    assert [one.dtype for one in ours] == [one.dtype for one in theirs]
    ours, theirs = (list(one.modules["default"].networks["q"].model.parameters()) for one in (half, full))
    assert not all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))
    for mine, other, start in zip(ours, theirs, network().parameters(), strict=True):
        assert (mine - other).norm() < 0.1 * (other - start).norm()


def test_full_precision_calls_the_very_networks_and_saves_nothing_more():
    learner = learner_of("fp32")
    q = learner.modules["default"].networks["q"]
    assert learner._callables["default"] == {"q": q.model, "q_target": q.target}
    assert "scale" not in learner.state_dict()["optimizer"]["default"]
    assert list(learner.row_metrics()) == ["lr/default"]


def test_a_run_in_fp16_goes_on_where_it_was_saved_to_the_bit():
    whole, cut = learner_of("fp16"), learner_of("fp16")
    for n in range(8):
        update(whole, batch(n, BAD)), update(cut, batch(n, BAD))
    resumed = learner_of("fp16")
    resumed.load_state_dict(cut.state_dict())
    for n in range(8, 16):
        update(whole, batch(n, BAD)), update(resumed, batch(n, BAD))
    assert_same_state(whole, resumed)
    assert whole.state_dict()["optimizer"]["default"]["scale"]["scale"] != SCALE


def test_a_state_of_another_precision_starts_the_scale_afresh():
    half, full = learner_of("fp16"), learner_of("fp32")
    half.load_state_dict(full.state_dict())
    assert scaler_of(half).scale.item() == SCALE
    full.load_state_dict(half.state_dict())


def sac(**options):
    kind, bound = np.dtype(np.float32), np.ones(1, np.float32)
    spec = EnvSpec("toy", (4,), kind, (1,), kind, action_low=-bound, action_high=bound)
    torch.manual_seed(0)
    networks = make_stochastic_policy_and_values(spec, [8], "relu")
    learner = make_learner(
        networks,
        SACLoss(networks["policy"].distribution, GAMMA),
        partial(adam, lr=LR),
        target_updater=PolyakTarget(RATE),
        precision="fp16",
        generator=torch.Generator().manual_seed(0),
        **options,
    )
    return begun(learner, growth_interval=1)


def sac_batch(n=0):
    made = transitions(seed=n)
    made["action"] = torch.rand(16, 1, generator=torch.Generator().manual_seed(n))
    return made


def one_by_one(learner, losses, data):
    """As by an ``OptimizerHook`` for each."""
    for optimization in learner.optimizations():
        learner.step(losses, data, optimization)


@pytest.mark.parametrize("apply", [Learner.step, one_by_one])
def test_the_scale_moves_once_in_an_update_by_several_optimizers(apply):
    learner = sac()
    for n in range(3):
        data = sac_batch(n)
        apply(learner, learner.compute_losses(data), data)
        learner.progress.updates += 1
        assert scaler_of(learner).scale.item() == SCALE * 2 ** (n + 1)


def test_an_overflow_in_one_of_several_optimizers_skips_that_one_alone():
    learner = sac()
    critic, actor, alpha = learner.optimizations()
    before = [[one.detach().clone() for one in each.parameters] for each in (critic, actor, alpha)]
    data = sac_batch()
    data["next", "reward"][0] = INF  # which the critic alone reads
    learner.step(learner.compute_losses(data), data)
    moved = [
        not all(torch.equal(*pair) for pair in zip(old, each.parameters, strict=True))
        for old, each in zip(before, (critic, actor, alpha), strict=True)
    ]
    assert moved == [False, True, True]
    assert [each.skipped for each in (critic, actor, alpha)] == [1, 0, 0]
    assert scaler_of(learner).scale.item() == SCALE / 2


def test_a_ready_loss_module_is_called_in_half_too():
    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.seen = nn.Linear(4, 1), None

        def forward(self, data):
            values = self.layer(data["observation"])
            self.seen = values.dtype
            return {"loss_value": values.mean()}

    loss = Loss()
    module = Module(
        {"loss_module": Approximation(loss)}, ModuleLoss(), (Optimization(optim.SGD(loss.parameters(), lr=0.1)),)
    )
    learner = Learner({"default": module}, precision="bf16").build()
    losses = learner.compute_losses(batch(0))
    assert loss.seen is torch.bfloat16
    assert losses["loss_value"].dtype is torch.float32


def test_a_loss_that_a_network_brings_along_is_computed_in_half_too():
    class Curious(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.seen = nn.Linear(4, 1), None

        def compute_self_supervised_loss(self, data):
            values = self.layer(data["observation"])
            self.seen = values.dtype
            return {"loss_own": values.mean()}

    network = Curious()
    optimization = Optimization(optim.SGD(network.parameters(), lr=0.1))
    learner = Learner(Module({"curious": Approximation(network)}, None, (optimization,)), precision="bf16").build()
    assert learner.compute_losses(batch(0))["loss_own"].dtype is torch.float32
    assert network.seen is torch.bfloat16


def test_compiled_updates_with_a_loss_scale_are_refused():
    with pytest.raises(ConfigError, match=r"precision=fp16 .* use compile=trace"):
        learner_of("fp16", "update")


def test_a_row_says_how_many_updates_were_skipped():
    learner = learner_of("fp32", non_finite="skip")
    for n in range(5):
        update(learner, batch(n, (1, 2)))
    assert learner.row_metrics() == {"lr/default": LR, "train/skipped/default": 2}


@pytest.mark.parametrize("policy", ["skip", "zero"])
def test_the_limit_names_update_module_and_optimizer(policy):
    learner = learner_of("fp32", non_finite=policy, non_finite_limit=3)
    bad = (1, 2, 4, 5, 6)
    for n in range(6):
        update(learner, batch(n, bad))
    words = r"^update 6, module 'default', optimization 'default': .* 3 updates in a row"
    with pytest.raises(NonFiniteError, match=words):
        update(learner, batch(6, bad))


@pytest.mark.parametrize("bad", [INF, -INF, float("nan")])
def test_raise_names_update_module_and_optimizer_at_the_next_row(bad):
    learner = learner_of("fp32")
    for n in range(4):
        update(learner, batch(n))
    learner.check_finite()
    data = batch(4)
    data["next", "reward"][0] = bad
    update(learner, data)
    words = r"^after update 5 \(finite after 4\), module 'default', optimization 'default': its weights are no longer"
    with pytest.raises(NonFiniteError, match=words):
        learner.check_finite()


def test_metrics_of_an_update_call_say_scale_and_skipped_updates():
    learner = learner_of("fp16")
    results = learner.update_from_batch(batch(3, BAD))
    assert results["default"]["train/loss_scale"] == SCALE / 2
    assert results["default"]["train/skipped/default"] == 1


def test_each_module_has_a_scale_of_its_own():
    def module(factor):
        q = Approximation(network())
        optimization = Optimization(adam(q.model.parameters(), lr=LR))
        return Module({"q": q}, DQNLoss(GAMMA, False, "l2"), (optimization,))

    learner = Learner({"left": module(1), "right": module(2)}, precision="fp16").build()
    begun(learner, growth_interval=2)
    data = TensorDict({"left": batch(0), "right": batch(3, BAD)}, [])
    learner.step(learner.compute_losses(data), data)
    assert [one.skipped for one in learner.optimizations()] == [0, 1]
    rows = learner.row_metrics()
    assert [rows["left/train/loss_scale"], rows["right/train/loss_scale"]] == [SCALE, SCALE / 2]
    assert learner.row_metrics()["right/train/skipped/default"] == 1
