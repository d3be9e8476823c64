"""Distributions by torch's own, by hand, and by counting; arrays and tensors alike."""

import math

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import distributions as reference
from torch.func import jacrev

from runner.distributions import (
    MASKED,
    Argmax,
    ArgmaxOfMeans,
    Box,
    Categorical,
    Normal,
    TanhDeterministic,
    TanhNormal,
    bounds,
    is_bounded,
    masked,
    outputs_of,
    stochastic,
)
from tests.toys import environment

LOW, HIGH = np.array([-2.0, 0.0], np.float32), np.array([2.0, 5.0], np.float32)
MEANS = ArgmaxOfMeans(3, 5, -1.0, 3.0)
EVERY = [Argmax(3), MEANS, Categorical(3), Normal(LOW, HIGH), TanhNormal(LOW, HIGH), TanhDeterministic(LOW, HIGH)]


def random(*shape, seed=0, scale=1.0, dtype=torch.float64):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def name_of(one):
    return type(one).__name__


@pytest.mark.parametrize("one", EVERY, ids=name_of)
def test_arrays_and_tensors_agree(one):
    outputs = random(7, 5, one.size, dtype=torch.float32)
    noise = one.draw(np.random.default_rng(0), (7, 5))
    assert noise.shape == (7, 5, one.noise_size)
    assert noise.dtype == np.float32
    for ours, theirs in (
        (one.mode(outputs.numpy()), one.mode(outputs)),
        (one.sample(outputs.numpy(), noise), one.sample(outputs, torch.from_numpy(noise))),
    ):
        torch.testing.assert_close(torch.from_numpy(ours), theirs)
        torch.testing.assert_close(torch.from_numpy(one.played(ours)), one.played(theirs))


@pytest.mark.parametrize("one", EVERY, ids=name_of)
def test_noise_comes_from_the_generator_alone(one):
    same, again, other = (one.draw(np.random.default_rng(seed), (4, 2)) for seed in (1, 1, 2))
    assert np.array_equal(same, again)
    assert one.noise_size == 0 or not np.array_equal(same, other)


def test_categorical_by_hand():
    outputs = torch.tensor([0.0, math.log(3.0)], dtype=torch.float64)  # probabilities 1/4 and 3/4
    one, action = Categorical(2), torch.tensor(1)
    assert one.log_prob(outputs, action).item() == pytest.approx(math.log(0.75))
    assert one.entropy(outputs).item() == pytest.approx(0.25 * math.log(4) + 0.75 * math.log(4 / 3))
    even = torch.zeros(2, dtype=torch.float64)
    assert one.kl(outputs, even).item() == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))
    assert one.kl(even, outputs).item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert one.mode(outputs).item() == 1


def test_categorical_by_torch():
    one, outputs, other = Categorical(4), random(6, 3, 4, scale=2), random(6, 3, 4, seed=1)
    theirs, action = reference.Categorical(logits=outputs), torch.randint(4, (6, 3))
    torch.testing.assert_close(one.log_prob(outputs, action), theirs.log_prob(action))
    torch.testing.assert_close(one.entropy(outputs), theirs.entropy())
    kl = reference.kl_divergence(theirs, reference.Categorical(logits=other))
    torch.testing.assert_close(one.kl(outputs, other), kl)


@pytest.mark.parametrize("shift", [0.0, 300.0])  # only differences of logits count
def test_samples_come_as_often_as_their_probabilities_say(shift):
    probabilities, draws = np.array([0.1, 0.2, 0.7]), 30_000
    one, outputs = Categorical(3), np.log(probabilities) + shift
    actions = one.sample(outputs.astype(np.float32), one.draw(np.random.default_rng(0), (draws,)))
    counts, expected = np.bincount(actions, minlength=3), draws * probabilities
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert chi_squared < 13.8  # 2 degrees of freedom: more in one of a thousand


def test_samples_of_vectors_have_the_mean_and_deviation_that_the_network_says():
    one = Normal(LOW, HIGH)
    outputs = np.array([1.0, -3.0, math.log(0.5), math.log(2.0)], np.float32)
    actions = one.sample(outputs, one.draw(np.random.default_rng(0), (40_000,)))
    # Standard errors: deviation / 200 of the means, deviation / 283 of the deviations; four of them.
    assert (np.abs(actions.mean(0) - [1.0, -3.0]) < [0.01, 0.04]).all()
    assert (np.abs(actions.std(0) - [0.5, 2.0]) < [0.0071, 0.029]).all()


def normal_of(outputs):
    mean, log_std = outputs.chunk(2, -1)
    return reference.Independent(reference.Normal(mean, log_std.exp()), 1)


def test_normal_by_torch():
    one, outputs, other = Normal(LOW, HIGH), random(6, 3, 4), random(6, 3, 4, seed=1)
    theirs, action = normal_of(outputs), random(6, 3, 2, seed=2, scale=4)
    torch.testing.assert_close(one.log_prob(outputs, action), theirs.log_prob(action))
    torch.testing.assert_close(one.entropy(outputs), theirs.entropy())
    torch.testing.assert_close(one.kl(outputs, other), reference.kl_divergence(theirs, normal_of(other)))


def test_normal_by_hand():
    one = Normal(LOW, HIGH)
    outputs = torch.tensor([1.0, 0.0, math.log(2.0), 0.0], dtype=torch.float64)  # N(1, 2) and N(0, 1)
    action = torch.tensor([5.0, 1.0], dtype=torch.float64)
    # Two and one deviations from the mean: -(4 + 1) / 2 - log 2 - log(2 pi)
    assert one.log_prob(outputs, action).item() == pytest.approx(-2.5 - math.log(2) - math.log(2 * math.pi))
    assert one.entropy(outputs).item() == pytest.approx(1 + math.log(2 * math.pi) + math.log(2))


def test_what_is_played_of_a_normal_action_is_within_the_bounds_and_what_counts_is_not():
    one, outputs = Normal(LOW, HIGH), np.array([3.0, 1.0, 0.0, 0.0], np.float32)
    assert one.mode(outputs).tolist() == [2.0, 1.0]
    action = one.sample(outputs, np.array([1.0, -4.0], np.float32))
    assert action.tolist() == [4.0, -3.0]
    assert one.played(action).tolist() == [2.0, 0.0]
    assert one.played(torch.from_numpy(action)).tolist() == [2.0, 0.0]


def squashed(outputs):
    """Of actions in [-1, 1], by torch, which knows nothing of the limits of the deviation."""
    mean, log_std = outputs.chunk(2, -1)
    base = reference.Normal(mean, log_std.clamp(-5, 2).exp())
    return reference.Independent(reference.TransformedDistribution(base, reference.TanhTransform()), 1)


def test_tanh_normal_by_torch():
    one, outputs, noise = TanhNormal(LOW, HIGH), random(50, 4, scale=0.5), random(50, 2, seed=1)
    actions, log_prob = one.sample_with_log_prob(outputs, noise)
    center, half = torch.tensor([0.0, 2.5]), torch.tensor([2.0, 2.5])
    expected = squashed(outputs).log_prob((actions - center) / half)
    torch.testing.assert_close(log_prob, expected, rtol=1e-4, atol=1e-5)
    within = ((actions - center) / half).abs().amax(-1) < 0.999  # nearer to the bounds, the action says too little
    again = one.log_prob(outputs, actions)[within]
    assert within.sum() > 40
    torch.testing.assert_close(again, expected[within], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(actions, one.sample(outputs, noise))
    assert (one.played(actions) == actions).all()


@pytest.mark.parametrize("outputs", [[0.0, 0.0], [1.0, -1.0], [-0.5, 0.7]])
def test_the_density_of_a_squashed_action_integrates_to_one(outputs):
    one = TanhNormal(np.float32([-1.0]), np.float32([1.0]))
    edges = torch.linspace(-1, 1, 400_001, dtype=torch.float64)
    actions = ((edges[1:] + edges[:-1]) / 2).unsqueeze(-1)
    density = one.log_prob(torch.tensor(outputs, dtype=torch.float64).expand(len(actions), 2), actions).exp()
    assert (density * edges.diff()).sum().item() == pytest.approx(1, abs=1e-3)


def test_the_gradient_of_a_squashed_sample_is_that_of_finite_differences():
    one, noise = TanhNormal(LOW, HIGH), random(1, 2, seed=3)
    outputs, step = random(1, 4, seed=4), 1e-5
    for pick in (0, 1):  # the action, and its log-probability
        gradient = jacrev(lambda given, pick=pick: one.sample_with_log_prob(given, noise)[pick].sum())(outputs)
        for column in range(4):
            shift = torch.zeros_like(outputs)
            shift[0, column] = step
            ends = [one.sample_with_log_prob(outputs + sign * shift, noise)[pick].sum().item() for sign in (1, -1)]
            assert gradient[0, column].item() == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-5)


@pytest.mark.parametrize("size", [30.0, 1e4])
@pytest.mark.parametrize("one", [Categorical(4), Normal(LOW, HIGH), TanhNormal(LOW, HIGH)], ids=name_of)
def test_large_outputs_give_finite_numbers_and_gradients(one, size):
    outputs = torch.tensor([[size, -size, -size, 0.0], [-size, size, 0.0, -size]])
    if not isinstance(one, Categorical):
        outputs[:, 2:] = torch.tensor([[2.0, -5.0], [-5.0, 2.0]])
    outputs.requires_grad_()
    noise = torch.from_numpy(one.draw(np.random.default_rng(0), (2,)))
    action = one.sample(outputs, noise).detach()
    told = one.log_prob(outputs, action) + (0 if isinstance(one, TanhNormal) else one.entropy(outputs))
    (gradient,) = torch.autograd.grad(told.sum(), outputs)
    assert told.isfinite().all()
    assert gradient.isfinite().all()


def test_deviations_that_the_network_says_are_kept_within_limits():
    one, noise = TanhNormal(np.float32([-1.0]), np.float32([1.0])), np.ones(1, np.float32)
    assert one.sample(np.float32([0.0, -50.0]), noise).item() == pytest.approx(math.tanh(math.exp(-5)))
    assert one.sample(np.float32([0.0, 50.0]), noise).item() == pytest.approx(math.tanh(math.exp(2)))


def test_a_box_squashes_and_unsquashes():
    box = Box(LOW, HIGH)
    numbers = random(9, 2, dtype=torch.float32)
    torch.testing.assert_close(box.unsquash(box.squash(numbers)), numbers)
    assert box.squash(np.zeros((1, 2), np.float32)).tolist() == [[0.0, 2.5]]
    assert box.squash(np.float32([[99, -99]])).tolist() == [[2.0, 0.0]]
    assert box.unsquash(torch.from_numpy(np.stack([LOW, HIGH]))).isfinite().all()


@pytest.mark.parametrize("kind", [TanhNormal, TanhDeterministic])
def test_actions_without_bounds_cannot_be_squashed(kind):
    with pytest.raises(ValueError, match=r"actions without bounds .* cannot be squashed"):
        kind(LOW, np.float32([1.0, np.inf]))


@pytest.mark.parametrize("one", [Argmax(3), MEANS, TanhDeterministic(LOW, HIGH)], ids=name_of)
def test_what_is_no_distribution_gives_no_probabilities(one):
    with pytest.raises(ValueError, match=r"gives? no probabilities"):
        one.log_prob(torch.zeros(1, one.size), torch.zeros(1))


def test_the_action_with_the_largest_mean_is_the_best_however_likely_its_largest_value_is():
    # Values -1, 0, 1, 2, 3. Means: 0.5 x -1 + 0.5 x 3 = 1; 2; 0.9 x 1 + 0.1 x 3 = 1.2.
    probabilities = torch.tensor([[0.5, 0, 0, 0, 0.5], [0, 0, 0, 1, 0], [0, 0, 0.9, 0, 0.1]])
    outputs = probabilities.clamp(min=1e-30).log().reshape(15) - 40
    assert MEANS.atoms.tolist() == [-1, 0, 1, 2, 3]
    torch.testing.assert_close(MEANS.means(outputs), torch.tensor([1.0, 2.0, 1.2]))
    assert MEANS.means(outputs.numpy()).tolist() == pytest.approx([1, 2, 1.2])
    assert MEANS.mode(outputs.numpy()) == 1
    assert MEANS.mode(outputs.expand(4, 2, 15)).tolist() == [[1, 1]] * 4


def test_means_are_those_of_a_loop_and_do_not_overflow():
    outputs = random(7, 15, scale=300)
    expected = [
        [float((torch.softmax(row[5 * a : 5 * a + 5], 0) * torch.arange(-1, 4)).sum()) for a in range(3)]
        for row in outputs
    ]
    torch.testing.assert_close(MEANS.means(outputs), torch.tensor(expected, dtype=torch.float64))
    np.testing.assert_allclose(MEANS.means(outputs.numpy()), expected, atol=1e-12)


def test_means_in_the_precision_of_autocast_are_those_of_float32():
    outputs = random(7, 15, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = MEANS.means(outputs)
    torch.testing.assert_close(found, MEANS.means(outputs))


def test_a_mask_of_actions_counts_for_all_outputs_of_each():
    outputs, mask = random(50, 15, dtype=torch.float32), torch.rand(50, 3, generator=torch.Generator()) < 0.5
    mask[torch.arange(50), torch.arange(50) % 3] = True
    outputs[:, :5] = torch.tensor([0.0, 0, 0, 0, 90])  # the first action is the best wherever it can be taken
    for seen in (masked(outputs, mask), torch.from_numpy(masked(outputs.numpy(), mask.numpy()))):
        assert (seen.view(50, 3, 5)[~mask] == MASKED).all()
        assert torch.equal(seen.view(50, 3, 5)[mask], outputs.view(50, 3, 5)[mask])
        assert (MEANS.means(seen)[~mask] == MASKED).all()
        torch.testing.assert_close(MEANS.means(seen)[mask], MEANS.means(outputs)[mask])
        for mode in (MEANS.mode(seen), torch.from_numpy(MEANS.mode(seen.numpy()))):
            assert mask[torch.arange(50), mode].all()
            assert (mode[mask[:, 0]] == 0).all()


def test_the_probabilities_of_one_actions_values_by_torch():
    outputs, action = random(6, 2, 15), torch.randint(3, (6, 2))
    everything = reference.Categorical(logits=outputs.view(6, 2, 3, 5)).probs
    expected = torch.stack([everything[:, :, a] for a in range(3)])
    found = MEANS.log_probs(outputs, action).exp()
    for place in np.ndindex(6, 2):
        torch.testing.assert_close(found[place], expected[action[place]][place])


def test_masked_actions_have_no_chance_and_no_gradient():
    outputs, mask = random(5, 3).requires_grad_(), torch.tensor([[True, False, True]]).expand(5, 3)
    one, seen = Categorical(3), masked(outputs, mask)
    assert (seen[:, 1] == MASKED).all()
    kept = outputs[:, [0, 2]]
    torch.testing.assert_close(one.entropy(seen), Categorical(2).entropy(kept))  # 0 log 0 counts nothing
    torch.testing.assert_close(
        one.log_prob(seen, torch.full((5,), 2)), Categorical(2).log_prob(kept, torch.ones(5).long())
    )
    (gradient,) = torch.autograd.grad(one.entropy(seen).sum(), outputs)
    assert gradient.isfinite().all()
    assert (gradient[:, 1] == 0).all()
    noise = one.draw(np.random.default_rng(0), (5,))
    assert 1 not in one.sample(masked(outputs.detach().numpy(), mask.numpy()), noise)


def test_the_distribution_follows_from_what_the_environment_takes():
    assert stochastic(environment("CartPole-v1").spec).size == 2
    vectors = stochastic(environment("Pendulum-v1").spec)
    assert (vectors.size, vectors.noise_size, vectors.low.tolist(), vectors.high.tolist()) == (2, 1, [-2], [2])
    with pytest.raises(ValueError, match="CartPole-v1 takes one of 2 actions, where vectors are needed"):
        bounds(environment("CartPole-v1").spec)


def test_a_network_is_called_with_the_entries_that_it_names():
    batch = TensorDict({"observation": torch.ones(2, 3), "goal": torch.full((2, 3), 5.0)}, [2])

    class Named:
        in_keys = ("goal", "observation")

        def __call__(self, goal, observation):
            return goal - observation

    assert outputs_of(Named(), batch).tolist() == [[4.0] * 3] * 2
    assert outputs_of(lambda one: 2 * one, batch).tolist() == [[2.0] * 3] * 2


def test_a_mask_in_the_batch_counts_for_outputs_of_actions_and_for_no_others():
    mask = torch.tensor([[True, False, True]])
    batch = TensorDict({"observation": torch.ones(1, 3), "action_mask": mask}, [1])
    assert outputs_of(lambda one: 2 * one, batch).tolist() == [[2.0, MASKED, 2.0]]
    assert outputs_of(lambda one: 2 * one[:, :1], batch).tolist() == [[2.0]]  # a value of the state


@pytest.mark.parametrize("shape", [(), (1, 1), (2, 2)])
def test_actions_of_any_shape_have_the_density_of_their_elements(shape):
    size = int(np.prod(shape))
    outputs, action = torch.randn(5, 3, 2 * size), torch.rand(5, 3, *shape) * 1.8 - 0.9
    low, high = -np.ones(size, np.float32), np.ones(size, np.float32)
    for kind in (Normal(low, high), TanhNormal(low, high)):
        found = kind.log_prob(outputs, action)
        assert found.shape == (5, 3)
        assert torch.equal(found, kind.log_prob(outputs, action.reshape(5, 3, size)))


def test_bounds_whose_distance_is_no_number_are_none():
    most = np.full(1, np.finfo(np.float32).max)
    assert not is_bounded(-most, most)
    assert is_bounded(-most / 4, most / 4)
    with pytest.raises(ValueError, match="without bounds"):
        TanhNormal(-most, most)
