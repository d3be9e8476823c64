"""Actions that cannot be taken: asked for at every step, and never taken by anyone."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.wrappers import TimeLimit
from tensordict import TensorDict

from runner.builders import make_dqn_loss, make_evaluation, make_policy
from runner.collectors.arrays import Arrays
from runner.collectors.asynchronous import AsyncCollector
from runner.collectors.in_process import InProcessCollector
from runner.collectors.synchronous import SyncCollector
from runner.envs.masks import checked_mask, mask_function
from runner.envs.transforms import InfoActionMask
from runner.envs.vector import make_environment
from runner.exploration import EpsilonGreedy, Sampled
from runner.networks.actor_critic import make_actor_critic
from runner.networks.mlp import make_q_network
from runner.seeding import Streams
from runner.spec import (
    ACTION,
    ACTION_LOG_PROB,
    ACTION_MASK,
    NEXT_ACTION_MASK,
    NEXT_DONE,
    OBSERVATION,
    POLICY_OUTPUT,
    EnvFault,
)
from tests.collectors.parts import kill, same, take
from tests.envs.masked import ACTIONS, Doors, SaysSo
from tests.toys import Counter, environment, same_tree


def by_info():
    return InfoActionMask(Doors())


def by_method():
    return TimeLimit(SaysSo(), 100)


def sampled(env, epsilon=None):
    torch.manual_seed(0)
    networks = make_actor_critic(env.spec, [8])
    exploration = Sampled(Streams(0).numpy("exploration"), env.spec, networks["policy"].distribution)
    return make_policy(networks, env.spec, exploration)


def epsilon_greedy(env, epsilon=0.5):
    torch.manual_seed(0)
    exploration = EpsilonGreedy(Streams(0).numpy("exploration"), env.spec, epsilon, epsilon, 0)
    return make_policy(make_q_network(env.spec, [8], "relu"), env.spec, exploration)


def masked_environment(make=by_method, num_envs=4, **options):
    return make_environment(streams=Streams(0), num_envs=num_envs, make=make, **options)


def alone(make=by_method, make_policy=sampled, frames=80, num_envs=4, **options):
    env = masked_environment(make, num_envs)
    return InProcessCollector(env, make_policy(env), frames, **options)


@pytest.mark.parametrize("make", [by_info, by_method, SaysSo])
def test_an_environment_that_says_so_is_found_by_itself(make):
    assert masked_environment(make).spec.has_action_mask


@pytest.mark.parametrize("make", [Counter, lambda: gymnasium.make("Pendulum-v1")])
def test_an_environment_that_does_not_say_has_no_mask(make):
    env = environment(make)
    env.start()
    assert not env.spec.has_action_mask
    assert env.mask.size == 0
    assert Arrays.allocate(3, 2, env.spec).action_mask.size == 0


def test_taxi_says_so_by_its_info():
    env = gymnasium.make("Taxi-v4")
    assert mask_function(env) is None
    assert mask_function(InfoActionMask(env)) is not None


@pytest.mark.parametrize("end", ["terminated", "truncated"])
def test_the_masks_of_a_batch_are_those_before_and_after_each_step(end):
    one = alone(lambda: SaysSo(end=end))
    for batch in take(one, 3):
        now, following, done = batch[ACTION_MASK], batch[NEXT_ACTION_MASK], batch[NEXT_DONE]
        assert now.shape == following.shape == (4, 20, ACTIONS)
        assert now.gather(-1, batch[ACTION].unsqueeze(-1)).all()
        goes_on = ~done[:, :-1]
        assert torch.equal(following[:, :-1][goes_on], now[:, 1:][goes_on])
        assert following[done].all()  # all doors are closed, and it does not matter
        assert not torch.equal(following[:, :-1][~goes_on], now[:, 1:][~goes_on])
        assert 0.4 < now.float().mean() < 0.8
        assert len({tuple(row) for row in now.flatten(0, 1).tolist()}) > 10


@pytest.mark.parametrize("make_policy", [sampled, epsilon_greedy])
@pytest.mark.parametrize("make", [by_info, by_method])
def test_no_action_is_taken_that_cannot_be_and_all_others_are(make, make_policy):
    one = alone(make, make_policy, frames=2_000, init_random_frames=1_000)
    seen = torch.zeros(ACTIONS)
    for batch in take(one, 3):  # the first is half random; a closed door would be an error
        seen += torch.bincount(batch[ACTION].flatten(), minlength=ACTIONS)
    assert (seen > 100).all()


def test_random_actions_are_uniform_among_those_that_can_be_taken():
    (batch,) = take(alone(by_method, lambda env: epsilon_greedy(env, 1.0), frames=8_000), 1)
    mask, action = batch[ACTION_MASK].flatten(0, 1), batch[ACTION].flatten()
    for count in range(1, ACTIONS + 1):
        rows = mask.sum(-1) == count
        rank = (mask[rows].cumsum(-1).gather(-1, action[rows].unsqueeze(-1)) - 1).flatten()
        counts = torch.bincount(rank, minlength=count).float()
        expected = rows.sum() / count
        assert ((counts - expected) ** 2 / expected).sum() < 18.5  # 4 degrees of freedom: one of a thousand


def test_greedy_actions_are_the_best_of_those_that_can_be_taken():
    one = alone(by_method, lambda env: epsilon_greedy(env, 0.0))
    (batch,) = take(one, 1)
    values = one.policy.network(batch[OBSERVATION])
    best = values.masked_fill(~batch[ACTION_MASK], -torch.inf).argmax(-1)
    assert torch.equal(batch[ACTION], best)
    assert not torch.equal(best, values.argmax(-1))


def test_the_chance_of_an_action_is_that_among_those_that_can_be_taken():
    one = alone()
    (batch,) = take(one, 1)
    outputs = one.policy.network(batch[OBSERVATION]).masked_fill(~batch[ACTION_MASK], -torch.inf)
    expected = outputs.log_softmax(-1).gather(-1, batch[ACTION].unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(batch[ACTION_LOG_PROB], expected, rtol=1e-5, atol=1e-5)
    assert batch[POLICY_OUTPUT][~batch[ACTION_MASK]].unique().tolist() == [-1e8]


@pytest.mark.parametrize("make_policy", [sampled, epsilon_greedy])
def test_evaluation_takes_none_that_cannot_be_taken(make_policy):
    env = masked_environment()
    evaluation = make_evaluation(env, make_policy(env), Streams(0), {"env_steps": 100}, episodes=5, final_episodes=5)
    found = evaluation.run()
    assert found.lengths.tolist() == [7] * 5
    assert np.array_equal(evaluation.run().returns, found.returns)


def test_random_observations_take_none_that_cannot_be_taken():
    env = masked_environment()
    assert env.random_observations(200).shape == (200, 3)
    assert np.array_equal(env.random_observations(50), env.random_observations(50))


@pytest.mark.parametrize("make_policy", [sampled, epsilon_greedy])
def test_workers_play_what_one_process_would_also_when_they_are_killed(make_policy):
    env = masked_environment()
    workers = SyncCollector(env, make_policy(env), 80, num_collectors=2)
    try:
        found = take(workers, 5)
        kill(workers.crew.workers[0])
        found += take(workers, 5)
    finally:
        workers.shutdown()
    assert same(found, take(alone(by_method, make_policy), 10))


def test_workers_beside_the_updates_respect_masks():
    env = masked_environment()
    workers = AsyncCollector(env, sampled(env), 80, num_collectors=2)
    try:
        batches = take(workers, 6)  # a closed door would be an error
    finally:
        workers.shutdown()
    assert all(batch[ACTION_MASK].gather(-1, batch[ACTION].unsqueeze(-1)).all() for batch in batches)


@pytest.mark.parametrize("make", [by_info, by_method])
def test_a_loaded_collector_goes_on_bit_for_bit(make):
    one, other = alone(make), alone(make)
    take(one, 3)
    other.load_state_dict(one.state_dict())
    assert same(take(other, 5), take(one, 5))
    assert same_tree(one.state_dict(), other.state_dict())


class Breaking(SaysSo):
    """Fails once when it is asked, or when it is to step, at one moment of its life."""

    broken = False

    def __init__(self, at, method):
        super().__init__()
        self.at, self.method, self.calls = at, method, 0

    def action_masks(self):
        self._maybe("action_masks")
        return super().action_masks()

    def step(self, action):
        self._maybe("step")
        return super().step(action)

    def _maybe(self, method):
        self.calls += method == self.method
        if self.calls == self.at and method == self.method and not Breaking.broken:
            Breaking.broken = True
            raise RuntimeError("out of order")


@pytest.mark.parametrize("method", ["action_masks", "step"])
@pytest.mark.parametrize("at", [40, 44, 46, 47, 48, 49])
def test_an_environment_that_fails_and_is_made_anew_changes_nothing(method, at):
    Breaking.broken = True
    expected = take(alone(lambda: Breaking(at, method), num_envs=1), 2)
    Breaking.broken = False
    env = masked_environment(lambda: Breaking(at, method), 1, on_error="restart")
    one = InProcessCollector(env, sampled(env), 80)
    found = take(one, 2)
    assert Breaking.broken
    assert same(found, expected)


def test_without_restarts_the_failure_is_named():
    Breaking.broken = False
    one = alone(lambda: Breaking(60, "action_masks"), num_envs=1)
    with pytest.raises(EnvFault, match=r"env 0, episode \d+ .*out of order"):
        take(one, 2)


class Broken(SaysSo):
    """Steps no more from the eleventh on, however often it is made anew."""

    total = 0

    def step(self, action):
        Broken.total += 1
        if self.steps == 3 and Broken.total > 40:
            raise RuntimeError("broken")
        return super().step(action)


def test_an_episode_that_is_cut_keeps_its_last_mask():
    Broken.total = 0
    env = masked_environment(Broken, 1, on_error="restart")
    (batch,) = take(InProcessCollector(env, sampled(env), 80), 1)
    cut = batch["next", "truncated"][0].nonzero().flatten().tolist()
    assert len(cut) > 1
    for t in cut:
        assert torch.equal(batch[NEXT_ACTION_MASK][0, t], batch[ACTION_MASK][0, t])


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ([True, False], r"must return 3 truth values, one for each action; it returned \[True, False\]"),
        ([0.1, 0.2, 0.7], "must return 3 truth values"),
        (None, "must return 3 truth values"),
        ([0, 0, 0], "allows no action, and the episode goes on"),
    ],
)
def test_what_is_no_mask_is_named(answer, words):
    class Wrong(Counter):
        def action_masks(self):
            return answer

    with pytest.raises(EnvFault, match=rf"env 0, .*action_masks {words}"):
        environment(Wrong)


def test_a_mask_may_be_of_numbers_and_after_an_end_empty():
    assert checked_mask(np.int8([0, 1]), 2, False).tolist() == [False, True]
    assert checked_mask([0, 0], 2, True).tolist() == [True, True]


def test_an_info_without_a_mask_is_named():
    with pytest.raises(EnvFault, match=r"InfoActionMask: the environment's info has no 'action_mask'; it has \[\]"):
        environment(lambda: InfoActionMask(Counter()))


def target_of(double, mask, terminated=False):
    """Online values 1, 5, 3 and target values 20, 7, 10 of what follows; reward 1, gamma 1/2."""
    online, target = torch.tensor([[1.0, 5.0, 3.0]]), torch.tensor([[20.0, 7.0, 10.0]])
    fields = {"observation": torch.zeros(1, 2), "reward": torch.ones(1), "terminated": torch.tensor([terminated])}
    if mask is not None:
        fields["action_mask"] = torch.tensor([mask])
    batch = TensorDict({"observation": torch.zeros(1, 2), "action": torch.tensor([0]), "next": fields}, [1])
    loss = make_dqn_loss(gamma=0.5, double=double)
    networks = {"q": lambda x: online, "q_target": lambda x: target}
    return 1.0 + loss.q(networks, batch, loss.hyper_parameters)["td_error"].item()  # 1 is the value of the action


@pytest.mark.parametrize(
    ("double", "mask", "target"),
    [
        (False, None, 1 + 20 / 2),
        (False, [False, True, True], 1 + 10 / 2),
        (True, None, 1 + 7 / 2),  # the online network prefers action 1
        (True, [True, False, True], 1 + 10 / 2),  # and of the others 2
        (True, [True, False, False], 1 + 20 / 2),
    ],
)
def test_the_next_action_is_one_that_can_be_taken(double, mask, target):
    assert target_of(double, mask) == pytest.approx(target)
    assert target_of(double, mask, terminated=True) == pytest.approx(1.0)
