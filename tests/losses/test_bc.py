import math

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch.func import functional_call, grad, stack_module_state, vmap

from runner.distributions import Argmax, Categorical, Normal, TanhNormal
from runner.losses.bc import BCLoss
from runner.networks.mlp import MLP

LOW, HIGH = np.array([-1.0, -2.0], np.float32), np.array([1.0, 2.0], np.float32)


def evaluate(distribution, outputs, batch):
    loss = BCLoss(distribution)
    return loss.policy({"policy": lambda observation: outputs}, batch, loss.hyper_parameters)["loss_policy"]


def data(action, **more):
    action = torch.as_tensor(action)
    return TensorDict({"observation": torch.zeros(len(action), 1), "action": action, **more}, [len(action)])


@pytest.mark.parametrize("weight", [False, True], ids=["alike", "weighted"])
def test_for_discrete_actions_it_is_the_mean_of_minus_log_softmax(weight):
    draw = np.random.default_rng(0)
    outputs, actions, weights = draw.normal(size=(12, 5)), draw.integers(5, size=12), draw.random(12)
    more = {"importance_weight": torch.from_numpy(weights)} if weight else {}
    expected = 0.0
    for row, action, share in zip(outputs, actions, weights, strict=True):
        probability = math.exp(row[action]) / sum(math.exp(number) for number in row)
        expected -= (share if weight else 1.0) * math.log(probability) / 12
    found = evaluate(Categorical(5), torch.from_numpy(outputs), data(actions, **more))
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_for_vectors_it_is_the_mean_of_minus_the_log_of_the_normal_density():
    draw = np.random.default_rng(1)
    mean, log_std, actions = draw.normal(size=(8, 2)), draw.normal(size=(8, 2)), draw.normal(size=(8, 2))
    density = np.exp(-(((actions - mean) / np.exp(log_std)) ** 2) / 2) / (np.exp(log_std) * np.sqrt(2 * np.pi))
    found = evaluate(Normal(LOW, HIGH), torch.from_numpy(np.concatenate([mean, log_std], 1)), data(actions))
    assert float(found) == pytest.approx(-np.log(density.prod(1)).mean(), rel=1e-12)


def test_an_action_on_the_bounds_has_a_finite_loss_where_the_policy_cannot_reach_them():
    found = evaluate(TanhNormal(LOW, HIGH), torch.zeros(2, 4), data(np.array([[1.0, 2.0], [-1.0, -2.0]], np.float32)))
    assert bool(found.isfinite())


def test_the_gradient_is_softmax_minus_the_data():
    outputs = torch.tensor([[0.0, math.log(3.0)]], dtype=torch.float64, requires_grad=True)
    evaluate(Categorical(2), outputs, data([0])).backward()
    torch.testing.assert_close(outputs.grad, torch.tensor([[-0.75, 0.75]], dtype=torch.float64))  # 1/4 - 1, 3/4 - 0


def test_the_most_likely_policy_of_a_table_has_the_frequencies_of_the_data():
    logits = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    actions = [0] * 5 + [1] * 3 + [2] * 2
    optimizer = torch.optim.LBFGS([logits], max_iter=100)

    def closure():
        optimizer.zero_grad()
        loss = evaluate(Categorical(3), logits.expand(10, 3), data(actions))
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(
        logits.softmax(-1)[0], torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), atol=1e-5, rtol=0
    )


def test_values_of_actions_are_no_probabilities():
    with pytest.raises(ValueError, match="gives no probabilities"):
        evaluate(Argmax(2), torch.zeros(1, 2), data([0]))


def test_many_runs_in_one_vmap_equal_a_loop_over_them():
    torch.manual_seed(0)
    nets = [MLP((3,), [8], 4, "tanh").double() for _ in range(3)]
    batch = TensorDict(
        {"observation": torch.randn(3, 16, 3, dtype=torch.float64), "action": torch.randint(4, (3, 16))}, [3, 16]
    )
    loss = BCLoss(Categorical(4))

    def one_run(weights, batch):
        return loss.policy({"policy": lambda x: functional_call(nets[0], weights, (x,))}, batch, {})["loss_policy"]

    gradients = vmap(grad(one_run))(stack_module_state(nets)[0], batch)
    for run, net in enumerate(nets):
        output = loss.policy({"policy": net}, batch[run], {})
        alone = torch.autograd.grad(output["loss_policy"], list(net.parameters()))
        for (name, _), expected in zip(net.named_parameters(), alone, strict=True):
            torch.testing.assert_close(gradients[name][run], expected)
