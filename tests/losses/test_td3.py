import numpy as np
import pytest
import torch
from torch.func import functional_call, grad, stack_module_state, vmap

from runner.losses.td3 import TD3Loss
from runner.networks.continuous import make_deterministic_policy_and_values
from tests.losses.parts import HIGH, LOW, SPEC, arrays, as_numpy, members_as_numpy, transitions, with_noise

GAMMA, NOISE, CLIP = 0.9, 0.6, 0.5
"""So much noise that some of it is clipped, and some of the actions too."""


def made(seed=0):
    torch.manual_seed(seed)
    networks = make_deterministic_policy_and_values(SPEC, [8, 8], "relu")
    targets = make_deterministic_policy_and_values(SPEC, [8, 8], "relu")
    loss = TD3Loss(networks["policy"].distribution, GAMMA, NOISE, CLIP)
    return loss, {**networks, **{f"{name}_target": target for name, target in targets.items()}}


def call(loss, networks, batch, term):
    return loss.terms[term](networks, batch, loss.hyper_parameters)


def acted(policy, observation):
    return (LOW + HIGH) / 2 + (HIGH - LOW) / 2 * np.tanh(as_numpy(policy)(observation))


def regression_target(networks, batch, discount=GAMMA):
    """Row by row and element by element, as algorithm 1 reads."""
    following, reward, noise = arrays(batch, ("next", "observation"), ("next", "reward"), ("noise", "target_action"))
    action = acted(networks["policy_target"], following)
    clipped = 0
    for row in range(len(action)):
        for element in range(2):
            epsilon = max(-CLIP, min(CLIP, NOISE * noise[row, element])) * (HIGH - LOW)[element] / 2
            noisy = action[row, element] + epsilon
            action[row, element] = max(LOW[element], min(HIGH[element], noisy))
            clipped += (abs(NOISE * noise[row, element]) > CLIP) + (noisy != action[row, element])
    assert clipped
    first, second = (member(following, action) for member in members_as_numpy(networks["q_target"]))
    return reward + discount * ~batch["next", "terminated"].numpy() * np.minimum(first, second)


@pytest.mark.parametrize("steps", [None, [1, 2, 3, 3, 2, 1, 1, 2]])
def test_values_are_regressed_on_the_smaller_one_of_a_noisy_target_action(steps):
    loss, networks = made()
    more = {} if steps is None else {"steps": torch.tensor(steps)}
    batch = with_noise(loss, transitions(**more))
    target = regression_target(networks, batch, GAMMA if steps is None else GAMMA ** np.array(steps))
    values = [member(*arrays(batch, "observation", "action")) for member in members_as_numpy(networks["q"])]
    output = call(loss, networks, batch, "critic")
    expected = sum(np.mean((value - target) ** 2) for value in values)
    np.testing.assert_allclose(output["loss_critic"].item(), expected, rtol=1e-5)
    errors = np.mean([abs(value - target) for value in values], 0)
    np.testing.assert_allclose(output["td_error"].numpy(), errors, rtol=1e-4, atol=1e-6)


def test_the_policy_climbs_the_first_value_alone():
    loss, networks = made()
    batch = with_noise(loss, transitions())
    (observation,) = arrays(batch, "observation")
    first, _ = members_as_numpy(networks["q"])
    output = call(loss, networks, batch, "actor")
    expected = -np.mean(first(observation, acted(networks["policy"], observation)))
    np.testing.assert_allclose(output["loss_actor"].item(), expected, rtol=1e-5)
    gradients = torch.autograd.grad(output["loss_actor"], list(networks["q"].parameters()))
    assert all(one[0].abs().sum() and not one[1].any() for one in gradients)


def test_gradients_of_the_critic_reach_the_values_alone():
    loss, networks = made()
    call(loss, networks, with_noise(loss, transitions()), "critic")["loss_critic"].backward()
    assert {name for name, one in networks.items() for p in one.parameters() if p.grad is not None} == {"q"}


def test_without_noise_the_target_is_that_of_the_policy_itself():
    loss, networks = made()
    batch = with_noise(loss, transitions())
    loss.hyper_parameters["target_noise"] = 0.0
    following, reward = arrays(batch, ("next", "observation"), ("next", "reward"))
    values = [one(following, acted(networks["policy_target"], following))
              for one in members_as_numpy(networks["q_target"])]  # fmt: skip
    target = reward + GAMMA * ~batch["next", "terminated"].numpy() * np.minimum(*values)
    mine = [member(*arrays(batch, "observation", "action")) for member in members_as_numpy(networks["q"])]
    errors = np.mean([abs(value - target) for value in mine], 0)
    np.testing.assert_allclose(call(loss, networks, batch, "critic")["td_error"].numpy(), errors, rtol=1e-4, atol=1e-6)


def test_noise_is_standard_normal_and_the_generator_alone_decides_it():
    loss, _ = made()
    batch = transitions(5000)
    one, again, other = (loss.draw(batch, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    (noise,) = one.values()
    assert noise.shape == batch["action"].shape
    assert abs(noise.mean()) < 0.05
    assert abs(noise.std() - 1) < 0.05
    assert torch.equal(noise, *again.values())
    assert not torch.equal(noise, *other.values())


@pytest.mark.parametrize("term", ["critic", "actor"])
def test_many_runs_in_one_vmap_equal_a_loop_over_them(term):
    runs, loss = [made(seed)[1] for seed in range(3)], made()[0]
    batches = [with_noise(loss, transitions(seed=seed), seed) for seed in range(3)]
    stacked = {name: stack_module_state([run[name] for run in runs])[0] for name in runs[0]}

    def one_run(weights, batch):
        seen = {
            name: lambda *inputs, name=name: functional_call(runs[0][name], weights[name], inputs) for name in weights
        }
        return call(loss, seen, batch, term)[f"loss_{term}"]

    gradients = vmap(grad(one_run))(stacked, torch.stack(batches))
    (own,) = loss.stages[term].networks
    for run, networks in enumerate(runs):
        output = call(loss, networks, batches[run], term)[f"loss_{term}"]
        alone = torch.autograd.grad(output, list(networks[own].parameters()))
        for (name, _), expected in zip(networks[own].named_parameters(), alone, strict=True):
            torch.testing.assert_close(gradients[own][name][run], expected, rtol=1e-4, atol=1e-6)
