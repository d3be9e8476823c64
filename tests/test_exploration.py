import numpy as np
import pytest

from runner.exploration import EpsilonGreedy
from runner.seeding import Streams
from tests.toys import environment, same_tree

SPEC = environment("CartPole-v1").spec


def exploration(start=1.0, end=0.1, env_steps=100, seed=0):
    return EpsilonGreedy(Streams(seed).numpy("exploration"), SPEC, start, end, env_steps)


@pytest.mark.parametrize(
    ("env_steps", "epsilon"), [(0, 1.0), (10, 0.91), (50, 0.55), (100, 0.1), (1_000_000, 0.1)]
)  # 1 - 0.9 t / 100
def test_epsilon_falls_on_a_straight_line(env_steps, epsilon):
    assert exploration().value(env_steps) == pytest.approx(epsilon, abs=1e-12)


def test_epsilon_is_a_pure_function():
    one = exploration()
    before = one.value(40)
    one.plan((100, 2), 60, 0)
    one.value(90)
    assert one.value(40) == before
    assert one.metrics(40) == {"train/epsilon": pytest.approx(0.64)}


def test_epsilon_without_a_decay_is_the_last_one():
    assert exploration(env_steps=0).value(1) == pytest.approx(0.1)


def test_the_fraction_of_random_actions_is_epsilon():
    plan = exploration(0.3, 0.3).plan((10_000, 4), 0, 0)
    # 40,000 draws: the standard deviation of the fraction is sqrt(0.3 * 0.7 / 40,000) = 0.0023; four of them.
    assert plan.is_random.mean() == pytest.approx(0.3, abs=0.0092)


def test_random_actions_are_uniform_and_independent_of_being_chosen():
    plan = exploration(0.5, 0.5).plan((20_000, 2), 0, 0)
    # 40,000 and about 20,000 draws: standard deviations 0.0025 and 0.0035; four of each.
    assert plan.actions.mean() == pytest.approx(0.5, abs=0.01)
    assert plan.actions[plan.is_random].mean() == pytest.approx(0.5, abs=0.014)
    assert set(np.unique(plan.actions)) == {0, 1}


def test_epsilon_falls_within_a_plan():
    plan = exploration(1.0, 0.0, env_steps=2_000).plan((500, 4), 0, 0)  # 4 env steps in each row
    early, late = plan.is_random[:50].mean(), plan.is_random[-50:].mean()
    assert early > 0.9
    assert late < 0.1


def test_a_plan_starts_where_the_run_is():
    assert not exploration(1.0, 0.0, env_steps=100).plan((10, 2), 100, 0).is_random.any()
    assert exploration(1.0, 0.0, env_steps=1e9).plan((10, 2), 0, 0).is_random.all()


def test_the_first_env_steps_are_random_whatever_epsilon_says():
    is_random = exploration(0.0, 0.0).plan((5, 3), 6, 12).is_random
    # Rows begin at env steps 6, 9, 12, 15, 18; those below 12 are random.
    assert is_random.tolist() == [[True] * 3, [True] * 3, [False] * 3, [False] * 3, [False] * 3]


def test_the_plan_of_a_batch_depends_on_the_seed():
    same, other = exploration(seed=1).plan((50, 1), 0, 0), exploration(seed=2).plan((50, 1), 0, 0)
    assert same_tree(same, exploration(seed=1).plan((50, 1), 0, 0))
    assert not np.array_equal(same.actions, other.actions)


def test_a_loaded_exploration_goes_on_as_the_saved_one():
    one, other = exploration(), exploration(seed=5)
    one.plan((7, 3), 0, 0)
    other.load_state_dict(one.state_dict())
    assert same_tree(one.plan((9, 2), 21, 0), other.plan((9, 2), 21, 0))


def test_vector_actions_are_refused():
    with pytest.raises(ValueError, match="Pendulum-v1 takes vectors"):
        EpsilonGreedy(Streams(0).numpy("exploration"), environment("Pendulum-v1").spec, 1, 0, 1)
