"""The same work by us and by each peer, in alternation: ratios, costs and returns."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from scripts.benchmark.meter import Order, Work
from scripts.benchmark.rounds import Process, Result, alternate, machine, median, paired, run, table
from scripts.benchmark.setup import python_of

OURS = "hookline"


@dataclass(frozen=True)
class Case:
    """Work that one of our recipes and CleanRL's arguments both describe."""

    experiment: str
    work: Work
    title: str
    peers: tuple[str, ...] = ("standin", "sb3", "torchrl", "tianshou")


CHEETAH = Work(0, 4_000, [256, 256], 256, 1, 1_000, 1_000_000, 3e-4, env_id="HalfCheetah-v4")

CASES = {
    "every10": Case(
        "cleanrl_dqn_cartpole",
        Work(0, 200_000, [120, 84], batch_size=128, train_every=10, learning_starts=10_000),
        "CleanRL's defaults: one update (120-84, batch 128) every 10 env steps",
    ),
    "every1": Case(
        "dqn_cartpole_every_step",
        Work(0, 30_000, [64, 64], batch_size=64, train_every=1, learning_starts=1_000),
        "one update (64-64, batch 64) in every env step",
    ),
    "sac": Case("sb3_sac_halfcheetah", CHEETAH, "SAC, one update (256-256, batch 256) in every env step", ("sb3-sac",)),
    "ppo": Case(
        "cleanrl_ppo_cartpole",
        Work(0, 100_000, [64, 64], 128, train_every=512, learning_starts=0, num_envs=4, epochs=4),
        "PPO, 4 environments, 4 epochs of 4 minibatches over 512 steps",
        ("sb3-ppo",),
    ),
    "td3": Case("cleanrl_td3_halfcheetah", CHEETAH, "TD3, the same", ("cleanrl-td3", "sb3-td3")),
}

PEERS = {
    OURS: ("", "hookline", []),
    "cleanrl": ("cleanrl", "cleanrl", []),
    "standin": ("cleanrl", "standin", []),
    "sb3": ("sb3", "sb3", []),
    "torchrl": ("torchrl", "torchrl", []),
    "torchrl-1000": ("torchrl", "torchrl", ["1000"]),
    "tianshou": ("tianshou", "tianshou", []),
    "sb3-ppo": ("sb3", "sb3_rollouts", []),
    "sb3-sac": ("sb3", "sb3_continuous", ["SAC"]),
    "sb3-td3": ("sb3", "sb3_continuous", ["TD3"]),
    "cleanrl-td3": ("cleanrl", "cleanrl_td3", []),
}
"""By the name that is typed: environment, module, further arguments."""

STANDIN_SHARE = (118 / 174, 144 / 174)
"""What CleanRL's file took of SB3's CPU time in ``every10``, where SB3 took 168 to 180 us an env step."""


@dataclass(frozen=True)
class Settings:
    """What is compared, and how often."""

    peers: list[str] | None
    rounds: int
    cleanrl: Path | None = None
    env_steps: int | None = None
    overrides: tuple[str, ...] = ()


def compare(case: Case, settings: Settings) -> None:
    """Measure and print one table."""
    work = replace(case.work, env_steps=settings.env_steps or case.work.env_steps)
    kinds = {name: _measurement(name, case, work, settings) for name in (OURS, *_peers_of(case, settings))}
    begin, end = work.window
    print(f"\n{case.experiment}: {case.title}, {work.env_steps:,} env steps, 1 thread, {settings.rounds} seeds")
    print(f"{machine()}; window: env steps {begin:,} to {end:,}")
    measured = alternate(kinds, settings.rounds)
    print("\n".join([report(measured), *(_calibration(measured) if case is CASES["every10"] else [])]))


def _peers_of(case: Case, settings: Settings) -> list[str]:
    """Those asked for, else those of the case; of CleanRL's, those whose file is there."""
    if settings.peers is not None:
        return settings.peers
    given = ["cleanrl" if name == "standin" and settings.cleanrl else name for name in case.peers]
    return [name for name in given if settings.cleanrl or not name.startswith("cleanrl")]


def _measurement(name: str, case: Case, work: Work, settings: Settings) -> Callable[[int], Result]:
    venv, module, extra = PEERS[name]
    if name == OURS:
        extra = [f"experiment={case.experiment}", *settings.overrides]
    elif name.startswith("cleanrl"):
        extra = [str(settings.cleanrl)]
    process = Process(python_of(venv) if venv else Path(sys.executable), f"scripts.benchmark.peers.{module}")

    def measure(index: int) -> Result:
        return measure_run(process, replace(work, seed=index + 1), extra)

    return measure


def measure_run(process: Process, work: Work, extra: list[str]) -> Result:
    """One run by one process; evaluation, which the peers only do for this table, is no part of its seconds."""
    result = run(process, lambda folder: [Order(work, str(folder / "result.json"), time.time(), extra).to_text()])
    result["shell"] -= result["evaluation_seconds"]
    result["rate"] = result["env_steps"] / result["wall"]
    result["cpu_us"], result["started_us"] = (result[key] / result["env_steps"] * 1e6 for key in ("cpu", "cpu_started"))
    return result


def report(measured: dict[str, list[Result]]) -> str:
    """A line for each contestant, then each one's rounds and versions."""
    header = [
        "run",
        "env steps/s",
        "CPU us/step",
        "we: x faster (CPU)",
        "x faster (wall)",
        "shell s",
        "1st step s",
        "MB",
        "return, training",
        "return, greedy",
    ]
    rows = [_row(name, results, measured[OURS]) for name, results in measured.items()]
    details = [line for name, results in measured.items() for line in _details(name, results, measured[OURS])]
    return "\n".join([table(header, rows), *details])


def _calibration(measured: dict[str, list[Result]]) -> list[str]:
    """Whether the stand-in costs what CleanRL's file does, by SB3, which is the same program on every machine."""
    if not {"standin", "sb3"} <= measured.keys():
        return []
    share, (least, most) = median(ratios(measured["sb3"], measured["standin"], "cpu_us")), STANDIN_SHARE
    verdict = "stands for it" if least <= share <= most else "does NOT stand for it: give its file by --cleanrl"
    return [f"the stand-in takes {share:.2f} of SB3's CPU, CleanRL's dqn.py {least:.2f} to {most:.2f}: it {verdict}"]


def _row(name: str, results: list[Result], ours: list[Result]) -> list[str]:
    def middle(key: str) -> float:
        return median([result[key] for result in results])

    returns = [sum(result[key] for result in results) / len(results) for key in ("train_return", "eval_return")]
    return [
        name,
        f"{middle('rate'):,.0f}",
        f"{middle('cpu_us'):.1f}",
        f"{median(ratios(ours, results, 'cpu_us')):.2f}",
        f"{median(ratios(ours, results, 'wall')):.2f}",
        f"{middle('shell'):.1f}",
        f"{middle('first_step'):.1f}",
        f"{middle('rss_mb'):.0f}",
        *(f"{value:.0f}" for value in returns),
    ]


def ratios(ours: list[Result], theirs: list[Result], key: str) -> list[float]:
    return paired([result[key] for result in ours], [result[key] for result in theirs])


def _details(name: str, results: list[Result], ours: list[Result]) -> list[str]:
    def texts(values: list[float], form: str) -> str:
        return " ".join(format(value, form) for value in values)

    versions = ", ".join(f"{package} {number}" for package, number in results[0]["versions"].items())
    return [
        f"{name}: CPU us/step {texts([result['cpu_us'] for result in results], '.1f')}"
        f" (in processes it started {texts([result['started_us'] for result in results], '.1f')})"
        f"; ratio CPU {texts(ratios(ours, results, 'cpu_us'), '.2f')}"
        f"; wall {texts(ratios(ours, results, 'wall'), '.2f')}"
        f"; returns {texts([result['train_return'] for result in results], '.0f')}"
        f" (greedy {texts([result['eval_return'] for result in results], '.0f')}); {versions}"
    ]
