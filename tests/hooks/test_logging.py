from functools import partial

import pytest
import torch
from tensordict import TensorDict

from hooks.count_frames_log import CountFramesLog
from hooks.log_exploration import LogExploration
from hooks.log_reward import LogReward
from hooks.select_keys import SelectKeys
from runner.builders import make_collector_offpolicy
from runner.exploration import EpsilonGreedy
from runner.policy import Policy
from runner.seeding import Streams
from runner.spec import ConfigError, Progress
from runner.trainer import Trainer
from tests.toys import Call, Counter, collector, environment, policy, trainer


def logged(hook, total_frames, name, **options):
    """What ``hook`` logs in each batch, by env steps."""
    one, found = trainer(total_frames, **options), {}
    hook.register(one)
    one.metrics.add = lambda values: found.update({one.progress.env_steps: values[name]} if name in values else {})
    one.train()
    return found


@pytest.mark.pins("LogReward")
def test_rewards_are_means_over_the_last_episodes():
    lengths = iter([2, 4])
    playing = collector(environment(lambda: Counter(next(lengths)), 2), 8)
    # Returns of 1 + 2 = 3 every 2 steps, and of 1 + 2 + 3 + 4 = 10 every 4; both environments play 4 steps a batch.
    found = logged(LogReward(100), 16, "train/return_mean", collector=playing)
    assert found == {8: pytest.approx((3 + 3 + 10) / 3), 16: pytest.approx((3 + 3 + 10) * 2 / 6)}


def test_the_window_forgets_older_episodes():
    values = iter([1, 2, 3, 4, 5])
    one = trainer(20, collector=collector(environment(partial(Changing, values)), 4))
    hook = LogReward(2)
    hook.register(one)
    one.train()
    assert (list(hook.returns), list(hook.lengths)) == ([4, 5], [4, 4])
    assert one.metrics.latest["train/return_mean"] == 4.5
    assert one.pbar_values["train/length_mean"] == 4


class Changing(Counter):
    """Episodes of 4 steps; the last reward is the next of ``values``, the others are 0."""

    def __init__(self, values):
        super().__init__(4)
        self.values = values

    def step(self, action):
        observation, _, terminated, *rest = super().step(action)
        is_probe = self.seeds[-1] == 1
        return observation, float(next(self.values)) if terminated and not is_probe else 0.0, terminated, *rest


def test_nothing_is_logged_before_an_episode_has_ended():
    assert list(logged(LogReward(), 12, "train/return_mean", collector=collector(environment(Counter), 2))) == [6, 10]


@pytest.mark.pins("LogReward", excludes="no state: saving raises NotImplementedError")
def test_recent_rewards_survive_a_resume():
    one, other = LogReward(3), LogReward(3)
    one.register(trainer(40))
    one.returns.extend([1.0, 2.0, 3.0, 4.0])
    one.lengths.extend([5, 6])
    other.load_state_dict(one.state_dict())
    assert other.state_dict() == {"returns": [2, 3, 4], "lengths": [5, 6], "episodes": 0, "has_new": False}
    assert other.returns.maxlen == 3


def test_added_to_a_run_that_has_had_episodes_it_waits_for_the_next_one():
    one, hook = trainer(8), LogReward()
    hook.register(one)
    one.progress.episodes = 3
    one.train()  # the first batch of 4 steps ends no episode, the second one of 1 + 2 + 3 + 4 + 5
    assert (list(hook.returns), one.metrics.latest["train/return_mean"]) == ([15], 15)


def test_what_an_earlier_hook_has_dropped_is_named():
    one = trainer(8)
    SelectKeys(["observation", ["next", "reward"]]).register(one)
    LogReward().register(one)
    with pytest.raises(ConfigError, match=r"log_reward: the batch has no \('next', 'done'\); it has \['observation'"):
        one.train()


def padded(rewards, mask):
    rows = {"next": {"reward": torch.tensor(rewards), "other": -torch.tensor(rewards)}}
    return TensorDict({**rows, "collector": {"mask": torch.tensor(mask)}}, batch_size=[len(rewards)])


@pytest.mark.pins("LogReward", excludes="padding counts in the mean")
def test_the_mean_reward_of_a_batch_is_of_the_steps_that_were_played():
    hook = LogReward(logname="r_training", log_pbar=True)
    batch = padded([1.0, 9.0, 2.0], [True, False, True])
    assert hook.mean_reward(batch) == {"r_training": 1.5, "log_pbar": True}
    assert hook.mean_reward(padded([1.0], [False])) is None
    other = LogReward(logname="a", reward_key=["next", "other"]).mean_reward(batch)
    assert other == {"a": -1.5, "log_pbar": False}


@pytest.mark.pins("LogReward")
def test_the_mean_reward_is_logged_beside_the_returns_where_it_has_a_name():
    # Rewards 1 2 3 4 of the first batch, 5 1 2 3 of the second.
    assert logged(LogReward(logname="r_training"), 8, "r_training") == {4: 2.5, 8: 2.75}
    assert logged(LogReward(logname="r_training"), 8, "train/return_mean") == {8: 15}
    assert logged(LogReward(), 8, "r_training") == {}


@pytest.mark.pins("CountFramesLog")
def test_frames_are_env_steps_times_frame_skip():
    playing = collector(environment(Counter, frame_skip=3))
    found = logged(CountFramesLog(), 24, "train/n_frames", collector=playing, frame_skip=3)
    assert found == {4: 12, 8: 24}


def test_epsilon_is_logged_as_it_falls():
    env, progress = environment(Counter), Progress()
    falling = EpsilonGreedy(Streams(0).numpy("exploration"), env.spec, 1.0, 0.0, 16)
    acting = Policy(policy(env).network, env.spec, falling)
    playing = make_collector_offpolicy(env, acting, 4, progress=progress)
    found = logged(LogExploration(acting, {"env_steps": 8}), 20, "train/epsilon", collector=playing)
    assert found == {8: 0.5, 16: 0.0}


def test_the_interval_of_the_exploration_log_survives_a_resume():
    one, other = (LogExploration(None, {"env_steps": 8}) for _ in range(2))
    one.interval.fires(Progress(env_steps=15))
    other.load_state_dict(one.state_dict())
    assert not other.interval.fires(Progress(env_steps=15))


def test_a_policy_without_exploration_logs_nothing():
    env = environment(Counter)
    one = Trainer(collector=collector(env), total_frames=8)
    LogExploration(policy(env).copy(), {"env_steps": 1}).register(one)
    Call("post_steps_log", lambda batch: None).register(one)
    one.train()
    assert one.metrics.latest == {}
