import gymnasium
import pytest

from runner.builders import make_collector_offpolicy, make_collector_onpolicy, sync_async_collector, sync_sync_collector
from runner.collectors.asynchronous import AsyncCollector
from runner.collectors.in_process import InProcessCollector
from runner.collectors.synchronous import SyncCollector
from tests.collectors.parts import partial_environment, same, take
from tests.toys import Counter, environment, policy


@pytest.fixture
def made():
    """Calls a builder, and ends what it made."""
    kept = []

    def make(builder, *arguments, **options):
        kept.append(builder(*arguments, **options))
        return kept[-1]

    yield make
    for collector in kept:
        collector.shutdown()


def acting(spec):
    """A policy for whatever environment has this spec."""
    return policy(type("Spec", (), {"spec": spec})(), 0.3)


def cartpole():
    return gymnasium.make("CartPole-v1", disable_env_checker=True)


OPTIONS = {"policy": acting, "frames_per_batch": 40}


@pytest.mark.pins("sync_sync_collector")
@pytest.mark.pins("sync_async_collector")
@pytest.mark.parametrize("builder", [sync_sync_collector, sync_async_collector])
@pytest.mark.parametrize("counts", [{}, {"num_collectors": 2}, {"num_env_per_collector": 2}])
def test_one_function_needs_both_counts(builder, counts):
    with pytest.raises(ValueError, match="one function for all environments needs num_env_per_collector and num_coll"):
        builder(cartpole, **counts, **OPTIONS)


@pytest.mark.pins("sync_sync_collector")
@pytest.mark.parametrize(
    ("counts", "workers"),
    [
        ({"num_collectors": 2}, [3, 2]),
        ({"num_env_per_collector": 2}, [2, 2, 1]),
        ({"num_env_per_collector": 3, "num_collectors": 2}, [3, 2]),
    ],
)
def test_a_missing_count_follows_from_the_list_of_functions_rounded_up(made, counts, workers):
    one = made(sync_sync_collector, [cartpole] * 5, **counts, **OPTIONS)
    assert sorted((worker.num_envs for worker in one.crew.workers), reverse=True) == workers
    assert take(one, 1)[0].shape == (5, 8)


def test_collectors_without_room_for_all_environments_are_refused():
    with pytest.raises(ValueError, match="2 collectors of 2 environments each have no room for 5 environments"):
        sync_sync_collector([cartpole] * 5, num_env_per_collector=2, num_collectors=2, **OPTIONS)


@pytest.mark.pins("sync_sync_collector", excludes="one collector of several environments crashed")
def test_one_synchronous_collector_of_several_environments_is_this_process(made):
    one = made(sync_sync_collector, cartpole, {}, 4, 1, **OPTIONS)
    assert isinstance(one, InProcessCollector)
    assert take(one, 1)[0].shape == (4, 10)


@pytest.mark.pins("sync_sync_collector")
def test_several_synchronous_collectors_are_processes_and_play_the_same(made):
    one = made(sync_sync_collector, cartpole, None, 4, 1, **OPTIONS)
    two = made(sync_sync_collector, cartpole, None, 2, 2, **OPTIONS)
    assert isinstance(two, SyncCollector)
    assert same(take(one, 10), take(two, 10))


@pytest.mark.pins("sync_async_collector")
def test_asynchronous_collectors_are_processes_even_if_there_is_one(made):
    one = made(sync_async_collector, cartpole, None, 2, 1, **OPTIONS)
    assert isinstance(one, AsyncCollector)
    assert take(one, 3)[-1].shape == (2, 20)


def test_every_function_gets_its_own_arguments(made):
    lengths = [{"length": 3}, {"length": 5}]
    one = made(sync_sync_collector, [Counter, Counter], lengths, num_collectors=2, **OPTIONS)
    (batch,) = take(one, 1)
    assert batch["next", "done"].float().argmax(1).tolist() == [2, 4]
    with pytest.raises(ValueError, match="1 env_kwargs for 2 environments"):
        sync_sync_collector([Counter, Counter], lengths[:1], num_collectors=2, **OPTIONS)


def test_episodes_and_the_whole_can_be_bounded_and_batches_changed(made):
    one = made(
        sync_sync_collector,
        Counter,
        {"length": 1000},
        1,
        1,
        policy=acting,
        frames_per_batch=10,
        max_frames_per_traj=4,
        total_frames=30,
        postproc=lambda batch: batch.set("seen", batch["action"] * 0),
    )
    found = [batch.clone() for batch in one]
    assert len(found) == 3
    assert found[0]["next", "truncated"][0].tolist() == [False, False, False, True] * 2 + [False] * 2
    assert "seen" in found[0].keys()


def test_an_option_that_no_collector_knows_is_refused_by_name():
    with pytest.raises(TypeError, match="frames_per_bach"):
        sync_sync_collector(cartpole, None, 1, 1, policy=acting, frames_per_bach=10)


@pytest.mark.pins("make_collector_offpolicy", excludes="one environment for each process, whatever was asked for")
def test_off_policy_collection_is_in_this_process_unless_it_is_to_be_shared(made):
    env = environment("CartPole-v1", 4)
    assert isinstance(made(make_collector_offpolicy, env, policy(env), 40), InProcessCollector)
    env = partial_environment()
    two = made(make_collector_offpolicy, env, policy(env), 40, env_per_collector=2)
    assert isinstance(two, SyncCollector)
    assert len(two.crew.workers) == 2


@pytest.mark.pins("make_collector_offpolicy")
def test_asynchronous_collection_is_asked_for_by_a_switch(made):
    env = partial_environment()
    one = made(make_collector_offpolicy, env, policy(env), 40, num_collectors=2, async_collection=True)
    assert isinstance(one, AsyncCollector)


def test_off_policy_collection_may_begin_with_random_actions_by_workers_too(made):
    env = partial_environment(num_envs=2)
    one = made(make_collector_offpolicy, env, policy(env), 200, 200, num_collectors=2)
    assert 60 < int(take(one, 1)[0]["action"].sum()) < 140


@pytest.mark.pins("make_collector_onpolicy", excludes="async_collection was taken and ignored")
def test_on_policy_collection_is_always_in_step_and_never_random():
    env = environment("CartPole-v1", 4)
    one = make_collector_onpolicy(env, policy(env), 40)
    assert one.init_random_frames == 0
    for refused in ("async_collection", "init_random_frames"):
        with pytest.raises(TypeError, match=refused):
            make_collector_onpolicy(env, policy(env), 40, **{refused: True})
