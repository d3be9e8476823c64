import numpy as np
import pytest
import torch
from tensordict import TensorDict

from runner.data.replay import KEYS, Replay
from runner.data.sampler import UniformSampler
from runner.data.storage import TensorStorage
from runner.returns import discounts, n_step

GAMMA = 0.9


def test_discounts_are_zero_where_terminated_and_gamma_to_the_steps_elsewhere():
    terminated = torch.tensor([False, True, False])
    torch.testing.assert_close(discounts(0.9, terminated), torch.tensor([0.9, 0.0, 0.9]))
    steps = torch.tensor([1, 2, 3])  # 0.9^3 = 0.729
    torch.testing.assert_close(discounts(0.9, terminated, steps), torch.tensor([0.9, 0.0, 0.729]))


def test_n_step_sums_until_the_first_end():
    reward, done = torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([False, False, True, False])
    windows = n_step(reward, done, torch.tensor([[0, 1, 2], [1, 2, 3], [2, 3, 0], [3, 0, 1]]), 3, 0.5)
    # 1 + 2/2 + 4/4 = 3; 2 + 4/2, ended = 4; 4, ended; 8 + 1/2 + 2/4 = 9
    torch.testing.assert_close(windows.reward, torch.tensor([3.0, 4.0, 4.0, 9.0]))
    assert windows.last.tolist() == [2, 2, 2, 1]
    assert windows.steps.tolist() == [3, 2, 1, 3]


def test_n_step_stops_where_a_window_is_cut():
    reward, done = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([True, False, False])
    windows = n_step(reward, done, torch.tensor([[1, 2, -1], [2, -1, -1]]), 3, 0.5)
    torch.testing.assert_close(windows.reward, torch.tensor([4.0, 4.0]))  # 2 + 4/2; 4 alone
    assert windows.last.tolist() == [2, 2]
    assert windows.steps.tolist() == [2, 1]


class History:
    """Random episodes of ``N`` environments, with all transitions ever made, for the plain loop below.

    Observation ``t`` of env ``e`` is ``100 * e + t``; a last observation, which no row begins with, is negative.
    """

    def __init__(self, num_envs, seed):
        self.num_envs, self.random, self.rows = num_envs, np.random.default_rng(seed), []

    def collect(self, steps):
        """The next batch ``[N, T]``."""
        first = len(self.rows)
        for t in range(first, first + steps):
            kinds = self.random.choice(["goes on", "terminated", "truncated"], self.num_envs, p=[0.6, 0.2, 0.2])
            self.rows.append([(float(self.random.normal()), kind, 100 * e + t) for e, kind in enumerate(kinds)])
        new = [[self.rows[t][e] for t in range(first, first + steps)] for e in range(self.num_envs)]
        return self._batch(new)

    def _batch(self, new):
        observation = torch.tensor([[row[2] for row in env] for env in new], dtype=torch.float32)
        kinds = np.array([[row[1] for row in env] for env in new])
        terminated, done = torch.from_numpy(kinds == "terminated"), torch.from_numpy(kinds != "goes on")
        following = {
            "observation": torch.where(done, -observation, observation + 1),
            "reward": torch.tensor([[row[0] for row in env] for env in new], dtype=torch.float32),
            "terminated": terminated,
            "done": done,
        }
        shape = list(observation.shape)
        now = {"observation": observation, "action": torch.zeros(shape, dtype=torch.int64)}
        return TensorDict({**now, "next": TensorDict(following, shape)}, shape)

    def n_step(self, observation, n):
        """(reward, next observation, terminated, steps) from ``observation``, by walking along the episode."""
        env, t = divmod(int(observation), 100)
        total = 0.0
        for steps in range(1, n + 1):
            reward, kind, at = self.rows[t][env]
            total += GAMMA ** (steps - 1) * reward
            if kind != "goes on":
                return total, -at, kind == "terminated", steps
            t += 1
            if t == len(self.rows):
                break
        return total, at + 1, False, steps


def make_replay(rows, num_envs, n, batch_size=400):
    keys = KEYS if n == 1 else (*KEYS, ("next", "done"))
    sampler = UniformSampler(torch.Generator().manual_seed(0))
    return Replay(TensorStorage(rows * num_envs, keys), sampler, batch_size=batch_size, n_step=n, gamma=GAMMA)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("batches", [1, 2, 4, 7])  # of 5 steps into 13 rows: from the third on the ring wraps around
def test_replay_gives_what_a_walk_along_the_episodes_gives(n, num_envs, batches):
    history, replay = History(num_envs, seed=batches), make_replay(13, num_envs, n)
    for _ in range(batches):
        replay.extend(history.collect(5))
    sample = replay.sample()
    kept = range(max(0, 5 * batches - 13), 5 * batches)
    assert set(sample["observation"].tolist()) == {100 * e + t for e in range(num_envs) for t in kept}  # all, no others
    expected = [history.n_step(observation, n) for observation in sample["observation"].tolist()]
    rewards, following, terminated, steps = (list(column) for column in zip(*expected, strict=True))
    torch.testing.assert_close(sample["next", "reward"], torch.tensor(rewards))
    assert sample["next", "observation"].tolist() == following
    assert sample["next", "terminated"].tolist() == terminated
    if n > 1:
        assert sample["next", "steps"].tolist() == steps
        assert batches == 1 or set(steps) == set(range(1, n + 1))


def test_windows_are_cut_at_the_newest_row_and_not_at_the_seam_of_the_ring():
    replay = make_replay(rows=4, num_envs=1, n=3)
    for start in (0, 3):  # rows of the ring afterwards: t = 4, 5, 2, 3, so that the newest is in its middle
        observation = torch.arange(start, start + 3, dtype=torch.float32).unsqueeze(0)
        no = torch.zeros(1, 3, dtype=torch.bool)
        following = {"observation": observation + 1, "reward": torch.ones(1, 3), "terminated": no, "done": no}
        now = {"observation": observation, "action": torch.zeros(1, 3, dtype=torch.int64)}
        replay.extend(TensorDict({**now, "next": TensorDict(following, [1, 3])}, [1, 3]))
    sample = replay.sample()
    steps = dict(zip(sample["observation"].tolist(), sample["next", "steps"].tolist(), strict=True))
    last = dict(zip(sample["observation"].tolist(), sample["next", "observation"].tolist(), strict=True))
    assert steps == {2: 3, 3: 3, 4: 2, 5: 1}
    assert last == {2: 5, 3: 6, 4: 6, 5: 6}
