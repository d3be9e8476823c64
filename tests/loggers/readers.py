"""What each kind of logger left behind, read by the reader of its own kind."""

import csv
import struct
from collections import Counter
from pathlib import Path
from typing import Any

from tests.loggers.parts import wait_until

BLOCK_BYTES = 32768


def events_of(folder: Path, tags: str = "scalars") -> Any:
    """TensorBoard's own reader, of everything in ``folder``."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={tags: 0})
    found.Reload()
    return found


def raw_steps_of(folder: Path, tag: str) -> Counter[int]:
    """How often each step of a metric is in the files, whatever a reader makes of that."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    steps: Counter[int] = Counter()
    for path in sorted(folder.glob("events.*")):
        for raw in RawEventFileLoader(str(path)).Load():
            event = Event.FromString(raw)
            steps.update(event.step for value in event.summary.value if value.tag == tag)
    return steps


def wandb_records(path: Path) -> list[Any]:
    """The records of a .wandb file: LevelDB's log format, each a message of W&B's own."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, begun, records = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        left = BLOCK_BYTES - at % BLOCK_BYTES
        if left < 7:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        if kind == 0 or at + 7 + size > len(data):
            break
        begun += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or its last part
            records.append(Record.FromString(begun))
            begun = b""
    return records


def wandb_rows(folder: Path) -> list[dict[str, str]]:
    """The history of all of W&B's sessions in a run's folder, names to JSON.

    W&B's own process writes the end of the last one when the run is over, and with it all that it still had in memory.
    """
    rows, paths = [], sorted(folder.glob("wandb/*run-*/*.wandb"))
    wait_until(lambda: any(record.HasField("exit") for record in wandb_records(paths[-1])))
    for path in paths:
        for record in wandb_records(path):
            if record.WhichOneof("record_type") == "history":
                rows.append({item.key or "/".join(item.nested_key): item.value_json for item in record.history.item})
    return rows


def wandb_ids(folder: Path) -> set[str]:
    paths = folder.glob("wandb/*run-*/*.wandb")
    return {record.run.run_id for path in paths for record in wandb_records(path) if record.HasField("run")}


def csv_steps(folder: Path, column: str) -> Counter[int]:
    with open(folder / "metrics.csv", newline="") as file:
        return Counter(int(row["frames"]) for row in csv.DictReader(file) if row[column])
