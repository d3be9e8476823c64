"""Nothing in a run's folder is ever run: it is refused in one line, passed over, or does no harm."""

import functools
import marshal
import os
import pickle
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from tests.campaign import (
    hostile_archives,
    hostile_checkpoints,
    hostile_files,
    hostile_records,
    hostile_targets,
    hostile_yaml,
)
from tests.campaign.hostile import MEMMAP, MLFLOW, RUN, SECRET, SHORT, Arena, Outcome, Payload
from tests.campaign.hostile_fence import fence_in
from tests.campaign.hostile_files import CANARY, plant
from tests.campaign.hostile_server import hostile_server, server_payloads
from tests.campaign.hostile_watch import ROOT

SOURCES: tuple[Callable[[], Iterator[Payload]], ...] = (
    hostile_files.pickle_payloads, hostile_files.special_payloads, hostile_checkpoints.tensor_payloads,
    hostile_checkpoints.skeleton_payloads, hostile_checkpoints.value_payloads, hostile_checkpoints.manifest_payloads,
    hostile_archives.snapshot_payloads, hostile_targets.target_payloads, hostile_targets.misuse_payloads,
    hostile_yaml.yaml_payloads, hostile_records.run_payloads, hostile_records.table_payloads,
    hostile_records.journal_payloads, hostile_records.replay_payloads,
)  # fmt: skip
MENDED = """.hydra lies outside|ckpt lies outside|.metrics.csv.new to a start-up file|command.txt to a start-up file
run.log to a start-up file|a second name of a file outside|run.json to /proc/kmsg|.hydra/config.yaml is a pipe
ckpt/newest is a pipe|shape: a million huge ones|type '_inductor'|a million empty ones|keys that collide
a position beyond numpy's generator|progress is None|every number is negative|lists '\\ud800'|manifest.json: 1e999
manifest.json: a million keys|keys that JSON and YAML read differently|an id in a hook|a plugin of Hydra in the folder
a logger among the hooks|loggers that lead nowhere|a file of a class|threads|brackets that close|indentation
texts that multiply|mappings that multiply|rows that are none""".replace("\n", "|").split("|")
"""Payloads that once did harm, hung, or ended in a traceback."""


@pytest.fixture(scope="module")
def arena(tmp_path_factory):
    return Arena(tmp_path_factory.mktemp("arena"), ("torchsnapshot", "torch"))


def all_payloads() -> list[Payload]:
    return [payload for source in SOURCES for payload in source()]


def quick_payloads() -> list[Payload]:
    """Those that were mended, and the first of each kind that needs neither MLflow nor replay rows in files."""
    usual = [payload for payload in all_payloads() if payload.template not in (MLFLOW, MEMMAP)]
    first = {payload.kind: payload for payload in reversed(usual)}
    return [payload for payload in usual if payload.name in MENDED or payload is first[payload.kind]]


def attack_all(arena: Arena, payloads: list[Payload]) -> list[Outcome]:
    """Attack, print the table, and say what went wrong."""
    outcomes = [arena.attack(payload) for payload in payloads]
    print(table(outcomes))
    wrong = [str(outcome) for outcome in outcomes if outcome.events or outcome.faults]
    assert not wrong, "\n".join(wrong)
    return outcomes


def table(outcomes: list[Outcome]) -> str:
    head = f"{'kind':<14}{'payloads':>9}{'refused':>9}{'fell back':>11}{'harmless':>10}{'misfits':>9}"
    rows = [f"\n{head}{'events':>8}{'slowest':>9}{'memory':>10}"]
    for kind in [*dict.fromkeys(outcome.payload.kind for outcome in outcomes), "all"]:
        some = [outcome for outcome in outcomes if kind in ("all", outcome.payload.kind)]
        count = Counter(outcome.result for outcome in some)
        rows.append(
            f"{kind:<14}{len(some):>9}{count['refused']:>9}{count['fell back']:>11}{count['harmless']:>10}"
            f"{count['crashed']:>9}{sum(len(outcome.events) for outcome in some):>8}"
            f"{max(outcome.seconds for outcome in some):>7.1f} s"
            f"{max(outcome.memory_bytes for outcome in some) / 2**20:>6.0f} MiB"
        )
    return "\n".join(rows)


def test_no_payload_of_each_kind_and_none_that_was_mended_does_any_harm(arena):
    payloads = quick_payloads()
    assert set(MENDED) <= {payload.name for payload in payloads}
    attack_all(arena, payloads)


@pytest.mark.slow
def test_no_payload_does_any_harm(tmp_path):
    with hostile_server() as port:
        payloads = [*all_payloads(), *server_payloads(port)]
        outcomes = attack_all(Arena(tmp_path), payloads)
    assert len(outcomes) >= 150
    assert sum(outcome.payload.kind == "target" for outcome in outcomes) >= 60


def unsafe_loaders() -> dict[str, Callable[[], Any]]:
    """What would happen if a payload worked."""
    command = f"touch {CANARY}"
    bytecode = marshal.dumps(compile(f"open({CANARY!r}, 'w')", "<bytecode>", "exec"))
    return {
        "pickle": lambda: pickle.loads(hostile_files.pickles()[0][1]),
        "pickle by hand": lambda: pickle.loads(hostile_files.pickles()[-1][1]),
        "torch.load": lambda: torch.load("planted.pt", weights_only=False),
        "numpy.load": lambda: np.load("planted.pt", allow_pickle=True),
        "YAML tags": lambda: yaml.unsafe_load(f"!!python/object/apply:os.system ['{command}']"),
        "eval": lambda: eval("__import__('os').getpid()"),
        "exec of bytecode": lambda: exec(marshal.loads(bytecode)),
        "an import": lambda: __import__("planted"),
        "a target": lambda: functools.reduce(getattr, ["system"], os)(command),
        "a program": lambda: subprocess.run(["true"], check=True),
        "a listening socket": lambda: socket.create_server(("127.0.0.1", 0)),
        "a connection": lambda: socket.create_connection(("127.0.0.1", 9), timeout=1),
        "a file beside the run": lambda: Path("new").touch(),
        "a file that a link leads to": lambda: Path(RUN, "link").write_text("x"),
        "a folder beside the run": lambda: os.mkdir("folder"),
        "a file that is read through a link": lambda: Path(RUN, "link").read_text(),
        "a file removed": lambda: os.remove(Path(SECRET, "bashrc")),
    }


@pytest.mark.parametrize("name", unsafe_loaders())
def test_the_hook_catches_a_loader_that_is_not_safe(arena, name):
    def spoil(run: Path) -> None:
        plant(run)
        (run / "link").symlink_to(Path(SECRET, "bashrc").absolute())

    def run(argv: list[str]) -> int:
        unsafe_loaders()[name]()
        return 0

    assert arena.attack(Payload("oracle", name, spoil), run).events


@pytest.mark.parametrize(
    ("fault", "work"),
    [
        ("took too long", lambda: time.sleep(600)),
        ("MiB for", lambda: bytearray(b"x") * 2**28),
        ("a traceback", lambda: 1 / 0),
        ("characters that are not for reading", lambda: print("\x1b[2J", flush=True)),
        ("expected refused", lambda: None),
    ],
)
def test_what_is_not_an_event_is_caught_too(arena, monkeypatch, fault, work):
    monkeypatch.setattr("tests.campaign.hostile.LIMIT_SECONDS", 1 if "too long" in fault else 60)
    payload = Payload("oracle", fault, lambda run: None, expect=("refused",))
    outcome = arena.attack(payload, lambda argv: 0 * bool(work()))
    assert any(fault in line for line in outcome.faults), outcome


def test_a_run_writes_only_in_its_folder_and_beside_mlflow_and_connects_to_nothing(tmp_path):
    """Run and resume, as a user does: with ``metrics.csv`` and MLflow, which is sent to from a process of its own."""
    work, report = tmp_path / "work", tmp_path / "report"
    for name in ("work", "home", "temporary"):
        (tmp_path / name).mkdir()
    writable = [work / RUN, work / "outputs", tmp_path / "temporary"]
    fence = fence_in(tmp_path / "fence", writable, report, addresses=[])
    environment = os.environ | fence | {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "temporary")}
    for argv in ([*SHORT], [f"resume={RUN}", "total_frames=400"]):
        done = subprocess.run([sys.executable, ROOT / "run.py", *argv], cwd=work, env=environment,
                              capture_output=True, text=True)  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "not in MLflow yet" not in done.stderr
    lines = report.read_text().splitlines()
    assert sum(line.endswith("fenced in") for line in lines) == 4  # each time the run, and the process that sends
    assert [line for line in lines if not line.endswith("fenced in")] == []
    assert {path.name for path in work.iterdir()} == {RUN, "outputs"}
    assert {path.name.partition(".")[0] for path in (work / "outputs").iterdir()} == {"mlflow"}
    assert list((tmp_path / "home").iterdir()) == []
