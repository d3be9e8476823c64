"""What a module learns is its own affair: no other module, and nothing that went wrong, has a say in it."""

import gc
import weakref

import pytest
import torch
from torch import nn, optim

from runner.learner.approximation import Approximation
from runner.learner.connectors import EpisodesToBatch, pad_sequences
from runner.learner.features import FeatureNetwork
from runner.learner.learner import Learner
from runner.learner.module import Module
from runner.learner.optimization import NonFiniteError, Optimization
from runner.learner.targets import PolyakTarget
from runner.losses.dqn import DQNLoss
from runner.spec import CheckpointError, ConfigError
from tests.learner.parts import bits, keyed, learner, parts, q_network, same, spec, transitions, update

INF = float("inf")


def weights(one, module_id="default"):
    q = one.module[module_id].networks["q"]
    return [parameter.detach().clone() for parameter in q.model.parameters()]


def targets(one, module_id="default"):
    return [parameter.clone() for parameter in one.module[module_id].networks["q"].target.model.parameters()]


def test_a_module_counts_the_updates_that_it_takes_part_in():
    both = learner("left", "right", options={"right": {"update_every": 2}})
    alone = Learner({"right": spec(1, update_every=2)}).build()
    for number in range(7):
        update(both, keyed("left", seed=number))  # as many as it likes
        update(both, keyed("left", "right", seed=number))
        update(alone, transitions(number + 100))
        assert same(bits(both, "right"), bits(alone, "right"))


def test_losses_that_were_only_looked_at_do_not_count():
    one, other = (learner(options={"default": {"update_every": 2}}) for _ in range(2))
    for number in range(5):
        one.compute_losses(transitions(50))
        update(one, transitions(number))
        update(other, transitions(number))
    assert same(bits(one), bits(other))


def test_minibatches_of_a_module_are_shuffled_by_itself():
    options = {"minibatch_size": 2, "shuffle_batch_per_epoch": True, "num_epochs": 2}
    both, one = learner("left", "right"), learner("left", "right")
    one.remove_module("right")
    orders = []
    for number in range(3):
        both.update_from_batch(parts("left", "right", seed=number), **options)
        one.update_from_batch(parts("left", seed=number), **options)
        assert same(bits(both, "left"), bits(one, "left"))
        orders.append([both._own[module_id].shuffling.get_state() for module_id in ("left", "right")])
    assert not torch.equal(*orders[0])


def test_an_overflow_of_one_module_leaves_the_scale_of_another():
    both, alone = (learner("left", "right", precision="fp16") for _ in range(2))
    for number in range(4):
        batch = keyed("left", "right", seed=number)
        batch["right", "observation"][0] = INF
        update(both, batch)
        update(alone, keyed("left", "right", seed=number))
        assert same(bits(both, "left"), bits(alone, "left"))
    scales = [one.scaler.scale.item() for one in both.optimizations()]
    assert scales[0] == 2.0**16 > scales[1]


def test_who_is_updated_is_asked_once_and_sees_the_batch_of_all():
    asked = []

    def right_where_left_has_data(module_id, batch):
        asked.append((module_id, set(batch.keys()), batch["left"].batch_size[0]))
        return module_id == "right" and "left" in batch.keys()

    one = learner("left", "right", modules_to_train=right_where_left_has_data)
    left, right = bits(one, "left"), bits(one, "right")
    one.update_from_batch(parts("left", "right"), minibatch_size=2)
    assert asked == [("left", {"left", "right"}, 6), ("right", {"left", "right"}, 6)]
    assert same(bits(one, "left"), left)
    assert not same(bits(one, "right"), right)


def test_whoever_has_selected_modules_is_not_asked_again():
    one = learner("left", "right", modules_to_train=lambda module_id, batch: "left" in batch.keys())
    assert one.select_modules(keyed("left", "right")) == ("left", "right")
    right = weights(one, "right")
    update(one, keyed("right"))
    assert not same(weights(one, "right"), right)
    right = weights(one, "right")
    update(one, keyed("right"))  # nobody has selected any this time
    assert same(weights(one, "right"), right)


def test_episodes_are_given_by_module_where_there_are_several():
    with pytest.raises(ValueError, match="episodes are given by their ids, left, right"):
        learner("left", "right").update_from_episodes([transitions()])


def test_padding_teaches_nothing():
    episodes = [transitions(0, 5), transitions(1, 2)]
    padded, joined = learner(connectors=EpisodesToBatch(pad_sequences)), learner()
    ours, theirs = (one.update_from_episodes(episodes)["default"] for one in (padded, joined))
    assert ours["loss/q"] == pytest.approx(theirs["loss/q"], rel=1e-6)
    for mine, other in zip(weights(padded), weights(joined), strict=True):
        torch.testing.assert_close(mine, other)
    batch = pad_sequences(episodes)
    assert batch["importance_weight"].tolist() == [[pytest.approx(10 / 7)] * 5, [pytest.approx(10 / 7)] * 2 + [0.0] * 3]


def test_weights_that_are_no_numbers_are_noticed_at_the_end_of_a_call():
    one, batch = Learner(spec(loss=DQNLoss(0.9, True, "l2"))).build(), transitions()
    batch["next", "reward"][0] = INF
    with pytest.raises(NonFiniteError, match="after update 1, module 'default', optimization 'default'"):
        one.update_from_batch(batch)


def test_steps_after_a_backward_pass_of_ones_own_move_shared_features_as_well():
    torch.manual_seed(0)
    made = [nn.Linear(2, 3), nn.Linear(3, 1), nn.Linear(3, 1)]
    state = [one.state_dict() for one in made]
    features = FeatureNetwork(made[0], optim.SGD(made[0].parameters(), lr=0.1))
    heads = [Approximation(one, optim.SGD(one.parameters(), lr=0.1)) for one in made[1:]]
    plain = [nn.Linear(2, 3), nn.Linear(3, 1), nn.Linear(3, 1)]
    for one, own in zip(plain, state, strict=True):
        one.load_state_dict(own)
    optimizer = optim.SGD([parameter for one in plain for parameter in one.parameters()], lr=0.1)
    for number in range(5):
        x = torch.randn(4, 2, generator=torch.Generator().manual_seed(number))
        seen = features(x)
        (heads[0](seen).square().mean() + heads[1](seen).mean()).backward()
        for one in (*heads, features):
            one.step()
        optimizer.zero_grad()
        (plain[1](plain[0](x)).square().mean() + plain[2](plain[0](x)).mean()).backward()
        optimizer.step()
    assert features.waiting() == []
    for mine, other in zip(made, plain, strict=True):
        torch.testing.assert_close(mine.weight, other.weight)


def test_a_part_of_a_state_moves_nothing_that_it_does_not_name():
    source = learner("left", "right", modules_to_train=["left"])
    source.update_from_batch(parts("left", "right"))
    one = learner("left", "right")
    for number in range(3):
        one.update_from_batch(parts("left", "right", seed=number))
    one.set_state(source.get_state(["rl_module/left", "optimizer/left"]))
    assert one.modules_to_train is None
    assert one.weights_seq_no == 3
    assert same(bits(one, "left"), bits(source, "left"))


def test_a_state_that_does_not_fit_changes_nothing():
    one, other = learner("left", "right"), learner("left", "right")
    sgd = Learner({"left": spec(5), "right": spec(6, optimizer=lambda parameters: optim.SGD(parameters, lr=0.1))})
    for each in (one, other, sgd.build()):
        each.update_from_batch(parts("left", "right"))
    for state in (sgd.get_state(), {**sgd.get_state(), "should_module_be_updated": ["nobody"]}):
        with pytest.raises((CheckpointError, ValueError)):
            one.set_state(state)
        assert one.modules_to_train is None
        assert all(same(bits(one, module_id), bits(other, module_id)) for module_id in ("left", "right"))


def test_a_function_that_selects_is_configuration_which_a_state_does_not_replace():
    chooses = learner("left", "right", modules_to_train=lambda module_id, batch: module_id == "left")
    lists = learner("left", "right", modules_to_train=["right"])
    lists.set_state(chooses.get_state())
    assert lists.modules_to_train == ["right"]


def test_a_state_is_enough_to_go_on_with_rates_and_turns():
    options = {"default": {"update_every": 2, "lr": [[0, 0.1], [100, 0.001]]}}
    whole, first, second = (learner(options=options) for _ in range(3))
    for number in range(5):
        for one in (whole, first):
            one.update_from_batch(transitions(number), timesteps={"env_steps": 10 * number})
    second.set_state(first.get_state())
    for number in range(5, 9):
        told = [one.update_from_batch(transitions(number)) for one in (whole, second)]
        assert told[0] == told[1]
    assert same(bits(whole), bits(second))


def test_mistakes_leave_who_is_updated_and_who_is_there_as_they_were():
    one = learner("left", "right")
    with pytest.raises(ValueError, match="no module 'nope'; there are left"):
        one.remove_module("right", new_should_module_be_updated=["nope"])
    with pytest.raises(ValueError, match="no such optimization"):
        one.add_module(
            module_id="new",
            module_spec=spec(3),
            config_overrides={"optimizations": {"nobody": {"lr": 1.0}}},
            new_should_module_be_updated=["new"],
        )
    assert list(one.module) == ["left", "right"]
    assert one.modules_to_train is None


def test_a_learner_that_could_not_be_built_is_not_built():
    one = Learner({"left": spec(0), "right": spec(1, optimizations={"nobody": {"lr": 1.0}})})
    for _ in range(2):
        with pytest.raises(ValueError, match="no such optimization"):
            one.build()
        assert not one.is_built
        assert one.modules == {}


def test_timesteps_that_there_are_not_are_refused():
    with pytest.raises(ValueError, match="there are no env_step; did you mean env_steps"):
        learner().update_from_batch(transitions(), timesteps={"env_step": 4})


def test_the_rate_of_a_stage_comes_before_that_of_the_module():
    one = Learner(spec(lr=0.5, optimizations={"default": {"lr": 0.25}})).build()
    assert one.get_optimizer().param_groups[0]["lr"] == 0.25


class ByHand(Learner):
    """An optimizer for each layer, as a user of RLlib registers them."""

    def configure_optimizers_for_module(self, module_id, config):
        for number, layer in enumerate(self.modules[module_id].networks["q"].model.layers):
            params = self.get_parameters(layer)
            self.register_optimizer(
                module_id=module_id,
                optimizer_name=f"layer {number}",
                optimizer=optim.SGD(params, lr=0.1),
                params=params,
            )


def test_a_target_follows_its_network_after_the_last_optimizer_that_moves_it():
    one = learner(kind=ByHand)
    assert [len(each.targets) for each in one.optimizations()] == [0, 1]
    before = targets(one)
    update(one, transitions(0))
    assert same(targets(one), before)
    update(one, transitions(1))  # its frequency is 2
    assert same(targets(one), weights(one))


def test_an_iterator_that_ends_within_a_call_ends_the_call():
    one = learner()
    metrics = one.update_from_iterator((transitions(number) for number in range(2)), num_iters=5)
    assert metrics["__all_modules__"]["dataset_num_iters_trained"] == 2
    assert one.weights_seq_no == 1


def test_iterators_of_long_ago_are_let_go():
    one, gone = learner(), []
    for number in range(40):
        source = (transitions(number + more) for more in range(2))
        gone.append(weakref.ref(source))
        one.update_from_iterator(source, num_iters=1)
    del source
    gc.collect()
    assert sum(one() is None for one in gone) > 20


def test_networks_of_removed_modules_are_let_go():
    one = learner("left", "right", precision="bf16")
    one.add_module(module_id="new", module_spec=spec(3))
    update(one, keyed("left", "right", "new"))
    gone = weakref.ref(one.module["new"].networks["q"].model)
    one.remove_module("new")
    gc.collect()
    assert gone() is None
    update(one, keyed("left", "right"))


def test_losses_are_added_up_as_they_are_weighted_for_each_module_and_for_all():
    one = learner("left", "right", options={"left": {"loss_weights": {"q": 3.0}}})
    told = one.update_from_batch(parts("left", "right"))
    assert told["left"]["total_loss"] == pytest.approx(3 * told["left"]["loss/q"])
    assert told["right"]["total_loss"] == told["right"]["loss/q"]
    assert told["__all_modules__"]["total_loss"] == pytest.approx(told["left"]["total_loss"] + told["right"]["loss/q"])


def test_a_limit_that_is_lower_than_what_was_counted_before_holds_at_once():
    q = q_network(0)["q"]
    optimization = Optimization(optim.SGD(q.model.parameters(), lr=0.1), non_finite="skip", non_finite_limit=3)
    optimization.non_finite_in_a_row = 4  # by a run with a higher limit
    bad = next(q.model.parameters()).sum() * INF
    with pytest.raises(NonFiniteError, match="5 updates in a row"):
        optimization.apply(bad)


def test_one_more_optimizer_is_of_one_module():
    one = learner("left", "right")
    with pytest.raises(ConfigError, match="one more optimizer for which of left, right"):
        one.add(optim.SGD(one.get_parameters(one.module["left"]), lr=0.1), "more")


def test_clipping_of_the_configuration_holds_for_registered_optimizers():
    one = ByHand(spec(clip=0.5, clip_by="norm", non_finite="skip", non_finite_limit=7)).build()
    kinds = {(each.clip.max, each.clip.by, each.non_finite, each.non_finite_limit) for each in one.optimizations()}
    assert kinds == {(0.5, "norm", "skip", 7)}


def test_ready_modules_keep_the_targets_that_they_came_with():
    q = Approximation(nn.Linear(2, 2), target=PolyakTarget(0.5))
    optimization = Optimization(optim.SGD(q.model.parameters(), lr=0.1))
    Learner(Module({"q": q}, DQNLoss(0.9, True, "l2"), (optimization,))).build()
    assert optimization.targets == ()


def test_what_an_earlier_call_has_told_is_not_told_again():
    one = learner("left", "right")
    one.update_from_batch(parts("left", "right"))
    told = one.update_from_batch(parts("right"))
    assert "loss/q" not in told["left"]
    assert told["right"]["loss/q"] == told["right"]["total_loss"]
    assert "total_loss" not in one.update_from_batch({})["__all_modules__"]


@pytest.mark.parametrize("state", [{}, {"rl_modul": {}}, {"optimiser": {"left": {}}}])
def test_what_is_no_state_is_refused(state):
    with pytest.raises(ValueError, match="a state has rl_module, optimizer, metrics_logger; this one has"):
        learner("left", "right").set_state(state)


def test_a_network_that_does_not_fit_is_named_and_leaves_all_others():
    one, other = learner("left", "right"), Learner({"left": spec(5), "right": spec(6)}).build()
    state = other.get_state("rl_module")
    state["rl_module"]["right"]["q"]["model"]["layers.0.weight"] = torch.zeros(8, 4)
    before = bits(one, "left")
    with pytest.raises(CheckpointError, match=r"network 'q' of module 'right' is another one: .*size mismatch"):
        one.set_state(state)
    assert same(bits(one, "left"), before)


class Remembering(Learner):
    """Has something of its own to save."""

    factor = 1.0

    def get_state(self, components=None, not_components=None):
        return {**super().get_state(components, not_components), "factor": self.factor}

    def set_state(self, state):
        super().set_state(state)
        self.factor = state["factor"]


def test_what_a_subclass_adds_to_its_state_is_saved_and_loaded():
    one, other = learner(kind=Remembering), learner(kind=Remembering)
    one.update_from_batch(transitions())
    one.factor = 7.0
    other.load_state_dict(one.state_dict())
    assert other.factor == 7.0
    assert same(bits(one), bits(other))


@pytest.mark.parametrize(
    ("select", "words"),
    [
        (lambda module_id: True, r"<lambda> is called with \(module_id, batch\); too many"),
        (lambda module_id, batch: "yes", "has to say True or False; it said 'yes'"),
    ],
)
def test_a_function_that_cannot_select_is_refused(select, words):
    with pytest.raises(ValueError, match=words):
        learner("left", "right", modules_to_train=select).update_from_batch(parts("left", "right"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"optimizations": {"default": {"lrr": 1.0}}}, "learner.optimizations.default.lrr: there are every, lr, clip"),
        ({"loss_weights": {"qq": 2.0}}, "learner.loss_weights.qq: the loss has no such term; it has q"),
        ({"lr": -0.1}, "a learning rate of -0.1: it must be >= 0"),
        ({"lr": float("nan")}, "a learning rate of nan"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused_at_once(options, words):
    with pytest.raises(ValueError, match=words):
        Learner(spec(**options)).build()


def test_a_way_to_compile_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="no way to compile called 'x': there are"):
        Learner(spec(), compile="x").build()


def test_an_optimizer_of_another_network_is_refused():
    with pytest.raises(ValueError, match="has none of the model's parameters"):
        Approximation(nn.Linear(2, 2), optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1), name="q")


def test_a_function_of_an_optimizer_makes_its_scheduler():
    one = Learner(spec(scheduler=lambda optimizer: optim.lr_scheduler.StepLR(optimizer, 1, 0.5))).build()
    update(one, transitions())
    assert one.get_optimizer().param_groups[0]["lr"] == 0.005
    with pytest.raises(ValueError, match="has to make a torch scheduler; got a NoneType"):
        Learner(spec(scheduler=lambda optimizer: None)).build()


class Counted:
    """Begins anew whenever somebody asks for an iterator."""

    begun = 0

    def __iter__(self):
        self.begun += 1
        return iter([transitions(number) for number in range(3)])


def test_an_iterable_is_begun_anew_only_at_its_end():
    one, other, source = learner(), learner(), Counted()
    for _ in range(2):
        one.update_from_iterator(source, num_iters=2)
    assert source.begun == 2
    for number in (0, 1, 2, 0):
        update(other, transitions(number))
    assert same(bits(one), bits(other))


def test_reading_a_state_in_an_update_moves_nothing_on():
    one, other = (learner(options={"default": {"update_every": 2}}) for _ in range(2))
    for number in range(6):
        batch = transitions(number)
        losses = one.compute_losses(batch)
        one.get_state()
        one.step(losses, batch)
        counted = [one.get_state()["optimizer"]["default"]["updates"] for _ in range(2)]
        assert counted == [number + 1] * 2
        with pytest.raises(ValueError, match="a state has"):
            one.set_state({})
        update(other, transitions(number))
        assert same(bits(one), bits(other))


def test_a_refused_state_leaves_metrics_and_the_update_under_way():
    one, other = (learner("left", "right", options={"right": {"update_every": 2}}) for _ in range(2))
    one.metrics.log_value("x", 5, "sum")
    state = one.get_state()
    state["metrics_logger"] = {"stats": []}
    for number in range(4):
        batch = keyed("left", "right", seed=number)
        one.step(one.compute_losses(batch), batch)
        with pytest.raises(ValueError, match="there is no module 'nobody'"):
            one.set_state({**state, "should_module_be_updated": ["nobody"]})
        update(other, keyed("left", "right", seed=number))
        assert all(same(bits(one, module_id), bits(other, module_id)) for module_id in ("left", "right"))
    assert one.metrics.peek("x") == 5


@pytest.mark.parametrize("state", [{"optimizer": {"default": {}}}, {"rl_module": {"default": {"q": {}}}}])
def test_a_state_with_a_part_missing_is_refused_by_its_name(state):
    with pytest.raises(CheckpointError, match="has no "):
        learner().set_state(state)


def test_moments_of_another_shape_are_refused():
    one, other = learner(), learner()
    one.update_from_batch(transitions())
    state = one.get_state("optimizer")
    moments = state["optimizer"]["default"]["optimizations"]["default"]["optimizer"]["0"]
    moments["exp_avg"] = moments["exp_avg"][:, :1].clone()
    with pytest.raises(CheckpointError, match=r"moments of the shape \[8, 1\] are not of parameter 0: \[8, 3\]"):
        other.set_state(state)


def test_a_lone_module_selects_by_its_own_batch():
    seen = []
    one = learner(modules_to_train=lambda module_id, batch: not seen.append(tuple(batch.batch_size)))
    one.update_from_batch(transitions())
    update(one, transitions())
    assert seen == [(6,), (6,)]
