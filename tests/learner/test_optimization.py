import warnings
from copy import deepcopy

import pytest
import torch
from tensordict import TensorDict
from torch import nn, optim
from torch.optim.lr_scheduler import ExponentialLR, StepLR

from runner.learner.gradients import Clip
from runner.learner.optimization import NonFiniteError, Optimization
from runner.learner.optimizers import Adam, adam, adamax, rmsprop, sgd
from runner.learner.targets import FixedTarget, PolyakTarget
from runner.schedules import Linear
from runner.spec import CheckpointError

NAN, INF = float("nan"), float("inf")


def weight(*values):
    return nn.Parameter(torch.tensor(values or (0.0,)))


def descending(*parameters, lr=1.0, **kwargs):
    """Plain gradient descent: each parameter moves by minus ``lr`` times its gradient."""
    return Optimization(optim.SGD(parameters, lr=lr), **kwargs)


def bits(optimization):
    """Weights and moments, as they are."""
    moments = optimization.optimizer.state_dict()["state"]
    return [one.detach().clone() for one in optimization.parameters] + [
        value.clone() for state in moments.values() for value in state.values() if isinstance(value, torch.Tensor)
    ]


def same(some, others):
    return len(some) == len(others) and all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


def test_losses_are_summed_with_their_weights():
    w = weight(0.0, 0.0, 0.0)
    losses = TensorDict({"loss_a": w[0] * 1, "loss_b": w[1] * 1, "loss_c": w[2] * 1, "error": w.detach()}, [])
    descending(w, loss_weights={"a": 2.0, "c": 0.5}).apply(losses)
    assert w.tolist() == [-2.0, -1.0, -0.5]


def test_a_mapping_and_a_lone_tensor_are_losses_too():
    w = weight(0.0)
    descending(w).apply({"loss_a": w.sum(), "entropy": torch.tensor(7.0)})
    descending(w).apply(w.sum() * 2)
    assert w.item() == -3.0


def test_a_weight_for_a_loss_that_does_not_exist_is_refused():
    w = weight()
    with pytest.raises(KeyError, match="loss_q"):
        descending(w, loss_weights={"loss_q": 2.0}).apply({"loss_q": w.sum()})  # the name goes without the prefix


def test_no_loss_among_the_losses_is_refused():
    with pytest.raises(KeyError, match="entropy"):
        descending(weight()).apply({"entropy": torch.tensor(1.0)})


@pytest.mark.parametrize("wrong", [{"every": 0}, {"non_finite": "ignore"}])
def test_values_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match="must be"):
        descending(weight(), **wrong)


def test_every_second_update_is_due_from_the_first_on():
    optimization = descending(weight(), every=2)
    assert [optimization.is_due(update) for update in range(5)] == [True, False, True, False, True]


def test_a_parameter_no_loss_reaches_is_left_alone():
    used, unused = weight(1.0), weight(5.0)
    optimization = Optimization(adam([used, unused], lr=0.1), clip=Clip(1.0))
    optimization.apply((used**2).sum())
    assert unused.item() == 5.0
    assert list(optimization.optimizer.state) == [used]  # no moments for the other one, either


def test_a_frozen_parameter_stays_where_it_is():
    frozen, free = weight(1.0).requires_grad_(False), weight(0.0)
    descending(frozen, free).apply((frozen * free).sum())
    assert (frozen.item(), free.item()) == (1.0, -1.0)
    descending(frozen).apply(frozen.sum())  # everything is frozen: nothing moves, and nothing fails
    assert frozen.item() == 1.0


def test_clipping_bounds_the_step_and_reports_the_norm_before():
    w = weight(0.0, 0.0)
    metrics = descending(w, name="q", clip=Clip(1.0)).apply((w * torch.tensor([3.0, 4.0])).sum())
    torch.testing.assert_close(w.detach(), torch.tensor([-0.6, -0.8]))
    assert metrics["grad_norm/q"].item() == 5.0
    assert descending(w).apply(w.sum()) == {}


def test_parameters_with_one_gradient_tensor_between_them_are_clipped_once():
    a, b = weight(1.0, 1.0, 1.0), weight(1.0, 1.0, 1.0)
    descending(a, b, clip=Clip(6**0.5)).apply((a + b).square().sum())
    # each gradient is 2 * (1 + 1) = 4, the norm 4 * sqrt(6): times 1/4, so that each element moves by 1
    torch.testing.assert_close(a.detach(), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(b.detach(), torch.zeros(3), atol=1e-6, rtol=0)


@pytest.mark.parametrize("by", ["value", "norm", "global_norm"])
def test_an_expanded_gradient_can_be_clipped(by):
    w = weight(0.0, 0.0, 0.0, 0.0)
    descending(w, clip=Clip(0.5, by)).apply(w.sum())  # the gradient of a sum is one number shown four times
    torch.testing.assert_close(w.detach(), torch.full((4,), -0.5 if by == "value" else -0.25), atol=1e-6, rtol=0)


def test_a_gradient_found_on_entry_does_not_leak_in():
    w = weight(0.0)
    w.grad = torch.tensor([100.0])
    descending(w).apply(w.sum())
    assert w.item() == -1.0
    assert w.grad is None


def test_parameters_of_others_are_not_touched():
    own, foreign = weight(2.0), weight(3.0)
    foreign.grad = torch.tensor([7.0])
    descending(own).apply((own * foreign).sum())
    assert own.item() == -1.0
    assert foreign.item() == 3.0
    assert foreign.grad.item() == 7.0


def test_a_step_after_a_backward_pass_equals_apply():
    torch.manual_seed(0)
    first, x = nn.Linear(4, 1), torch.randn(8, 4)
    second = nn.Linear(4, 1)
    second.load_state_dict(first.state_dict())
    applied, stepped = (Optimization(adam(net.parameters(), lr=0.1), clip=Clip(0.1)) for net in (first, second))
    for _ in range(3):
        norm = applied.apply(first(x).square().mean())
        second(x).square().mean().backward()
        assert torch.equal(stepped.step()["grad_norm/default"], norm["grad_norm/default"])
        assert second.weight.grad is None
    assert same(bits(applied), bits(stepped))


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_skip_leaves_weights_moments_and_targets_bit_identical(bad):
    model = nn.Linear(2, 1, bias=False)
    target = PolyakTarget(0.5)
    target.init(model)
    optimization = Optimization(adam(model.parameters(), lr=0.1), non_finite="skip", targets=(target,))
    optimization.apply(model(torch.ones(1, 2)).sum())
    before = [*bits(optimization), target.model.weight.clone()]
    assert optimization.apply(model(torch.tensor([[1.0, bad]])).sum()) == {}
    assert same([*bits(optimization), target.model.weight], before)
    assert optimization.skipped == 1
    optimization.apply(model(torch.ones(1, 2)).sum())
    assert not same([*bits(optimization), target.model.weight], before)
    assert optimization.skipped == 1


def test_a_skipped_update_does_not_count_for_targets_and_schedules():
    w = nn.ParameterList([weight(0.0)])
    target = FixedTarget(2)
    target.init(w)
    optimizer = optim.SGD(w.parameters(), lr=1.0)
    optimization = Optimization(optimizer, schedule=ExponentialLR(optimizer, 0.5), non_finite="skip", targets=(target,))
    for factor in (1.0, NAN, NAN, 1.0):
        optimization.apply((w[0] * factor).sum())
    assert w[0].item() == -1.5  # two applied updates, at 1 and at 1/2
    assert optimization.lr == 0.25
    assert target.model[0].item() == -1.5  # copied after the second one


def test_zero_makes_zeros_of_nan_and_infinity():
    w = weight(0.0, 0.0, 0.0, 0.0)
    descending(w, non_finite="zero").apply((w * torch.tensor([NAN, INF, -INF, 2.0])).sum())
    assert w.tolist() == [0.0, 0.0, 0.0, -2.0]  # an infinity that became 3.4e38 would have moved the second to -3.4e38


def test_zero_comes_before_clipping():
    w = weight(0.0, 0.0)
    metrics = descending(w, non_finite="zero", clip=Clip(1.0)).apply((w * torch.tensor([INF, 5.0])).sum())
    torch.testing.assert_close(w.detach(), torch.tensor([0.0, -1.0]))
    assert metrics["grad_norm/default"].item() == 5.0


def test_raise_is_noticed_when_it_is_asked_for():
    w = weight(1.0)
    optimization = descending(w, name="critic")
    optimization.check_finite()
    optimization.apply((w * NAN).sum())
    with pytest.raises(NonFiniteError, match="'critic'"):
        optimization.check_finite()


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize(
    "clip", [None, Clip(1.0, "value"), Clip(1.0, "norm"), Clip(1.0)], ids=lambda clip: clip and clip.by
)
@pytest.mark.parametrize("kind", [optim.SGD, Adam, rmsprop, adamax])
def test_raise_notices_what_is_not_finite_in_one_of_many_gradients(bad, clip, kind):
    parameters = [weight(1.0, 1.0) for _ in range(5)]
    optimization = Optimization(kind(parameters, lr=0.1), clip=clip)
    factors = torch.ones(2)
    factors[1] = bad
    optimization.apply(sum(one.sum() for one in parameters[1:]) + (parameters[0] * factors).sum())
    with pytest.raises(NonFiniteError, match="no longer finite"):
        optimization.check_finite()


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_one_bad_gradient_of_many_skips_all_of_its_optimization(bad):
    parameters = [weight(1.0, 1.0) for _ in range(5)]
    optimization = descending(*parameters, non_finite="skip")
    factors = torch.ones(2)
    factors[1] = bad
    optimization.apply(sum(one.sum() for one in parameters[1:]) + (parameters[0] * factors).sum())
    assert all(one.tolist() == [1.0, 1.0] for one in parameters)
    assert optimization.row_metrics() == {"train/skipped/default": 1}


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_updates_that_were_skipped_leave_no_trace_in_the_run(bad):
    def run(factors):
        torch.manual_seed(0)
        net, x = nn.Linear(4, 2), torch.randn(8, 4)
        targets = (PolyakTarget(0.1), FixedTarget(2))
        for target in targets:
            target.init(net)
        optimizer = adam(net.parameters(), lr=0.1)
        optimization = Optimization(
            optimizer, schedule=StepLR(optimizer, 2, 0.5), clip=Clip(0.1), non_finite="skip", targets=targets
        )
        for factor in factors:
            optimization.apply((net(x) * factor).square().mean())
        return [*bits(optimization), *(target.model.weight for target in targets)], optimization.lr

    assert same(run([1.0, bad, bad, 2.0, bad, 3.0])[0], run([1.0, 2.0, 3.0])[0])
    assert run([1.0, bad, bad, 2.0, bad, 3.0])[1] == run([1.0, 2.0, 3.0])[1]


@pytest.mark.parametrize("policy", ["skip", "zero"])
def test_bad_updates_in_a_row_are_an_error_at_the_limit_and_a_good_one_begins_anew(policy):
    w = weight(0.0)
    optimization = descending(w, name="critic", non_finite=policy, non_finite_limit=3)
    for factor in (INF, INF, 1.0, NAN, -INF):
        optimization.apply((w * factor).sum())
    with pytest.raises(NonFiniteError, match=r"optimization 'critic'.*not finite in 3 updates in a row"):
        optimization.apply((w * INF).sum())
    assert w.item() == -1.0
    assert list(optimization.row_metrics().items()) == [
        ("train/skipped/critic", 4) if policy == "skip" else ("train/zeroed/critic", 4)
    ]


def test_without_a_limit_any_number_of_updates_may_be_skipped():
    w = weight(0.0)
    optimization = descending(w, non_finite="skip", non_finite_limit=None)
    for _ in range(200):
        optimization.apply((w * INF).sum())
    assert optimization.skipped == 200


def test_no_bad_update_at_all_is_not_a_limit():
    with pytest.raises(ValueError, match="non_finite_limit=0 must be >= 1"):
        descending(weight(0.0), non_finite_limit=0)


def test_nothing_is_counted_where_nothing_is_skipped():
    assert descending(weight(0.0)).row_metrics() == {}


def test_the_schedule_sets_the_rate_of_the_step_it_comes_with():
    w = weight(0.0)
    optimization = descending(w, lr=1.0, schedule=Linear(100, 0.0, None))
    moved = []
    for env_steps in (0, 50, 75, 100):
        before = w.item()
        optimization.apply(w.sum(), env_steps)
        moved.append(before - w.item())
    assert moved == [1.0, 0.5, 0.25, 0.0]
    assert optimization.lr == 0.0


def test_a_torch_scheduler_is_stepped_after_each_applied_update():
    w = weight(0.0)
    optimizer = optim.SGD([w], lr=1.0)
    optimization = Optimization(optimizer, schedule=StepLR(optimizer, step_size=2, gamma=0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns where a scheduler moves before its optimizer
        seen = [(optimization.apply(w.sum()), w.item())[1] for _ in range(5)]
    assert seen == [-1.0, -2.0, -2.5, -3.0, -3.25]  # rates 1, 1, 1/2, 1/2, 1/4


def test_a_torch_scheduler_is_saved_and_restored():
    def make():
        w = weight(0.0)
        optimizer = optim.SGD([w], lr=1.0)
        return w, Optimization(optimizer, schedule=StepLR(optimizer, step_size=2, gamma=0.5))

    w, optimization = make()
    for _ in range(3):
        optimization.apply(w.sum())
    resumed_w, resumed = make()
    resumed.load_state_dict(optimization.state_dict())
    for _ in range(2):
        resumed.apply(resumed_w.sum())
    assert resumed_w.item() == -0.75  # the rates 1/2 and 1/4 of the fourth and fifth update


def test_the_configured_rate_wins_over_the_one_of_a_checkpoint():
    saved = Optimization(optim.SGD([weight(0.0)], lr=1.0, momentum=0.5))
    saved.apply(saved.parameters[0].sum())  # leaves a momentum of 1
    w = weight(0.0)
    loaded = Optimization(optim.SGD([w], lr=0.25, momentum=0.5))
    loaded.load_state_dict(saved.state_dict())
    assert loaded.lr == 0.25
    loaded.apply(w.sum())
    assert w.item() == -0.25 * (0.5 * 1 + 1)


@pytest.mark.parametrize(
    "make", [adam, sgd, rmsprop, adamax, lambda p: sgd(p, momentum=0.9), lambda p: adam(p, weight_decay=0.1)]
)
def test_the_next_step_after_loading_is_the_same_to_the_bit(make):
    torch.manual_seed(0)
    net, x = nn.Linear(5, 3), torch.randn(7, 5)
    optimization = Optimization(make(net.parameters()))
    for _ in range(4):
        optimization.apply(net(x).square().mean())
    again = nn.Linear(5, 3)
    again.load_state_dict(net.state_dict())
    resumed = Optimization(make(again.parameters()))
    resumed.load_state_dict(optimization.state_dict())
    optimization.apply(net(x).square().mean())
    after = bits(optimization)
    resumed.apply(again(x).square().mean())
    assert same(bits(resumed), after)
    assert same(
        bits(optimization), after
    )  # what was loaded is a copy: the second step has not moved the first's moments


def test_adam_is_fused_and_decays_weights_as_adamw():
    assert adam([weight()]).defaults["fused"]
    assert type(adam([weight()], weight_decay=0.1)) is optim.AdamW
    assert type(adam([weight()])) is Adam


def steps_of(kind, moments=None):
    """Five updates of two parameters, the fourth without a gradient for one, after loading ``moments``."""
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(3)) for _ in range(2)]
    optimizer = kind(parameters, lr=0.1, fused=True)
    if moments is not None:
        optimizer.load_state_dict(moments)
    for step in range(5):
        for parameter in parameters:
            parameter.grad = torch.randn(3)
        if step == 3:
            parameters[0].grad = None
        optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
        optimizer.step()
    state = optimizer.state_dict()
    return [*parameters, *(value for moments in state["state"].values() for value in moments.values())], state


def test_our_adam_moves_weights_and_moments_like_torchs_to_the_bit():
    ours, theirs = steps_of(Adam), steps_of(optim.Adam)
    assert same(ours[0], theirs[0])
    assert same(steps_of(Adam, ours[1])[0], steps_of(optim.Adam, theirs[1])[0])


def loaded_in_mid_life(kind):
    """Three updates upwards, then the moments of after the first are loaded, then two more."""
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(3))
    optimizer, moments = kind([parameter], lr=0.1, fused=True, maximize=True), None
    for step in range(5):
        parameter.grad = torch.randn(3)
        optimizer.step()
        if step == 0:
            moments = deepcopy(optimizer.state_dict())
        if step == 2:
            optimizer.load_state_dict(moments)
    return [parameter, *optimizer.state[parameter].values()]


def test_our_adam_goes_on_with_loaded_moments_and_climbs_like_torchs_to_the_bit():
    assert same(loaded_in_mid_life(Adam), loaded_in_mid_life(optim.Adam))


def test_our_adam_obeys_a_scaler_that_has_found_an_infinity():
    parameter = weight()
    optimizer = Adam([parameter], lr=0.1, fused=True)
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    before = parameter.detach().clone()
    optimizer.found_inf = torch.ones(())
    optimizer.grad_scale = torch.ones(())
    optimizer.step()
    assert torch.equal(parameter, before)


def test_the_count_of_skipped_updates_is_kept():
    w = weight(0.0)
    saved, loaded = (descending(w, non_finite="skip") for _ in range(2))
    saved.apply((w * NAN).sum())
    loaded.load_state_dict(saved.state_dict())
    assert (loaded.skipped, loaded.non_finite_in_a_row) == (1, 1)


def test_a_row_of_bad_updates_goes_on_after_a_load():
    saved, loaded = (descending(weight(0.0), non_finite="zero", non_finite_limit=2) for _ in range(2))
    saved.apply((saved.parameters[0] * NAN).sum())
    loaded.load_state_dict(saved.state_dict())
    assert loaded.zeroed == 1
    with pytest.raises(NonFiniteError):
        loaded.apply((loaded.parameters[0] * NAN).sum())


def test_the_logged_rate_is_the_schedules_also_before_the_first_step_after_a_load():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimization = Optimization(torch.optim.SGD([parameter], lr=1.0), schedule=Linear(100, 0.0, None))
    assert optimization.lr_at(25) == 0.75
    assert optimization.lr == 1.0  # nothing has been applied yet


def test_moments_of_another_optimizer_are_refused():
    parameter = torch.nn.Parameter(torch.zeros(1))
    state = Optimization(torch.optim.Adam([parameter])).state_dict()
    with pytest.raises(CheckpointError, match="moments of Adam, which RMSprop cannot go on with"):
        Optimization(torch.optim.RMSprop([parameter])).load_state_dict(state)
