import pytest
import torch
from torch import nn, optim

from runner.learner.distributional import QDist
from runner.learner.targets import FixedTarget, PolyakTarget
from runner.metrics import Metrics
from runner.networks.mlp import MLP

ACTIONS, K = 3, 5


def make(states=4, lr=0.1, target=None, **kwargs):
    """Of one-hot states, atoms -1, 0, 1, 2 and 3."""
    torch.manual_seed(0)
    model = MLP((states,), [], ACTIONS * K, "relu")
    return QDist(model, optim.Adam(model.parameters(), lr=lr), ACTIONS, K, -1.0, 3.0, target=target, **kwargs)


STATES = torch.eye(4)
TAKEN = torch.tensor([2, 0, 1, 1])


def test_states_give_a_distribution_for_each_action_and_actions_choose_one():
    q = make()
    everything, chosen = q(STATES), q(STATES, TAKEN)
    assert everything.shape == (4, ACTIONS, K)
    assert chosen.shape == (4, K)
    torch.testing.assert_close(everything.sum(-1), torch.ones(4, ACTIONS))
    torch.testing.assert_close(chosen, everything[torch.arange(4), TAKEN])
    torch.testing.assert_close(q.log_probs(STATES, TAKEN), chosen.log())
    torch.testing.assert_close(q.values(STATES), everything @ torch.tensor([-1.0, 0.0, 1.0, 2.0, 3.0]))
    assert q.atoms.tolist() == [-1, 0, 1, 2, 3]
    assert q.name == "q_dist"


def test_a_forward_pass_has_gradients_and_the_others_have_none():
    q = make(target=FixedTarget(1))
    assert q(STATES).requires_grad
    assert q.log_probs(STATES, TAKEN).requires_grad
    for found in (q.no_grad(STATES, TAKEN), q.eval(STATES, TAKEN), q.target(STATES, TAKEN)):
        assert not found.requires_grad
        torch.testing.assert_close(found, q(STATES, TAKEN).detach())


def test_an_end_is_a_discount_of_zero_whatever_the_atoms_are():
    q = make()  # whose middle atom is 1, not 0
    reward, discount = torch.tensor([[0.25], [1.0]]), torch.tensor([[0.0], [0.0]])
    found = q.project(q.no_grad(STATES[:2], TAKEN[:2]), reward + discount * q.atoms)
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.75, 0.25, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0, 0.0]]))


def test_a_projection_onto_its_own_atoms_changes_nothing():
    q = make()
    dist = q.no_grad(STATES)
    torch.testing.assert_close(q.project(dist, q.atoms.expand_as(dist)), dist)


def written_out(model, updates):
    """Cross-entropy towards given distributions, clipped and followed by hand."""
    optimizer = optim.Adam(model.parameters(), lr=0.1)
    followed = [one.detach().clone() for one in model.parameters()]
    for aim in updates:
        log_probs = model(STATES).reshape(4, ACTIONS, K)[torch.arange(4), TAKEN].log_softmax(-1)
        optimizer.zero_grad()
        (-(aim * log_probs).sum(-1).mean()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        followed = [0.8 * own + 0.2 * new.detach() for own, new in zip(followed, model.parameters(), strict=True)]
    return [*(one.detach() for one in model.parameters()), *followed]


def test_twenty_updates_equal_a_written_out_loop():
    aims = torch.randn(20, 4, K, generator=torch.Generator().manual_seed(3)).softmax(-1)
    metrics = Metrics()
    q = make(target=PolyakTarget(0.2), clip_grad=0.1, writer=metrics.add)
    expected = written_out(make().model, aims)
    for aim in aims:
        q.reinforce(-(aim * q.log_probs(STATES, TAKEN)).sum(-1).mean())
    found = [*q.model.parameters(), *q.target.model.parameters()]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.detach(), theirs)


def test_it_learns_how_a_return_is_distributed():
    """From the first state one gets to the second, with a reward of 1; that ends with 0 or, three times of four, 2."""
    q = make(states=2, target=FixedTarget(10))
    generator, states = torch.Generator().manual_seed(0), torch.eye(2)
    action = torch.zeros(64, dtype=torch.int64)
    for _ in range(400):
        reward = 2.0 * (torch.rand(64, 1, generator=generator) < 0.75)
        last, first = states[1].expand(64, 2), states[0].expand(64, 2)
        at_the_end = q.project(q.target(last, action), reward + 0 * q.atoms)
        before = q.project(q.target(last, action), 1 + 0.5 * q.atoms)
        loss = at_the_end * q.log_probs(last, action) + before * q.log_probs(first, action)
        q.reinforce(-loss.sum(-1).mean())
    found = q.no_grad(states, action[:2])
    torch.testing.assert_close(found[1], torch.tensor([0.0, 0.25, 0.0, 0.75, 0.0]), atol=0.05, rtol=0)
    torch.testing.assert_close(found[0], torch.tensor([0.0, 0.0, 0.25, 0.75, 0.0]), atol=0.05, rtol=0)


def test_it_goes_on_from_a_saved_state_to_the_bit():
    aims = torch.randn(6, 4, K, generator=torch.Generator().manual_seed(3)).softmax(-1)

    def update(q, some):
        for aim in some:
            q.reinforce(-(aim * q.log_probs(STATES, TAKEN)).sum(-1).mean())
        return [*q.model.parameters(), *q.target.model.parameters()]

    whole, saved, other = make(target=FixedTarget(4)), make(target=FixedTarget(4)), make(target=FixedTarget(4))
    expected = update(whole, aims)
    update(saved, aims[:3])
    other.load_state_dict(saved.state_dict())
    assert all(torch.equal(*pair) for pair in zip(update(other, aims[3:]), expected, strict=True))


@pytest.mark.parametrize(
    ("atoms", "v_min", "v_max", "words"),
    [(1, 0.0, 1.0, "n_atoms=1"), (5, 1.0, 1.0, "v_min=1 and v_max=1"), (5, 0.0, float("inf"), "v_max=inf")],
)
def test_values_that_are_none_are_refused(atoms, v_min, v_max, words):
    with pytest.raises(ValueError, match=words):
        QDist(nn.Linear(2, 2 * atoms), None, 2, atoms, v_min, v_max)
