"""What a switch of ours costs: the same run with it and without it, in turns."""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from scripts.benchmark.rounds import Process, Result, alternate, machine, median, paired, quantile, run, table
from scripts.benchmark.sides import Order
from scripts.benchmark.versus import CASES, measure_run

NEVER = 1_000_000_000
CASE = CASES["every10"]


@dataclass(frozen=True)
class Switch:
    """Overrides by variant; the second is compared with the first. ``env_steps`` of a stretch."""

    title: str
    variants: dict[str, tuple[str, ...]]
    env_steps: int


SWITCHES = {
    "logging": Switch(
        "CSV, MLflow and all hooks, the progress bar among them, against none of them",
        {"off": ("logger=[]", "hooks=[]"), "on": ()},
        2_000,
    ),
    "checkpoints": Switch(
        "a checkpoint every 5,000 env steps, against none",
        {"none": (f"checkpoint.every.env_steps={NEVER}",), "every 5000": ("checkpoint.every.env_steps=5000",)},
        5_000,
    ),
}
COMPILES = ("none", "trace", "update")


def compare_switch(name: str, env_steps: int | None, pairs: int, overrides: list[str]) -> None:
    """Measure one switch on CleanRL's DQN, a stretch with it and one without it in turn, and print what it costs."""
    switch = SWITCHES[name]
    variants = [[f"experiment={CASE.experiment}", *overrides, *one] for one in switch.variants.values()]
    order = Order(variants, CASE.work.learning_starts + 2_000, env_steps or switch.env_steps, pairs)
    print(f"\n{name}: {switch.title}; {CASE.experiment}, {pairs} pairs of {order.env_steps:,} env steps\n{machine()}")
    process = Process(Path(sys.executable), "scripts.benchmark.sides")
    result = run(process, lambda folder: [str(folder / "result.json"), json.dumps(asdict(order))])
    for key in ("cpu", "wall"):
        print(_difference(list(switch.variants), result["stretches"], key))
    if saves := result["save_ms"][-1]:
        middle, high, longest = (quantile(saves, share) for share in (0.5, 0.95, 1.0))
        print(f"a save blocked the loop for p50 {middle:.1f} ms, p95 {high:.1f}, at most {longest:.1f} ({len(saves)})")


def _difference(names: list[str], stretches: list[list[Result]], key: str) -> str:
    """The median of the pairs' ratios, with its standard error by their median deviation."""
    base, changed = ([stretch[key] for stretch in side] for side in stretches)
    ratios = paired(base, changed)
    middle = median(ratios)
    error = 1.253 * 1.483 * median([abs(ratio - middle) for ratio in ratios]) / len(ratios) ** 0.5
    return f"{names[1]} against {names[0]}: {100 * (middle - 1):+.1f} % {key} (+- {100 * error:.1f})"


def compare_compile(env_steps: int | None, rounds: int, overrides: list[str]) -> None:
    """Whole runs by each way to compute updates: the compiler's seconds at the start are part of them."""
    work = replace(CASE.work, env_steps=env_steps or 500_000)
    process = Process(Path(sys.executable), "scripts.benchmark.peers.hookline")

    def measurement(kind: str) -> Callable[[int], Result]:
        extra = [f"experiment={CASE.experiment}", *overrides, f"compile={kind}"]
        return lambda index: measure_run(process, replace(work, seed=index + 1), extra)

    print(f"\ncompile; {CASE.experiment}, {work.env_steps:,} env steps, {rounds} rounds\n{machine()}")
    print(report(alternate({kind: measurement(kind) for kind in COMPILES}, rounds)))


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
