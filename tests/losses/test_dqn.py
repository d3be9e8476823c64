import pytest
import torch
from tensordict import TensorDict
from torch.func import functional_call, grad, stack_module_state, vmap

from runner.learner.targets import FixedTarget
from runner.losses.dqn import DQNLoss
from runner.networks.mlp import MLP

GAMMA = 0.9


def tables():
    """Values by state and action. In state 1 the online table prefers action 0 (5 > 3), the target one 1 (11 > 7)."""
    online = torch.tensor([[1.0, 2.0], [5.0, 3.0]], requires_grad=True)
    target = torch.tensor([[0.0, 0.0], [7.0, 11.0]], requires_grad=True)
    return online, target


def networks(online, target):
    return {"q": lambda state: online[state], "q_target": lambda state: target[state]}


def transitions(terminated=(False,), truncated=None, reward=(0.5,), steps=None):
    """State 0, action 1 (worth 2 online), then state 1: one row for each entry of ``terminated``."""
    size = len(terminated)
    following = {
        "observation": torch.ones(size, dtype=torch.int64),
        "reward": torch.tensor(reward).expand(size).clone(),
        "terminated": torch.tensor(terminated),
        "truncated": torch.tensor(truncated or [False] * size),
    }
    if steps is not None:
        following["steps"] = torch.tensor(steps)
    now = {"observation": torch.zeros(size, dtype=torch.int64), "action": torch.ones(size, dtype=torch.int64)}
    return TensorDict({**now, "next": TensorDict(following, [size])}, [size])


def evaluate(batch, double=True, function="l2"):
    loss = DQNLoss(GAMMA, double, function)
    return loss.q(networks(*tables()), batch, loss.hyper_parameters)


def test_plain_takes_the_largest_value_of_the_target_network():
    # target 0.5 + 0.9 * max(7, 11) = 10.4; error 2 - 10.4 = -8.4
    torch.testing.assert_close(evaluate(transitions(), double=False)["td_error"], torch.tensor([8.4]))


def test_double_takes_the_action_of_the_online_and_the_value_of_the_target_network():
    # online prefers action 0, which the target network values 7: 0.5 + 0.9 * 7 = 6.8; error 2 - 6.8 = -4.8
    torch.testing.assert_close(evaluate(transitions(), double=True)["td_error"], torch.tensor([4.8]))


def test_terminal_cuts_the_bootstrap():
    # target 0.5 alone; error 2 - 0.5 = 1.5, where without the cut it would be 4.8
    torch.testing.assert_close(evaluate(transitions(terminated=[True]))["td_error"], torch.tensor([1.5]))


def test_truncation_keeps_the_bootstrap():
    torch.testing.assert_close(evaluate(transitions(truncated=[True]))["td_error"], torch.tensor([4.8]))


def test_steps_discount_by_gamma_to_their_power():
    # 0.5 + 0.9^3 * 7 = 5.603, error 3.603; one step 4.8 as before; a terminal window has no bootstrap, error 1.5
    batch = transitions(terminated=[False, False, True], steps=[3, 1, 3])
    torch.testing.assert_close(evaluate(batch)["td_error"], torch.tensor([3.603, 4.8, 1.5]))


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        # errors -4.8, 1.5 and (reward 1.6, terminal) 0.4
        ("l2", (4.8**2 + 1.5**2 + 0.4**2) / 3),  # (23.04 + 2.25 + 0.16) / 3 = 8.4833
        ("smooth_l1", ((4.8 - 0.5) + (1.5 - 0.5) + 0.5 * 0.4**2) / 3),  # |e| - 1/2 beyond 1, else e^2 / 2: 5.38 / 3
    ],
)
def test_loss_is_the_mean_over_the_batch(function, expected):
    batch = transitions(terminated=[False, True, True], reward=[0.5, 0.5, 1.6])
    torch.testing.assert_close(evaluate(batch, function=function)["loss_q"], torch.tensor(expected))


def weighted(weight):
    batch = transitions(terminated=[False, True, True], reward=[0.5, 0.5, 1.6])
    return batch.set("importance_weight", torch.tensor(weight))


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        # errors -4.8, 1.5 and 0.4 as above, weighing 1, 0.5 and 0
        ("l2", (4.8**2 + 0.5 * 1.5**2) / 3),  # (23.04 + 1.125) / 3 = 8.055
        ("smooth_l1", ((4.8 - 0.5) + 0.5 * (1.5 - 0.5)) / 3),  # 4.8 / 3 = 1.6
    ],
)
def test_importance_weights_multiply_the_loss_of_each_sample(function, expected):
    output = evaluate(weighted([1.0, 0.5, 0.0]), function=function)
    torch.testing.assert_close(output["loss_q"], torch.tensor(expected))
    torch.testing.assert_close(output["td_error"], torch.tensor([4.8, 1.5, 0.4]))


@pytest.mark.parametrize("function", ["l2", "smooth_l1"])
def test_weights_of_one_change_nothing(function):
    plain = transitions(terminated=[False, True, True], reward=[0.5, 0.5, 1.6])
    torch.testing.assert_close(
        evaluate(weighted([1.0] * 3), function=function)["loss_q"], evaluate(plain, function=function)["loss_q"]
    )


def test_a_column_of_weights_is_refused():
    with pytest.raises(ValueError, match=r"importance_weight must have the shape \[3\], not \[3, 1\]"):
        evaluate(weighted([[1.0], [0.5], [0.0]]))


def test_sequences_are_so_many_transitions():
    flat = transitions(terminated=[False, True, False, True], reward=[0.5, 1.0, 1.5, 2.0])
    ours, theirs = evaluate(flat.reshape(2, 2)), evaluate(flat)
    torch.testing.assert_close(ours["td_error"], theirs["td_error"].view(2, 2))
    torch.testing.assert_close(ours["loss_q"], theirs["loss_q"])


@pytest.mark.parametrize("double", [False, True])
def test_no_gradient_reaches_the_regression_target(double):
    online, target = tables()
    loss = DQNLoss(GAMMA, double, "l2")
    loss.q(networks(online, target), transitions(), loss.hyper_parameters)["loss_q"].backward()
    error = -4.8 if double else -8.4
    # d(error^2)/dq(0, 1) = 2 * error; the online values of state 1 only choose an action
    torch.testing.assert_close(online.grad, torch.tensor([[0.0, 2 * error], [0.0, 0.0]]))
    assert target.grad is None


def test_td_error_is_absolute_per_sample_and_detached():
    output = evaluate(transitions(terminated=[False, True, False], reward=[0.5, 0.5, -10.0]))
    # -10 + 6.3 = -3.7, error 5.7: of the other sign than the first two
    torch.testing.assert_close(output["td_error"], torch.tensor([4.8, 1.5, 5.7]))
    assert not output["td_error"].requires_grad
    assert output["loss_q"].requires_grad
    assert output["loss_q"].shape == ()


def test_the_batch_is_not_written_into():
    batch = transitions(terminated=[False, True], steps=[2, 1])
    before = batch.clone()
    evaluate(batch)
    assert set(batch.keys(True, True)) == set(before.keys(True, True))
    assert (batch == before).all()


@pytest.mark.parametrize("key", [("next", "reward"), ("next", "terminated"), ("next", "steps")])
def test_a_column_where_a_row_belongs_is_refused(key):
    # [B] + [B, 1] would broadcast to [B, B] and train on every reward paired with every value
    batch = transitions(terminated=[False, True], steps=[1, 1])
    batch.set(key, batch.get(key).unsqueeze(-1))
    with pytest.raises(ValueError, match=r"\[2\].*\[2, 2\]"):
        evaluate(batch)


def test_an_action_column_is_refused():
    batch = transitions(terminated=[False, True])
    batch.set("action", batch.get("action").unsqueeze(-1))
    with pytest.raises(RuntimeError):
        evaluate(batch)


def random_batch(size=16):
    return TensorDict(
        {
            "observation": torch.randn(size, 3, dtype=torch.float64),
            "action": torch.randint(0, 4, (size,)),
            "next": TensorDict(
                {
                    "observation": torch.randn(size, 3, dtype=torch.float64),
                    "reward": torch.randn(size, dtype=torch.float64),
                    "terminated": torch.rand(size) < 0.3,
                    "steps": torch.randint(1, 4, (size,)),
                },
                [size],
            ),
        },
        [size],
    )


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("function", ["l2", "smooth_l1"])
def test_many_runs_in_one_vmap_equal_a_loop_over_them(double, function):
    torch.manual_seed(0)
    nets = [MLP((3,), [8], 4, "tanh").double() for _ in range(3)]
    targets = [MLP((3,), [8], 4, "tanh").double() for _ in range(3)]
    gammas = torch.tensor([0.5, 0.9, 0.99], dtype=torch.float64)
    batches = [random_batch() for _ in range(3)]
    loss = DQNLoss(GAMMA, double, function)

    def one_run(weights, target_weights, gamma, batch):
        seen = {
            "q": lambda x: functional_call(nets[0], weights, (x,)),
            "q_target": lambda x: functional_call(nets[0], target_weights, (x,)),
        }
        output = loss.q(seen, batch, {"gamma": gamma})
        return output["loss_q"], output["td_error"]

    stacked = stack_module_state(nets)[0], stack_module_state(targets)[0], gammas, torch.stack(batches)
    gradients, errors = vmap(grad(one_run, has_aux=True))(*stacked)
    for run, (net, target) in enumerate(zip(nets, targets, strict=True)):
        output = loss.q({"q": net, "q_target": target}, batches[run], {"gamma": gammas[run]})
        torch.testing.assert_close(errors[run], output["td_error"])
        alone = torch.autograd.grad(output["loss_q"], list(net.parameters()))
        for (name, _), expected in zip(net.named_parameters(), alone, strict=True):
            torch.testing.assert_close(gradients[name][run], expected)


def test_a_target_network_takes_the_place_of_a_callable():
    online = MLP((3,), [8], 4, "relu").double()
    target = FixedTarget(1)
    target.init(online)
    batch = random_batch()
    loss = DQNLoss(GAMMA, True, "l2")
    output = loss.q({"q": online, "q_target": target}, batch, loss.hyper_parameters)
    with torch.no_grad():
        rows = torch.arange(16)
        value = online(batch["next", "observation"]).max(-1).values  # a fresh copy: both networks are the same
        following = batch["next"]
        discount = torch.where(following["terminated"], 0.0, GAMMA ** following["steps"])
        expected = online(batch["observation"])[rows, batch["action"]] - following["reward"] - discount * value
    torch.testing.assert_close(output["td_error"], expected.abs(), rtol=1e-6, atol=1e-6)
