"""Networks in bf16 and fp16, and the scaler of the latter, which is torch's to the bit."""

import gc
import weakref
from collections import namedtuple
from copy import deepcopy

import pytest
import torch
from torch import nn, optim

from runner.learner.gradients import Clip
from runner.learner.optimization import NonFiniteError, Optimization
from runner.learner.optimizers import Adam
from runner.learner.precision import LossScaler, Precision

NAN, INF = float("nan"), float("inf")
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
KINDS = {
    "sgd": lambda parameters: optim.SGD(parameters, lr=0.1, momentum=0.9),
    "adam": lambda parameters: optim.Adam(parameters, lr=0.1, foreach=True),
    "fused adam": lambda parameters: optim.Adam(parameters, lr=0.1, fused=True),
    "our adam": lambda parameters: Adam(parameters, lr=0.1, fused=True),
}
FACTORS = [1.0, 1.0, 1.0, 1.0, INF, 1.0, -INF, NAN, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1e30, 1.0, 1.0, 1.0]
"""Of the losses of successive updates; with 1e30 times the scale there is an overflow in some gradients only."""


def layers():
    torch.manual_seed(0)
    return nn.Linear(3, 4), nn.Linear(4, 2)


def bits(optimizer):
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    moments = [value for one in parameters for _, value in sorted(optimizer.state.get(one, {}).items())]
    return [one.detach().clone() for one in [*parameters, *moments] if isinstance(one, torch.Tensor)]


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))


def losses(parts, n):
    """Two losses over both layers; the first has the factor of update ``n``, which in 1e30's case is of one input."""
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(n))
    hidden = parts[0](x).tanh()
    output = parts[1](hidden)
    factor = torch.ones(2)
    factor[0] = FACTORS[n]
    return (output * factor).square().mean() if FACTORS[n] == 1 else (output * factor).sum(), hidden.square().mean()


def scaler_settings():
    return {"growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 3}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first_scale", [2.0**16, 2.0**127, 3.0])
def test_one_optimizer_moves_as_with_torchs_scaler_to_the_bit(kind, first_scale):
    ours, theirs = layers(), layers()
    reference = torch.amp.GradScaler("cpu", init_scale=first_scale, **scaler_settings())
    optimizer = KINDS[kind.replace("our", "fused")]([*theirs[0].parameters(), *theirs[1].parameters()])
    optimization = Optimization(KINDS[kind]([*ours[0].parameters(), *ours[1].parameters()]))
    optimization.scaler = LossScaler(first_scale, **scaler_settings())
    for n in range(len(FACTORS)):
        optimizer.zero_grad()
        reference.scale(losses(theirs, n)[0]).backward()
        reference.unscale_(optimizer)
        reference.step(optimizer)
        reference.update()
        optimization.apply(losses(ours, n)[0])
        optimization.scaler.update()
        assert optimization.scaler.scale.item() == reference.get_scale()
        assert_same(bits(optimization.optimizer), bits(optimizer))
    assert optimization.skipped > 0


@pytest.mark.parametrize("kind", KINDS)
def test_two_optimizers_share_one_scaler_as_torch_documents_it_to_the_bit(kind):
    ours, theirs = layers(), layers()
    reference = torch.amp.GradScaler("cpu", **scaler_settings())
    optimizers = [KINDS[kind.replace("our", "fused")](layer.parameters()) for layer in theirs]
    optimizations = [Optimization(KINDS[kind](layer.parameters())) for layer in ours]
    scaler = optimizations[0].scaler = optimizations[1].scaler = LossScaler(**scaler_settings())
    for n in range(len(FACTORS)):
        first, second = losses(theirs, n)
        own = [torch.autograd.grad(reference.scale(loss), layer.parameters(), retain_graph=True)
               for loss, layer in ((second, theirs[0]), (first, theirs[1]))]  # fmt: skip
        for layer, gradients in zip(theirs, own, strict=True):
            for parameter, gradient in zip(layer.parameters(), gradients, strict=True):
                parameter.grad = gradient
        for optimizer in optimizers:
            reference.unscale_(optimizer)
            reference.step(optimizer)
        reference.update()
        first, second = losses(ours, n)
        gradients = torch.autograd.grad(scaler.scaled(second), list(ours[0].parameters()), retain_graph=True)
        other = torch.autograd.grad(scaler.scaled(first), list(ours[1].parameters()))
        for one, own_gradients in zip(optimizations, (list(gradients), list(other)), strict=True):
            one.postprocess_gradients(own_gradients)
            one.apply_gradients(own_gradients)
        scaler.update()
        assert scaler.scale.item() == reference.get_scale()
        for one, optimizer in zip(optimizations, optimizers, strict=True):
            assert_same(bits(one.optimizer), bits(optimizer))
    assert optimizations[0].skipped == 0 < optimizations[1].skipped  # the bad losses are the second one's alone


def weight(*values):
    return nn.Parameter(torch.tensor(values))


def scaled_descent(*parameters, scale=8.0, **kwargs):
    optimization = Optimization(optim.SGD(parameters, lr=1.0), **kwargs)
    optimization.scaler = LossScaler(scale)
    return optimization


def test_gradients_are_unscaled_before_they_are_clipped():
    w = weight(0.0, 0.0)
    optimization = scaled_descent(w, scale=2.0**16, clip=Clip(10.0))
    metrics = optimization.apply((w * torch.tensor([3.0, 4.0])).sum())  # of norm 5, which is within the bound
    assert w.tolist() == [-3.0, -4.0]
    assert metrics["grad_norm/default"].item() == 5.0


def test_an_overflow_halves_the_scale_once_for_two_optimizations():
    a, b = weight(1.0), weight(1.0)
    first, second = scaled_descent(a), scaled_descent(b)
    second.scaler = first.scaler
    for one, loss in ((first, a * INF), (second, b * INF)):
        one.apply(loss.sum())
    first.scaler.update()
    assert first.scaler.scale.item() == 4.0


def test_both_optimizations_of_an_update_are_unscaled_by_what_they_were_scaled_with():
    a, b = weight(0.0), weight(0.0)
    first, second = scaled_descent(a), scaled_descent(b)
    second.scaler = first.scaler
    first.apply((a * INF).sum())  # the scale of this update stays until its end
    second.apply((b * 3.0).sum())
    assert b.item() == -3.0


def test_a_step_after_the_callers_own_backward_pass_of_scaled_losses_is_unscaled():
    w = weight(0.0)
    optimization = scaled_descent(w)
    optimization.scaled((w * 3.0).sum()).backward()
    optimization.step()
    assert w.item() == -3.0


def test_an_update_in_which_nothing_was_due_leaves_the_scale_alone():
    scaler = LossScaler(8.0, growth_interval=1)
    scaler.update()
    assert (scaler.scale.item(), scaler.state_dict()["good_updates"]) == (8.0, 0)


def test_gradients_of_several_number_formats_are_unscaled_and_checked():
    scaler = LossScaler(8.0)
    single, double = torch.tensor([8.0, 16.0]), torch.tensor([24.0, INF], dtype=torch.float64)
    assert scaler.unscale([single]).item() == 0.0
    assert scaler.unscale([single, double]).item() == 1.0
    assert single.tolist() == [1 / 8, 2 / 8]
    assert double.tolist() == [3.0, INF]


def test_a_scale_goes_on_where_it_was_saved():
    def run(scaler, founds):
        for found in founds:
            scaler.unscale([torch.tensor([INF if found else 1.0])])
            scaler.update()
        return scaler

    saved = run(LossScaler(growth_interval=3), [1, 0, 0])
    loaded = LossScaler(growth_interval=3)
    loaded.load_state_dict(saved.state_dict())
    assert saved.state_dict() == {"scale": 2.0**15, "good_updates": 2}
    for scaler in (saved, loaded):
        run(scaler, [0])  # the third good one: doubled
        assert scaler.state_dict() == {"scale": 2.0**16, "good_updates": 0}


def test_overflows_that_do_not_end_are_an_error():
    w = weight(1.0)
    optimization = scaled_descent(w, name="critic", non_finite_limit=3)  # of a run with non_finite=raise
    for _ in range(2):
        optimization.apply((w * NAN).sum())
    with pytest.raises(NonFiniteError, match=r"'critic'.* 3 updates in a row"):
        optimization.apply((w * NAN).sum())
    assert optimization.row_metrics() == {"train/skipped/critic": 2}


def test_zeroing_applies_after_unscaling_and_tells_the_scaler():
    w = weight(0.0, 0.0)
    optimization = scaled_descent(w, non_finite="zero")
    optimization.apply((w * torch.tensor([INF, 3.0])).sum())
    optimization.scaler.update()
    assert w.tolist() == [0.0, -3.0]
    assert (optimization.zeroed, optimization.skipped, optimization.scaler.scale.item()) == (1, 0, 4.0)


class Probe(nn.Module):
    """Notes the number format in which its layer computes."""

    in_keys = ("one", "two")

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.seen = []

    def forward(self, x):
        y = self.layer(x)
        self.seen.append(y.dtype)
        return y


@pytest.mark.parametrize("name", HALVES)
def test_a_network_computes_in_half_and_answers_in_full(name):
    network = Probe()
    half = Precision(name).of(network, "cpu")
    output = half(torch.ones(1, 3))
    assert network.seen == [HALVES[name]]
    assert output.dtype is torch.float32
    assert half.in_keys == ("one", "two")
    output.sum().backward()
    assert network.layer.weight.grad.dtype is torch.float32
    torch.testing.assert_close(output, network(torch.ones(1, 3)), atol=0.01, rtol=0.01)
    assert not torch.equal(output, network(torch.ones(1, 3)))


def test_a_copy_has_a_network_of_its_own():
    half = Precision("bf16").of(Probe(), "cpu")
    copy = deepcopy(half)
    assert copy.network is not half.network
    assert torch.equal(copy(torch.ones(1, 3)), half(torch.ones(1, 3)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("name", HALVES)
def test_a_network_on_a_gpu_computes_in_half_and_is_unscaled_there(name):
    network = Probe().cuda()
    half, scaler = Precision(name).of(network, "cuda"), LossScaler()
    loss = half(torch.ones(1, 3, device="cuda")).sum()
    gradients = torch.autograd.grad(scaler.scaled(loss), list(network.parameters()))
    assert network.seen == [HALVES[name]]
    assert scaler.unscale(gradients).item() == 0.0
    scaler.update()
    torch.testing.assert_close(gradients[1], torch.ones(2, device="cuda"))


Pair = namedtuple("Pair", "one two")


def test_outputs_of_any_form_are_in_full_but_those_that_are_no_halves():
    def network(x):
        return Pair({"y": x.bfloat16()}, [x.double(), x.long(), "word"])

    one, (double, whole, word) = Precision("bf16").of(network, "cpu")(torch.ones(1))
    assert [one["y"].dtype, double.dtype, whole.dtype, word] == [torch.float32, torch.float64, torch.int64, "word"]


def test_full_precision_is_the_network_itself():
    network, precision = Probe(), Precision("fp32")
    assert precision.of(network, "cpu") is network
    assert precision.make_scaler() is None


def test_only_fp16_has_scalers_one_for_each_who_asks():
    assert Precision("bf16").make_scaler() is None
    one, other = (Precision("fp16").make_scaler() for _ in range(2))
    assert one is not other
    assert one.scale.item() == other.scale.item() == 2.0**16


def test_networks_that_were_forgotten_are_let_go():
    network, precision = Probe(), Precision("bf16")
    assert precision.of(network, "cpu") is precision.of(network, "cpu")
    gone = weakref.ref(network)
    precision.forget()
    del network
    gc.collect()
    assert gone() is None


def test_a_precision_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="no precision 'fp8': use fp32, bf16 or fp16"):
        Precision("fp8")
