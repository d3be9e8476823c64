"""Which actions could be taken is kept with each transition, and runs by their YAML respect it."""

import pytest
import torch

from runner.builders import make_replay_buffer
from runner.config.assemble import assemble
from runner.spec import ACTION, ACTION_MASK, NEXT_ACTION_MASK, OBSERVATION
from tests.collectors.parts import take
from tests.envs.test_masks import alone, epsilon_greedy
from tests.toys import collector, environment
from tests.whole.runs import compose, compose_on_policy, train

DOORS = ("env=gym", "+env.make={_target_: tests.envs.masked.SaysSo}", "total_frames=600")


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("storage", ["tensor", "memmap"])
def test_a_transition_has_the_masks_of_its_two_observations(n, storage, tmp_path):
    folder = type("Folder", (), {"path": tmp_path})
    source = make_replay_buffer(
        torch.Generator().manual_seed(0), capacity=400, batch_size=200, n_step=n, storage=storage, run=folder
    )
    mask_of, one = {}, alone(make_policy=epsilon_greedy)
    for batch in take(one, 3):
        source.extend(batch)
        for name, mask in (
            (batch[OBSERVATION], batch[ACTION_MASK]),
            (batch["next", OBSERVATION], batch[NEXT_ACTION_MASK]),
        ):
            seen = [tuple(row) for row in name.flatten(0, 1).tolist()]
            mask_of |= dict(zip(seen, mask.flatten(0, 1).tolist(), strict=True))
    sample = source.sample()
    assert sample[ACTION_MASK].gather(-1, sample[ACTION].unsqueeze(-1)).all()
    assert sample[ACTION_MASK].tolist() == [mask_of[tuple(row)] for row in sample[OBSERVATION].tolist()]
    assert sample[NEXT_ACTION_MASK].tolist() == [mask_of[tuple(row)] for row in sample["next", OBSERVATION].tolist()]


def test_without_masks_nothing_is_kept():
    source = make_replay_buffer(torch.Generator(), capacity=40, batch_size=8)
    for batch in take(collector(environment("CartPole-v1", 2), 20), 1):
        source.extend(batch)
    assert not {ACTION_MASK, NEXT_ACTION_MASK} & set(source.sample().keys(include_nested=True))


@pytest.mark.parametrize(
    "make_config", [compose, compose_on_policy, lambda *words: compose_on_policy(*words, "algo=a2c", "source.epochs=1")]
)
def test_runs_never_walk_into_a_closed_door(make_config):
    config = make_config(*DOORS)
    experiment = train(config)  # the environment fails where somebody does
    assert experiment.trainer.progress.env_steps == 600
    assert experiment.trainer.progress.updates > 0


def test_taxi_is_built_with_its_mask():
    experiment = assemble(compose("env=taxi"))
    try:
        assert experiment.environment.spec.has_action_mask
        assert experiment.environment.spec.num_actions == 6
    finally:
        experiment.environment.close()
