"""Rows in files: the same ring as in memory, and checkpoints that hold no rows."""

import json
import os
import random
import resource

import pytest
import torch
from tensordict import TensorDict

from runner.checkpoint.store import CheckpointStore
from runner.data import journal as journal_module
from runner.data.memmap import MemMapStorage
from runner.data.storage import TensorStorage
from runner.spec import CheckpointError, HooklineError

KEYS = ("observation", "action", ("next", "done"))
CAPACITY = 6000  # rows of 12, 8 and 1 bytes: many pages, some, and less than two


def batch(steps, num_envs=1, first=0):
    """Env ``n`` at time ``t`` observes ``[t, n, -t]``."""
    time = torch.arange(first, first + steps).float().expand(num_envs, steps)
    env = torch.arange(num_envs).float()[:, None].expand(num_envs, steps)
    fields = {
        "observation": torch.stack([time, env, -time], -1),
        "action": (time * num_envs + env).long(),
        "next": {"done": time % 7 == 0},
    }
    return TensorDict(fields, batch_size=[num_envs, steps])


class Pair:
    """A ring in files and one in memory that are given the same batches."""

    def __init__(self, folder, capacity=CAPACITY, num_envs=1):
        self.capacity, self.num_envs, self.steps = capacity, num_envs, 0
        self.files, self.memory = MemMapStorage(capacity, KEYS, folder), TensorStorage(capacity, KEYS)

    def extend(self, *sizes):
        for steps in sizes:
            one = batch(steps, self.num_envs, self.steps)
            self.files.extend(one)
            self.memory.extend(one)
            self.steps += steps
        return self

    def differences(self):
        files, memory = self.files, self.memory
        found = [
            name for name in ("cursor", "filled_rows", "num_envs") if getattr(files, name) != getattr(memory, name)
        ]
        return found + [key for key in KEYS if not torch.equal(files.flat[key], memory.flat[key])]


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(journal_module, "BLOCK_BYTES", 4096)


def saved(storage):
    """The state as it comes back from a checkpoint."""
    return json.loads(json.dumps(storage.state_dict(), default=lambda deferred: deferred.work()))


def resumed(folder, state, capacity=CAPACITY):
    storage = MemMapStorage(capacity, KEYS, folder)
    storage.load_state_dict(state)
    return storage


def rows_of(storage):
    return {key: field.clone() for key, field in storage.flat.items()}


def same_rows(one, other):
    return all(torch.equal(one[key], other[key]) for key in KEYS)


@pytest.mark.parametrize("num_envs", [1, 3])
def test_it_is_the_same_ring_as_in_memory(tmp_path, num_envs):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng, pair = random.Random(seed), Pair(tmp_path, num_envs=num_envs)
    while pair.steps < 4 * CAPACITY // num_envs:
        pair.extend(rng.choice([1, 1, 2, 7, 40, 300, 1500, CAPACITY // num_envs]))
        assert pair.differences() == []


@pytest.mark.parametrize("capacity", [1, 3, 4096, 5000])
def test_rings_of_odd_sizes_are_the_same_too(tmp_path, capacity):
    pair = Pair(tmp_path, capacity)
    for _ in range(30):
        pair.extend(min(capacity, 700))
        assert pair.differences() == []


def test_what_has_not_been_filled_reads_as_zeros(tmp_path):
    pair = Pair(tmp_path).extend(10)
    assert pair.files.fields["observation"][10:].count_nonzero() == 0


def test_a_resumed_ring_goes_on_as_if_nothing_had_been_written_after_the_checkpoint(tmp_path, small_blocks):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng, pair = random.Random(seed), Pair(tmp_path)
    for _ in range(25):
        pair.extend(*(rng.choice([1, 10, 333, 2000]) for _ in range(rng.randrange(1, 5))))
        state = saved(pair.files)
        rows, steps = rows_of(pair.files), pair.steps
        lost = batch(rng.choice([1, 100, 3000]), first=10**6)
        pair.files.extend(lost)  # and then the process was killed
        pair.files = resumed(tmp_path, state)
        assert same_rows(pair.files.flat, rows)
        assert pair.differences() == []
        assert pair.steps == steps


def test_an_older_checkpoint_still_has_its_rows_while_a_newer_one_is_there(tmp_path, small_blocks):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng, pair, store = random.Random(seed), Pair(tmp_path), CheckpointStore(tmp_path, keep=2)
    rows = {}
    for step in range(12):
        pair.extend(*(rng.choice([1, 10, 500, 5000]) for _ in range(3)))
        store.save_in_background({"storage": pair.files.state_dict()}, {"env_steps": step})
        rows[step] = rows_of(pair.files)
    newest = store.wait()
    for step in (11, 10):
        state, manifest = store.load()
        assert manifest["counters"]["env_steps"] == step
        assert same_rows(resumed(tmp_path, state["storage"]).flat, rows[step])
        os.rename(newest, tmp_path / "away") if step == 11 else None


def test_a_resumed_process_keeps_the_rows_of_checkpoints_made_before_it(tmp_path, small_blocks):
    pair, store = Pair(tmp_path), CheckpointStore(tmp_path, keep=2)
    pair.extend(5000)
    store.save({"storage": pair.files.state_dict()}, {"env_steps": 1})
    rows = rows_of(pair.files)
    pair.files = resumed(tmp_path, store.load()[0]["storage"])
    pair.extend(5000, 5000)
    newest = store.save({"storage": pair.files.state_dict()}, {"env_steps": 2})
    pair.extend(5000)
    os.rename(newest, tmp_path / "away")
    assert same_rows(resumed(tmp_path, store.load()[0]["storage"]).flat, rows)


def test_what_was_written_after_the_checkpoint_is_cut_off(tmp_path):
    pair = Pair(tmp_path).extend(3000)
    state = saved(pair.files)
    pair.extend(2000)
    resumed(tmp_path, state)
    assert (tmp_path / "replay" / "observation.rows").stat().st_size == 3000 * 12


def blocks_on_disk(folder):
    return sum(path.stat().st_blocks * 512 for path in (folder / "replay").iterdir())


def test_rows_that_no_checkpoint_needs_are_given_back_to_the_disk(tmp_path, small_blocks):
    pair, store = Pair(tmp_path), CheckpointStore(tmp_path, keep=2)
    used = []
    for step in range(30):
        pair.extend(*[500] * 6)
        if step % 3 == 0:
            store.save({"storage": pair.files.state_dict()}, {"env_steps": step})
        used.append(blocks_on_disk(tmp_path))
    window = CAPACITY * 21
    assert max(used) < 6 * window  # the ring, and two checkpoints that are up to a lap and a half apart each
    assert blocks_on_disk(tmp_path) < sum(path.stat().st_size for path in (tmp_path / "replay").iterdir()) / 2
    assert pair.differences() == []


def test_without_checkpoints_no_more_is_kept_than_the_ring(tmp_path, small_blocks):
    pair = Pair(tmp_path).extend(*[500] * 200)
    assert blocks_on_disk(tmp_path) < 2 * CAPACITY * 21
    assert pair.differences() == []


def test_a_checkpoint_that_failed_does_not_cost_the_rows_of_those_before(tmp_path, small_blocks):
    pair, store = Pair(tmp_path), CheckpointStore(tmp_path, keep=1)
    pair.extend(4000)
    store.save({"storage": pair.files.state_dict()}, {"env_steps": 1})
    rows = rows_of(pair.files)
    for _ in range(5):
        pair.extend(5000)
        saved(pair.files)  # worked out, but never published
    pair.extend(*[100] * 300)
    state, _ = store.load()
    assert same_rows(resumed(tmp_path, state["storage"]).flat, rows)


def flip(path, place):
    with open(path, "r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))


def replace_by_link(path):
    os.rename(path, path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def link_from_elsewhere(path):
    os.link(path, path.with_name("elsewhere"))


def replace_by_pipe(path):
    path.unlink()
    os.mkfifo(path)


def swap(path):
    other = path.with_name("action.rows")
    os.rename(path, path.with_name("between"))
    os.rename(other, path)
    os.rename(path.with_name("between"), other)


DAMAGES = {
    "one bit of the oldest row": (lambda path: flip(path, 0), "SHA-256 of its block 0"),
    "one bit of the newest row": (lambda path: flip(path, 12 * 3000 - 1), "SHA-256 of its block 8"),
    "a byte less": (lambda path: os.truncate(path, 12 * 3000 - 1), "has 35999 bytes instead of at least 36000"),
    "no file": (lambda path: path.unlink(), "No such file"),
    "a symbolic link": (replace_by_link, "is a symbolic link"),
    "a hard link": (link_from_elsewhere, "has other names"),
    "a pipe": (replace_by_pipe, "not a regular file"),
    "the file of another field": (swap, "observation.rows: "),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_rows_are_named_and_nothing_is_changed(tmp_path, small_blocks, name):
    pair = Pair(tmp_path).extend(3000)
    state = saved(pair.files)
    damage, words = DAMAGES[name]
    damage(tmp_path / "replay" / "observation.rows")
    sizes = {path.name: path.lstat().st_size for path in (tmp_path / "replay").iterdir()}
    with pytest.raises(CheckpointError, match="its replay rows cannot be used: replay/") as caught:
        resumed(tmp_path, state)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {path.name: path.lstat().st_size for path in (tmp_path / "replay").iterdir()} == sizes


def test_every_bit_of_the_rows_counts(tmp_path, small_blocks):
    pair = Pair(tmp_path).extend(3000)
    state = saved(pair.files)
    path = tmp_path / "replay" / "observation.rows"
    rng = random.Random(0)
    for place in rng.sample(range(36000), 40):
        flip(path, place)
        with pytest.raises(CheckpointError, match="SHA-256"):
            resumed(tmp_path, state)
        flip(path, place)
    assert len(resumed(tmp_path, state)) == 3000


def test_a_link_in_place_of_the_folder_is_refused(tmp_path):
    pair = Pair(tmp_path).extend(3000)
    state = saved(pair.files)
    os.rename(tmp_path / "replay", tmp_path / "elsewhere")
    (tmp_path / "replay").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="replay: is not a folder"):
        resumed(tmp_path, state)
    with pytest.raises(HooklineError, match="replay: is not a folder"):
        Pair(tmp_path).extend(1)


FORGED = [
    {"total": 2**60}, {"total": 3001}, {"total": 0}, {"total": -1}, {"total": "3000"}, {"total": True}, {"num_envs": 7},
    {"num_envs": 0}, {"num_envs": -1}, {"capacity": 1}, {"journal": {"observation": {}}}, {"journal": [1]},
]  # fmt: skip


@pytest.mark.parametrize("changes", FORGED, ids=str)
def test_a_forged_state_is_refused(tmp_path, changes):
    pair = Pair(tmp_path).extend(3000)
    state = saved(pair.files)
    with pytest.raises(CheckpointError, match="its replay rows cannot be used"):
        resumed(tmp_path, state | changes)


@pytest.mark.parametrize(
    "changes",
    [{"dtype": "nn"}, {"dtype": "float64"}, {"shape": [10**9, 10**9]}, {"shape": [-3]}, {"shape": "3"}, {"blocks": []}],
    ids=str,
)
def test_a_forged_field_is_refused(tmp_path, changes):
    pair = Pair(tmp_path).extend(3000)
    state = saved(pair.files)
    state["journal"]["observation"] |= changes
    with pytest.raises(CheckpointError, match="its replay rows cannot be used"):
        resumed(tmp_path, state)


@pytest.mark.parametrize("steps", [(), (10,), (3000, 2999), (3000, 3000), (3000, 3000, 17)])
def test_a_run_in_memory_can_go_on_in_files_bit_for_bit(tmp_path, steps):
    pair = Pair(tmp_path).extend(*steps)
    pair.files = MemMapStorage(CAPACITY, KEYS, tmp_path / "other")
    pair.files.load_state_dict(pair.memory.state_dict())
    pair.extend(5)
    assert pair.differences() == []
    pair.files = resumed(tmp_path / "other", saved(pair.files))
    pair.extend(4000, 4000)
    assert pair.differences() == []


def test_another_ring_in_memory_can_be_taken_over_later(tmp_path):
    pair, other = Pair(tmp_path).extend(5000, 5000), Pair(tmp_path / "other").extend(7)
    saved(pair.files)
    pair.files.load_state_dict(other.memory.state_dict())
    other.files = pair.files
    other.extend(5)
    other.files = resumed(tmp_path, saved(other.files))
    assert other.differences() == []


def test_a_run_in_files_goes_on_in_files_and_with_its_capacity_only(tmp_path):
    state = saved(Pair(tmp_path).extend(100).files)
    with pytest.raises(CheckpointError, match=r"source\.storage=memmap only"):
        TensorStorage(CAPACITY, KEYS).load_state_dict(state)
    with pytest.raises(CheckpointError, match=r"source\.capacity=6000, which cannot be changed"):
        resumed(tmp_path, state, capacity=7000)


def test_an_empty_ring_can_be_saved_and_loaded(tmp_path):
    state = saved(MemMapStorage(8, KEYS, tmp_path))
    other = resumed(tmp_path, state, capacity=8)
    assert len(other) == 0
    other.extend(batch(3))
    assert len(other) == 3


def test_the_state_of_an_empty_ring_empties_one_that_is_filled(tmp_path):
    pair = Pair(tmp_path)
    empty, in_memory = saved(pair.files), pair.memory.state_dict()
    for state in (empty, in_memory):
        pair.extend(5000)
        pair.files.load_state_dict(state)
        assert (len(pair.files), pair.files.cursor, saved(pair.files)) == (0, 0, empty)
        pair.memory.load_state_dict(in_memory)
        pair.extend(20)
        assert pair.differences() == []
        assert same_rows(resumed(tmp_path, saved(pair.files)).flat, pair.memory.flat)


def test_what_a_run_left_that_never_saved_is_begun_anew(tmp_path):
    Pair(tmp_path).extend(5000)
    pair = Pair(tmp_path).extend(20)
    assert pair.differences() == []
    saved(pair.files)
    assert (tmp_path / "replay" / "action.rows").stat().st_size == 20 * 8


@pytest.fixture
def read(monkeypatch):
    """How many bytes were read at a time."""
    sizes, pread = [], os.pread
    monkeypatch.setattr(os, "pread", lambda *arguments: sizes.append(arguments[1]) or pread(*arguments))
    return sizes


def test_a_checkpoint_costs_what_was_added_since_the_last_one(tmp_path, small_blocks, read):
    pair = Pair(tmp_path).extend(5000)
    saved(pair.files)
    read.clear()
    pair.extend(10)
    saved(pair.files)
    assert sum(read) == 10 * 21


def test_a_checkpoint_never_costs_more_than_the_ring(tmp_path, small_blocks, read):
    pair = Pair(tmp_path).extend(*[500] * 200)
    saved(pair.files)
    assert sum(read) < 2 * CAPACITY * 21


def test_without_a_folder_there_is_a_clear_error():
    with pytest.raises(HooklineError, match="in the folder of a run"):
        MemMapStorage(8, KEYS, None).extend(batch(1))


def test_a_full_disk_is_one_clear_line(tmp_path):
    pair = Pair(tmp_path).extend(10)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(HooklineError, match=r"replay/observation\.rows: cannot be written: File too large"):
            pair.extend(3000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
