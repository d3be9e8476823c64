import numpy as np
import pytest
import torch

from runner.checkpoint.store import CheckpointStore
from runner.collectors.in_process import InProcessCollector
from runner.spec import ACTION, NEXT_DONE, NEXT_OBSERVATION, NEXT_REWARD, OBSERVATION, Progress
from tests.collectors.parts import take
from tests.toys import Counter, collector, environment, policy, turn_around


def test_a_batch_is_environments_by_time():
    batch = next(iter(collector(environment("CartPole-v1", 3), 12)))
    assert batch.shape == (3, 4)
    assert {
        key: tuple(batch[key].shape) for key in (OBSERVATION, ACTION, NEXT_OBSERVATION, NEXT_REWARD, NEXT_DONE)
    } == {
        OBSERVATION: (3, 4, 4),
        ACTION: (3, 4),
        NEXT_OBSERVATION: (3, 4, 4),
        NEXT_REWARD: (3, 4),
        NEXT_DONE: (3, 4),
    }


def test_the_memory_underneath_is_time_by_environments():
    batch = next(iter(collector(environment("CartPole-v1", 3), 12)))
    leaves = list(batch.values(include_nested=True, leaves_only=True))
    assert len(leaves) == 9
    assert all(leaf.transpose(0, 1).is_contiguous() and not leaf.is_contiguous() for leaf in leaves)


def test_each_environment_keeps_its_row():
    lengths = iter([3, 100])
    batch = next(iter(collector(environment(lambda: Counter(next(lengths)), 2), 8)))
    assert batch[OBSERVATION][..., 0].tolist() == [[0, 1, 2, 0], [0, 1, 2, 3]]


def test_a_batch_goes_on_where_the_last_one_ended():
    first, second = take(collector(environment(Counter, 2), 4), 2)
    assert torch.equal(first[NEXT_OBSERVATION][:, -1], second[OBSERVATION][:, 0])


@pytest.mark.pins("make_collector_offpolicy")
def test_the_first_env_steps_are_random():
    env = environment("CartPole-v1", 2)
    greedy, *_ = take(collector(env, 200), 1)
    one = collector(environment("CartPole-v1", 2), 20, init_random_frames=200)
    taken = torch.cat([batch[ACTION] for batch in take(one, 12)], dim=1)
    random, later = taken[:, :100].float(), take(one, 1)[0]
    # 200 fair coins: the standard deviation of their mean is 0.035; three of them.
    assert random.mean().item() == pytest.approx(0.5, abs=0.106)
    assert len({tuple(row) for row in random.tolist()}) == 2
    assert later[ACTION].flatten().tolist() == best(one, later)
    assert greedy[ACTION].flatten().tolist() == best(collector(env), greedy)


def best(one, batch):
    with torch.no_grad():
        return one.policy.network(batch[OBSERVATION]).argmax(-1).flatten().tolist()


def test_without_exploration_every_action_is_the_best_one():
    one = collector(environment("CartPole-v1", 2), 60, epsilon=0.0)
    for batch in take(one, 3):
        assert batch[ACTION].flatten().tolist() == best(one, batch)


def test_some_actions_are_random_and_the_others_best():
    env = environment("CartPole-v1", 4)
    one = collector(env, 4_000, epsilon=0.5)
    (batch,) = take(one, 1)
    wrong = np.mean(np.array(batch[ACTION].flatten().tolist()) != np.array(best(one, batch)))
    # Half of the random actions are best by chance: 0.25, with a standard deviation of 0.0068; four of them.
    assert wrong == pytest.approx(0.25, abs=0.027)


def test_a_policy_without_exploration_collects():
    env = environment("CartPole-v1", 2)
    one = InProcessCollector(env, policy(env).copy(), 8)
    (batch,) = take(one, 1)
    assert batch[ACTION].flatten().tolist() == best(one, batch)


def test_random_first_steps_need_an_exploration():
    env = environment("CartPole-v1")
    with pytest.raises(ValueError, match="init_random_frames=10 needs an exploration"):
        InProcessCollector(env, policy(env).copy(), 8, init_random_frames=10)


def test_new_weights_act_in_the_next_batch():
    one = collector(environment("CartPole-v1"), 10)
    take(one, 1)
    turn_around(one.policy.network)
    one.update_policy_weights_()
    (batch,) = take(one, 1)
    assert batch[ACTION].flatten().tolist() == best(one, batch)


def test_batches_that_cannot_be_shared_among_environments_are_refused():
    with pytest.raises(ValueError, match=r"frames_per_batch=10 is not a multiple of env\.num_envs=4"):
        collector(environment(Counter, 4), 10)


def test_a_batch_can_be_given_new_keys_without_a_trace_in_the_next_one():
    playing = iter(collector())
    batch = next(playing)
    batch.set("advantage", torch.ones(1, 4))
    batch.set(("next", "value"), torch.ones(1, 4))
    del batch[ACTION]
    following = next(playing)
    assert "advantage" not in following.keys()
    assert ("next", "value") not in following.keys(True)
    assert ACTION in following.keys()


def test_a_later_batch_overwrites_an_earlier_one():
    playing = iter(collector(environment(lambda: Counter(100)), 4))
    first = next(playing)
    next(playing)
    assert first[OBSERVATION][0, :, 0].tolist() == [4, 5, 6, 7]


def test_frame_skip_comes_from_the_environment():
    one = collector(environment(Counter, frame_skip=3), 4)
    take(one, 1)
    assert (one.progress.env_steps, one.progress.frames) == (4, 12)


@pytest.mark.parametrize("backend", ["torchsnapshot", "torch"])
@pytest.mark.parametrize("id", ["CartPole-v1", "Acrobot-v1"])
def test_a_loaded_collector_goes_on_bit_for_bit(id, backend, tmp_path):
    one = collector(environment(id, 3), 60, epsilon=0.4)
    take(one, 5)
    store = CheckpointStore(tmp_path, backend=backend)
    store.save({"collector": one.state_dict()}, {"env_steps": one.progress.env_steps})
    progress = Progress(env_steps=one.progress.env_steps)
    other = collector(environment(id, 3), 60, epsilon=0.4, progress=progress)
    other.load_state_dict(store.load()[0]["collector"])
    for left, right in zip(take(one, 10), take(other, 10), strict=True):
        assert (left == right).all()


def test_the_seed_decides_what_is_collected():
    def first(seed):
        return take(collector(environment("CartPole-v1", 2, seed), 40, epsilon=0.3), 1)[0]

    assert (first(1) == first(1)).all()
    assert not torch.equal(first(1)[OBSERVATION], first(2)[OBSERVATION])
