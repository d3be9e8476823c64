import numpy as np
import pytest
import torch
from torch.func import functional_call, grad, stack_module_state, vmap

from runner.losses.sac import SACLoss
from runner.networks.continuous import make_stochastic_policy_and_values
from tests.losses.parts import HIGH, LOW, SPEC, arrays, as_numpy, members_as_numpy, transitions, with_noise

GAMMA, ALPHA = 0.9, 0.3
TERMS = ("critic", "actor", "alpha")


def made(seed=0, **options):
    torch.manual_seed(seed)
    networks = make_stochastic_policy_and_values(SPEC, [8, 8], "relu", temperature=ALPHA)
    target = make_stochastic_policy_and_values(SPEC, [8, 8], "relu")["q"]
    loss = SACLoss(networks["policy"].distribution, GAMMA, options.pop("target_entropy", None), True)
    return loss, {**networks, "q_target": target}


def call(loss, networks, batch, term):
    return loss.terms[term](networks, batch, loss.hyper_parameters)


def sampled(outputs, noise):
    """By the rule for densities of transformed variables, in numpy: actions, and densities of them in [-1, 1]."""
    mean, log_std = outputs[:, :2], outputs[:, 2:].clip(-5, 2)
    before = mean + np.exp(log_std) * noise
    squashed = np.tanh(before)
    density = np.exp(-0.5 * noise**2) / np.sqrt(2 * np.pi) / np.exp(log_std) / (1 - squashed**2)
    return (LOW + HIGH) / 2 + (HIGH - LOW) / 2 * squashed, np.log(density.prod(-1))


def regression_target(networks, batch, discount=GAMMA):
    following, reward, noise = arrays(batch, ("next", "observation"), ("next", "reward"), ("noise", "next_action"))
    action, log_prob = sampled(as_numpy(networks["policy"])(following), noise)
    first, second = (member(following, action) for member in members_as_numpy(networks["q_target"]))
    alive = ~batch["next", "terminated"].numpy()
    return reward + discount * alive * (np.minimum(first, second) - ALPHA * log_prob)


def test_values_are_regressed_on_the_soft_value_of_the_next_state():
    loss, networks = made()
    batch = with_noise(loss, transitions())
    assert batch["next", "terminated"].any()
    target = regression_target(networks, batch)
    values = [member(*arrays(batch, "observation", "action")) for member in members_as_numpy(networks["q"])]
    expected = sum(0.5 * np.mean((value - target) ** 2) for value in values)
    output = call(loss, networks, batch, "critic")
    np.testing.assert_allclose(output["loss_critic"].item(), expected, rtol=1e-5)
    errors = np.mean([abs(value - target) for value in values], 0)
    np.testing.assert_allclose(output["td_error"].numpy(), errors, rtol=1e-4, atol=1e-6)


def test_several_steps_discount_by_gamma_to_their_power():
    loss, networks = made()
    steps = torch.tensor([1, 2, 3, 3, 2, 1, 1, 2])
    batch = with_noise(loss, transitions(steps=steps))
    target = regression_target(networks, batch, GAMMA ** steps.numpy())
    values = [member(*arrays(batch, "observation", "action")) for member in members_as_numpy(networks["q"])]
    errors = np.mean([abs(value - target) for value in values], 0)
    np.testing.assert_allclose(call(loss, networks, batch, "critic")["td_error"].numpy(), errors, rtol=1e-4, atol=1e-6)


def test_the_policy_is_drawn_to_the_smaller_value_and_to_entropy():
    loss, networks = made()
    batch = with_noise(loss, transitions())
    (observation, noise) = arrays(batch, "observation", ("noise", "action"))
    action, log_prob = sampled(as_numpy(networks["policy"])(observation), noise)
    values = np.minimum(*(member(observation, action) for member in members_as_numpy(networks["q"])))
    output = call(loss, networks, batch, "actor")
    np.testing.assert_allclose(output["loss_actor"].item(), np.mean(ALPHA * log_prob - values), rtol=1e-5)
    np.testing.assert_allclose(output["policy_log_prob"].numpy(), log_prob, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(output["entropy"].item(), -log_prob.mean(), rtol=1e-5)
    np.testing.assert_allclose(output["alpha"].item(), ALPHA, rtol=1e-6)


@pytest.mark.parametrize(("target_entropy", "expected"), [(None, -2.0), (0.5, 0.5)])
def test_the_temperature_rises_as_long_as_the_entropy_is_below_its_target(target_entropy, expected):
    loss, networks = made(target_entropy=target_entropy)
    batch = with_noise(loss, transitions())
    batch.set("policy_log_prob", torch.linspace(-1, 2, 8))  # mean 0.5: an entropy of -0.5
    output = call(loss, networks, batch, "alpha")
    # loss = -log(alpha) * (0.5 + target); its derivative by log(alpha) is -(0.5 + target)
    np.testing.assert_allclose(output["loss_alpha"].item(), -np.log(ALPHA) * (0.5 + expected), rtol=1e-5)
    (gradient,) = torch.autograd.grad(output["loss_alpha"], networks["log_alpha"].log)
    np.testing.assert_allclose(gradient.item(), -(0.5 + expected), rtol=1e-5)


def test_the_temperature_asks_the_policy_itself_where_the_actor_had_no_turn():
    loss, networks = made()
    batch = with_noise(loss, transitions())
    alone = call(loss, networks, batch, "alpha")["loss_alpha"]
    batch.set("policy_log_prob", call(loss, networks, batch, "actor")["policy_log_prob"])
    torch.testing.assert_close(alone, call(loss, networks, batch, "alpha")["loss_alpha"])


@pytest.mark.parametrize(("term", "moved"), [("critic", "q"), ("alpha", "log_alpha")])
def test_gradients_of_a_term_reach_the_networks_of_its_stage_alone(term, moved):
    loss, networks = made()
    batch = with_noise(loss, transitions())
    call(loss, networks, batch, term)[f"loss_{term}"].backward()
    reached = {name for name, network in networks.items() for one in network.parameters() if one.grad is not None}
    assert reached == {moved} == set(loss.stages[term].networks)


def test_the_actor_pays_nothing_for_the_temperature_and_hears_of_its_action():
    loss, networks = made()
    batch = with_noise(loss, transitions())
    call(loss, networks, batch, "actor")["loss_actor"].backward()
    assert networks["log_alpha"].log.grad is None
    assert all(one.grad is not None and one.grad.abs().sum() for one in networks["policy"].parameters())


def test_importance_weights_multiply_the_squared_errors():
    loss, networks = made()
    batch = with_noise(loss, transitions())
    plain = call(loss, networks, batch, "critic")
    weight = torch.linspace(0, 2, 8)
    weighted = call(loss, networks, batch.clone().set("importance_weight", weight), "critic")
    values = [member(*arrays(batch, "observation", "action")) for member in members_as_numpy(networks["q"])]
    target = regression_target(networks, batch)
    expected = sum(0.5 * np.mean(weight.numpy() * (value - target) ** 2) for value in values)
    np.testing.assert_allclose(weighted["loss_critic"].item(), expected, rtol=1e-5)
    torch.testing.assert_close(weighted["td_error"], plain["td_error"])


@pytest.mark.parametrize("key", [("next", "reward"), ("next", "terminated")])
def test_a_column_where_a_row_belongs_is_refused(key):
    loss, networks = made()
    batch = with_noise(loss, transitions())
    batch.set(key, batch.get(key).unsqueeze(-1))
    with pytest.raises(ValueError, match=r"\[8\].*\[8, 8\]"):
        call(loss, networks, batch, "critic")


def test_sequences_are_so_many_transitions():
    loss, networks = made()
    flat = with_noise(loss, transitions())
    for term in TERMS:
        ours, theirs = (call(loss, networks, batch, term) for batch in (flat.reshape(2, 4), flat))
        torch.testing.assert_close(ours[f"loss_{term}"], theirs[f"loss_{term}"])


def test_a_temperature_that_is_not_learned_has_no_term():
    loss = SACLoss(made()[0].distribution, GAMMA, None, False)
    assert list(loss.terms) == list(loss.stages) == ["critic", "actor"]


def test_the_batch_is_not_written_into():
    loss, networks = made()
    batch = with_noise(loss, transitions())
    before = batch.clone()
    for term in TERMS:
        call(loss, networks, batch, term)
    assert set(batch.keys(True, True)) == set(before.keys(True, True))
    assert (batch == before).all()


@pytest.mark.parametrize("term", TERMS)
def test_many_runs_in_one_vmap_equal_a_loop_over_them(term):
    runs = [made(seed)[1] for seed in range(3)]
    loss = made()[0]
    batches = [with_noise(loss, transitions(seed=seed), seed) for seed in range(3)]
    names = list(runs[0])
    stacked = {name: stack_module_state([run[name] for run in runs])[0] for name in names}

    def one_run(weights, batch):
        seen = {
            name: lambda *inputs, name=name: functional_call(runs[0][name], weights[name], inputs) for name in names
        }
        return call(loss, seen, batch, term)[f"loss_{term}"]

    gradients = vmap(grad(one_run))(stacked, torch.stack(batches))
    for run, networks in enumerate(runs):
        own = loss.stages[term].networks[0]
        alone = torch.autograd.grad(call(loss, networks, batches[run], term)[f"loss_{term}"],
                                    list(networks[own].parameters()))  # fmt: skip
        for (name, _), expected in zip(networks[own].named_parameters(), alone, strict=True):
            torch.testing.assert_close(gradients[own][name][run], expected, rtol=1e-4, atol=1e-6)
