"""What runs and their folders are called."""

import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

OUTPUTS = Path("outputs")


def run_names(choices: Mapping[str, Any], config: Mapping[str, Any], is_id_typed: bool) -> tuple[str, str]:
    """The names of the algorithm and of the environment: the choices, or the id where that says more."""
    env = choices.get("env")
    if env == "gym" or is_id_typed:
        env = config["env"].get("id") or "custom"
    return file_name(str(choices.get("algo"))), file_name(str(env))


def file_name(text: str) -> str:
    """Only characters that are safe in the name of a folder."""
    return re.sub(r"[^\w.-]+", "_", text).strip("._-") or "unnamed"


def folder_of_run(algo: str, env: str, seed: int) -> Path:
    """Where a single run goes, before it is made unique."""
    return OUTPUTS / f"{algo}-{env}" / f"{_now()}-s{seed}"


def folder_of_sweep(algo: str, env: str) -> Path:
    """Where the jobs of a sweep go, before it is made unique."""
    return OUTPUTS / f"{algo}-{env}" / f"{_now()}-sweep"


def _now() -> str:
    return datetime.now().strftime("%Y-%m-%d_%H-%M-%S")


def quote(path: Path) -> str:
    """A path as a quoted value of Hydra's override grammar."""
    escaped = str(path).replace("'", "\\'")
    return f"'{escaped}'"
