"""The world of two tasks: what is reached at best is known."""

import gymnasium
import numpy as np
import pytest

from runner.envs import two_tasks


def play(task, choose, seed):
    env = two_tasks.TwoTasks(task)
    observation, _ = env.reset(seed=seed)
    total = 0.0
    for _ in range(two_tasks.MOST_STEPS):
        observation, reward, terminated, _, _ = env.step(choose(observation))
        total += reward
        if terminated:
            break
    return total


def fewest_steps(distance):
    """Speed grows by 0.02 a step up to 0.1: after 5 steps 0.3 are behind, then 0.1 a step."""
    travelled = [0.02, 0.06, 0.12, 0.2, 0.3, *(0.3 + 0.1 * more for more in range(1, 20))]
    return next(number for number, far in enumerate(travelled, 1) if far >= distance - 1e-9)


@pytest.mark.parametrize(("task", "push", "goal"), [("left", 0, -1.0), ("right", 2, 1.0)])
def test_the_best_return_is_that_of_pushing_all_the_way(task, push, goal):
    for seed in range(30):
        env = two_tasks.TwoTasks(task)
        start = float(env.reset(seed=seed)[0][0])
        best = 10.0 - 0.2 * fewest_steps(abs(goal - start))
        assert play(task, lambda observation: push, seed) == pytest.approx(best)
        for other in range(20):
            drawn = np.random.default_rng(other)
            assert play(task, lambda observation, drawn=drawn: int(drawn.integers(3)), seed) <= best + 1e-9


def test_the_other_end_pays_nothing_and_stops_the_cart():
    env = two_tasks.TwoTasks("left")
    env.reset(seed=0)
    for _ in range(30):
        observation, reward, terminated, _, _ = env.step(2)
        assert (reward, terminated) == (-0.2, False)
    assert observation.tolist() == [1.0, 0.0]


def test_gymnasium_knows_it_and_cuts_its_episodes():
    two_tasks.register()
    env = gymnasium.make(two_tasks.ID, task="right")
    env.reset(seed=0)
    ends = [env.step(1)[3] for _ in range(100)]
    assert ends == [False] * 99 + [True]


def test_another_task_is_refused():
    with pytest.raises(ValueError, match="there are left and right"):
        two_tasks.TwoTasks("up")
