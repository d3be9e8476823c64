"""Losses that move their networks one after the other: the same bits as loops written out, each term in its turn."""

from functools import partial

import pytest
import torch
from torch import nn, optim

from runner.builders import make_learner
from runner.learner.optimizers import adam
from runner.learner.targets import PolyakTarget
from runner.losses.sac import SACLoss
from runner.losses.td3 import TD3Loss
from runner.networks.continuous import make_deterministic_policy_and_values, make_stochastic_policy_and_values
from tests.losses.parts import SPEC, transitions
from tests.toys import same_tree

GAMMA, RATE, LR, UPDATES = 0.95, 0.05, 1e-2, 20


def sac():
    torch.manual_seed(0)
    networks = make_stochastic_policy_and_values(SPEC, [16, 16], "relu")
    return networks, SACLoss(networks["policy"].distribution, GAMMA, None, True)


def td3():
    torch.manual_seed(0)
    networks = make_deterministic_policy_and_values(SPEC, [16, 16], "relu")
    return networks, TD3Loss(networks["policy"].distribution, GAMMA, 0.2, 0.5)


def learner_of(made, compile="trace", **options):
    networks, loss = made
    return make_learner(networks, loss, partial(adam, lr=LR), target_updater=PolyakTarget(RATE),
                        generator=torch.Generator().manual_seed(7), compile=compile, **options)  # fmt: skip


def update(learner, batch):
    metrics = learner.step(learner.compute_losses(batch), batch)
    learner.progress.updates += 1
    return metrics


def data():
    return [transitions(32, seed) for seed in range(UPDATES)]


class Written:
    """What the written-out loops have in common: optimizers, targets and noise, with nothing of the learner in it."""

    def __init__(self, networks, followed):
        self.networks = networks
        self.optimizers = {
            name: optim.Adam(network.parameters(), lr=LR, fused=True) for name, network in networks.items()
        }
        fresh = sac()[0] if "log_alpha" in networks else td3()[0]  # begins as the networks do
        self.targets = {name: fresh[name].requires_grad_(False) for name in followed}
        self.generator = torch.Generator().manual_seed(7)

    def noise(self, batch):
        return torch.randn(batch["action"].shape, generator=self.generator)

    def descend(self, name, loss):
        self.optimizers[name].zero_grad()
        loss.backward(inputs=list(self.networks[name].parameters()))
        self.optimizers[name].step()

    def follow(self, name):
        for own, source in zip(self.targets[name].parameters(), self.networks[name].parameters(), strict=True):
            own.lerp_(source.detach(), RATE)

    def regress(self, batch, next_action, subtracted, scale):
        """The values' stage: towards the smaller target value of the next action, less what is ``subtracted``."""
        following = batch["next"]
        with torch.no_grad():
            values = self.targets["q"](following["observation"], next_action)
            discount = torch.where(following["terminated"], 0.0, GAMMA)
            target = following["reward"] + discount * (values.amin(0) - subtracted)
        error = self.networks["q"](batch["observation"], batch["action"]) - target
        self.descend("q", scale * (error**2).mean(1).sum())


def written_sac(batches):
    networks, _ = sac()
    policy, q, log_alpha = networks["policy"], networks["q"], networks["log_alpha"].log
    sample = policy.distribution.sample_with_log_prob
    loop = Written(networks, ["q"])
    for batch in batches:
        next_noise, noise = loop.noise(batch), loop.noise(batch)
        with torch.no_grad():
            next_action, next_log_prob = sample(policy(batch["next", "observation"]), next_noise)
            entropy_bonus = log_alpha.exp() * next_log_prob
        loop.regress(batch, next_action, entropy_bonus, 0.5)
        loop.follow("q")
        action, log_prob = sample(policy(batch["observation"]), noise)
        value = q(batch["observation"], action).amin(0)
        loop.descend("policy", (log_alpha.detach().exp() * log_prob - value).mean())
        loop.descend("log_alpha", -log_alpha * (log_prob.detach().mean() - 2.0))
    return loop


def written_td3(batches):
    networks, _ = td3()
    policy, q = networks["policy"], networks["q"]
    box = policy.distribution.box
    low, high = torch.from_numpy(box.low), torch.from_numpy(box.high)
    loop = Written(networks, ["q", "policy"])
    for number, batch in enumerate(batches):
        noise = (loop.noise(batch) * 0.2).clamp(-0.5, 0.5) * ((high - low) / 2)
        with torch.no_grad():
            smoothed = policy.distribution.mode(loop.targets["policy"](batch["next", "observation"])) + noise
        loop.regress(batch, smoothed.clamp(low, high), 0.0, 1.0)
        if number % 2 == 0:
            action = policy.distribution.mode(policy(batch["observation"]))
            loop.descend("policy", -q(batch["observation"], action, 1).mean())
            loop.follow("q")
            loop.follow("policy")
    return loop


STAGE_OF = {"q": "critic", "policy": "actor", "log_alpha": "alpha"}


def assert_same_bits(learner, loop):
    wrapped = learner.modules["default"].networks
    optimizations = {one.name: one for one in learner.optimizations()}
    for name, network in loop.networks.items():
        ours, theirs = list(wrapped[name].model.parameters()), list(network.parameters())
        own, other = optimizations[STAGE_OF[name]].optimizer.state, loop.optimizers[name].state
        for mine, yours in zip(ours, theirs, strict=True):
            assert torch.equal(mine, yours)
            for moment in ("exp_avg", "exp_avg_sq", "step"):
                assert torch.equal(own[mine][moment], other[yours][moment])
    for name, target in loop.targets.items():
        for mine, yours in zip(wrapped[name].target.model.parameters(), target.parameters(), strict=True):
            assert torch.equal(mine, yours)


@pytest.mark.parametrize("compile", ["none", "trace"])
@pytest.mark.parametrize(("made", "written"), [(sac, written_sac), (td3, written_td3)])
def test_staged_updates_are_those_of_the_loop_written_out_to_the_bit(made, written, compile):
    learner = learner_of(made(), compile)
    for batch in data():
        update(learner, batch)
    assert_same_bits(learner, written(data()))
    if compile == "trace":
        assert all(recorders[0]._programs for recorders in learner._recorders.values())


@pytest.mark.parametrize(("made", "written"), [(sac, written_sac), (td3, written_td3)])
def test_the_comparison_notices_what_is_out_of_turn(made, written):
    learner = learner_of(made())
    stages = learner.modules["default"].optimizations
    learner.modules["default"] = learner.modules["default"]._replace(optimizations=stages[::-1])
    for batch in data():
        update(learner, batch)
    with pytest.raises(AssertionError):
        assert_same_bits(learner, written(data()))


def counted(loss):
    calls = []
    for name, term in list(loss.terms.items()):
        loss.terms[name] = lambda *inputs, name=name, term=term: (calls.append(name), term(*inputs))[1]
    return calls


def test_a_delayed_actor_is_evaluated_only_when_due():
    networks, loss = td3()
    calls = counted(loss)
    learner = learner_of((networks, loss), "none")
    metrics = [update(learner, batch) for batch in data()[:4]]
    assert calls == ["critic", "actor", "critic", "critic", "actor", "critic"]
    assert ["loss/actor" in one for one in metrics] == [True, False, True, False]


def test_targets_follow_the_stage_that_names_them():
    learner = learner_of(td3())
    wrapped = learner.modules["default"].networks
    seen = []
    for batch in data()[:3]:
        before = [one.clone() for name in ("q", "policy") for one in wrapped[name].target.model.parameters()]
        update(learner, batch)
        after = [one for name in ("q", "policy") for one in wrapped[name].target.model.parameters()]
        seen.append([not torch.equal(*pair) for pair in zip(before, after, strict=True)])
    assert all(seen[0])
    assert not any(seen[1])
    assert all(seen[2])
    assert learner.follower_of(wrapped["q"].model) == learner.follower_of(wrapped["policy"].model) == "actor"


def test_what_the_actor_told_of_an_earlier_batch_is_not_used_again():
    # The same batch object is filled anew for each update; in every second one the actor has no turn.
    learner = learner_of(sac(), "none", optimizations={"actor": {"every": 2}})
    fresh = learner_of(sac(), "none", optimizations={"actor": {"every": 2}})
    reused = transitions(32)
    for batch in data()[:4]:
        update(learner, reused.update(batch))
        update(fresh, batch)
    assert same_tree(learner.state_dict(), fresh.state_dict())


def test_options_change_one_optimization_alone():
    options = {"actor": {"every": 3, "lr": 0.5, "clip": 2.0}, "alpha": {"lr": None}}
    learner = learner_of(sac(), optimizations=options, clip=9.0, update_every=2, loss_weights={"critic": 4.0})
    critic, actor, alpha = learner.optimizations()
    assert [one.name for one in learner.optimizations()] == ["critic", "actor", "alpha"]
    assert [one.every for one in (critic, actor, alpha)] == [2, 6, 2]
    assert [one.lr for one in (critic, actor, alpha)] == [LR, 0.5, LR]
    assert [one.clip.max for one in (critic, actor, alpha)] == [9.0, 2.0, 9.0]
    assert [one.loss_weights for one in (critic, actor, alpha)] == [{"critic": 4.0}, {}, {}]


def test_options_that_say_nothing_may_be_of_a_stage_that_this_loss_has_not():
    networks, _ = sac()
    loss = SACLoss(networks["policy"].distribution, GAMMA, None, learn_alpha=False)
    learner = learner_of((networks, loss), optimizations={"alpha": {"every": None, "lr": None, "clip": None}})
    before = networks["log_alpha"].log.item()
    update(learner, transitions(32))
    assert ([one.name for one in learner.optimizations()], networks["log_alpha"].log.item()) == (
        ["critic", "actor"],
        before,
    )


def test_a_delay_of_the_loss_gives_way_to_the_option():
    assert [one.every for one in learner_of(td3()).optimizations()] == [1, 2]
    assert [one.every for one in learner_of(td3(), optimizations={"actor": {"every": 1}}).optimizations()] == [1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizations": {"policy": {"lr": 1.0}}}, r"learner.optimizations.policy.*critic, actor, alpha"),
        ({"optimizations": {"actor": {"every": 1.5}}}, r"learner.optimizations.actor.every=1.5"),
        ({"loss_weights": {"q": 2.0}}, r"learner.loss_weights.q.*critic, actor, alpha"),
    ],
)
def test_what_the_loss_does_not_have_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        learner_of(sac(), **options)


def test_a_stage_over_a_network_that_is_not_there_is_refused():
    networks, loss = sac()
    del networks["log_alpha"]
    with pytest.raises(ValueError, match="'log_alpha'; there are policy, q"):
        learner_of((networks, loss))


def test_a_loss_that_draws_needs_a_generator():
    networks, loss = sac()
    with pytest.raises(ValueError, match="SACLoss draws random numbers"):
        make_learner(networks, loss, adam)


def test_a_loss_without_stages_has_one_optimization_over_all():
    class Plain:
        hyper_parameters, terms = {}, {}

    networks = {"a": nn.Linear(1, 1), "b": nn.Linear(1, 1)}
    (one,) = make_learner(networks, Plain(), adam).optimizations()
    assert (one.name, one.terms, len(one.parameters)) == ("default", None, 4)


def test_noise_is_drawn_once_for_each_update_and_goes_on_after_a_restart():
    first, whole = learner_of(sac()), learner_of(sac())
    for batch in data()[:6]:
        update(first, batch)
    state = first.state_dict()
    resumed = learner_of(sac())
    resumed.load_state_dict(state)
    resumed.progress.updates = 6
    for batch in data()[6:]:
        update(resumed, batch)
    for batch in data():
        update(whole, batch)
    assert same_tree(resumed.state_dict(), whole.state_dict())
    assert not torch.equal(
        resumed.state_dict()["optimizer"]["default"]["noise"], state["optimizer"]["default"]["noise"]
    )


def test_noise_depends_on_its_own_stream_alone():
    learner, batch = learner_of(sac()), transitions(32)
    torch.manual_seed(99)
    update(learner, batch)
    generator = torch.Generator().manual_seed(7)
    assert torch.equal(batch["noise", "next_action"], torch.randn(32, 2, generator=generator))
    assert torch.equal(batch["noise", "action"], torch.randn(32, 2, generator=generator))


@pytest.mark.parametrize("made", [sac, td3])
def test_recording_leaves_every_network_its_own_parameters(made):
    learner = learner_of(made())
    for batch in data()[:3]:
        update(learner, batch)
    for network in learner.modules["default"].networks.values():
        assert all(type(one) is nn.Parameter for one in network.model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("made", [sac, td3])
def test_compiled_updates_are_near_those_of_autograd(made):
    compiled, plain = learner_of(made(), "update"), learner_of(made(), "none")
    for batch in data():
        ours, theirs = update(compiled, batch.clone()), update(plain, batch.clone())
    assert all(recorders[0]._programs for recorders in compiled._recorders.values())
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0.02, atol=1e-2)
