"""Recorded transitions as a source: what is drawn, what windows of it are, and what is no data for an environment."""

import copy
from collections import Counter

import numpy as np
import pytest
import torch

from runner.builders import make_mixture, make_offline_source, make_replay_buffer
from runner.data.dataset import Dataset
from runner.data.dataset_header import DatasetError
from runner.data.dataset_writer import DatasetWriter
from runner.data.offline import OfflineSource
from runner.spec import (
    ACTION,
    NEXT_DONE,
    NEXT_OBSERVATION,
    NEXT_REWARD,
    NEXT_STEPS,
    NEXT_TERMINATED,
    OBSERVATION,
    TRAJ_IDS,
    CheckpointError,
    EnvSpec,
)
from tests.data.episodes import Environments
from tests.data.test_larger_than_memory import MIB, in_child, status

SPEC = EnvSpec("Toy-v0", (2,), np.dtype(np.float32), (), np.dtype(np.int64), num_actions=3)
KEYS = (OBSERVATION, ACTION, NEXT_OBSERVATION, NEXT_REWARD, NEXT_TERMINATED, NEXT_DONE)


def rows(count=10, first=0):
    number = torch.arange(first, first + count)
    return {
        OBSERVATION: torch.stack([number, -number], 1).float(),
        ACTION: number % 3,
        NEXT_OBSERVATION: torch.stack([number + 1, -number - 1], 1).float(),
        NEXT_REWARD: number.float() / 10,
        NEXT_TERMINATED: number % 5 == 4,
        NEXT_DONE: number % 5 == 4,
    }


def write(folder, columns=None, about=None, spec=SPEC):
    writer = DatasetWriter(folder, spec, {"num_envs": 1, "skip": 1} | (about or {}))
    writer.append(rows() if columns is None else columns)
    writer.close()
    return folder


def make(folder, seed=0, spec=SPEC, **options):
    return make_offline_source(spec, str(folder), torch.Generator().manual_seed(seed), **{"batch_size": 64, **options})


def test_each_row_is_drawn_whole_and_as_often_as_any_other(tmp_path):
    source, counts = make(write(tmp_path / "d")), Counter()
    for _ in range(200):
        batch = source.sample()
        number = batch[OBSERVATION][:, 0].long()
        expected = rows()
        for key in KEYS[:-1]:
            assert torch.equal(batch[key], expected[key][number])
        counts.update(number.tolist())
    # 12,800 draws of 10 rows: 1280 each, standard deviation sqrt(12800 * 0.1 * 0.9) = 34
    assert set(counts) == set(range(10))
    assert all(abs(count - 1280) < 5 * 34 for count in counts.values())


def test_sub_batches_are_of_the_same_memory_and_one_seed_draws_the_same(tmp_path):
    one, same, other = (make(write(tmp_path / "d"), seed) for seed in (1, 1, 2))
    first = one.sample()
    address = first[OBSERVATION].data_ptr()
    assert torch.equal(first[OBSERVATION], same.sample()[OBSERVATION])
    assert not torch.equal(first[OBSERVATION], other.sample()[OBSERVATION])
    assert one.sample()[OBSERVATION].data_ptr() == address


@pytest.mark.parametrize("n", [1, 3])
def test_on_another_device_it_draws_the_same(tmp_path, n):
    write(tmp_path / "d")
    one, other = (make(tmp_path / "d", device=device, n_step=n).sample() for device in ("cpu", "cpu:0"))
    assert (one == other).all()


def recorded(folder, num_columns, more, batches, capacity=None):
    """What random environments did, as rows in turns; with a capacity the newest of them, in a ring."""
    environments = Environments(num_columns, 3, more)
    collected = [environments.collect(steps) for steps in batches]
    keys = (*KEYS, *([TRAJ_IDS] if more else []))
    columns = {key: torch.cat([one.get(key).transpose(0, 1) for one in collected]) for key in keys}
    oldest = 0
    if capacity is not None:  # as a replay buffer leaves them: row t of all is at t modulo the capacity
        total = sum(batches)
        places = torch.arange(total - capacity, total)
        order = torch.argsort(places % capacity)
        columns = {key: column[places[order]] for key, column in columns.items()}
        oldest = total % capacity * num_columns
    flat = {key: column.flatten(0, 1) for key, column in columns.items()}
    spec = EnvSpec("Toy-v0", (), np.dtype(np.float32), (), np.dtype(np.int64), num_actions=2**40)
    write(folder, flat, {"num_envs": num_columns, "oldest": oldest}, spec)
    return environments, spec


@pytest.mark.parametrize("n", [2, 3, 6])
@pytest.mark.parametrize("capacity", [None, 20], ids=["in order", "in a ring"])
@pytest.mark.parametrize(("num_columns", "more"), [(1, 0), (3, 0), (2, 3)])
def test_windows_are_those_that_plain_loops_find(tmp_path, n, capacity, num_columns, more):
    batches, gamma = (7, 1, 9, 12), 0.9
    environments, spec = recorded(tmp_path / "d", num_columns, more, batches, capacity)
    windows = environments.windows(capacity or sum(batches), n)
    source, seen = make(tmp_path / "d", spec=spec, n_step=n, gamma=gamma), set()
    for _ in range(30):
        batch = source.sample()
        for index in range(len(batch)):
            window = windows[int(batch[OBSERVATION][index])]
            reward = sum(gamma**power * step.reward for power, step in enumerate(window))
            assert float(batch[NEXT_REWARD][index]) == pytest.approx(reward, abs=1e-5)
            assert int(batch[NEXT_STEPS][index]) == len(window)
            assert float(batch[NEXT_OBSERVATION][index]) == window[-1].following
            assert bool(batch[NEXT_TERMINATED][index]) == (window[-1].kind == "terminated")
            assert int(batch[ACTION][index]) == window[0].observation
            seen.add(window[0].observation)
    assert seen == set(windows)


def test_it_goes_on_to_the_bit_where_it_was_saved(tmp_path):
    one, other = make(write(tmp_path / "d"), 1), make(tmp_path / "d", 2)
    one.sample()
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for _ in range(3):
        assert (one.sample() == other.sample()).all()


@pytest.mark.parametrize(
    "columns", [rows(11), {**rows(), NEXT_REWARD: rows()[NEXT_REWARD].roll(1)}], ids=["more", "other"]
)
def test_other_data_in_the_same_place_is_refused_when_a_run_goes_on(tmp_path, columns):
    state = make(write(tmp_path / "d")).state_dict()
    with pytest.raises(CheckpointError, match="is not the one it has learnt from"):
        make(write(tmp_path / "d", columns)).load_state_dict(state)


def test_what_is_played_does_not_go_in(tmp_path):
    source = make(write(tmp_path / "d"))
    source.extend(Environments(1, 0).collect(5))
    assert len(source.dataset) == 10
    assert source.optim_steps() == 1
    assert source.warmup == 0


def test_in_a_mixture_it_gives_its_part_and_takes_none(tmp_path):
    environments, spec = recorded(tmp_path / "d", 1, 0, [30])
    replay = make_replay_buffer(torch.Generator().manual_seed(0), capacity=100)
    source = make_mixture(
        {"recorded": make(tmp_path / "d", spec=spec), "played": replay},
        {"recorded": 0.25, "played": 0.75},
        batch_size=32,
    )
    source.extend(Environments(1, 9).collect(10))
    batch = source.sample()
    known = {step.observation for step in environments.stored(30)[0]}
    assert set(batch[OBSERVATION][:8].long().tolist()) <= known
    assert len(replay.storage) == 10
    assert len(source.sources["recorded"].dataset) == 30


def test_observations_come_part_by_part_for_statistics(tmp_path):
    parts = list(make(write(tmp_path / "d")).observations())
    assert torch.equal(torch.cat(parts), rows()[OBSERVATION])


WIDTH, COUNT = 4096, 20_000


def sample_from_files(folder):
    """Memory of its own that drawing from 640 MiB takes."""
    before = status("RssAnon")
    spec = EnvSpec("Wide-v0", (WIDTH,), np.dtype(np.float32), (), np.dtype(np.int64), num_actions=1)
    writer, steps = DatasetWriter(folder, spec, {"num_envs": 1, "skip": 1}), 100
    columns = {key: value[:1].expand(steps).clone() for key, value in rows().items() if value.ndim == 1}
    columns[ACTION] = torch.zeros(steps, dtype=torch.int64)
    for number in range(COUNT // steps):
        observation = torch.full((steps, WIDTH), float(number))
        writer.append({**columns, OBSERVATION: observation, NEXT_OBSERVATION: observation})
    writer.close()
    source = make(folder, spec=spec, batch_size=256)
    for _ in range(20):
        drawn = source.sample()[OBSERVATION]
        assert (drawn == drawn[:, :1]).all()
    source.state_dict()
    return status("RssAnon") - before


@pytest.mark.slow
def test_data_larger_than_memory_is_drawn_from_without_taking_it(tmp_path):
    assert 2 * 4 * WIDTH * COUNT > 600 * MIB
    assert in_child(sample_from_files, tmp_path / "d") == 0


OTHER = {
    "observation shape": (EnvSpec("A-v1", (6,), np.dtype(np.float32), (), np.dtype(np.int64), num_actions=3),
                          r"recorded in Toy-v0 with observation_shape = \[2\]; A-v1 has \[6\]"),
    "observation type": (EnvSpec("A-v1", (2,), np.dtype(np.uint8), (), np.dtype(np.int64), num_actions=3),
                         "observation_dtype = float32; A-v1 has uint8"),
    "number of actions": (EnvSpec("A-v1", (2,), np.dtype(np.float32), (), np.dtype(np.int64), num_actions=2),
                          "num_actions = 3; A-v1 has 2"),
    "kind of actions": (EnvSpec("A-v1", (2,), np.dtype(np.float32), (1,), np.dtype(np.float32)),
                        "num_actions = 3; A-v1 has None"),
    "frame skip": (EnvSpec("A-v1", (2,), np.dtype(np.float32), (), np.dtype(np.int64), num_actions=3, frame_skip=4),
                   "frame_skip = 1; A-v1 has 4"),
}  # fmt: skip


@pytest.mark.parametrize(("spec", "words"), OTHER.values(), ids=OTHER)
def test_data_of_another_kind_of_environment_are_refused_in_a_line_that_names_both(tmp_path, spec, words):
    with pytest.raises(DatasetError, match=words):
        make(write(tmp_path / "d"), spec=spec)


def test_bounds_of_vectors_are_compared(tmp_path):
    def boxed(id, high):
        low, high = np.array([-2.0], np.float32), np.array([high], np.float32)
        return EnvSpec(id, (2,), np.dtype(np.float32), (1,), np.dtype(np.float32), action_low=low, action_high=high)

    columns = {**rows(), ACTION: torch.zeros(10, 1)}
    write(tmp_path / "d", columns, spec=boxed("Old-v0", 2.0))
    assert len(make(tmp_path / "d", spec=boxed("New-v0", 2.0)).sample()) == 64
    with pytest.raises(DatasetError, match=r"recorded in Old-v0 with action_high = \[2.0\]; New-v0 has \[1.5\]"):
        make(tmp_path / "d", spec=boxed("New-v0", 1.5))


def test_vectors_beyond_the_bounds_are_refused(tmp_path):
    low, high = np.array([-2.0, -np.inf], np.float32), np.array([2.0, np.inf], np.float32)
    spec = EnvSpec("Box-v0", (2,), np.dtype(np.float32), (2,), np.dtype(np.float32), action_low=low, action_high=high)
    actions = torch.tensor([[-2.0, -99.0], [2.0, 99.0]]).repeat(5, 1)
    write(tmp_path / "within", {**rows(), ACTION: actions}, spec=spec)
    assert len(make(tmp_path / "within", spec=spec).sample()) == 64
    for index, wrong in enumerate((2.5, -2.5, float("nan"))):
        others = actions.clone()
        others[3:5, 0] = wrong
        write(tmp_path / str(index), {**rows(), ACTION: others}, spec=spec)
        with pytest.raises(DatasetError, match="the actions of 2 of its 10 rows are beyond the bounds of Box-v0"):
            make(tmp_path / str(index), spec=spec)


def changed(**columns):
    """Rows of which ``reward`` or ``action`` are others, or ``None`` for taken out."""
    names = {"reward": NEXT_REWARD, "action": ACTION}
    found = {**rows(), **{names[name]: column for name, column in columns.items()}}
    return {key: column for key, column in found.items() if column is not None}


REWARD, CHOSEN = rows()[NEXT_REWARD], rows()[ACTION]
COLUMNS = {
    "no rows": ({key: column[:0] for key, column in rows().items()}, "it has no rows"),
    "no rewards": (changed(reward=None), r"it has no \('next', 'reward'\)"),
    "reward column": (changed(reward=REWARD[:, None]), r"its \('next', 'reward'\) is \[1\] float32"),
    "double rewards": (changed(reward=REWARD.double()), "float64; Toy-v0 has .* float32"),
    "an action too many": (changed(action=CHOSEN + 1), "its actions are from 1 to 3; Toy-v0 has those from 0"),
    "an action below": (changed(action=CHOSEN - 1), "its actions are from -1 to 1"),
}


@pytest.mark.parametrize(("columns", "words"), COLUMNS.values(), ids=COLUMNS)
def test_rows_that_are_not_what_the_header_says_are_refused(tmp_path, columns, words):
    with pytest.raises(DatasetError, match=words):
        make(write(tmp_path / "d", columns))


ABOUT = {
    "skipped steps": ({"skip": 4}, "it does not hold every step"),
    "gaps": ({"num_envs": None}, "it does not hold every step"),
    "no number": ({"num_envs": "9"}, "it does not hold every step"),
    "less than one": ({"num_envs": 0}, "it does not hold every step"),
    "an oldest row beyond": ({"oldest": 10}, "10 is none of its rows"),
    "an oldest row before": ({"oldest": -1}, "-1 is none of its rows"),
}


@pytest.mark.parametrize(("about", "words"), ABOUT.values(), ids=ABOUT)
def test_windows_of_rows_in_no_known_order_are_refused_and_single_steps_are_not(tmp_path, about, words):
    write(tmp_path / "d", about=about)
    with pytest.raises(DatasetError, match=words):
        make(tmp_path / "d", n_step=2)
    assert len(make(tmp_path / "d").sample()) == 64


def test_a_dataset_can_be_of_tensors(tmp_path):
    dataset = Dataset.of_tensors(tmp_path, rows(), {}, {"num_envs": 1})
    source = OfflineSource(dataset, torch.Generator(), batch_size=4)
    assert str(source) == f"10 transitions of {tmp_path}"
    assert len(source.sample()) == 4
