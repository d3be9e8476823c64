import pytest
import torch
from torch import nn

from hooks.target_net_updater import TargetNetUpdaterHook
from runner.learner.targets import FixedTarget, PolyakTarget, TrivialTarget
from tests.toys import RewardModel, same_tree, trainer


def followed(target, total_frames=32, load=None, **options):
    """The target's bias after each update, and the network's."""
    loss, seen = RewardModel(), []
    one, hook = trainer(total_frames, loss), TargetNetUpdaterHook(target, loss, **options)
    hook.register(one)
    one.register_op("post_optim", lambda: seen.append((target.model.linear.bias.item(), loss.linear.bias.item())))
    one.train()
    return seen, hook


@pytest.mark.pins("TargetNetUpdaterHook", excludes="a hard update comes one step late: its period is interval + 1")
def test_a_copy_is_renewed_in_every_third_update_exactly():
    seen, _ = followed(FixedTarget(3))
    assert [index for index, (target, network) in enumerate(seen, 1) if target == network] == [3, 6]


@pytest.mark.pins("TargetNetUpdaterHook", excludes="targets move once for each batch, at post_steps")
def test_an_average_follows_after_each_update():
    seen, hook = followed(PolyakTarget(0.25))
    average = 0.0
    for target, network in seen:
        average += 0.25 * (network - average)
        assert target == pytest.approx(average, rel=1e-5)
    assert (hook.point, hook.default_name()) == ("post_optim", "target_net_updater_hook")


def test_it_can_have_an_interval():
    seen, _ = followed(PolyakTarget(1.0), every={"updates": 4})
    assert [index for index, (target, network) in enumerate(seen, 1) if target == network] == [4, 8]


@pytest.mark.pins("TargetNetUpdaterHook", excludes="registered as a module, saving raises NotImplementedError")
def test_target_and_count_are_saved():
    _, hook = followed(FixedTarget(3), 16)
    target = FixedTarget(3)
    other = TargetNetUpdaterHook(target, RewardModel())
    other.load_state_dict(hook.state_dict())
    assert same_tree(dict(target.state_dict()["model"]), dict(hook.target.state_dict()["model"]))
    assert target._updates == 4


@pytest.mark.pins("TargetNetUpdaterHook", excludes="two owners of one target")
def test_a_network_whose_target_has_an_owner_is_refused():
    loss = RewardModel()
    one = trainer(4, loss)
    owned = FixedTarget(3)
    owned.init(loss)
    one.learner.optimizations()[0].targets = (owned,)
    with pytest.raises(ValueError, match="'default' updates a target of this network already"):
        TargetNetUpdaterHook(PolyakTarget(0.5), loss).register(one)
    TargetNetUpdaterHook(PolyakTarget(0.5), nn.Linear(1, 1)).register(one)


def test_a_target_that_follows_nothing_is_refused():
    with pytest.raises(ValueError, match="follows no network"):
        TargetNetUpdaterHook(FixedTarget(3))
    trivial = TrivialTarget()
    trivial.init(nn.Linear(1, 1))
    with pytest.raises(ValueError, match="follows no network"):
        TargetNetUpdaterHook(trivial)
    with pytest.raises(ValueError, match="no network 'v' to follow; there are q"):
        TargetNetUpdaterHook(FixedTarget(3), "v", {"q": nn.Linear(1, 1)})


def test_a_network_can_be_given_by_its_name():
    network = nn.Linear(2, 1)
    hook = TargetNetUpdaterHook(PolyakTarget(1.0), "q", {"q": network})
    with torch.no_grad():
        network.weight.fill_(7.0)
    hook()
    assert hook.target.model.weight.tolist() == [[7.0, 7.0]]
