"""Checkpoints that were damaged, or made up: they are passed over, and it is said why."""

import json
import logging
import os
import shutil

import pytest

from runner.checkpoint.manifest import DamagedError, verify
from runner.checkpoint.store import CheckpointStore
from runner.spec import CheckpointError
from tests.checkpoint.parts import flip_bit, loaded_step, reseal, save_at, truncate


def replace_by_link(path):
    target = path.with_suffix(".moved")
    shutil.move(path, store_parent(path) / target.name)
    path.symlink_to(store_parent(path) / target.name)


def store_parent(path):
    return next(parent for parent in path.parents if parent.name == "ckpt").parent


def replace_by_folder(path):
    path.unlink()
    path.mkdir()


def replace_by_pipe(path):
    path.unlink()
    os.mkfifo(path)


DAMAGES = {
    flip_bit: "SHA-256",
    truncate: "bytes instead of",
    os.unlink: "is missing",
    replace_by_link: "not a regular file",
    replace_by_folder: "is missing",
    replace_by_pipe: "not a regular file",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("which", ["state", "payload"])
def test_a_damaged_newest_checkpoint_gives_way_to_the_older_one_and_says_so(store, backend, which, damage, caplog):
    _, newest = save_at(store, 10, 20)
    payload = "payload/tensors.pt" if backend == "torch" else "payload/0/state/packed"
    file = "state.json" if which == "state" else payload
    damage(newest / file)
    assert loaded_step(store) == 10
    assert len(store.rejected) == 1
    assert str(newest) in store.rejected[0]
    assert f"{file}: " in store.rejected[0]
    assert DAMAGES[damage] in store.rejected[0]
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == store.rejected


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_manifest_is_noticed_too(store, damage):
    _, newest = save_at(store, 10, 20)
    damage(newest / "manifest.json")
    assert loaded_step(store) == 10
    assert "manifest.json: " in store.rejected[0]


def test_every_single_bit_of_the_manifest_counts(tmp_path):
    folder = CheckpointStore(tmp_path, backend="torch").save({"a": 1}, {"env_steps": 1})
    path = folder / "manifest.json"
    raw = path.read_bytes()
    for position in range(0, len(raw), 7):
        changed = bytearray(raw)
        changed[position] ^= 1 << position % 8
        path.write_bytes(changed)
        with pytest.raises(DamagedError, match=r"manifest\.json"):
            verify(folder)
    path.write_bytes(raw)
    assert verify(folder)["counters"] == {"env_steps": 1}


def test_a_file_that_the_manifest_does_not_list_is_refused(store):
    _, newest = save_at(store, 10, 20)
    (newest / "payload" / "other.pickle").write_bytes(b"")
    assert loaded_step(store) == 10
    assert "payload/other.pickle: is not in the manifest" in store.rejected[0]


def test_a_renamed_checkpoint_is_refused(store):
    older, newest = save_at(store, 10, 20)
    newest.rename(older.with_name("step-30"))
    assert loaded_step(store) == 10
    assert "is of step 20, not 30" in store.rejected[0]


def test_a_link_to_a_checkpoint_is_refused(store, tmp_path):
    _, newest = save_at(store, 10, 20)
    shutil.move(newest, tmp_path / "elsewhere")
    newest.symlink_to(tmp_path / "elsewhere")
    assert loaded_step(store) == 10


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("[3, 2]", "[1000000000, 1000]"),
        ("[3, 2]", "[-3, -2]"),
        ("[3, 2]", "[true, 6]"),
        ('"float32"', '"nn"'),
        ('"float32"', '"no_such_type"'),
        ('"name": "learner/weight"', '"name": "learner/other"'),
        ('"learner": {', '"leaner": {'),
        ('{"components"', '{"components": 1, "components"'),
        ("0.1", "NaN"),
        ("0.1", "[" * 100_000 + "]" * 100_000),
        ('"components"', '"parts"'),
    ],
)  # fmt: skip
def test_a_forged_checkpoint_with_right_digests_is_refused_in_one_line(store, old, new):
    _, newest = save_at(store, 10, 20)
    text = (newest / "state.json").read_text()
    assert old in text
    (newest / "state.json").write_text(text.replace(old, new))
    reseal(newest)
    assert loaded_step(store) == 10
    assert "state.json: " in store.rejected[0]
    assert "\n" not in store.rejected[0]


def test_more_bytes_than_there_are_files_for_are_never_allocated(store):
    _, newest = save_at(store, 10, 20)
    text = (newest / "state.json").read_text()
    (newest / "state.json").write_text(text.replace("[3, 2]", "[1000000000, 1000]"))
    reseal(newest)
    assert loaded_step(store) == 10
    assert "declares tensors of 4000000000000 bytes" in store.rejected[0]


@pytest.mark.parametrize(
    "changes", [{"schema": 1}, {"backend": "pickle"}, {"backend": 1}, {"files": []}, {"counters": {}}]
)
def test_a_manifest_of_another_kind_is_refused(store, changes):
    _, newest = save_at(store, 10, 20)
    try:
        reseal(newest, **changes)
    except TypeError:  # no files to seal
        (newest / "manifest.json").write_text(json.dumps({"schema": 2} | changes))
    assert loaded_step(store) == 10


def test_if_none_is_good_the_error_lists_what_was_tried(store):
    for folder in save_at(store, 10, 20):
        truncate(folder / "state.json")
    with pytest.raises(CheckpointError) as caught:
        store.load()
    message = str(caught.value)
    assert "step-20" in message
    assert "step-10" in message
    assert "\n" not in message
    assert caught.value.exit_code == 3
