"""The loss by numpy, and its gradient by finite differences."""

import numpy as np
import pytest
import torch
from torch.func import functional_call, grad, stack_module_state, vmap

from runner.losses.a2c import A2CLoss
from runner.networks.mlp import MLP
from tests.losses.on_policy import Case, Discrete, Vectors, huber

ENTROPY, CRITIC = 0.03, 0.7


def make(kind=Discrete, **options):
    return A2CLoss(kind.distribution, **({"entropy_coeff": ENTROPY, "critic_coeff": CRITIC} | options))


def mean(case, values):
    """Over the batch, where each sample weighs as much as it says."""
    return (values * (1 if case.weight is None else case.weight)).mean()


def normalized(case):
    centred = case.advantage - mean(case, case.advantage)
    return centred / (np.sqrt(mean(case, centred**2)) + 1e-8)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize(("kind", "masks"), [(Discrete, False), (Discrete, True), (Vectors, False)])
@pytest.mark.parametrize(("function", "error_of"), [("l2", np.square), ("smooth_l1", huber)])
def test_the_loss_and_its_gradient(kind, masks, weights, normalize, function, error_of):
    case = Case(kind, 1, masks, weights)
    loss = make(kind, normalize_advantage=normalize, value_loss=function)
    advantage = normalized(case) if normalize else case.advantage

    def reference(outputs, values):
        return {
            "loss_policy": -mean(case, kind.log_prob(outputs, case.action, case.mask) * advantage),
            "loss_value": CRITIC * mean(case, error_of(values - case.target)),
            "loss_entropy": -ENTROPY * mean(case, kind.entropy(outputs, case.mask)),
        }

    output = case.check(loss.a2c, loss.hyper_parameters, reference)
    outputs, _ = case.seen(case.weights)
    assert output["entropy"].item() == pytest.approx(mean(case, kind.entropy(outputs, case.mask)))


def test_without_a_value_there_is_no_loss_of_it():
    case, loss = Case(Discrete), make()
    output = loss.a2c({"policy": lambda x: x @ torch.from_numpy(case.weights[0])}, case.batch(), loss.hyper_parameters)
    assert set(output.keys()) == {"loss_policy", "loss_entropy", "entropy"}


def test_samples_that_weigh_nothing_could_as_well_be_absent():
    case, loss = Case(Discrete, 2, weights=True), make(normalize_advantage=True)
    kept = case.weight > 0
    case.weight = kept / kept.mean()
    _, gradients = case.ours(loss.a2c, loss.hyper_parameters)
    for name in ("observation", "action", "old_outputs", "old_log_prob", "advantage", "target", "old_value"):
        setattr(case, name, getattr(case, name)[kept])
    case.weight = None
    _, fewer = case.ours(loss.a2c, loss.hyper_parameters)
    for one, other in zip(gradients, fewer, strict=True):
        torch.testing.assert_close(one, other)


def test_many_runs_in_one_vmap_equal_a_loop_over_them():
    torch.manual_seed(0)
    sizes = (("policy", 4), ("value", 1))
    nets = {name: [MLP((3,), [8], size, "tanh").double() for _ in range(3)] for name, size in sizes}
    loss = make(normalize_advantage=True)
    batches = [Case(Discrete, seed, masks=True, weights=True).batch() for seed in range(3)]
    hyper = {name: torch.tensor([0.0, 0.1, 0.9]).double() for name in ("entropy_coeff", "critic_coeff")}

    def one_run(weights, hyper_parameters, batch):
        seen = {name: lambda x, name=name: functional_call(nets[name][0], weights[name], (x,)) for name in nets}
        output = loss.a2c(seen, batch, hyper_parameters)
        return sum(output[name] for name in ("loss_policy", "loss_value", "loss_entropy"))

    stacked = {name: stack_module_state(each)[0] for name, each in nets.items()}
    gradients = vmap(grad(one_run))(stacked, hyper, torch.stack(batches))
    for run in range(3):
        alone = {name: each[run] for name, each in nets.items()}
        output = loss.a2c(alone, batches[run], {name: values[run] for name, values in hyper.items()})
        total = sum(output[name] for name in ("loss_policy", "loss_value", "loss_entropy"))
        for name, network in alone.items():
            expected = torch.autograd.grad(total, list(network.parameters()), retain_graph=True)
            for (parameter, _), one in zip(network.named_parameters(), expected, strict=True):
                torch.testing.assert_close(gradients[name][parameter][run], one)
