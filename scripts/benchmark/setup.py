"""The peers' own virtual environments, in ``.venvs/<name>``: never ours, whose pins exclude theirs."""

import shutil
import subprocess
import sys
from pathlib import Path

from scripts.benchmark.rounds import ROOT, Failed

VENVS = ROOT / ".venvs"
READY = ".ready"

MUJOCO = ["mujoco==3.3.2", "imageio==2.38.1", "packaging==26.3"]

REQUIREMENTS = {
    "sb3": ["stable_baselines3==2.9.2", *MUJOCO],
    "cleanrl": ["gymnasium==0.29.1", "tensorboard==2.21.0", "tyro==1.0.17", "stable_baselines3==2.9.2", *MUJOCO],
    "torchrl": ["torchrl==0.14.1", "tensordict==0.14.3", "gymnasium==1.4.0"],
    "tianshou": ["tianshou==2.0.1"],
    "cpprb": ["cpprb==11.0.0"],
}
"""Of each environment. CleanRL's file runs with gymnasium 0.29; the stand-in for it takes SB3's buffer from there.
cpprb is a replay buffer alone."""


def make_venvs(names: list[str]) -> None:
    """Make those that are not there yet."""
    for name in names:
        if is_ready(name):
            print(f"{name}: {VENVS / name} is ready")
        else:
            _make(name)


def is_ready(name: str) -> bool:
    mark = VENVS / name / READY
    return mark.exists() and mark.read_text() == _mark(name)


def python_of(name: str) -> Path:
    """The interpreter of a peer's environment."""
    if not is_ready(name):
        raise Failed(f"{name} has no environment yet: python scripts/bench.py --setup --only {name}")
    return VENVS / name / "bin/python"


def _mark(name: str) -> str:
    return " ".join([torch_pin(), *REQUIREMENTS[name]])


def torch_pin() -> str:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return next(line for line in lines if line.startswith("torch=="))


def _make(name: str) -> None:
    """Torch first and alone, by our own pin: what asks for it later must be content with this one."""
    folder = VENVS / name
    print(f"{name}: making {folder} ({', '.join(REQUIREMENTS[name])})", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pins = folder / "pins.txt"
    pins.write_text(torch_pin() + "\n")
    for wanted in ([torch_pin(), "setuptools"], REQUIREMENTS[name]):
        command = [str(folder / "bin/python"), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
        done = subprocess.run([*command, "-c", str(pins), *wanted], check=False)
        if done.returncode:
            raise Failed(f"{name}: pip could not install {' '.join(wanted)}; the lines above say why")
    (folder / READY).write_text(_mark(name))
