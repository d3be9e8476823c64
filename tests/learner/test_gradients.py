import pytest
import torch

from runner.learner.gradients import Clip, are_finite, global_norm, multiply_and_check, with_own_memory, zero_non_finite

NAN, INF = float("nan"), float("inf")


def test_value_bounds_each_element():
    gradient = torch.tensor([3.0, -4.0, 0.5])
    Clip(1.0, "value")([gradient])
    assert gradient.tolist() == [1.0, -1.0, 0.5]


def test_norm_shrinks_each_tensor_that_is_too_long():
    long, short = torch.tensor([3.0, 4.0]), torch.tensor([0.6, 0.8])
    Clip(2.0, "norm")([long, short])
    torch.testing.assert_close(long, torch.tensor([1.2, 1.6]))  # |long| = 5: times 2 / 5
    assert short.tolist() == torch.tensor([0.6, 0.8]).tolist()  # |short| = 1: as it was


def test_norm_leaves_a_zero_tensor_zero():
    zero, long = torch.zeros(3), torch.tensor([3.0, 4.0])  # max / |0| is infinite, and 0 times that is NaN
    Clip(1.0, "norm")([zero, long])
    assert zero.tolist() == [0.0, 0.0, 0.0]
    torch.testing.assert_close(long, torch.tensor([0.6, 0.8]))


def test_global_norm_shrinks_all_by_one_factor():
    one, other = torch.tensor([3.0, 4.0]), torch.tensor([[12.0]])
    Clip(6.5)([one, other])
    torch.testing.assert_close(one, torch.tensor([1.5, 2.0]))  # N = sqrt(9 + 16 + 144) = 13: times 1 / 2
    torch.testing.assert_close(other, torch.tensor([[6.0]]))


def test_global_norm_adds_a_millionth_to_the_norm():
    gradient = torch.tensor([1e-6], dtype=torch.float64)
    Clip(1e-6)([gradient])
    assert gradient.item() == pytest.approx(5e-7, rel=1e-12)  # 1e-6 / (1e-6 + 1e-6) = 1 / 2


@pytest.mark.parametrize("by", ["value", "norm", "global_norm"])
def test_small_gradients_keep_their_bits(by):
    gradient = torch.tensor([0.1, -0.2])
    Clip(1.0, by)([gradient])
    assert torch.equal(gradient, torch.tensor([0.1, -0.2]))


@pytest.mark.parametrize("by", ["value", "norm", "global_norm"])
def test_the_norm_before_clipping_is_reported(by):
    norm = Clip(0.1, by)([torch.tensor([3.0, 4.0]), torch.tensor([12.0])])
    torch.testing.assert_close(norm, torch.tensor(13.0))


def test_a_nan_counts_zero_and_an_infinity_a_billion_in_the_global_norm():
    assert global_norm([torch.tensor([NAN, 7.0]), torch.tensor([3.0, 4.0])]).item() == 5.0
    assert global_norm([torch.tensor([-INF]), torch.tensor([3.0, 4.0])]).item() == pytest.approx(1e9)
    assert global_norm([torch.tensor([INF]), torch.tensor([INF])]).item() == pytest.approx(2**0.5 * 1e9)


def test_a_nan_in_one_tensor_does_not_spread_to_the_others():
    bad, good = torch.tensor([NAN]), torch.tensor([3.0, 4.0])
    Clip(2.5)([bad, good])  # N = 5
    torch.testing.assert_close(good, torch.tensor([1.5, 2.0]))
    bad, good = torch.tensor([INF]), torch.tensor([3.0, 4.0])
    Clip(1.0)([bad, good])  # N = 1e9
    torch.testing.assert_close(good, torch.tensor([3e-9, 4e-9]))


@pytest.mark.parametrize(("bound", "by"), [(0, "value"), (-1, "norm"), (1, "l1"), (1, "")])
def test_a_bound_or_a_way_that_makes_no_sense_is_refused(bound, by):
    with pytest.raises(ValueError, match="clip"):
        Clip(bound, by)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("by", ["value", "norm", "global_norm"])
def test_no_way_of_clipping_makes_a_number_of_what_is_none(bad, by):
    gradient, other = torch.tensor([bad, 0.5, -2.0]), torch.tensor([1.0])
    Clip(1.0, by)([gradient, other])
    assert not gradient[0].isfinite()
    assert other.isfinite().all()


def test_bounding_values_leaves_the_elements_beside_an_infinity_as_they_would_be():
    gradient = torch.tensor([INF, 0.5, -2.0, 3e38])
    Clip(1.0, "value")([gradient])
    assert gradient[1:].tolist() == [0.5, -1.0, 1.0]


def test_gradients_are_multiplied_and_checked_in_one_pass():
    single, double = torch.tensor([1.0, -2.0]), torch.tensor([3.0], dtype=torch.float64)
    assert multiply_and_check([single, double], torch.tensor(0.5)).item() == 0.0
    assert (single.tolist(), double.tolist()) == ([0.5, -1.0], [1.5])


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("place", [0, 3, 6])
def test_one_bad_element_of_one_of_many_gradients_is_found_and_no_bit_changes(bad, place):
    gradients = [torch.randn(3, 4) for _ in range(6)] + [torch.randn(2, dtype=torch.float64)]
    assert multiply_and_check(gradients, torch.ones(())).item() == 0.0
    gradients[place].view(-1)[1] = bad
    before = [one.clone() for one in gradients]
    assert multiply_and_check(gradients, torch.ones(())).item() == 1.0
    for one, other in zip(gradients, before, strict=True):
        assert one.numpy().tobytes() == other.numpy().tobytes()


def test_zeroing_turns_every_non_finite_element_into_zero():
    gradient = torch.tensor([NAN, INF, -INF, 2.0, -3e38])  # torch's own default would make 3.4e38 of an infinity
    zero_non_finite([gradient])
    assert torch.equal(gradient, torch.tensor([0.0, 0.0, 0.0, 2.0, -3e38]))


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_one_non_finite_element_is_enough(bad):
    assert are_finite([torch.ones(2), torch.zeros(3)])
    assert not are_finite([torch.ones(2), torch.tensor([0.0, bad, 0.0])])


def test_gradients_that_share_memory_are_separated():
    shared = torch.ones(2)
    expanded = torch.ones(()).expand(3)
    one, other, none, wide = with_own_memory([shared, shared, None, expanded])
    assert none is None
    one.mul_(2), wide.mul_(torch.tensor([1.0, 2.0, 3.0]))
    assert other.tolist() == [1.0, 1.0]
    assert wide.tolist() == [1.0, 2.0, 3.0]
    assert one is shared  # no copy without need
