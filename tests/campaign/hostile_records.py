"""Hostile records of a run: ``run.json``, the table of metrics, rows for MLflow, replay rows in files."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.campaign.hostile import MEMMAP, MLFLOW, Payload
from tests.campaign.hostile_checkpoints import json_texts
from tests.campaign.hostile_seal import record, state

MIB = 2**20
HOSTILE_TEXT = "\x1b]0;title\x07\n$(touch executed)"


def run_payloads() -> Iterator[Payload]:
    """``run.json``: JSON that hurts, and fields that are used for something."""
    for name, raw in json_texts():
        yield Payload("json", f"run.json: {name}", _write("run.json", raw), expect=("refused",))
    fields: dict[str, Any] = {
        "status": "\x1b[2J",
        "status ": ["done"],
        "algo": "../../x",
        "algo ": HOSTILE_TEXT * 1000,
        "env": HOSTILE_TEXT,
        "seed": 10**4000,
        "threads": -1,
        "progress": {"env_steps": 10**4000},
        "progress ": {"env_steps": "x"},
        "progress  ": {"x": [[]]},
        "metrics": {"x": {"y": {}}},
        "best": {"x": [1]},
        "reason": HOSTILE_TEXT,
        "mlflow_run_id": "../../../etc",
        "config_hash": HOSTILE_TEXT,
        "git": HOSTILE_TEXT,
        "schema": True,
        "process": {"host": os.uname().nodename, "pid": 1, "started": None},
        "process ": {"pid": -1},
        "process  ": {"pid": HOSTILE_TEXT, "host": []},
        "versions": {"torch": HOSTILE_TEXT},
        "evil": _deep(900),
        "config_files": "x",
        "config_files ": [[1]],
        "config_files  ": {"a": 1},
        "digest": [1],
        "parent": "/etc",
        **{f"k{n}": n for n in range(3)},
    }
    for name, value in fields.items():
        yield Payload(
            "run.json",
            f"{name.strip()} is {str(value)[:24]!r}",
            record(lambda found, name=name, value=value: found | {name.strip(): value}),
        )


def _deep(depth: int) -> Any:
    return json.loads("[" * depth + "]" * depth)


def _write(name: str, raw: bytes) -> Callable[[Path], None]:
    def apply(run: Path) -> None:
        (run / name).write_bytes(raw)

    return apply


def table_payloads() -> Iterator[Payload]:
    """``metrics.csv``: formulas, endless lines, columns and rows that multiply."""
    texts = {
        "formulas": b"=cmd|'/C calc'!A0,+1,-1,@x\n1,2,3,4\n",
        "a line of 8 MB": b"x," * (4 * MIB) + b"\n",
        "a cell of 8 MB": b'"' + b"x" * (8 * MIB),
        "a million empty rows": b"a,b\n" + b"\n" * 10**6,
        "a million columns": b"a," * 10**6 + b"\n" + b"1\n" * 1000,
        "NULs": bytes(1000),
        "no text": b"\xff\xfe" * 1000,
        "escape sequences": HOSTILE_TEXT.encode(),
        "nothing": b"",
        "quotes": b'"' * 10**6,
    }
    for name, raw in texts.items():
        yield Payload("table", name, _write("metrics.csv", raw), expect=("harmless",))
    states: dict[str, Any] = {
        "more rows than there are": {"rows": 10**15},
        "rows below zero": {"rows": -5},
        "bytes below zero": {"bytes": -5},
        "bytes beyond the end": {"bytes": 2**62},
        "columns that are numbers": {"columns": [1, 2]},
        "a hundred thousand columns": {"columns": ["x"] * 10**5},
        "columns that are a text": {"columns": "env_steps"},
        "rows that are a text": {"rows": "all"},
        "rows that wait": {"unwritten": [{"x": "y" * MIB}] * 5},
        "rows that are none": {"unwritten": [1]},
        "columns called like escape sequences": {"columns": [HOSTILE_TEXT]},
    }
    for name, change in states.items():
        yield Payload("table", name, state(lambda found, change=change: _logger(found, "CSVLogger").update(change)))


def _logger(content: dict[str, Any], name: str) -> dict[str, Any]:
    return content["components"]["metrics"]["loggers"][name]


def journal_payloads() -> Iterator[Payload]:
    """Rows for MLflow, sent by ``sync=``: whatever they hold is data, and only the configured server gets it."""
    row = '[0, 10, 1700000000000, {"x": 1.0}]'
    lines = {
        "no rows": "",
        "not JSON": "{",
        "escape sequences": HOSTILE_TEXT,
        "deep": "[" * 10**5,
        "numbers": f"[{10**30}, 1, 1, {{}}]",
        "a value out of range": '[1, 1, 1, {"x": 1e999}]',
        "NaN": '[1, 1, 1, {"x": NaN}]',
        "a text": '[1, 1, 1, {"x": "y"}]',
        "an integer of 5,000 digits": f"[{'9' * 5000}, 1, 1, {{}}]",
        "rows below zero": "[-1, -1, -1, {}]",
        "no mapping": "[1, 1, 1, [1]]",
        "a line of 4 MB": f'[1, 1, 1, {{"{"x" * 4 * MIB}": 1}}]',
        "a metric called like a path": '[1, 1, 1, {"../../../../etc/passwd": 1}]',
        "a metric of many names": "[1, 1, 1, {" + ",".join(f'"x{n}": 1' for n in range(20_000)) + "}]",
        "another run": json.dumps(
            {"run": {"experiment": "../../x", "name": HOSTILE_TEXT, "tags": {"a": "b" * 10_000}}}
        ),
        "a run that is a list": json.dumps({"run": [1]}),
        "parameters": json.dumps({"parameters": {"x" * 300: "y" * 10_000}}),
        "parameters that are numbers": json.dumps({"parameters": 7}),
        "known rows": json.dumps({"known": [10**30, "x", None]}),
        "a hundred thousand empty lines": "\n" * 10**5,
        "ten thousand rows": "\n".join([row] * 10_000),
    }
    for name, line in lines.items():
        yield Payload("journal", name, _append(line), template=MLFLOW, expect=("harmless", "refused"))
    for number in ("not-a-run", "../../../x", "f" * 32, HOSTILE_TEXT, "0" * 10**5):
        yield Payload(
            "journal",
            f"the run {number[:20]!r}",
            record(lambda found, number=number: found.update(mlflow_run_id=number)),
            template=MLFLOW,
            expect=("harmless", "refused"),
        )


def _append(text: str) -> Callable[[Path], None]:
    def apply(run: Path) -> None:
        with open(run / "mlflow-unsent.jsonl", "a") as file:
            file.write(text + "\n")

    return apply


def replay_payloads() -> Iterator[Payload]:
    """Replay rows in files of the run's folder, and a checkpoint that says what is in them."""
    changes: dict[str, dict[str, Any]] = {
        "rows of 10 GB": {"total": 10**8},
        "rows below zero": {"total": -1},
        "rows of all memory": {"total": 2**62},
        "environments below zero": {"num_envs": -1},
        "a billion environments": {"num_envs": 10**9},
        "another capacity": {"capacity": 10**12},
        "a total that is a text": {"total": "all"},
        "no journal": {"journal": None},
    }
    for name, change in changes.items():
        yield _replay(name, lambda storage, change=change: storage.update(change))
    entries: dict[str, dict[str, Any]] = {
        "a huge shape": {"shape": [2**31, 2**31]},
        "a shape below zero": {"shape": [-1]},
        "many sizes": {"shape": [1] * 1000},
        "another type": {"dtype": "_inductor"},
        "a type of objects": {"dtype": "object"},
        "no blocks": {"blocks": []},
        "a million blocks": {"blocks": ["0" * 64] * 100_000},
        "blocks that are a number": {"blocks": 7},
    }
    for name, change in entries.items():
        yield _replay(name, lambda storage, change=change: next(iter(storage["journal"].values())).update(change))
    yield _replay("files above the folder", lambda storage: storage["journal"].update({"../../secret/bashrc": {}}))
    for name in ("other.pickle", "meta.json", "observation.memmap"):
        yield Payload(
            "replay",
            f"a file {name}",
            _write(f"replay/{name}", b"cos\nsystem\n(S'touch executed'\ntR."),
            template=MEMMAP,
            expect=("harmless",),
        )
    yield Payload("replay", "a file of nothing, 4 GB long", _longer, template=MEMMAP)


def _replay(name: str, change: Callable[[dict[str, Any]], Any]) -> Payload:
    return Payload(
        "replay",
        name,
        state(lambda content: change(content["components"]["source"]["storage"])),
        template=MEMMAP,
        expect=("fell back", "refused", "harmless"),
    )


def _longer(run: Path) -> None:
    os.truncate(next((run / "replay").glob("*.rows")), 2**32)
