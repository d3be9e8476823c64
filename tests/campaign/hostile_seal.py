"""Checkpoints that are changed and sealed again: what an attacker who knows our formats can do."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from runner.checkpoint.manifest import MANIFEST, describe, write_manifest

STATE = "state.json"
Change = Callable[[dict[str, Any]], Any]


def newest(run: Path) -> Path:
    """The newest checkpoint of a run."""
    return max((run / "ckpt").glob("step-*"), key=lambda folder: int(folder.name.split("-")[1]))


def reseal(folder: Path, change: Change = lambda fields: None) -> None:
    """Write a manifest that fits the files as they are now, but for ``change``."""
    fields = json.loads((folder / MANIFEST).read_bytes())
    fields.pop("digest")
    fields["files"] = describe(folder)
    changed = change(fields)
    write_manifest(folder, fields if changed is None else changed)


def manifest(change: Change) -> Callable[[Path], None]:
    """Change the newest checkpoint's manifest."""
    return lambda run: reseal(newest(run), change)


def state(change: Change) -> Callable[[Path], None]:
    """Change what is besides the tensors in the newest checkpoint: ``components`` and ``tensors``."""

    def apply(run: Path) -> None:
        path = newest(run) / STATE
        content = json.loads(path.read_bytes())
        changed = change(content)
        path.write_text(json.dumps(content if changed is None else changed))
        reseal(newest(run))

    return apply


def text(name: str, raw: bytes | Callable[[bytes], bytes], sealed: bool = True) -> Callable[[Path], None]:
    """Replace the bytes of a file of the newest checkpoint."""

    def apply(run: Path) -> None:
        path = newest(run) / name
        path.write_bytes(raw if isinstance(raw, bytes) else raw(path.read_bytes()))
        if sealed:
            reseal(newest(run))

    return apply


def record(change: Change) -> Callable[[Path], None]:
    """Change ``run.json``, which nothing seals for good."""

    def apply(run: Path) -> None:
        fields = json.loads((run / "run.json").read_bytes())
        for seal in ("digest", "config_files"):
            fields.pop(seal, None)
        changed = change(fields)
        (run / "run.json").write_text(json.dumps(fields if changed is None else changed))

    return apply


def config(change: Change) -> Callable[[Path], None]:
    """Change the stored configuration."""

    def apply(run: Path) -> None:
        path = run / ".hydra" / "config.yaml"
        tree = yaml.safe_load(path.read_text())
        changed = change(tree)
        path.write_text(yaml.safe_dump(tree if changed is None else changed, allow_unicode=True))
        record(lambda fields: None)(run)

    return apply


def config_text(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Change the bytes of the stored configuration."""

    def apply(run: Path) -> None:
        path = run / ".hydra" / "config.yaml"
        path.write_bytes(change(path.read_bytes()))
        record(lambda fields: None)(run)

    return apply
