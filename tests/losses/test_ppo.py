"""The loss by numpy, its gradient by finite differences, and single samples by hand."""

import math

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch.func import functional_call, grad, stack_module_state, vmap

from runner.distributions import Categorical
from runner.losses.ppo import PPOLoss
from runner.networks.mlp import MLP
from tests.losses.on_policy import SIZE, Case, Discrete, Vectors, huber

EPSILON, ENTROPY, CRITIC = 0.2, 0.03, 0.7
KINDS = [(Discrete, False), (Discrete, True), (Vectors, False)]


def make(of=Discrete, **options):
    options = {"clip_epsilon": EPSILON, "entropy_coeff": ENTROPY, "critic_coeff": CRITIC} | options
    loss = PPOLoss(of.distribution, **options)
    loss.hyper_parameters["beta"] = loss.hyper_parameters["beta"].double()
    return loss


def advantage_of(case, normalize):
    centred = case.advantage - case.advantage.mean()
    return centred / (np.sqrt((centred**2).sum() / SIZE) + 1e-8) if normalize else case.advantage


def clipped_gain(case, outputs, normalize):
    ratio = np.exp(case.kind.log_prob(outputs, case.action, case.mask) - case.old_log_prob)
    advantage = advantage_of(case, normalize)
    # Written as cases: beyond the clip, an advantage that has the ratio go further counts no more.
    bound = np.where(advantage > 0, 1 + EPSILON, 1 - EPSILON)
    is_beyond = np.where(advantage > 0, ratio > bound, ratio < bound)
    return (np.where(is_beyond, bound, ratio) * advantage).mean()


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("kind", "masks"), KINDS)
@pytest.mark.parametrize("seed", [1, 2, 3])  # some ratios are beyond the clip in each
def test_the_clipped_loss_and_its_gradient(kind, masks, normalize, seed):
    case = Case(kind, seed, masks)
    loss = make(kind, normalize_advantage=normalize)

    def reference(outputs, values):
        return {
            "loss_policy": -clipped_gain(case, outputs, normalize),
            "loss_value": CRITIC * ((values - case.target) ** 2).mean(),
            "loss_entropy": -ENTROPY * kind.entropy(outputs, case.mask).mean(),
        }

    output = case.check(loss.ppo, loss.hyper_parameters, reference)
    outputs, _ = case.seen(case.weights)
    log_ratio = kind.log_prob(outputs, case.action, case.mask) - case.old_log_prob
    np.testing.assert_allclose(output["kl"], np.exp(log_ratio) - 1 - log_ratio)
    assert output["approx_kl"].item() == pytest.approx(output["kl"].mean().item())
    assert output["clip_fraction"].item() == pytest.approx(np.mean(np.abs(np.exp(log_ratio) - 1) > EPSILON))
    assert 0 < output["clip_fraction"] < 1
    assert output["entropy"].item() == pytest.approx(kind.entropy(outputs, case.mask).mean())


@pytest.mark.parametrize("kind", [Discrete, Vectors])
@pytest.mark.parametrize("beta", [0.0, 3.0])
def test_the_penalized_loss_and_its_gradient(kind, beta):
    case, loss = Case(kind, 3), make(kind, kind="kl_penalty", beta=beta, normalize_advantage=False)

    def reference(outputs, values):
        ratio = np.exp(kind.log_prob(outputs, case.action) - case.old_log_prob)
        divergence = kind.kl(case.old_outputs, outputs).mean()
        return {
            "loss_policy": -(ratio * case.advantage).mean() + beta * divergence,
            "loss_value": CRITIC * ((values - case.target) ** 2).mean(),
            "loss_entropy": -ENTROPY * kind.entropy(outputs).mean(),
        }

    case.check(loss.ppo, loss.hyper_parameters, reference)


@pytest.mark.parametrize(("function", "error_of"), [("l2", np.square), ("smooth_l1", huber)])
def test_the_value_may_not_gain_from_going_far(function, error_of):
    case, loss = Case(Discrete, 4), make(value_loss=function, clip_value=True, entropy_coeff=0.0)

    def reference(outputs, values):
        near = case.old_value + np.clip(values - case.old_value, -EPSILON, EPSILON)
        worse = np.maximum(error_of(values - case.target), error_of(near - case.target))
        return {
            "loss_policy": -clipped_gain(case, outputs, True),
            "loss_value": CRITIC * worse.mean(),
            "loss_entropy": 0.0,
        }

    case.check(loss.ppo, loss.hyper_parameters, reference)


def test_the_error_of_the_value_may_be_bounded():
    case, loss = Case(Discrete, 5), make(value_loss="smooth_l1")
    output, _ = case.ours(loss.ppo, loss.hyper_parameters)
    _, values = case.seen(case.weights)
    assert output["loss_value"].item() == pytest.approx(CRITIC * huber(values - case.target).mean())


@pytest.mark.parametrize(
    ("ratio", "advantage", "gain", "slope"),
    [
        (1.1, 2.0, 2.2, 2.2),  # within the clip: the slope by log-probability is ratio x advantage
        (1.5, 2.0, 2.4, 0.0),  # beyond it, upwards: 1.2 x 2, and no slope
        (0.5, 2.0, 1.0, 1.0),  # beyond it, but back is good
        (0.5, -2.0, -1.6, 0.0),  # 0.8 x -2
        (1.5, -2.0, -3.0, -3.0),
    ],
)
def test_one_sample_by_hand(ratio, advantage, gain, slope):
    fields = {"observation": 0.0, "action": 0, "action_log_prob": 0.0, "advantage": advantage, "value_target": 0.0}
    log_prob = torch.tensor([math.log(ratio)], requires_grad=True)

    class Told(Categorical):
        def log_prob(self, outputs, action):
            return log_prob

    loss = PPOLoss(Told(2), normalize_advantage=False)
    batch = TensorDict({name: torch.tensor([value]) for name, value in fields.items()}, [1])
    networks = {"policy": lambda x: torch.zeros(1, 2), "value": lambda x: torch.zeros(1, 1)}
    output = loss.ppo(networks, batch, loss.hyper_parameters)
    (gradient,) = torch.autograd.grad(output["loss_policy"], log_prob)
    assert -output["loss_policy"].item() == pytest.approx(gain)
    assert -gradient.item() == pytest.approx(slope)


def test_a_value_of_another_shape_is_refused():
    case, loss = Case(Discrete), make()
    batch = case.batch().set("value_target", torch.zeros(SIZE, 1, dtype=torch.float64))
    networks = {"policy": lambda x: x @ torch.from_numpy(case.weights[0]), "value": lambda x: x[:, :1]}
    with pytest.raises(ValueError, match=r"values \[10\] and their targets \[10, 1\] differ in shape"):
        loss.ppo(networks, batch, loss.hyper_parameters)


def test_the_batch_stays_as_it_was():
    case, loss = Case(Discrete), make()
    batch = case.batch()
    before = batch.clone()
    networks = {
        name: lambda x, w=w: x @ torch.from_numpy(w) for name, w in zip(("policy", "value"), case.weights, strict=True)
    }
    loss.ppo(networks, batch, loss.hyper_parameters)
    assert set(batch.keys()) == set(before.keys())
    assert (batch == before).all()


@pytest.mark.parametrize("options", [{}, {"kind": "kl_penalty"}, {"clip_value": True, "value_loss": "smooth_l1"}])
def test_many_runs_in_one_vmap_equal_a_loop_over_them(options):
    torch.manual_seed(0)
    nets = {
        name: [MLP((3,), [8], size, "tanh").double() for _ in range(3)] for name, size in (("policy", 4), ("value", 1))
    }
    loss, batches = make(**options), [Case(Discrete, seed, masks=True).batch() for seed in range(3)]
    settings = {"clip_epsilon": [0.1, 0.2, 0.3], "entropy_coeff": [0.0, 0.1, 0.2], "critic_coeff": [1.0, 0.5, 0.1]}
    hyper = {name: torch.tensor(values).double() for name, values in (settings | {"beta": [0.5, 1.0, 2.0]}).items()}

    def one_run(weights, hyper_parameters, batch):
        seen = {
            name: lambda x, name=name: functional_call(nets[name][0], weights[name], (x,))
            for name in ("policy", "value")
        }
        output = loss.ppo(seen, batch, hyper_parameters)
        return sum(output[name] for name in ("loss_policy", "loss_value", "loss_entropy")), output["kl"]

    stacked = {name: stack_module_state(each)[0] for name, each in nets.items()}
    gradients, kl = vmap(grad(one_run, has_aux=True))(stacked, hyper, torch.stack(batches))
    for run in range(3):
        alone = {name: each[run] for name, each in nets.items()}
        output = loss.ppo(alone, batches[run], {name: values[run] for name, values in hyper.items()})
        torch.testing.assert_close(kl[run], output["kl"])
        total = sum(output[name] for name in ("loss_policy", "loss_value", "loss_entropy"))
        for name, network in alone.items():
            expected = torch.autograd.grad(total, list(network.parameters()), retain_graph=True)
            for (parameter, _), one in zip(network.named_parameters(), expected, strict=True):
                torch.testing.assert_close(gradients[name][parameter][run], one)
