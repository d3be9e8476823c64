"""A learned model of an environment, and the hook that lets a policy play in it."""

from dataclasses import replace

import pytest
import torch

from hooks.model_rollouts import ModelRollouts
from runner.config.arguments import parse_arguments
from runner.config.assemble import assemble
from runner.config.check import check
from runner.learner.dynamics import DynamicsEnsemble
from runner.seeding import Streams
from runner.spec import ConfigError
from tests.toys import environment, same_tree

PENDULUM, CART_POLE = environment("Pendulum-v1").spec, environment("CartPole-v1").spec
DYNA = (
    "algo=dyna", "env=pendulum", "network.hidden=[8,8]", "source.optim_steps=1", "source.warmup=60",
    "collector.init_random_frames=60", "collector.frames_per_batch=10", "learning.model_rollouts.updates=5",
    "learning.model_rollouts.starts=20", "source.capacity=400", "source.sources.model.capacity=80", "total_frames=200",
    "learning.model_rollouts.dynamics.hidden=[8]", "logger=csv", "~hooks.progress_bar", "tuned=null",
    "evaluation.every.env_steps=1000", "evaluation.episodes=1",
)  # fmt: skip


def linear_world(rows=600, actions=1):
    """The observation moves by twice the action; the reward is the first element; above 2 the episode is over."""
    generator = torch.Generator().manual_seed(0)
    observation = torch.randn(rows, 3, generator=generator)
    action = torch.rand(rows, actions, generator=generator) * 4 - 2
    following = observation + 2 * action
    ended = following[:, 0] > 2
    return {
        "observation": observation,
        "action": action,
        ("next", "observation"): following,
        ("next", "reward"): observation[:, 0],
        ("next", "terminated"): ended,
    }


def model(**options):
    torch.manual_seed(0)
    return DynamicsEnsemble(PENDULUM, Streams(0), **{"members": 3, "hidden": [32, 32], **options})


def test_a_model_finds_out_what_actions_do():
    one, data = model(lr=3e-3), linear_world()
    before, after = one.fit(data, 1), one.fit(data, 600)
    assert after < before / 20
    fresh = linear_world(200)
    found = one.predict(fresh["observation"], fresh["action"])
    assert (found.next_observation - fresh["next", "observation"]).abs().mean() < 0.15
    assert (found.reward - fresh["next", "reward"]).abs().mean() < 0.1
    assert (found.terminated == fresh["next", "terminated"]).float().mean() > 0.95


def test_members_differ_and_each_step_has_one_of_them():
    one = model()
    one.fit(linear_world(), 1)
    same = torch.zeros(500, 3), torch.zeros(500, 1)
    assert len(one.predict(*same).reward.unique()) == 3


def test_discrete_actions_are_told_apart():
    one = DynamicsEnsemble(CART_POLE, Streams(0), members=2, hidden=[16], lr=1e-2)
    observation, action = torch.randn(400, 4), torch.randint(0, 2, (400,))
    moved = observation + (2.0 * action - 1).unsqueeze(-1)
    data = {"observation": observation, "action": action, ("next", "observation"): moved}
    data |= {("next", "reward"): torch.ones(400), ("next", "terminated"): torch.zeros(400, dtype=torch.bool)}
    one.fit(data, 300)
    found = one.predict(torch.zeros(2, 4), torch.tensor([0, 1])).next_observation
    assert (found[0] < -0.5).all()
    assert (found[1] > 0.5).all()


def test_a_resumed_model_goes_on_bit_for_bit():
    one, other, data = model(), model(), linear_world()
    one.fit(data, 3)
    other.load_state_dict(one.state_dict())
    one.fit(data, 3)
    other.fit(data, 3)
    assert same_tree(one.state_dict(), other.state_dict())


def test_pictures_are_refused():
    with pytest.raises(ValueError, match="needs vectors as observations"):
        DynamicsEnsemble(replace(PENDULUM, observation_shape=(3, 4)), Streams(0))


class KnownWorld:
    """Moves each element by 1; an episode is over above 2."""

    def fit(self, data, updates):
        return torch.zeros(())

    def predict(self, observation, action):
        following = observation + 1
        return following, following[:, 0] * 10, following[:, 0] > 2

    def state_dict(self):
        return {}


def hook_in(known=None, steps=3):
    experiment = assemble(compose_dyna(f"learning.model_rollouts.steps={steps}"))
    hook = experiment.hooks["model_rollouts"]
    hook.dynamics = known or hook.dynamics
    return experiment, hook


def compose_dyna(*overrides):
    return check(parse_arguments([*DYNA, *overrides])).config


def test_a_rollout_goes_on_from_stored_states_and_begins_anew_where_an_episode_ends():
    _, hook = hook_in(KnownWorld())
    rollout = hook.imagine(torch.tensor([[0.0, 0, 0], [1.5, 0, 0]]))
    assert rollout.batch_size == (20, 3)
    following, ended = rollout["next", "observation"], rollout["next", "terminated"]
    assert torch.equal(following, rollout["observation"] + 1)
    assert torch.equal(rollout["next", "reward"], 10 * following[..., 0])
    assert torch.equal(ended, following[..., 0] > 2)
    assert ended.any()
    goes_on = ~ended[:, :-1]
    assert torch.equal(rollout["observation"][:, 1:][goes_on], following[:, :-1][goes_on])
    assert set(rollout["observation"][:, 1:][~goes_on][:, 0].tolist()) <= {0.0, 1.5}
    assert rollout["next", "done"][:, -1].all()
    assert torch.equal(rollout["next", "done"][:, :-1], ended[:, :-1])
    assert (rollout["action"].abs() <= 2).all()


def test_the_model_is_used_from_the_first_update_on_and_only_real_steps_go_into_the_real_source():
    experiment, hook = hook_in()
    experiment.trainer.train()
    assert len(hook.real.storage) == 200
    assert len(hook.model.storage) == 80
    assert experiment.trainer.progress.updates == 15
    assert experiment.trainer.progress.env_steps == 200


def test_a_run_with_a_model_resumes_bit_for_bit():
    config = compose_dyna()
    through, half, resumed = (assemble(config) for _ in range(3))
    through.trainer.train()
    half.trainer.ask_to_stop = lambda: "half" if half.trainer.progress.env_steps >= 110 else None
    half.trainer.train()
    resumed.trainer.load_state_dict(half.trainer.state_dict())
    resumed.trainer.train()
    states = [one.trainer.state_dict() for one in (through, resumed)]
    for state in states:
        del state["progress"]["seconds"], state["metrics"], state["streams"]
    assert same_tree(*states)


def test_another_source_is_refused_in_one_line():
    with pytest.raises(ConfigError, match="needs a mixture of sources called real and model"):
        ModelRollouts(None, object(), None, Streams(0), {"env_steps": 10})
