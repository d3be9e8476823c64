"""What a switch of ours costs: the same run with it and without it, in alternation."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from scripts.benchmark.rounds import Process, Result, alternate, machine, median, paired, quantile, table
from scripts.benchmark.versus import CASES, measure_run

NEVER = 1_000_000_000
MODULE = "scripts.benchmark.peers.hookline"


@dataclass(frozen=True)
class Switch:
    """Overrides by variant; each is compared with the first."""

    title: str
    variants: dict[str, tuple[str, ...]]
    env_steps: int


SWITCHES = {
    "logging": Switch(
        "CSV, MLflow and all hooks, the progress bar among them, against none of them",
        {"off": ("logger=[]", "hooks=[]"), "on": ()},
        200_000,
    ),
    "checkpoints": Switch(
        "a checkpoint every 5,000 env steps, against none but the last",
        {"last only": (f"checkpoint.every.env_steps={NEVER}",), "every 5000": ("checkpoint.every.env_steps=5000",)},
        500_000,
    ),
    "compile": Switch(
        "gradients by autograd, recorded once, or whole updates compiled",
        {name: (f"compile={name}",) for name in ("none", "trace", "update")},
        500_000,
    ),
}


def compare_switch(name: str, env_steps: int | None, rounds: int, overrides: list[str]) -> None:
    """Measure one switch on CleanRL's DQN and print what each variant costs."""
    switch, case = SWITCHES[name], CASES["every10"]
    work = replace(case.work, env_steps=env_steps or switch.env_steps)
    process = Process(Path(sys.executable), MODULE)

    def measurement(changes: tuple[str, ...]) -> Callable[[int], Result]:
        extra = [f"experiment={case.experiment}", *overrides, *changes, "saves"]
        return lambda index: measure_run(process, replace(work, seed=index + 1), extra)

    print(f"\n{name}: {switch.title}; {case.experiment}, {work.env_steps:,} env steps, {rounds} rounds\n{machine()}")
    measured = alternate({kind: measurement(changes) for kind, changes in switch.variants.items()}, rounds)
    print(report(measured))
    if name == "checkpoints":
        print(_blocked(measured["every 5000"]))


def report(measured: dict[str, list[Result]]) -> str:
    """A line for each variant, then its cost against the first in per cent: the median of the rounds, and each."""
    header = ["variant", "env steps/s", "CPU us/step", "shell s", "return, greedy"]
    rows = [
        [
            name,
            f"{median([result['rate'] for result in results]):,.0f}",
            f"{median([result['cpu_us'] for result in results]):.1f}",
            f"{median([result['shell'] for result in results]):.1f}",
            f"{sum(result['eval_return'] for result in results) / len(results):.0f}",
        ]
        for name, results in measured.items()
    ]
    base, *others = measured
    costs = [_cost(name, measured[base], measured[name], key) for name in others for key in ("cpu", "wall", "shell")]
    return "\n".join([table(header, rows), *costs])


def _cost(name: str, base: list[Result], changed: list[Result], key: str) -> str:
    ratios = paired([result[key] for result in base], [result[key] for result in changed])
    each = " ".join(f"{100 * (ratio - 1):+.1f}" for ratio in ratios)
    middle = median(ratios)
    return f"{name}: {100 * (middle - 1):+.1f} % {key} ({1 / middle:.2f} x the speed); rounds: {each}"


def _blocked(results: list[Result]) -> str:
    """How long the loop stood still for a checkpoint, over the last 50 of each run: the buffer is full by then."""
    saves = [value for result in results for value in result["save_ms"][-50:]]
    middle, high, longest = (quantile(saves, share) for share in (0.5, 0.95, 1.0))
    return (
        f"a save blocked the loop for p50 {middle:.1f} ms, p95 {high:.1f}, at most {longest:.1f} ({len(saves)} saves)"
    )
