"""Advantages and targets by plain loops over each step, written from the papers."""

import pytest
import torch

from runner.returns import backward_sum, gae, lambda_return, returns_to_go, v_trace

GAMMA, LMBDA = 0.875, 0.75  # the same in float32, so that all else can be compared in float64
CASES = [(1, 1), (1, 7), (3, 12), (4, 40)]


class Case:
    """Random steps ``[N, T]``: episodes end anywhere, most batches in the middle of one; in one row nothing ends."""

    def __init__(self, rows, steps, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.rows, self.steps = rows, steps

        def draw():
            return torch.randn(rows, steps, generator=generator, dtype=torch.float64)

        self.reward, self.value, self.next_value, self.log_ratio = draw(), draw(), draw(), 0.7 * draw()
        kinds = torch.rand(rows, steps, generator=generator)
        kinds[0] = 0.5
        self.terminated, truncated = kinds < 0.15, kinds > 0.85
        self.done = self.terminated | truncated
        # Where an episode goes on, what follows a step is what the next one begins with.
        self.next_value[:, :-1] = torch.where(self.done[:, :-1], self.next_value[:, :-1], self.value[:, 1:])

    @property
    def given(self):
        return self.reward, self.value, self.next_value, self.terminated, self.done

    def by_loop(self, of_step):
        """``of_step(row, ts)`` for each step, where ``ts`` are the steps from it to the end of what was seen of it."""
        result = torch.zeros(self.rows, self.steps, dtype=torch.float64)
        for row in range(self.rows):
            for t in range(self.steps):
                last = next((k for k in range(t, self.steps) if self.done[row, k]), self.steps - 1)
                result[row, t] = of_step(row, range(t, last + 1))
        return result

    def delta(self, row, t, gamma=GAMMA):
        bootstrap = 0.0 if self.terminated[row, t] else gamma * self.next_value[row, t]
        return self.reward[row, t] + bootstrap - self.value[row, t]


@pytest.fixture(params=[(*case, seed) for case in CASES for seed in (0, 1)], ids=str)
def case(request):
    return Case(*request.param)


def test_a_sum_goes_backwards():
    # 3, then 2 + 3 * 10, then 1 + 32 * 0.5
    assert backward_sum(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 10.0, 7.0])).tolist() == [17, 32, 3]


def test_gae_is_the_discounted_sum_of_errors(case):
    advantage, target = gae(*case.given, GAMMA, LMBDA)
    expected = case.by_loop(lambda row, ts: sum((GAMMA * LMBDA) ** i * case.delta(row, t) for i, t in enumerate(ts)))
    torch.testing.assert_close(advantage, expected)
    torch.testing.assert_close(target, expected + case.value)


def n_step_return(case, row, ts, gamma=GAMMA):
    """The rewards of these steps, and the value of what followed them."""
    total = sum(gamma**i * case.reward[row, t] for i, t in enumerate(ts))
    return total + (0.0 if case.terminated[row, ts[-1]] else gamma ** len(ts) * case.next_value[row, ts[-1]])


def weighted_returns(case, row, ts):
    """Sutton & Barto, eq. 12.3: each n-step return weighs lambda times the one before, the last all the rest."""
    mixed = [(1 - LMBDA) * LMBDA**n * n_step_return(case, row, ts[: n + 1]) for n in range(len(ts) - 1)]
    return sum(mixed) + LMBDA ** (len(ts) - 1) * n_step_return(case, row, ts)


def test_the_lambda_return_is_the_weighted_mean_of_all_n_step_returns(case):
    reward, _, next_value, terminated, done = case.given
    ours = lambda_return(reward, next_value, terminated, done, GAMMA, LMBDA)
    torch.testing.assert_close(ours, case.by_loop(lambda row, ts: weighted_returns(case, row, ts)))


def test_gae_and_the_value_are_the_lambda_return(case):
    reward, _, next_value, terminated, done = case.given
    other = lambda_return(reward, next_value, terminated, done, GAMMA, LMBDA)
    torch.testing.assert_close(gae(*case.given, GAMMA, LMBDA).value_target, other)


def test_with_lambda_0_only_the_next_value_counts(case):
    one_step = case.by_loop(lambda row, ts: case.delta(row, ts[0]))
    torch.testing.assert_close(gae(*case.given, GAMMA, 0.0).advantage, one_step)


def test_with_lambda_1_only_the_last_value_counts(case):
    monte_carlo = case.by_loop(lambda row, ts: n_step_return(case, row, ts))
    torch.testing.assert_close(gae(*case.given, GAMMA, 1.0).value_target, monte_carlo)
    reward, _, next_value, terminated, done = case.given
    torch.testing.assert_close(lambda_return(reward, next_value, terminated, done, GAMMA, 1.0), monte_carlo)


@pytest.mark.parametrize(("rho_max", "c_max"), [(1.0, 1.0), (2.0, 0.5), (0.3, 0.3), (100.0, 100.0)])
def test_v_trace_is_equation_1_of_its_paper(case, rho_max, c_max):
    rho = case.log_ratio.exp().clamp(max=rho_max)
    c = case.log_ratio.exp().clamp(max=c_max)

    def target_of(row, ts):
        total = case.value[row, ts[0]].clone()
        for i, t in enumerate(ts):
            trace = torch.prod(c[row, ts[0] : t]) if i else 1.0
            total += GAMMA**i * trace * rho[row, t] * case.delta(row, t)
        return total

    target = case.by_loop(target_of)

    def advantage_of(row, ts):
        t = ts[0]
        following = target[row, t + 1] if len(ts) > 1 else case.next_value[row, t]
        bootstrap = 0.0 if case.terminated[row, t] else GAMMA * following
        return rho[row, t] * (case.reward[row, t] + bootstrap - case.value[row, t])

    ours = v_trace(*case.given, case.log_ratio, GAMMA, rho_max, c_max)
    torch.testing.assert_close(ours.value_target, target)
    torch.testing.assert_close(ours.advantage, case.by_loop(advantage_of))


def test_v_trace_of_the_same_policy_is_the_lambda_return_with_lambda_1(case):
    ours = v_trace(*case.given, torch.zeros_like(case.reward), GAMMA)
    torch.testing.assert_close(ours.value_target, gae(*case.given, GAMMA, 1.0).value_target)


def test_returns_to_go_end_with_the_episode(case):
    total, is_seen = returns_to_go(case.reward, case.done, GAMMA)
    rewards = case.by_loop(lambda row, ts: sum(GAMMA**i * case.reward[row, t] for i, t in enumerate(ts)))
    ended = case.by_loop(lambda row, ts: float(case.done[row, ts[-1]]))
    torch.testing.assert_close(total, rewards)
    assert is_seen.tolist() == ended.bool().tolist()
    assert not is_seen[0].any()


def test_three_steps_by_hand():
    """Rewards 1, 2, 4; values 10, 20, 30 and 40 of what follows the last; gamma = lambda = 1/2."""
    reward, value = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([10.0, 20.0, 30.0])
    next_value, no = torch.tensor([20.0, 30.0, 40.0]), torch.zeros(3, dtype=torch.bool)
    # delta: 1 + 10 - 10 = 1, 2 + 15 - 20 = -3, 4 + 20 - 30 = -6; backwards with 1/4: -6, -4.5, -0.125
    assert gae(reward, value, next_value, no, no, 0.5, 0.5).advantage.tolist() == [-0.125, -4.5, -6.0]
    ends = torch.tensor([False, True, False])
    # Terminated: the second delta is 2 - 20 = -18, and the first sum 1 - 18 / 4 = -3.5
    assert gae(reward, value, next_value, ends, ends, 0.5, 0.5).advantage.tolist() == [-3.5, -18.0, -6.0]
    # Truncated: delta stays -3, but nothing of the third: 1 - 3 / 4
    assert gae(reward, value, next_value, no, ends, 0.5, 0.5).advantage.tolist() == [0.25, -3.0, -6.0]


def test_float32_stays_float32():
    case = Case(2, 5)
    given = [one.float() if one.is_floating_point() else one for one in case.given]
    reward, _, following, terminated, done = given
    assert {one.dtype for one in gae(*given, GAMMA, LMBDA)} == {torch.float32}
    assert lambda_return(reward, following, terminated, done, GAMMA, LMBDA).dtype == torch.float32
    assert {one.dtype for one in v_trace(*given, case.log_ratio.float(), GAMMA)} == {torch.float32}
    assert returns_to_go(reward, done, GAMMA)[0].dtype == torch.float32
