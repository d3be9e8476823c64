"""What a recurrent policy remembers is carried on while it plays, recorded, and found again by losses."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from runner.config.assemble import assemble
from runner.distributions import outputs_of, policy_and_value
from runner.estimators import values_of
from runner.networks.actor_critic import make_recurrent_actor_critic
from runner.policy import Policy
from runner.spec import ACTION, ACTION_LOG_PROB, IS_INIT, MEMORY, NEXT_DONE, POLICY_OUTPUT
from tests.toys import environment
from tests.whole.runs import compose_recurrent, train

SPEC = environment("CartPole-v1").spec


def networks(cell="lstm", shared=False, spec=SPEC):
    torch.manual_seed(0)
    made = make_recurrent_actor_critic(spec, encoded=6, features=5, cell=cell, shared=shared, policy_gain=1.0)
    for parameter in made["policy"].parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made


def collected(*overrides, batches=3, ends=True):
    experiment = assemble(compose_recurrent(*overrides))
    found = []
    for batch in experiment.trainer.collector:
        experiment.trainer.progress.count(batch)
        found.append(batch.clone())
        if len(found) == batches:
            break
    if ends:
        experiment.trainer.collector.shutdown()
    return experiment, found


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("shared", [False, True])
def test_a_sequence_is_its_steps_one_after_another(cell, shared):
    policy = networks(cell, shared)["policy"]
    observation = torch.randn(3, 7, 4)
    begins = torch.zeros(3, 7, dtype=torch.bool)
    begins[0, 0] = begins[1, 3] = begins[2, 6] = True
    start = torch.randn(3, policy.memory_size)
    remembered, expected = start, []
    for t in range(7):
        remembered = torch.where(begins[:, t : t + 1], 0.0, remembered)
        outputs, remembered = policy.step(observation[:, t], remembered)
        expected.append(outputs)
    memory = start.unsqueeze(1).expand(3, 7, -1)  # only that at the start may count
    assert torch.allclose(policy(observation, memory, begins), torch.stack(expected, 1), atol=1e-6)


def test_single_steps_are_refused_where_sequences_are_learnt_from():
    policy = networks()["policy"]
    with pytest.raises(ValueError, match=r"learns from sequences \[B, L, ...\]; it was given \[6, 4\]"):
        policy(torch.randn(6, 4), torch.zeros(6, policy.memory_size), torch.zeros(6, dtype=torch.bool))


def test_an_lstm_is_that_of_its_paper():
    trunk = networks("lstm", shared=True)["policy"].trunk
    observation, memory = torch.randn(2, 4), torch.randn(2, 10)
    hidden, inner = memory[:, :5], memory[:, 5:]
    cell, x = trunk.cell, F.relu(observation @ trunk.encoder.weight.T + trunk.encoder.bias)
    gates = x @ cell.weight_ih.T + cell.bias_ih + hidden @ cell.weight_hh.T + cell.bias_hh
    i, f, g, o = gates.chunk(4, 1)
    inner = torch.sigmoid(f) * inner + torch.sigmoid(i) * torch.tanh(g)
    expected = torch.sigmoid(o) * torch.tanh(inner)
    features, after = trunk.step(observation, memory)
    assert torch.allclose(features, expected, atol=1e-6)
    assert torch.allclose(after, torch.cat([expected, inner], 1), atol=1e-6)


def test_what_the_value_remembers_is_not_moved_by_the_policy_unless_shared():
    apart, together = networks(shared=False), networks(shared=True)
    for made, is_moved in ((apart, False), (together, True)):
        observation, begins = torch.randn(2, 3, 4), torch.zeros(2, 3, dtype=torch.bool)
        memory = torch.randn(2, 3, made["policy"].memory_size)
        value = made["value"](observation, memory, begins).sum()
        trunk = made["policy"].trunk
        of_policy = trunk.cell if is_moved else trunk.first.cell
        (gradient,) = torch.autograd.grad(value, [of_policy.weight_ih], allow_unused=True)
        assert (gradient is not None and bool(gradient.any())) == is_moved


def test_losses_find_what_the_policy_said_while_it_played():
    experiment, batches = collected("env.num_envs=2", "collector.frames_per_batch=80")
    policy, ends = experiment.networks["policy"], 0
    for batch in batches:
        with torch.no_grad():
            outputs = outputs_of(policy, batch)
        assert torch.allclose(outputs, batch[POLICY_OUTPUT], atol=1e-5)
        again = policy.distribution.log_prob(outputs, batch[ACTION])
        assert torch.allclose(again, batch[ACTION_LOG_PROB], atol=1e-5)
        ends += int(batch[NEXT_DONE].sum())
    assert ends > 2
    memory, begins = torch.cat([one[MEMORY] for one in batches], 1), torch.cat([one[IS_INIT] for one in batches], 1)
    assert not memory[begins].any()
    assert memory[~begins].abs().sum(-1).all()
    assert begins[:, 0].all()
    assert torch.equal(begins[:, 1:], torch.cat([one[NEXT_DONE] for one in batches], 1)[:, :-1])


def test_values_of_next_observations_remember_the_step_before():
    experiment, (batch,) = collected("env.num_envs=2", "collector.frames_per_batch=80", batches=1)
    with torch.no_grad():
        value, next_value = values_of(experiment.networks["value"], batch)
        _, by_loss = policy_and_value(experiment.networks, batch)
    assert torch.allclose(value, by_loss, atol=1e-5)
    inside = ~batch[NEXT_DONE][:, :-1]
    assert torch.allclose(next_value[:, :-1][inside], value[:, 1:][inside], atol=1e-5)
    assert not torch.allclose(next_value[:, :-1][~inside], value[:, 1:][~inside], atol=1e-3)


def test_worker_processes_carry_the_same_memory():
    _, here = collected("env.num_envs=2")
    _, there = collected("env.num_envs=2", "collector.num_collectors=2")
    for one, other in zip(here, there, strict=True):
        assert torch.equal(one[ACTION], other[ACTION])
        assert torch.allclose(one[MEMORY], other[MEMORY], atol=1e-6)


def test_a_greedy_policy_moves_the_memory_that_it_is_given():
    policy = Policy(networks()["policy"], SPEC)
    observation, memory = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32), np.zeros((3, 20), np.float32)
    policy.greedy(observation, memory)
    assert memory.any(axis=1).all()
    with pytest.raises(ValueError, match="a recurrent policy acts by a memory"):
        policy.greedy(observation)


def test_a_recurrent_policy_is_trained_and_evaluated():
    experiment = train(compose_recurrent("total_frames=400"))
    assert experiment.trainer.progress.updates == 80
    assert np.isfinite(experiment.evaluation.run().returns).all()


def test_a_collector_goes_on_with_what_its_policy_remembered():
    experiment, _ = collected(ends=False)
    again = assemble(compose_recurrent())
    again.trainer.collector.load_state_dict(experiment.trainer.collector.state_dict())
    again.trainer.learner.load_state_dict(experiment.trainer.learner.state_dict())
    (batch,) = [next(iter(again.trainer.collector)).clone()]
    carried, begins = batch[MEMORY][:, 0], batch[IS_INIT][:, 0]
    assert not begins.all()
    assert carried[~begins].any()
    assert torch.equal(batch[POLICY_OUTPUT], next(iter(experiment.trainer.collector))[POLICY_OUTPUT])


def test_an_episode_that_begins_anew_is_not_remembered():
    experiment, _ = collected(ends=False)
    collector = experiment.trainer.collector
    collector._memory[...] = 7.0
    for single in collector.environment._singles:
        single.begin_next()
    batch = next(iter(collector))
    assert batch[IS_INIT][:, 0].all()
    assert not batch[MEMORY][:, 0].any()
