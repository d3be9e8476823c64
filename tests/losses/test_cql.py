import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch.func import functional_call, grad, stack_module_state, vmap

from runner.losses.cql import CQLLoss
from runner.losses.dqn import DQNLoss
from runner.networks.mlp import MLP

GAMMA, ALPHA = 0.9, 0.5


def batch_of(size=16, seed=0, weight=False):
    draw = np.random.default_rng(seed)
    numbers = {
        "observation": draw.normal(size=(size, 3)),
        "action": draw.integers(4, size=size),
        ("next", "observation"): draw.normal(size=(size, 3)),
        ("next", "reward"): draw.normal(size=size),
        ("next", "terminated"): draw.random(size) < 0.3,
        ("next", "steps"): draw.integers(1, 4, size=size),
    }
    numbers |= {"importance_weight": draw.random(size)} if weight else {}
    return TensorDict({key: torch.from_numpy(value) for key, value in numbers.items()}, [size])


class Linear:
    """``q = x W`` in numpy."""

    def __init__(self, seed):
        self.weight = np.random.default_rng(seed).normal(size=(3, 4))

    def tensor(self):
        return torch.from_numpy(self.weight.copy()).requires_grad_()


def by_hand(weight, target_weight, batch, function, alpha=ALPHA):
    """Both losses, sample by sample, in plain Python and numpy."""
    temporal, conservative = [], []
    for index in range(len(batch)):
        row = {key: batch.get(key)[index].numpy() for key in batch.keys(include_nested=True, leaves_only=True)}
        values = row["observation"] @ weight
        best = int(np.argmax(row["next", "observation"] @ weight))
        following = (row["next", "observation"] @ target_weight)[best]
        bootstrap = 0.0 if row["next", "terminated"] else GAMMA ** int(row["next", "steps"]) * following
        error = abs(values[row["action"]] - (row["next", "reward"] + bootstrap))
        share = row.get("importance_weight", 1.0)
        huber = error**2 / 2 if error < 1 else error - 0.5
        temporal.append(share * (error**2 if function == "l2" else huber))
        conservative.append(share * alpha * (np.log(np.sum(np.exp(values))) - values[row["action"]]))
    return np.mean(temporal), np.mean(conservative)


def evaluate(loss, online, target, batch):
    networks = {"q": lambda x: x @ online, "q_target": lambda x: x @ target}
    return loss.q(networks, batch, loss.hyper_parameters)


@pytest.mark.parametrize("weight", [False, True], ids=["alike", "weighted"])
@pytest.mark.parametrize("function", ["l2", "smooth_l1"])
def test_both_parts_are_those_of_the_formula_written_out_sample_by_sample(function, weight):
    online, target, batch = Linear(1), Linear(2), batch_of(weight=weight)
    output = evaluate(CQLLoss(GAMMA, True, function, ALPHA), online.tensor(), target.tensor(), batch)
    temporal, conservative = by_hand(online.weight, target.weight, batch, function)
    assert float(output["loss_q"].detach()) == pytest.approx(temporal, rel=1e-6)  # gamma ** steps is float32
    assert float(output["loss_conservative"].detach()) == pytest.approx(conservative, rel=1e-12)


def test_two_actions_of_one_state_by_hand():
    # Values 0 and log 3, data action 0: log(1 + 3) - 0 = log 4; half of it counts.
    values = torch.tensor([[0.0, np.log(3.0)]], dtype=torch.float64, requires_grad=True)
    batch = TensorDict({"observation": torch.zeros(1, 1), "action": torch.zeros(1, dtype=torch.int64)}, [1])
    batch["next"] = TensorDict(
        {"observation": torch.zeros(1, 1), "reward": torch.zeros(1), "terminated": torch.ones(1, dtype=torch.bool)}, [1]
    )
    loss = CQLLoss(GAMMA, True, "l2", 0.5)
    found = loss.q({"q": lambda x: values, "q_target": lambda x: values}, batch, loss.hyper_parameters)
    torch.testing.assert_close(found["loss_conservative"], torch.tensor(0.5 * np.log(4.0)))
    # d/dq of the gap is softmax - one-hot: (1/4 - 1, 3/4), halved. The temporal-difference error is 0.
    (gradient,) = torch.autograd.grad(found["loss_conservative"] + found["loss_q"], values)
    torch.testing.assert_close(gradient, torch.tensor([[-0.375, 0.375]], dtype=torch.float64))


def test_actions_that_cannot_be_taken_are_not_among_those_that_are_pushed_down():
    online, target, batch = Linear(1), Linear(2), batch_of()
    mask = np.random.default_rng(3).random((16, 4)) < 0.5
    mask[np.arange(16), batch["action"].numpy()] = True
    values = batch["observation"].numpy() @ online.weight
    expected = [
        np.log(np.exp(row[can]).sum()) - row[a] for row, can, a in zip(values, mask, batch["action"], strict=True)
    ]
    loss = CQLLoss(GAMMA, True, "l2", ALPHA)
    found = evaluate(loss, online.tensor(), target.tensor(), batch.set("action_mask", torch.from_numpy(mask)))
    assert float(found["loss_conservative"].detach()) == pytest.approx(ALPHA * np.mean(expected), rel=1e-12)


@pytest.mark.parametrize("function", ["l2", "smooth_l1"])
def test_the_gradient_is_that_of_finite_differences(function):
    online, target, batch = Linear(1), Linear(2), batch_of()
    weight = online.tensor()
    output = evaluate(CQLLoss(GAMMA, True, function, ALPHA), weight, target.tensor(), batch)
    (found,) = torch.autograd.grad(output["loss_q"] + output["loss_conservative"], weight)
    with torch.no_grad():  # the regression target stays where it was
        chosen = (batch["observation"] @ weight).gather(-1, batch["action"][:, None]).squeeze(-1)
        error = evaluate(DQNLoss(GAMMA, True, "l2"), weight, target.tensor(), batch)["td_error"]
        following = (batch["next", "observation"] @ target.tensor()).gather(
            -1, (batch["next", "observation"] @ weight).argmax(-1, keepdim=True)
        )
        bootstrap = torch.where(batch["next", "terminated"], 0.0, GAMMA ** batch["next", "steps"])
        fixed = (batch["next", "reward"] + bootstrap * following.squeeze(-1)).numpy()
        torch.testing.assert_close(error, (chosen - torch.from_numpy(fixed)).abs())

    def total(weights):
        values = batch["observation"].numpy() @ weights
        chosen = values[np.arange(16), batch["action"].numpy()]
        errors = np.abs(chosen - fixed)
        temporal = errors**2 if function == "l2" else np.where(errors < 1, errors**2 / 2, errors - 0.5)
        return np.mean(temporal + ALPHA * (np.log(np.exp(values).sum(-1)) - chosen))

    for place in np.ndindex(3, 4):
        step = np.zeros((3, 4))
        step[place] = 1e-6
        difference = (total(online.weight + step) - total(online.weight - step)) / 2e-6
        assert float(found[place]) == pytest.approx(difference, abs=1e-7)


def test_alpha_of_zero_is_the_parent():
    online, target, batch = Linear(1), Linear(2), batch_of()
    ours = evaluate(CQLLoss(GAMMA, True, "l2", 0.0), online.tensor(), target.tensor(), batch)
    theirs = evaluate(DQNLoss(GAMMA, True, "l2"), online.tensor(), target.tensor(), batch)
    assert torch.equal(ours["loss_q"], theirs["loss_q"])
    assert torch.equal(ours["td_error"], theirs["td_error"])
    assert float(ours["loss_conservative"].detach()) == 0


def test_many_runs_in_one_vmap_equal_a_loop_over_them():
    torch.manual_seed(0)
    nets, targets = ([MLP((3,), [8], 4, "tanh").double() for _ in range(3)] for _ in range(2))
    alphas, batches = torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64), [batch_of(seed=n) for n in range(3)]
    loss = CQLLoss(GAMMA, True, "smooth_l1", ALPHA)

    def total(output):
        return output["loss_q"] + output["loss_conservative"]

    def one_run(weights, target_weights, alpha, batch):
        seen = {
            "q": lambda x: functional_call(nets[0], weights, (x,)),
            "q_target": lambda x: functional_call(nets[0], target_weights, (x,)),
        }
        return total(loss.q(seen, batch, {"gamma": GAMMA, "alpha": alpha}))

    stacked = stack_module_state(nets)[0], stack_module_state(targets)[0], alphas, torch.stack(batches)
    gradients = vmap(grad(one_run))(*stacked)
    for run, (net, target) in enumerate(zip(nets, targets, strict=True)):
        settings = {"gamma": GAMMA, "alpha": alphas[run]}
        output = loss.q({"q": net, "q_target": target}, batches[run], settings)
        alone = torch.autograd.grad(total(output), list(net.parameters()))
        for (name, _), expected in zip(net.named_parameters(), alone, strict=True):
            torch.testing.assert_close(gradients[name][run], expected)
