import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from runner import runs
from runner.runs import RunFolder, claim_folder, config_hash, find_unfinished, read_git_sha, read_run

FIELDS = {
    "schema", "id", "status", "reason", "algo", "env", "seed", "parent", "progress", "metrics", "best", "versions",
    "git", "threads", "mlflow_run_id", "config_hash", "config_files", "process",
    "digest",
}  # fmt: skip


def start(path, hash="0123456789abcdef", **facts):
    path.mkdir(parents=True, exist_ok=True)
    return RunFolder.start(path, algo="dqn", env="CartPole-v1", seed=7, config_hash=hash, **facts)


def on_file(path):
    return json.loads((path / "run.json").read_text())


def test_a_run_begins_with_the_whole_schema(tmp_path):
    run = start(tmp_path, git_sha="ab" * 20, threads=2, parent="sweep")
    record = on_file(tmp_path)
    assert record.keys() == FIELDS
    assert (record["schema"], record["status"], record["reason"]) == (1, "running", None)
    assert (record["algo"], record["env"], record["seed"], record["parent"]) == ("dqn", "CartPole-v1", 7, "sweep")
    assert (record["git"], record["threads"], record["config_hash"]) == ("ab" * 20, 2, "0123456789abcdef")
    assert record["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert record["versions"]["numpy"] == np.__version__
    assert record["process"]["pid"] == os.getpid()
    assert (run.path, run.algo, run.env, run.seed, run.git_sha) == (tmp_path, "dqn", "CartPole-v1", 7, "ab" * 20)
    assert start(tmp_path / "other").record["id"] != record["id"]


def test_updates_change_what_they_name_and_nothing_else(tmp_path):
    run = start(tmp_path)
    run.update(progress={"env_steps": 10}, metrics={"eval/return_mean": 1.0}, mlflow_run_id="ab")
    run.update(progress={"env_steps": 20}, metrics={"train/return_mean": np.float64(2.0), "perf/x": np.float32("nan")})
    run.update(status="done", reason="total_frames reached", best={"eval/return_mean": 1.0})
    record = on_file(tmp_path)
    assert record["progress"] == {"env_steps": 20}
    assert record["metrics"] == {"eval/return_mean": 1.0, "train/return_mean": 2.0, "perf/x": None}
    assert (record["status"], record["reason"], record["mlflow_run_id"]) == ("done", "total_frames reached", "ab")
    assert record["best"] == {"eval/return_mean": 1.0}
    run.update(status="running")
    assert on_file(tmp_path)["reason"] is None
    assert os.listdir(tmp_path) == ["run.json"]


def test_an_unknown_status_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'finished'.*running, done"):
        start(tmp_path).update(status="finished")
    assert on_file(tmp_path)["status"] == "running"


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    run = start(tmp_path)
    with pytest.raises(TypeError):
        run.update(metrics={"x": object()})
    assert on_file(tmp_path)["metrics"] == {}


def test_an_opened_run_is_the_one_that_was_started(tmp_path):
    begun = start(tmp_path)
    begun.update(mlflow_run_id="ab", progress={"env_steps": 5})
    opened = RunFolder.open(tmp_path)
    assert opened.record == begun.record
    assert (opened.seed, opened.config_hash, opened.mlflow_run_id) == (7, "0123456789abcdef", "ab")


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'{"schema": 2}',
        b'{"schema": 1, "status": "running"}',
        b"[" * 100_000,
        b" " * (runs.MAX_BYTES + 1),
    ],
    ids=lambda content: repr(content)[:20],
)
def test_a_file_that_is_no_run_is_refused_in_one_line(tmp_path, content):
    if content is not None:
        (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(ValueError) as caught:
        RunFolder.open(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("key", "value"), [("seed", "7"), ("status", "odd"), ("progress", None), ("process", 1)])
def test_a_field_of_the_wrong_type_is_named(tmp_path, key, value):
    start(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps(on_file(tmp_path) | {key: value}))
    with pytest.raises(ValueError, match=f"is damaged: {key} is missing or of the wrong type"):
        read_run(tmp_path)


def test_no_bit_of_the_file_can_flip_unnoticed(tmp_path):
    start(tmp_path, git_sha="ab" * 20).update(status="crashed", progress={"env_steps": 10}, best={"eval/return": 0.1})
    raw, record = (tmp_path / "run.json").read_bytes(), read_run(tmp_path)
    for position in range(0, len(raw), 3):
        flipped = raw[:position] + bytes([raw[position] ^ 1 << position % 8]) + raw[position + 1 :]
        (tmp_path / "run.json").write_bytes(flipped)
        read = read_or_refusal(tmp_path)
        if isinstance(read, str):
            assert str(tmp_path) in read
            assert "\n" not in read
        else:  # the digest's own name was hit
            assert {key: value for key, value in read.items() if key in record} == record, position


def read_or_refusal(folder):
    try:
        return read_run(folder)
    except ValueError as error:
        return str(error)


def test_what_a_killed_process_was_writing_is_removed_by_the_next(tmp_path):
    run = start(tmp_path)
    (tmp_path / ".run.json.12345").write_text("{")
    run.lock()
    run.unlock()
    assert sorted(os.listdir(tmp_path)) == [".lock", "run.json"]


def test_damaged_runs_are_named(tmp_path):
    start(tmp_path / "good")
    start(tmp_path / "bad")
    (tmp_path / "bad" / "run.json").write_text("")
    (line,) = runs.unreadable_runs(tmp_path)
    assert str(tmp_path / "bad") in line


def test_a_pipe_in_place_of_the_file_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "run.json")
    with pytest.raises(ValueError, match=r"has no run\.json"):
        read_run(tmp_path)


def test_the_hash_sees_what_is_computed_and_nothing_else():
    config = {
        "seed": 0,
        "optimizer": {"lr": 1e-3, "betas": [0.9, 0.999]},
        "resume": None,
        "explain": False,
        "trust": [],
    }
    same = {
        "explain": True,
        "optimizer": {"betas": (0.9, 0.999), "lr": 0.001},
        "seed": 0,
        "trust": ["x"],
        "resume": "auto",
    }
    assert config_hash(config) == config_hash(same)
    assert len(config_hash(config)) == 16
    others = [config | {"seed": 1}, config | {"optimizer": {"lr": 1e-3, "resume": 1}}, config | {"new": None}]
    assert len({config_hash(other) for other in (config, *others)}) == 4


def test_the_hash_stays_the_same_between_versions():
    # sha256 of {"a":{"b":[1,2.5,null]},"seed":0}, by sha256sum
    assert config_hash({"seed": 0, "a": {"b": [1, 2.5, None]}, "resume": "x"}) == "98c7608cd947eff2"


def unfinished(tmp_path, hash="0123456789abcdef"):
    return [path.name for path in find_unfinished(tmp_path, hash)]


def end(path, status="crashed", age_seconds=0):
    RunFolder.open(path).update(status=status)
    changed = (path / "run.json").stat().st_mtime - age_seconds
    os.utime(path / "run.json", (changed, changed))


def test_unfinished_runs_are_found_newest_first(tmp_path):
    for name, status, age in [
        ("old", "crashed", 30),
        ("new", "preempted", 10),
        ("middle", "crashed", 20),
        ("done", "done", 0),
    ]:
        start(tmp_path / "dqn-CartPole-v1" / name)
        end(tmp_path / "dqn-CartPole-v1" / name, status, age)
    start(tmp_path / "dqn-CartPole-v1" / "other", hash="f" * 16).update(status="crashed")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    assert unfinished(tmp_path) == ["new", "middle", "old"]


def test_runs_of_a_sweep_are_found_one_level_deeper(tmp_path):
    start(tmp_path / "dqn-CartPole-v1" / "sweep" / "3")
    end(tmp_path / "dqn-CartPole-v1" / "sweep" / "3")
    assert unfinished(tmp_path) == ["3"]


def test_a_run_that_goes_on_is_not_unfinished_until_its_process_is_dead(tmp_path):
    start(tmp_path / "run")
    assert unfinished(tmp_path) == []
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    record = on_file(tmp_path / "run")
    del record["digest"]
    for change in ({"pid": process.pid}, {"started": 0}, {"host": "elsewhere"}, {"pid": "x"}):
        (tmp_path / "run" / "run.json").write_text(json.dumps(record | {"process": record["process"] | change}))
        assert unfinished(tmp_path) == ["run"], change


def test_no_outputs_means_nothing_unfinished(tmp_path):
    assert find_unfinished(tmp_path / "none", "0") == []


def test_every_run_gets_a_folder_of_its_own_even_at_the_same_instant(tmp_path):
    wanted = tmp_path / "dqn-CartPole-v1" / "now-s0"
    with ThreadPoolExecutor(8) as executor:
        claimed = list(executor.map(lambda _: claim_folder(wanted), range(8)))
    assert sorted(path.name for path in claimed) == ["now-s0", *(f"now-s0-{number}" for number in range(2, 9))]
    assert all(path.is_dir() for path in claimed)


@pytest.fixture
def repository(tmp_path):
    folder = tmp_path / "repository"
    run_git(tmp_path, "init", "-q", "-b", "main", str(folder))
    run_git(folder, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "first")
    return folder


def run_git(folder, *arguments):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    return subprocess.run(
        ["git", *arguments], cwd=folder, env=environment, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_the_commit_is_the_one_git_names(repository):
    sha = run_git(repository, "rev-parse", "HEAD")
    (repository / "below").mkdir()
    assert read_git_sha(repository / "below") == sha
    run_git(repository, "pack-refs", "--all")
    assert not (repository / ".git/refs/heads/main").exists()
    assert read_git_sha(repository) == sha
    run_git(repository, "checkout", "-q", "--detach")
    assert read_git_sha(repository) == sha


def test_the_commit_of_a_second_worktree_is_its_own(repository, tmp_path):
    run_git(repository, "worktree", "add", "-q", "-b", "side", str(tmp_path / "side"))
    run_git(tmp_path / "side", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "x")
    assert read_git_sha(tmp_path / "side") == run_git(tmp_path / "side", "rev-parse", "HEAD")
    assert read_git_sha(tmp_path / "side") != read_git_sha(repository)


def test_without_a_commit_there_is_none(tmp_path):
    assert read_git_sha(tmp_path) is None
    run_git(tmp_path, "init", "-q")
    assert read_git_sha(tmp_path) is None
    (tmp_path / ".git" / "HEAD").write_text("ref: ../../etc/passwd\n")
    assert read_git_sha(tmp_path) is None


def test_it_needs_neither_torch_nor_numpy():
    code = "import sys, runner.runs; print([name for name in ('torch', 'numpy', 'mlflow') if name in sys.modules])"
    root = Path(runs.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_second_process_is_kept_out_of_a_run_that_goes_on(tmp_path):
    run = RunFolder.start(tmp_path, algo="a", env="e", seed=0, config_hash="0" * 16)
    run.lock()
    with pytest.raises(ValueError, match=f"process {os.getpid()} runs there now"):
        RunFolder.open(tmp_path).lock()
    run.unlock()
    other = RunFolder.open(tmp_path)
    other.lock()
    other.unlock()


def test_what_a_run_that_never_began_wrote_is_removed_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in (Path("outputs/dqn-cartpole/now"), tmp_path / "typed"):
        start(folder)
        (folder / ".hydra").mkdir()
        (folder / ".hydra" / "config.yaml").touch()
        (folder / "run.log").touch()
    (tmp_path / "typed" / "thesis.tex").touch()
    for folder in (Path("outputs/dqn-cartpole/now"), tmp_path / "typed"):
        runs.remove_unstarted(folder)
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["typed", "typed/thesis.tex"]
