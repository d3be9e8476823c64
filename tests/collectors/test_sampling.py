"""What explorations play and write down, in this process and in others."""

import numpy as np
import pytest
import torch

from runner.builders import make_policy
from runner.collectors.in_process import InProcessCollector
from runner.collectors.synchronous import SyncCollector
from runner.distributions import TanhDeterministic, bounds
from runner.exploration import AdditiveNoise, Sampled
from runner.networks.actor_critic import make_actor_critic
from runner.networks.mlp import MLP
from runner.policy import Policy
from runner.seeding import Streams
from runner.spec import ACTION, ACTION_LOG_PROB, OBSERVATION, POLICY_OUTPUT
from tests.collectors.parts import kill, partial_environment, same, take
from tests.toys import environment, same_tree

IDS = ["CartPole-v1", "Pendulum-v1"]


def sampling(env, seed=0, **network):
    torch.manual_seed(0)
    made = make_actor_critic(env.spec, [8], policy_gain=1.0, **network)
    exploration = Sampled(Streams(seed).numpy("exploration"), env.spec, made["policy"].distribution)
    return make_policy(made, env.spec, exploration)


def noisy(env, scale=0.3, seed=0):
    torch.manual_seed(0)
    distribution = TanhDeterministic(*bounds(env.spec))
    network = MLP(env.spec.observation_shape, [8], distribution.size, "relu")
    exploration = AdditiveNoise(Streams(seed).numpy("exploration"), env.spec, distribution, scale)
    return Policy(network, env.spec, exploration, distribution)


def alone(id, make_policy=sampling, frames=40, num_envs=4, **options):
    env = environment(id, num_envs)
    return InProcessCollector(env, make_policy(env), frames, **options)


@pytest.fixture
def in_processes():
    kept = []

    def make(id, make_policy=sampling, frames=40, **options):
        env = partial_environment(id)
        kept.append(SyncCollector(env, make_policy(env), frames, num_collectors=2, **options))
        return kept[-1]

    yield make
    for collector in kept:
        collector.shutdown()


@pytest.mark.parametrize("id", IDS)
def test_what_the_network_said_is_recorded_and_tells_how_likely_the_action_was(id):
    one = alone(id)
    for batch in take(one, 3):
        outputs = one.policy.network(batch[OBSERVATION])
        torch.testing.assert_close(batch[POLICY_OUTPUT], outputs, rtol=1e-5, atol=1e-6)
        log_prob = one.policy.distribution.log_prob(outputs, batch[ACTION])
        assert batch[ACTION_LOG_PROB].shape == (4, 10)
        torch.testing.assert_close(batch[ACTION_LOG_PROB], log_prob, rtol=1e-4, atol=1e-5)


def test_actions_come_as_often_as_the_policy_says():
    one = alone("CartPole-v1", frames=8_000)
    (batch,) = take(one, 1)
    chance = batch[ACTION_LOG_PROB].exp()
    of_first = torch.where(batch[ACTION] == 0, chance, 1 - chance)
    difference = (batch[ACTION] == 0).float().mean() - of_first.mean()
    assert 0.1 < of_first.mean() < 0.9
    assert abs(difference) < 4 * (of_first * (1 - of_first)).mean().sqrt() / 8_000**0.5


def test_vectors_are_played_within_the_bounds_and_kept_as_they_were_drawn():
    env = environment("Pendulum-v1", 2)
    one, played = InProcessCollector(env, sampling(env, log_std=2.0), 200), []
    for single in env._singles:
        single._env_step = lambda action, step=single._env_step: played.append(action.copy()) or step(action)
    (batch,) = take(one, 1)
    kept = batch[ACTION].transpose(0, 1).reshape(200, 1).numpy()
    assert np.abs(kept).max() > 2  # the bounds of Pendulum, and a deviation of e^2
    assert np.array_equal(np.stack(played), np.clip(kept, -2, 2))


def test_workers_play_what_one_process_would(in_processes):
    assert same(take(in_processes("CartPole-v1"), 20), take(alone("CartPole-v1"), 20))


def test_workers_play_the_vectors_that_one_process_would_up_to_rounding(in_processes):
    """A product of a matrix with two rows is rounded otherwise than one with four."""
    (ours,), (theirs,) = take(in_processes("Pendulum-v1"), 1), take(alone("Pendulum-v1"), 1)
    for key in theirs.keys(include_nested=True, leaves_only=True):
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("id", IDS)
def test_a_killed_worker_changes_nothing(in_processes, id):
    expected, one = take(in_processes(id), 30), in_processes(id)
    found = take(one, 10)
    kill(one.crew.workers[1])
    found += take(one, 10)
    for worker in one.crew.workers:
        kill(worker)
    assert same(found + take(one, 10), expected)


def test_noise_is_added_to_the_best_action_and_the_sum_is_clipped():
    one = alone("Pendulum-v1", lambda env: noisy(env, scale=0.3), frames=4_000)
    (batch,) = take(one, 1)
    with torch.no_grad():
        best = 2 * torch.tanh(one.policy.network(batch[OBSERVATION]))
    noise = (batch[ACTION] - best)[best.abs() < 0.2]  # three deviations from being cut
    # 0.3 half widths of 2 are 0.6; four standard errors of so many draws.
    assert len(noise) > 100
    assert noise.std().item() == pytest.approx(0.6, abs=4 * 0.6 / (2 * len(noise)) ** 0.5)
    assert noise.mean().abs().item() < 4 * 0.6 / len(noise) ** 0.5
    assert batch[ACTION].abs().max() <= 2
    assert POLICY_OUTPUT not in batch.keys()


def test_without_noise_the_best_action_is_left():
    one = alone("Pendulum-v1", lambda env: noisy(env, scale=0.0))
    (batch,) = take(one, 1)
    best = 2 * torch.tanh(one.policy.network(batch[OBSERVATION]))
    torch.testing.assert_close(batch[ACTION], best, rtol=1e-5, atol=1e-6)


def test_the_first_actions_are_random_vectors_within_the_bounds():
    one = alone("Pendulum-v1", lambda env: noisy(env, scale=0.0), frames=400, init_random_frames=400)
    first, second = take(one, 2)
    taken = first[ACTION].flatten()
    # Uniform in [-2, 2]: mean 0 and deviation 1.155; 400 draws.
    assert taken.mean().abs() < 4 * 1.155 / 20
    assert taken.std().item() == pytest.approx(1.155, abs=0.1)
    best = 2 * torch.tanh(one.policy.network(second[OBSERVATION]))
    torch.testing.assert_close(second[ACTION], best, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("id", "make_policy"), [("CartPole-v1", sampling), ("Pendulum-v1", sampling), ("Pendulum-v1", noisy)]
)
def test_a_loaded_collector_goes_on_bit_for_bit(id, make_policy):
    one, other = alone(id, make_policy), alone(id, lambda env: make_policy(env, seed=9))
    take(one, 7)
    other.load_state_dict(one.state_dict())
    assert same(take(other, 10), take(one, 10))
    assert same_tree(one.state_dict(), other.state_dict())


def test_a_state_of_one_process_goes_on_in_two(in_processes):
    one, other = alone("CartPole-v1"), in_processes("CartPole-v1")
    take(one, 7)
    other.load_state_dict(one.state_dict())
    assert same(take(other, 10), take(one, 10))


def test_new_weights_act_in_the_next_batch(in_processes):
    one, other = alone("CartPole-v1"), in_processes("CartPole-v1")
    take(one, 1), take(other, 1)
    for each in (one, other):
        with torch.no_grad():
            each.policy.network.head.weight.neg_()
        each.update_policy_weights_()
    ours, theirs = take(one, 3), take(other, 3)
    assert same(ours, theirs)
    torch.testing.assert_close(ours[0][POLICY_OUTPUT], one.policy.network(ours[0][OBSERVATION]), rtol=1e-5, atol=1e-6)


def test_a_policy_that_gives_no_chances_cannot_be_sampled_from():
    spec = environment("Pendulum-v1").spec
    with pytest.raises(ValueError, match="exploration=sampled needs a network that says how likely each action is"):
        Sampled(np.random.default_rng(0), spec, TanhDeterministic(*bounds(spec)))


def test_noise_needs_actions_that_are_vectors():
    spec = environment("CartPole-v1").spec
    with pytest.raises(ValueError, match="CartPole-v1 takes one of 2 actions, where vectors are needed"):
        AdditiveNoise(np.random.default_rng(0), spec, None)


@pytest.mark.parametrize("id", IDS)
def test_greedy_actions_are_the_most_likely_ones_and_draw_nothing(id):
    env = environment(id, 2)
    one = sampling(env)
    before, observation = one.state_dict(), np.random.default_rng(0).normal(size=(5, 4 if id == IDS[0] else 3))
    actions = one.greedy(observation.astype(np.float32))
    outputs = one.network(torch.from_numpy(observation).float()).detach().numpy()
    expected = outputs.argmax(-1) if id == IDS[0] else np.clip(outputs[:, :1], -2, 2)
    np.testing.assert_allclose(np.array(actions), expected, rtol=1e-5)
    assert same_tree(before, one.state_dict())
