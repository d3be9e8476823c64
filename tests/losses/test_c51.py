"""Distributions over values: their projection onto the atoms, and the loss that follows from it."""

from math import ceil, floor

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch.func import functional_call, grad, stack_module_state, vmap

from runner import returns
from runner.distributions import Argmax, ArgmaxOfMeans
from runner.learner.targets import FixedTarget
from runner.losses.c51 import C51Loss
from runner.networks.mlp import MLP
from runner.returns import project

GAMMA = 0.9


def slow_project(probabilities, values, v_min, v_max):
    """Algorithm 1 of Bellemare et al. 2017, one value after the other, with a place for values on an atom."""
    last = len(probabilities) - 1
    spacing = (v_max - v_min) / last
    found = [0.0] * (last + 1)
    for probability, value in zip(probabilities, values, strict=True):
        place = min(max((min(max(value, v_min), v_max) - v_min) / spacing, 0), last)
        low, high = floor(place), ceil(place)
        if low == high:
            found[low] += probability
        else:
            found[low] += probability * (high - place)
            found[high] += probability * (place - low)
    return found


def without_a_place_for_values_on_an_atom(probabilities, values, v_min, v_max):
    """As it is printed, and as ALL has it: both shares are 0 where ``low == high``."""
    last = probabilities.shape[-1] - 1
    place = (values.clamp(v_min, v_max) - v_min) / ((v_max - v_min) / last)
    low, high = place.floor(), place.ceil()
    found = torch.zeros_like(probabilities)
    found.scatter_add_(-1, low.long(), probabilities * (high - place))
    return found.scatter_add_(-1, high.long(), probabilities * (place - low))


def row_by_row(probabilities, values, v_min, v_max):
    rows = zip(probabilities.tolist(), values.tolist(), strict=True)
    return torch.tensor([slow_project(*row, v_min, v_max) for row in rows], dtype=torch.float64)


def drawn(rows, atoms, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, atoms, generator=generator, dtype=torch.float64)
    return logits.softmax(-1), generator


@pytest.fixture(params=["by index", "by distance"])
def form(request, monkeypatch):
    """That of the CPU, and that of a GPU on the CPU."""
    if request.param == "by distance":
        monkeypatch.setattr(returns, "_share_by_index", returns._share_by_distance)
    return request.param


@pytest.mark.parametrize(
    ("atoms", "v_min", "v_max"), [(2, 0.0, 1.0), (3, -1.0, 1.0), (51, -10.0, 10.0), (51, 0.0, 100.0), (7, -0.3, 41.7)]
)
@pytest.mark.parametrize("kind", ["anywhere", "bellman", "on atoms", "one value", "beyond the ends"])
def test_projected_distributions_have_all_mass_and_are_those_of_a_slow_loop(form, atoms, v_min, v_max, kind):
    probabilities, generator = drawn(500, atoms)
    width, support = v_max - v_min, torch.linspace(v_min, v_max, atoms, dtype=torch.float64)
    one = v_min + width * (3 * torch.rand(500, 1, generator=generator, dtype=torch.float64) - 1)
    values = {
        "anywhere": v_min + width * (3 * torch.rand(500, atoms, generator=generator, dtype=torch.float64) - 1),
        "bellman": one + torch.rand(500, 1, generator=generator, dtype=torch.float64) * support,
        "on atoms": support[torch.randint(atoms, (500, atoms), generator=generator)],
        "one value": one.expand(500, atoms),  # a terminal transition: the reward, whatever the distribution
        "beyond the ends": torch.where(probabilities < 1 / atoms, v_min - 2 * width, v_max + 1e9),
    }[kind]
    found = project(probabilities, values, v_min, v_max)
    torch.testing.assert_close(found, row_by_row(probabilities, values, v_min, v_max), rtol=0, atol=1e-10)
    assert (found.sum(-1) - 1).abs().max() < 1e-12
    assert (found >= 0).all()
    single = project(probabilities.float(), values.float(), v_min, v_max)
    assert (single.sum(-1) - 1).abs().max() < 1e-6
    assert (single >= 0).all()


def test_a_shrunk_and_shifted_distribution_by_hand(form):
    # Atoms 0, 1, 2. r = 0.5, gamma 0.5: values 0.5, 1, 1.5; the outer two are shared half and half.
    found = project(torch.tensor([0.25, 0.5, 0.25]), 0.5 + 0.5 * torch.tensor([0.0, 1.0, 2.0]), 0.0, 2.0)
    assert found.tolist() == [0.125, 0.75, 0.125]
    # Three quarters of the way from 1 to 2, and beyond 2.
    found = project(torch.tensor([0.0, 0.4, 0.6]), torch.tensor([9.0, 1.75, 2.5]), 0.0, 2.0)
    torch.testing.assert_close(found, torch.tensor([0.0, 0.1, 0.9]))


SUPPORT = torch.linspace(-1, 1, 5)
ON_ATOMS = {
    "its own support": SUPPORT,
    "shifted by one atom": SUPPORT + 0.5,
    "terminal without reward": torch.zeros(5),
    "terminal on an edge": torch.ones(5),
    "below all atoms": torch.full((5,), -7.0),
    "above all atoms": torch.full((5,), 7.0),
}


@pytest.mark.parametrize("values", ON_ATOMS.values(), ids=ON_ATOMS)
def test_no_mass_is_lost_where_values_lie_on_atoms_as_it_is_without_a_rule_for_them(form, values):
    probabilities = torch.tensor([0.1, 0.2, 0.4, 0.2, 0.1])
    expected = torch.tensor(slow_project(probabilities.tolist(), values.tolist(), -1, 1))
    torch.testing.assert_close(project(probabilities, values, -1, 1), expected)
    assert expected.sum() == pytest.approx(1, abs=1e-6)
    assert without_a_place_for_values_on_an_atom(probabilities, values, -1, 1).sum() == 0


def test_a_distribution_on_its_own_support_stays_as_it_is():
    probabilities = drawn(100, 51)[0].float()
    torch.testing.assert_close(
        project(probabilities, torch.linspace(-10, 10, 51).expand(100, 51), -10, 10), probabilities, rtol=0, atol=1e-5
    )


def test_the_mean_is_kept_where_nothing_lies_beyond_the_ends():
    probabilities, generator = drawn(100, 11)
    values = torch.rand(100, 11, generator=generator, dtype=torch.float64) * 4 - 1
    found = project(probabilities, values, -1.0, 3.0)
    torch.testing.assert_close(found @ torch.linspace(-1, 3, 11).double(), (probabilities * values).sum(-1))


def test_values_that_are_the_same_in_all_rows_are_given_once(form):
    probabilities, values = drawn(6, 5)[0], torch.linspace(-1.3, 1.1, 5).double()
    for given in (values, values[:1]):
        whole = project(probabilities, given.expand(6, 5).clone(), -1, 1)
        assert torch.equal(project(probabilities, given, -1, 1), whole)


def test_values_that_are_no_numbers_are_seen(form):
    assert project(torch.tensor([0.5, 0.5]), torch.tensor([torch.nan, 0.0]), 0, 1).isnan().any()


def test_leading_dimensions_and_vmap_make_no_difference(form):
    probabilities, values = drawn(6, 5)[0], 3 * torch.randn(6, 5, dtype=torch.float64)
    flat = project(probabilities, values, -1, 1)
    shaped = project(probabilities.view(2, 3, 5), values.view(2, 3, 5), -1, 1)
    assert torch.equal(shaped, flat.view(2, 3, 5))
    assert torch.equal(vmap(lambda p, v: project(p, v, -1, 1))(probabilities, values), flat)


# Three atoms, 0, 1 and 2; two actions; log-probabilities by state and action.
ATOMS = ArgmaxOfMeans(2, 3, 0.0, 2.0)
ONLINE = [[[0.2, 0.3, 0.5], [0.25, 0.5, 0.25]], [[0.0, 0.2, 0.8], [0.6, 0.2, 0.2]]]
"""In state 1 action 0 has the larger mean, 1.8 against 0.6."""
TARGET = [[[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]], [[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]]]
"""In state 1 action 1 has the larger mean, 1.5 against 0.5."""


def table(probabilities):
    logits = torch.tensor(probabilities).clamp(min=1e-30).log().reshape(2, 6) + 5  # only differences count
    return logits.requires_grad_()


def transitions(terminated=(False,), reward=(0.5,), **more):
    """State 0, action 1, then state 1: one row for each entry of ``terminated``; ``more``: entries of ``next``."""
    size = len(terminated)
    following = {
        "observation": torch.ones(size, dtype=torch.int64),
        "reward": torch.tensor(reward).expand(size).clone(),
        "terminated": torch.tensor(terminated),
        "truncated": torch.zeros(size, dtype=torch.bool),
        **{name: torch.tensor(value) for name, value in more.items()},
    }
    now = {"observation": torch.zeros(size, dtype=torch.int64), "action": torch.ones(size, dtype=torch.int64)}
    return TensorDict({**now, "next": TensorDict(following, [size])}, [size])


def evaluate(batch, double=True, online=None, target=None):
    online, target = table(ONLINE) if online is None else online, table(TARGET) if target is None else target
    loss = C51Loss(ATOMS, GAMMA, double)
    return loss.q_dist(
        {"q_dist": lambda state: online[state], "q_dist_target": lambda state: target[state]},
        batch,
        loss.hyper_parameters,
    )


def cross_entropy(target, probabilities=(0.25, 0.5, 0.25)):
    return -sum(m * np.log(p) for m, p in zip(target, probabilities, strict=True))


def divergence(target, probabilities=(0.25, 0.5, 0.25)):
    return cross_entropy(target, probabilities) - cross_entropy([m for m in target if m], [m for m in target if m])


CASES = {
    # The target network's action 1: half at 0.5 + 0.9 = 1.4, half at 0.5 + 1.8, which is cut to 2.
    "plain": (transitions(), False, [0.0, 0.5 * 0.6, 0.5 * 0.4 + 0.5]),
    # The online network's action 0, as the target network sees it: half at 0.5, half at 1.4.
    "double": (transitions(), True, [0.25, 0.25 + 0.5 * 0.6, 0.5 * 0.4]),
    "terminal": (transitions([True]), True, [0.5, 0.5, 0.0]),
    "terminal on an atom": (transitions([True], [1.0]), True, [0.0, 1.0, 0.0]),
    "terminal beyond the ends": (transitions([True], [-3.0]), True, [1.0, 0.0, 0.0]),
    "truncated": (transitions(truncated=[True]), True, [0.25, 0.25 + 0.5 * 0.6, 0.5 * 0.4]),
    # 0.9^2 = 0.81: half at 0.5, half at 1.31.
    "two steps": (transitions(steps=[2]), True, [0.25, 0.25 + 0.5 * 0.69, 0.5 * 0.31]),
    # Action 0 of the online network, which it likes best, cannot be taken: action 1.
    "masked": (transitions(action_mask=[[False, True]]), True, [0.0, 0.5 * 0.6, 0.5 * 0.4 + 0.5]),
    "masked plain": (transitions(action_mask=[[True, False]]), False, [0.25, 0.25 + 0.5 * 0.6, 0.5 * 0.4]),
}


@pytest.mark.parametrize(("batch", "double", "target"), CASES.values(), ids=CASES)
def test_one_transition_by_hand(batch, double, target):
    output = evaluate(batch, double)
    assert float(output["loss_q_dist"].detach()) == pytest.approx(cross_entropy(target), rel=1e-5)
    assert output["td_error"].tolist() == pytest.approx([divergence(target)], rel=1e-4)


def test_how_far_returns_lie_beyond_the_ends_is_told():
    # Half at 0.5 + 1.8, which is 0.3 above 2; a reward of -3 at an end; nothing.
    for batch, double, expected in (
        (transitions(), False, 0.15),
        (transitions([True], [-3.0]), True, 3.0),
        (transitions([True, True], [-3.0, 1.0]), True, 1.5),
        (transitions(), True, 0.0),
    ):
        assert float(evaluate(batch, double)["beyond_ends"]) == pytest.approx(expected, rel=1e-5)


def test_the_loss_is_the_mean_over_the_batch_and_weights_multiply_what_it_is_of():
    rows = [True, True, False], [0.5, 1.0, 0.5]
    targets = [[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.25, 0.55, 0.2]]
    plain = evaluate(transitions(*rows))
    assert float(plain["loss_q_dist"].detach()) == pytest.approx(np.mean([cross_entropy(one) for one in targets]))
    weighted = evaluate(transitions(*rows).set("importance_weight", torch.tensor([1.0, 0.5, 0.0])))
    expected = (cross_entropy(targets[0]) + 0.5 * cross_entropy(targets[1])) / 3
    assert float(weighted["loss_q_dist"].detach()) == pytest.approx(expected)
    assert torch.equal(weighted["td_error"], plain["td_error"])
    assert plain["loss_q_dist"].shape == ()
    assert plain["loss_q_dist"].requires_grad
    assert not plain["td_error"].requires_grad


def test_the_error_is_zero_where_nothing_is_left_to_learn():
    online = table([[[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]], [[1.0, 0.0, 0.0]] * 2])
    output = evaluate(transitions([True]), online=online)  # a reward of 0.5, which is what the network says
    assert output["td_error"].tolist() == pytest.approx([0], abs=1e-6)
    assert output["td_error"] >= 0
    (gradient,) = torch.autograd.grad(output["loss_q_dist"], online)
    torch.testing.assert_close(gradient, torch.zeros(2, 6))


def test_the_error_is_never_negative_by_rounding():
    network = MLP((3,), [8], FIVE.size, "tanh")
    batch = random_batch(2000).float()  # of states that lead to themselves, for nothing
    batch["next", "observation"] = batch["observation"]
    batch["next", "reward"], batch["next", "terminated"] = torch.zeros(2000), torch.zeros(2000, dtype=torch.bool)
    batch["action"] = FIVE.mode(network(batch["observation"]))
    loss = C51Loss(FIVE, 1.0)
    error = loss.q_dist({"q_dist": network, "q_dist_target": network}, batch, loss.hyper_parameters)["td_error"]
    assert ((error >= 0) & (error < 1e-5)).all()


@pytest.mark.parametrize("double", [False, True])
def test_gradients_reach_the_distribution_of_the_action_taken_and_nothing_else(double):
    online, target = table(ONLINE), table(TARGET)
    evaluate(transitions(), double, online, target)["loss_q_dist"].backward()
    # Of a cross-entropy by its logits: what is said, less what it should be.
    aim = torch.tensor(CASES["double" if double else "plain"][2])
    expected = torch.zeros(2, 2, 3)
    expected[0, 1] = torch.tensor([0.25, 0.5, 0.25]) - aim
    torch.testing.assert_close(online.grad, expected.view(2, 6))
    assert target.grad is None


def test_the_batch_is_not_written_into():
    batch = transitions([False, True], steps=[2, 1])
    before = batch.clone()
    evaluate(batch)
    assert set(batch.keys(True, True)) == set(before.keys(True, True))
    assert (batch == before).all()


def test_sequences_are_so_many_transitions():
    flat = transitions([False, True, False, True], [0.5, 1.0, 1.5, 2.0])
    ours, theirs = evaluate(flat.reshape(2, 2)), evaluate(flat)
    torch.testing.assert_close(ours["td_error"], theirs["td_error"].view(2, 2))
    torch.testing.assert_close(ours["loss_q_dist"], theirs["loss_q_dist"])


@pytest.mark.parametrize("key", [("next", "reward"), ("next", "terminated"), ("next", "steps")])
def test_a_column_where_a_row_belongs_is_refused(key):
    batch = transitions([False, True], steps=[1, 1])
    batch.set(key, batch.get(key).unsqueeze(-1))
    with pytest.raises(ValueError, match=r"must have the shape of the action, \[2\]; .* \[2, 2\]"):
        evaluate(batch)


def test_a_column_of_weights_is_refused():
    batch = transitions([False, True]).set("importance_weight", torch.ones(2, 1))
    with pytest.raises(ValueError, match=r"importance_weight must have the shape \[2\], not \[2, 1\]"):
        evaluate(batch)


def test_a_network_of_values_is_refused():
    with pytest.raises(ValueError, match="this network says none: network=q_dist"):
        C51Loss(Argmax(2))


K, ACTIONS = 5, 4
FIVE = ArgmaxOfMeans(ACTIONS, K, -2.0, 3.0)


def random_batch(size=16, seed=0, weight=False, mask=False):
    draw = np.random.default_rng(seed)
    numbers = {
        "observation": draw.normal(size=(size, 3)),
        "action": draw.integers(ACTIONS, size=size),
        ("next", "observation"): draw.normal(size=(size, 3)),
        ("next", "reward"): np.round(2 * draw.normal(size=size), 1),
        ("next", "terminated"): draw.random(size) < 0.3,
        ("next", "steps"): draw.integers(1, 4, size=size),
    }
    if mask:
        can = draw.random((size, ACTIONS)) < 0.5
        can[:, draw.integers(ACTIONS)] = True
        numbers["next", "action_mask"] = can
    numbers |= {"importance_weight": draw.random(size)} if weight else {}
    return TensorDict({key: torch.from_numpy(value) for key, value in numbers.items()}, [size])


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def by_hand(weight, target_weight, batch, double):
    """Loss, divergences and gradient by the weights, sample by sample, in plain Python and numpy."""
    atoms = [-2.0, -0.75, 0.5, 1.75, 3.0]
    losses, divergences, gradient = [], [], np.zeros_like(weight)
    for index in range(len(batch)):
        row = {key: batch.get(key)[index].numpy() for key in batch.keys(include_nested=True, leaves_only=True)}
        following = row["next", "observation"]
        judge = weight if double else target_weight
        means = softmax((following @ judge).reshape(ACTIONS, K)) @ atoms
        best = max(np.flatnonzero(row.get(("next", "action_mask"), np.ones(ACTIONS))), key=lambda a: means[a])
        discount = 0.0 if row["next", "terminated"] else GAMMA ** int(row["next", "steps"])
        values = [row["next", "reward"] + discount * atom for atom in atoms]
        probabilities = softmax((following @ target_weight).reshape(ACTIONS, K)[best])
        aim = np.array(slow_project(probabilities, values, -2.0, 3.0))
        said = softmax((row["observation"] @ weight).reshape(ACTIONS, K)[row["action"]])
        share = row.get("importance_weight", 1.0)
        losses.append(-share * np.sum(aim * np.log(said)))
        divergences.append(sum(m * np.log(m / p) for m, p in zip(aim, said, strict=True) if m > 0))
        columns = slice(K * row["action"], K * (row["action"] + 1))
        gradient[:, columns] += share * np.outer(row["observation"], said - aim) / len(batch)
    return np.mean(losses), divergences, gradient


@pytest.mark.parametrize("mask", [False, True], ids=["all actions", "masked"])
@pytest.mark.parametrize("weight", [False, True], ids=["alike", "weighted"])
@pytest.mark.parametrize("double", [False, True], ids=["plain", "double"])
def test_loss_error_and_gradient_are_those_of_a_written_out_loop(double, weight, mask):
    draw = np.random.default_rng(1)
    online, target = (draw.normal(size=(3, ACTIONS * K)) for _ in range(2))
    batch = random_batch(64, weight=weight, mask=mask)
    ours, loss = torch.from_numpy(online.copy()).requires_grad_(), C51Loss(FIVE, GAMMA, double)
    networks = {"q_dist": lambda x: x @ ours, "q_dist_target": lambda x: x @ torch.from_numpy(target)}
    output = loss.q_dist(networks, batch, loss.hyper_parameters)
    expected, divergences, gradient = by_hand(online, target, batch, double)
    # The discount of several steps is a float32.
    assert float(output["loss_q_dist"].detach()) == pytest.approx(expected, rel=1e-6)
    assert output["td_error"].tolist() == pytest.approx(divergences, abs=1e-5)
    (found,) = torch.autograd.grad(output["loss_q_dist"], ours)
    np.testing.assert_allclose(found.numpy(), gradient, atol=1e-6)


def test_a_projection_that_loses_mass_is_noticed(monkeypatch):
    monkeypatch.setattr("runner.losses.c51.project", without_a_place_for_values_on_an_atom)
    output = evaluate(*CASES["terminal on an atom"][:2])
    assert float(output["loss_q_dist"].detach()) == 0  # where it is log 2: nothing would be learnt from such ends


@pytest.mark.parametrize("double", [False, True])
def test_many_runs_in_one_vmap_equal_a_loop_over_them(double):
    torch.manual_seed(0)
    nets, targets = ([MLP((3,), [8], FIVE.size, "tanh").double() for _ in range(3)] for _ in range(2))
    gammas = torch.tensor([0.5, 0.9, 0.99], dtype=torch.float64)
    batches = [random_batch(seed=seed) for seed in range(3)]
    loss = C51Loss(FIVE, GAMMA, double)

    def one_run(weights, target_weights, gamma, batch):
        seen = {
            "q_dist": lambda x: functional_call(nets[0], weights, (x,)),
            "q_dist_target": lambda x: functional_call(nets[0], target_weights, (x,)),
        }
        output = loss.q_dist(seen, batch, {"gamma": gamma})
        return output["loss_q_dist"], output["td_error"]

    stacked = stack_module_state(nets)[0], stack_module_state(targets)[0], gammas, torch.stack(batches)
    gradients, errors = vmap(grad(one_run, has_aux=True))(*stacked)
    for run, (net, target) in enumerate(zip(nets, targets, strict=True)):
        output = loss.q_dist({"q_dist": net, "q_dist_target": target}, batches[run], {"gamma": gammas[run]})
        torch.testing.assert_close(errors[run], output["td_error"])
        alone = torch.autograd.grad(output["loss_q_dist"], list(net.parameters()))
        for (name, _), expected in zip(net.named_parameters(), alone, strict=True):
            torch.testing.assert_close(gradients[name][run], expected)


def test_a_target_network_takes_the_place_of_a_callable():
    online, target = MLP((3,), [8], FIVE.size, "relu").double(), FixedTarget(1)
    target.init(online)
    loss = C51Loss(FIVE, GAMMA, True)
    ours = loss.q_dist({"q_dist": online, "q_dist_target": target}, random_batch(), loss.hyper_parameters)
    theirs = loss.q_dist({"q_dist": online, "q_dist_target": online}, random_batch(), loss.hyper_parameters)
    assert torch.equal(ours["td_error"], theirs["td_error"])
