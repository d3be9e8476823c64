"""What the tests of checkpoints share: states to save, and damage to do to them."""

import hashlib
import json

import torch

from runner.checkpoint.manifest import write_manifest


def state_at(step):
    return {
        "learner": {"weight": torch.full((3, 2), float(step)), "none": torch.empty(0)},
        "rng": {"numbers": [step, 0.1]},
    }


def save_at(store, *steps):
    return [store.save(state_at(step), {"env_steps": step, "seconds": 0.25}) for step in steps]


def loaded_step(store):
    return store.load()[1]["counters"]["env_steps"]


def flip_bit(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def reseal(folder, **changes):
    """Write the manifest as an attacker would, with every digest in order."""
    manifest = json.loads((folder / "manifest.json").read_text()) | changes
    manifest.pop("digest")
    raw = (folder / "state.json").read_bytes()
    manifest["files"]["state.json"] = {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    write_manifest(folder, manifest)
