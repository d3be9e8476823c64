"""Whatever is done to the files of a run, it goes on from a state that it saved, bit for bit, and says what it found.

pytest -m slow -s tests/campaign/test_damage.py        # all of it, as tables
"""

import itertools
import shutil
import tempfile
from functools import partial
from pathlib import Path
from random import Random

import pytest

import runner.checkpoint.store as store_module
from tests.campaign.damage import FILE_DAMAGES, Damage, NotApplicable, damages_of_file, regular_files
from tests.campaign.damage_checkpoints import (
    damages_of_files,
    damages_of_folders,
    damages_of_manifest,
    damages_of_pairs,
)
from tests.campaign.damage_folder import damages_of_all_checkpoints, damages_of_folder, run_folder_campaign
from tests.campaign.damaged_runs import (
    BAD,
    MEMORY,
    Scene,
    Table,
    damaged_copy,
    drop_privileges,
    in_child,
    judge,
    make_scene,
    resume,
    run_campaign,
)

SEED = 20
BACKENDS = ("torch", "torchsnapshot")
MEMMAP = "source.storage=memmap"
NO_DAMAGE = {
    "make it a hard link", "add an empty folder", "copy itself as a newer step", "copy a checkpoint as a newer step",
    "copy it over the older one", "rename a checkpoint to its second name", "edit and seal the manifest",
}  # fmt: skip
"""Kinds that leave the newest checkpoint as it is, or say of it what its state does not depend on."""


@pytest.fixture(scope="module")
def place():
    """A folder in memory where copies of runs are damaged; another user may look into it."""
    folder = Path(tempfile.mkdtemp(prefix="hookline-damage-", dir=MEMORY))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def scene_of(place):
    """Makes each run once."""
    made: dict[tuple[str, ...], Scene] = {}

    def make(*overrides: str) -> Scene:
        if overrides not in made:
            made[overrides] = make_scene(place / f"scene-{len(made)}", *filter(None, overrides))
        return made[overrides]

    return make


def damages_of(scene: Scene, rng: Random, flips: int, pairs: int) -> list[Damage]:
    newest, previous = scene.checkpoints
    return [
        *damages_of_files(scene.folder, newest, rng, flips),
        *damages_of_pairs(scene.folder, newest, previous, rng, pairs),
        *damages_of_folders(scene.folder, newest, previous, rng),
        *damages_of_manifest(scene.folder, newest, rng),
    ]


def assert_nothing_silent(table: Table) -> None:
    print(f"\n{table}\n")
    assert not table.wrong, f"seed {SEED}\n" + "\n".join(table.wrong)


def assert_damage_was_done(table: Table) -> None:
    """No kind of damage may pass because it never happened."""
    harmless = {kind for kind, row in table.rows.items() if row["harmless"]}
    assert harmless <= NO_DAMAGE, harmless - NO_DAMAGE


@pytest.mark.parametrize("backend", BACKENDS)
def test_thirty_damages_to_the_newest_checkpoint_fall_back_to_the_one_before(scene_of, place, backend):
    scene, rng = scene_of(f"checkpoint.backend={backend}"), Random(SEED)
    table = Table(f"newest checkpoint, {backend}")
    run_campaign(scene, rng.sample(damages_of(scene, rng, flips=2, pairs=3), 30), table, place)
    assert_nothing_silent(table)
    assert_damage_was_done(table)


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["source.storage=tensor", MEMMAP])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_damage_to_the_newest_checkpoint_falls_back_to_the_one_before(scene_of, place, backend, storage):
    scene, rng = scene_of(f"checkpoint.backend={backend}", storage), Random(SEED)
    table = Table(f"newest checkpoint, {backend} {storage}")
    run_campaign(scene, damages_of(scene, rng, flips=60, pairs=20), table, place)
    assert_nothing_silent(table)
    assert_damage_was_done(table)
    assert table.count() >= 300


def damages_of_rows(scene: Scene, rng: Random, flips: int) -> list[Damage]:
    names = regular_files(scene.folder / "replay")
    swaps = [_swap_rows(*pair) for pair in itertools.combinations(names, 2)]
    files = [one for name in names for one in damages_of_file(scene.folder, "replay", name, rng, flips)]
    return [
        *files,
        *swaps,
        Damage("delete the folder", "replay", lambda run: shutil.rmtree(run / "replay"), ("replay",)),
    ]


def _swap_rows(one: str, other: str) -> Damage:
    def apply(run: Path) -> None:
        if (run / "replay" / one).read_bytes() == (run / "replay" / other).read_bytes():
            raise NotApplicable
        (run / "replay" / one).rename(run / "swapping")
        (run / "replay" / other).rename(run / "replay" / one)
        (run / "swapping").rename(run / "replay" / other)

    return Damage("swap two files", f"replay/{one} and {other}", apply, (), (one, other))


def test_damage_to_replay_rows_in_files_falls_back_or_is_refused(scene_of, place):
    scene, rng = scene_of("checkpoint.backend=torch", MEMMAP), Random(SEED)
    table = Table("files of replay rows")
    run_campaign(scene, rng.sample(damages_of_rows(scene, rng, flips=4), 12), table, place, is_spared=False)
    assert_nothing_silent(table)
    assert table.count("refused", "fell back") >= 6


@pytest.mark.slow
def test_any_damage_to_replay_rows_in_files_falls_back_or_is_refused(scene_of, place):
    scene, rng = scene_of("checkpoint.backend=torch", MEMMAP), Random(SEED)
    table = Table("files of replay rows")
    run_campaign(scene, damages_of_rows(scene, rng, flips=40), table, place, is_spared=False)
    assert_nothing_silent(table)
    assert table.count("refused") > 50
    assert table.count("fell back") > 20


def test_replay_rows_that_only_the_newest_checkpoint_needs_cost_only_that_one(scene_of, place):
    scene = scene_of("checkpoint.backend=torch", MEMMAP)
    for name in regular_files(scene.folder / "replay"):
        damage = _flip_row("replay", name, -1)  # the last row
        verdict, ended = judge(scene, damage, damaged_copy(scene, damage, place))
        assert verdict == "fell back", (name, verdict, ended)


def _flip_row(folder: str, name: str, offset: int) -> Damage:
    def apply(run: Path) -> None:
        raw = bytearray((run / folder / name).read_bytes())
        raw[offset] ^= 1
        (run / folder / name).write_bytes(raw)

    return Damage("flip a bit", f"{folder}/{name} at {offset}", apply, (folder,), (name,))


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_damage_to_the_older_checkpoint_does_no_harm(scene_of, place, backend):
    scene, rng = scene_of(f"checkpoint.backend={backend}"), Random(SEED)
    table = Table(f"older checkpoint, {backend}")
    _, previous = scene.checkpoints
    run_campaign(scene, damages_of_files(scene.folder, previous, rng, flips=4), table, place)
    assert_nothing_silent(table)
    assert table.count("harmless") == table.count()


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_where_every_checkpoint_is_damaged_one_line_names_each_and_nothing_is_begun(scene_of, place, backend):
    scene, rng = scene_of(f"checkpoint.backend={backend}"), Random(SEED)
    table = Table(f"both checkpoints, {backend}")
    newest, previous = (
        [one for one in damages_of_files(scene.folder, folder, rng, flips=4) if "hard link" not in one.kind]
        for folder in scene.checkpoints
    )
    pairs = [_both(one, rng.choice(previous)) for one in rng.sample(newest, min(60, len(newest)))]
    run_campaign(scene, pairs, table, place, is_spared=False)
    assert_nothing_silent(table)
    assert table.count("refused") == table.count()


def _both(one: Damage, other: Damage) -> Damage:
    def apply(run: Path) -> None:
        one.apply(run)
        other.apply(run)

    return Damage(one.kind, f"{one.target} and {other}", apply, one.names + other.names, one.files)


def test_a_folder_of_checkpoints_that_is_gone_is_not_a_run_that_never_saved(scene_of, place):
    table = Table("no checkpoints")
    run_folder_campaign(scene_of("checkpoint.backend=torch"), damages_of_all_checkpoints(), table, place)
    assert_nothing_silent(table)
    assert table.count("refused") == table.count() == 5


def test_a_newest_checkpoint_that_somebody_removed_is_missed(scene_of, place):
    scene = scene_of("checkpoint.backend=torch")
    name = scene.checkpoints[0].name
    removal = Damage("remove the newest checkpoint", name, lambda run: shutil.rmtree(run / "ckpt" / name), ("750",))
    verdict, ended = judge(scene, removal, damaged_copy(scene, removal, place))
    assert (verdict, "is gone" in ended.output) == ("fell back", True), ended


def damages_to_try_in_the_folder(scene: Scene) -> list[Damage]:
    damages = list(damages_of_folder(scene.folder, Random(SEED), flips=1))
    return [one for one in damages if one.kind in ("flip a bit", "edit metrics.csv", "edit run.json", "make it a pipe")]


def test_damage_elsewhere_in_the_folder_of_a_run_is_refused_told_or_harmless(scene_of, place):
    scene, rng = scene_of("checkpoint.backend=torch"), Random(SEED)
    table = Table("rest of the folder")
    run_folder_campaign(scene, rng.sample(damages_to_try_in_the_folder(scene), 8), table, place)
    assert_nothing_silent(table)


@pytest.mark.slow
def test_any_damage_elsewhere_in_the_folder_of_a_run_is_refused_told_or_harmless(scene_of, place):
    scene = scene_of("checkpoint.backend=torch")
    table = Table("rest of the folder")
    run_folder_campaign(scene, damages_of_folder(scene.folder, Random(SEED), flips=20), table, place)
    assert_nothing_silent(table)
    assert table.count("refused", "told") > 50


def test_files_that_may_not_be_read_are_damage_too(scene_of, place):
    scene, table = scene_of("checkpoint.backend=torch"), Table("no permission")
    newest = scene.checkpoints[0]
    for name in regular_files(newest):
        damage = _no_permission(newest.relative_to(scene.folder), name)
        run = damaged_copy(scene, damage, place)
        table.add(damage, *judge(scene, damage, run, resumed=partial(resume, scene.config, run, drop_privileges)))
    assert_nothing_silent(table)
    assert table.count("fell back") == table.count() == len(regular_files(newest))


def _no_permission(checkpoint: Path, name: str) -> Damage:
    target = checkpoint / name
    return Damage("take all permissions", str(target), lambda run: (run / target).chmod(0), (checkpoint.name,), (name,))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_campaign_sees_silent_damage_where_nothing_is_verified(scene_of, place, backend, monkeypatch):
    """The oracle: with the digests left out of account, loaded states differ from the saved ones, and are seen to."""
    scene, rng, table = scene_of(f"checkpoint.backend={backend}"), Random(SEED), Table(f"unverified, {backend}")
    verify = store_module.verify
    monkeypatch.setattr(store_module, "verify", lambda folder, with_hashes=True: verify(folder, with_hashes=False))
    newest = scene.checkpoints[0]
    name = max(regular_files(newest), key=lambda name: (newest / name).stat().st_size)
    flips = damages_of_file(scene.folder, str(newest.relative_to(scene.folder)), name, rng, 12, kinds=["flip_a_bit"])
    run_campaign(scene, flips, table, place)
    print(f"\n{table}\n")
    assert table.count("silent") >= 6


def test_each_kind_of_damage_to_a_file_changes_it(tmp_path):
    content = Random(SEED).randbytes(10_000)
    for function in FILE_DAMAGES:
        run = tmp_path / function.__name__
        run.mkdir()
        (run / ".the-run").touch()
        (run / "file").write_bytes(content)
        function(run / "file", Random(SEED))
        path = run / "file"
        is_same = path.is_file() and not path.is_symlink() and path.read_bytes() == content
        assert is_same == (function.__name__ == "make_it_a_hard_link"), function.__name__


def test_the_table_counts_what_is_wrong():
    table = Table("any")
    for verdict in BAD:
        table.add(Damage("some", "x", lambda run: None), verdict, in_child(lambda: None))
    assert (len(table.wrong), table.count(*BAD)) == (len(BAD), len(BAD))
