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
    """Two sets of overrides; ``base`` is what ``changed`` is compared with."""

    title: str
    base: tuple[str, ...]
    changed: tuple[str, ...]
    env_steps: int


SWITCHES = {
    "logging": Switch(
        "CSV, MLflow and all hooks, the progress bar among them, against none of them",
        ("logger=[]", "hooks=[]"),
        (),
        200_000,
    ),
    "checkpoints": Switch(
        "a checkpoint every 5,000 env steps, against none but the last",
        (f"checkpoint.every.env_steps={NEVER}",),
        ("checkpoint.every.env_steps=5000",),
        500_000,
    ),
    "compile": Switch("compile=update against eager", (), ("compile=update",), 500_000),
}


def compare_switch(name: str, env_steps: int | None, rounds: int, overrides: list[str]) -> None:
    """Measure one switch on CleanRL's DQN and print what it costs."""
    switch, case = SWITCHES[name], CASES["every10"]
    work = replace(case.work, env_steps=env_steps or switch.env_steps)
    process = Process(Path(sys.executable), MODULE)

    def measurement(changes: tuple[str, ...]) -> Callable[[int], Result]:
        extra = [f"experiment={case.experiment}", *overrides, *changes, "saves"]
        return lambda index: measure_run(process, replace(work, seed=index + 1), extra)

    print(f"\n{name}: {switch.title}; {case.experiment}, {work.env_steps:,} env steps, {rounds} rounds\n{machine()}")
    measured = alternate({"without": measurement(switch.base), "with": measurement(switch.changed)}, rounds)
    print(report(measured))
    if name == "checkpoints":
        print(_blocked(measured["with"]))


def report(measured: dict[str, list[Result]]) -> str:
    """Both variants, then the cost in per cent: by CPU and by wall time, median and each round's."""
    header = ["run", "env steps/s", "CPU us/step", "shell s", "return, greedy"]
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
    return "\n".join([table(header, rows), *(_cost(measured, key) for key in ("cpu", "wall", "shell"))])


def _cost(measured: dict[str, list[Result]], key: str) -> str:
    values = ([result[key] for result in measured[name]] for name in ("without", "with"))
    ratios = paired(*values)
    each = " ".join(f"{100 * (ratio - 1):+.1f}" for ratio in ratios)
    return (
        f"cost by {key:<5} {100 * (median(ratios) - 1):+.1f} %  (rounds: {each}); {1 / median(ratios):.2f} x the speed"
    )


def _blocked(results: list[Result]) -> str:
    """How long the loop stood still for a checkpoint, over the last 50 of each run: the buffer is full by then."""
    saves = [value for result in results for value in result["save_ms"][-50:]]
    middle, high, longest = (quantile(saves, share) for share in (0.5, 0.95, 1.0))
    return (
        f"a save blocked the loop for p50 {middle:.1f} ms, p95 {high:.1f}, at most {longest:.1f} ({len(saves)} saves)"
    )
