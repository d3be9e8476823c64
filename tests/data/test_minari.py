"""Datasets of Minari: what they hold, episode by episode, and what is said where they cannot be had."""

import builtins
import importlib.util

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from runner.builders import make_offline_source
from runner.data.dataset_header import DatasetError
from runner.data.minari_reader import read_minari
from runner.spec import (
    ACTION,
    NEXT_DONE,
    NEXT_OBSERVATION,
    NEXT_REWARD,
    NEXT_STEPS,
    NEXT_TERMINATED,
    OBSERVATION,
    EnvSpec,
)

HAS_MINARI = all(importlib.util.find_spec(name) is not None for name in ("minari", "h5py"))
needs_minari = pytest.mark.skipif(not HAS_MINARI, reason="pip install 'hookline[offline]'")
LENGTHS = (3, 1, 4)
SPEC = EnvSpec("CartPole-v1", (4,), np.dtype(np.float32), (), np.dtype(np.int64), num_actions=2)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))


def episodes(observe, act):
    """Three: the first terminates, the second is truncated, the third is cut without an end."""
    from minari.data_collector import EpisodeBuffer

    first, made = 0, []
    for number, length in enumerate(LENGTHS):
        last = [t == length - 1 for t in range(length)]
        never = [False] * length
        made.append(
            EpisodeBuffer(
                id=number,
                observations=observe(first, length + 1),
                actions=act(first, length),
                rewards=[float(first + t) for t in range(length)],
                terminations=last if number == 0 else never,
                truncations=last if number == 1 else never,
                infos={},
            )
        )
        first += 100
    return made


def create(name, observe, act, observation_space, action_space, env="CartPole-v1"):
    import minari

    minari.create_dataset_from_buffers(
        dataset_id=name,
        buffer=episodes(observe, act),
        env=env,
        observation_space=observation_space,
        action_space=action_space,
    )


def cartpole(name="toy/cartpole-v0"):
    def observe(first, count):
        return np.arange(first, first + count, dtype=np.float32)[:, None] * np.ones(4, np.float32)

    env = gymnasium.make("CartPole-v1")
    create(name, observe, lambda first, count: np.arange(count) % 2, env.observation_space, env.action_space)
    return name


@needs_minari
def test_each_step_is_a_transition_with_the_real_next_observation():
    dataset = read_minari(cartpole())
    assert len(dataset) == sum(LENGTHS)
    assert dataset.spec["id"] == "CartPole-v1"
    first = [0, 1, 2, 100, 200, 201, 202, 203]
    assert dataset.tensor(OBSERVATION)[:, 0].tolist() == first
    assert dataset.tensor(NEXT_OBSERVATION)[:, 3].tolist() == [number + 1 for number in first]
    assert dataset.tensor(ACTION).tolist() == [0, 1, 0, 0, 0, 1, 0, 1]
    assert dataset.tensor(NEXT_REWARD).tolist() == first
    assert dataset.tensor(NEXT_TERMINATED).tolist() == [False, False, True] + [False] * 5
    assert dataset.tensor(NEXT_DONE).tolist() == [False, False, True, True] + [False] * 4


@needs_minari
def test_windows_end_with_an_episode_even_if_it_was_cut():
    source = make_offline_source(SPEC, f"minari:{cartpole()}", torch.Generator(), n_step=3, gamma=1.0, batch_size=500)
    batch = source.sample()
    found = {int(row[0]): int(steps) for row, steps in zip(batch[OBSERVATION], batch[NEXT_STEPS], strict=True)}
    assert found == {0: 3, 1: 2, 2: 1, 100: 1, 200: 3, 201: 3, 202: 2, 203: 1}


@needs_minari
def test_double_observations_and_vectors_of_actions_become_float32():
    def observe(first, count):
        return np.full((count, 3), first, np.float64)

    low, high = np.array([-2.0], np.float32), np.array([2.0], np.float32)
    create("pendulum-v0", observe, lambda first, count: np.full((count, 1), 0.5, np.float32),
           spaces.Box(-8, 8, (3,), np.float64), spaces.Box(low, high), "Pendulum-v1")  # fmt: skip
    spec = EnvSpec("Pendulum-v1", (3,), np.dtype(np.float32), (1,), np.dtype(np.float32), None, low, high)
    batch = make_offline_source(spec, "minari:pendulum-v0", torch.Generator()).sample()
    assert batch[OBSERVATION].dtype == batch[ACTION].dtype == torch.float32


@needs_minari
def test_nested_observations_are_flattened_as_those_of_the_environment_are():
    space = spaces.Dict({"b": spaces.Box(-9, 999, (2,), np.float64), "a": spaces.Discrete(3)})

    def observe(first, count):
        return {"b": np.full((count, 2), first, np.float64), "a": np.arange(count) % 3}

    create("nested-v0", observe, lambda first, count: np.zeros(count, int), space, spaces.Discrete(2))
    found = read_minari("nested-v0").tensor(OBSERVATION)
    expected = spaces.flatten(space, {"b": np.array([100.0, 100.0]), "a": np.int64(0)})
    assert found[3].tolist() == expected.tolist()


@needs_minari
def test_one_of_another_environment_is_refused():
    spec = EnvSpec("Acrobot-v1", (6,), np.dtype(np.float32), (), np.dtype(np.int64), num_actions=3)
    with pytest.raises(DatasetError, match=r"recorded in CartPole-v1 with observation_shape = \[4\]; Acrobot-v1"):
        make_offline_source(spec, f"minari:{cartpole()}", torch.Generator())


@needs_minari
def test_one_that_is_not_on_this_machine_is_not_fetched():
    with pytest.raises(DatasetError, match="no such dataset on this machine; minari download D4RL/door/human-v2"):
        read_minari("D4RL/door/human-v2")


@needs_minari
def test_a_damaged_one_is_told_of_in_one_line(tmp_path):
    cartpole()
    (tmp_path / "toy/cartpole-v0/data/main_data.hdf5").write_bytes(b"nothing")
    with pytest.raises(DatasetError, match="Minari cannot read it: OSError"):
        read_minari("toy/cartpole-v0")


@pytest.mark.parametrize("name", ["../secret-v0", "/etc-v0", "a//b-v0", ""])
def test_names_that_lead_elsewhere_are_refused(name):
    with pytest.raises(DatasetError, match="no dataset of Minari has such a name"):
        read_minari(name)


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    inner = builtins.__import__

    def lacking(name, *more, **options):
        if name == "minari":
            raise ImportError("No module named 'minari'")
        return inner(name, *more, **options)

    monkeypatch.setattr(builtins, "__import__", lacking)
    with pytest.raises(DatasetError, match=r"No module named 'minari'; pip install 'hookline\[offline\]'"):
        read_minari("D4RL/door/human-v2")
