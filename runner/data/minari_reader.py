"""Datasets of Minari, read by its own package, which need not be installed for anything else."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from tensordict.utils import NestedKey
from torch import Tensor

from runner.data.dataset import Dataset
from runner.data.dataset_header import DatasetError, describe_spec
from runner.spec import (
    ACTION,
    NEXT_DONE,
    NEXT_OBSERVATION,
    NEXT_REWARD,
    NEXT_TERMINATED,
    NEXT_TRUNCATED,
    OBSERVATION,
    TRAJ_IDS,
    EnvSpec,
)

NAME = re.compile(r"[\w-]+(/[\w-]+)*", re.ASCII)
"""A resumed run may name any; this one stays within Minari's folder."""


def read_minari(name: str) -> Dataset:
    """The episodes of a dataset that Minari has on this machine (``MINARI_DATASETS_PATH``), all of them in memory.

    Numbers are those that a run on such an environment has: observations that are no boxes flattened, floats float32.

    Raises:
        DatasetError: where Minari is not installed, has no such dataset, or cannot read it.
    """
    path = Path(f"minari:{name}")
    if not NAME.fullmatch(name):
        raise DatasetError(path, "no dataset of Minari has such a name; for example minari:D4RL/door/human-v2")
    try:
        import minari
    except ImportError as error:
        raise DatasetError(path, f"{error}; pip install 'hookline[offline]' reads datasets of Minari") from None
    try:
        return _as_dataset(minari.load_dataset(name, download=False), path)
    except FileNotFoundError:
        raise DatasetError(
            path, f"Minari has no such dataset on this machine; minari download {name} gets it"
        ) from None
    except DatasetError:
        raise
    except Exception as error:  # of the package, of HDF5, of a file that nobody vouches for
        raise DatasetError(path, f"Minari cannot read it: {type(error).__name__}: {error}") from error


def _as_dataset(found: Any, path: Path) -> Dataset:
    spec = _spec(found, path)
    parts = [_transitions(episode, found.observation_space, spec) for episode in found.iterate_episodes()]
    if not parts:
        raise DatasetError(path, "it has no episodes")
    columns = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    counts = torch.tensor([len(part[NEXT_REWARD]) for part in parts])
    # An episode need not end with its last step here: it may have been cut.
    columns[TRAJ_IDS] = torch.arange(len(parts)).repeat_interleave(counts)
    described = {**describe_spec(spec), "frame_skip": None}
    return Dataset.of_tensors(path, columns, described, {"num_envs": 1, "skip": 1})


def _spec(found: Any, path: Path) -> EnvSpec:
    observation, action = found.observation_space, found.action_space
    flat: Any = observation if isinstance(observation, spaces.Box) else spaces.flatten_space(observation)
    dtype = np.dtype(np.float32) if flat.dtype.kind == "f" else np.dtype(flat.dtype)
    id = found.env_spec.id if found.env_spec is not None else str(path)
    if isinstance(action, spaces.Discrete) and action.start == 0:
        return EnvSpec(id, flat.shape, dtype, (), np.dtype(np.int64), num_actions=int(action.n))
    if not isinstance(action, spaces.Box):
        raise DatasetError(path, f"its actions are {action}; Discrete (from 0) and Box are supported")
    own = np.dtype(np.float32)
    return EnvSpec(id, flat.shape, dtype, action.shape, own, action_low=action.low, action_high=action.high)


def _transitions(episode: Any, space: spaces.Space, spec: EnvSpec) -> dict[NestedKey, Tensor]:
    """``T`` transitions; there are ``T + 1`` observations."""
    observations = _flat(episode.observations, space, len(episode.rewards) + 1).astype(spec.observation_dtype)
    terminated, truncated = (np.asarray(ends, np.bool_) for ends in (episode.terminations, episode.truncations))
    arrays: dict[NestedKey, np.ndarray] = {
        OBSERVATION: observations[:-1],
        ACTION: np.asarray(episode.actions, spec.action_dtype),
        NEXT_OBSERVATION: observations[1:],
        NEXT_REWARD: np.asarray(episode.rewards, np.float32),
        NEXT_TERMINATED: terminated,
        NEXT_TRUNCATED: truncated,
        NEXT_DONE: terminated | truncated,
    }
    return {key: torch.from_numpy(np.ascontiguousarray(array)) for key, array in arrays.items()}


def _flat(observations: Any, space: spaces.Space, count: int) -> np.ndarray:
    if isinstance(space, spaces.Box):
        return np.asarray(observations)
    return np.stack([np.asarray(spaces.flatten(space, _at(observations, t))) for t in range(count)])


def _at(observations: Any, t: int) -> Any:
    """Step ``t`` of nested observations."""
    if isinstance(observations, dict):
        return {name: _at(inner, t) for name, inner in observations.items()}
    if isinstance(observations, tuple):
        return tuple(_at(inner, t) for inner in observations)
    return observations[t]
