"""How fast a run is, where its time goes, and how that compares.

    python scripts/bench.py                            three rates and the phases of a run (overrides may follow)
    python scripts/bench.py --setup                    make the peers' environments, in .venvs
    python scripts/bench.py --peers                    the same work by us and by each peer, in alternation
    python scripts/bench.py --logging                  what CSV, MLflow and the progress bar cost
    python scripts/bench.py --checkpoints              what checkpoints cost, and how long each one blocks the loop
    python scripts/bench.py --start                    from the shell to the first env step and MLflow's first metric
    python scripts/bench.py --collection               env steps without learning: SB3's, and by worker processes
    python scripts/bench.py --replay                   add and sample, of ours, SB3's, cpprb's, and plain tensors
    python scripts/bench.py --memmap                   a first and a second checkpoint of a buffer on disk
    python scripts/bench.py --compile                  compile=none, trace and update
    python scripts/bench.py --learner                  a learner's update against a hand-written one; four modules

What is compared takes turns, A B A B, and ratios are medians of those within a round: this machine's speed may change
from one minute to the next. CPU us are CPU time of all threads of a process, and of the processes it started.
"""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

Arguments = argparse.Namespace

CASES = ("every10", "every1", "ppo", "sac", "td3")


def main() -> int:
    parser = make_parser()
    arguments = parser.parse_args()
    if arguments.cleanrl and (arguments.action != "peers" or not arguments.cleanrl.is_file()):
        parser.error(f"--cleanrl {arguments.cleanrl} goes with --peers, and names a file that is there")
    from runner.config.report import Rejected
    from scripts.benchmark.rounds import Failed

    try:
        ACTIONS[arguments.action or "rates"](arguments)
    except (Failed, Rejected) as error:
        print(f"\n{error}", file=sys.stderr)
        return getattr(error, "exit_code", 1)
    return 0


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    for action in ACTIONS:
        if action != "rates":
            what.add_argument(f"--{action}", dest="action", action="store_const", const=action)
    parser.add_argument("--only", type=_names, metavar="A,B", help="these peers alone (--setup, --peers)")
    parser.add_argument(
        "--case", choices=["every10", "every1", "ppo", "sac", "td3"], help="of --peers; all if not given"
    )
    parser.add_argument("--cleanrl", type=Path, metavar="DQN.PY", help="CleanRL's file of the case")
    parser.add_argument("--steps", type=int, help="env steps of each run (or of each stretch)")
    parser.add_argument("--rounds", "--repeats", type=int, help="how often each is measured, a seed for each round")
    parser.add_argument("overrides", nargs="*", default=[], help="of our own runs")
    return parser


def _names(text: str) -> list[str]:
    return text.split(",")


def rates(arguments: Arguments) -> None:
    from scripts.benchmark.rates import measure_rates

    overrides = arguments.overrides or ["experiment=cleanrl_dqn_cartpole", "exploration.env_steps=25000"]
    measure_rates(overrides, arguments.steps or 30_000, arguments.rounds or 3)


def setup(arguments: Arguments) -> None:
    from scripts.benchmark.setup import REQUIREMENTS, make_venvs

    make_venvs(arguments.only or list(REQUIREMENTS))


def peers(arguments: Arguments) -> None:
    from scripts.benchmark.versus import CASES, Settings, compare

    settings = Settings(
        peers=arguments.only,
        rounds=arguments.rounds or 5,
        cleanrl=arguments.cleanrl,
        env_steps=arguments.steps,
        overrides=tuple(arguments.overrides),
    )
    for name, case in CASES.items():
        if arguments.case in (None, name):
            compare(case, settings)


def switch(name: str) -> Callable[[Arguments], None]:
    def compare(arguments: Arguments) -> None:
        from scripts.benchmark.switches import compare_switch

        compare_switch(name, arguments.steps, arguments.rounds or 60, arguments.overrides)

    return compare


def compile_(arguments: Arguments) -> None:
    from scripts.benchmark.switches import compare_compile

    compare_compile(arguments.steps, arguments.rounds or 3, arguments.overrides)


def start(arguments: Arguments) -> None:
    from scripts.benchmark.start import measure_start

    measure_start(arguments.rounds or 10, arguments.overrides)


def replay(arguments: Arguments) -> None:
    from scripts.benchmark.replay import measure_replay

    measure_replay(arguments.rounds or 5)


def collection(arguments: Arguments) -> None:
    from scripts.benchmark.collection import measure_collection

    measure_collection(arguments.rounds or 5)


def learner(arguments: Arguments) -> None:
    from scripts.benchmark.learner import measure_learner

    measure_learner(arguments.rounds or 200)


def memmap(arguments: Arguments) -> None:
    from scripts.benchmark.memmap import measure_memmap

    measure_memmap(arguments.steps or 10_000_000, arguments.rounds or 3)


ACTIONS: dict[str, Callable[[Arguments], None]] = {
    "rates": rates,
    "setup": setup,
    "peers": peers,
    "start": start,
    "replay": replay,
    "collection": collection,
    "memmap": memmap,
    "learner": learner,
    "compile": compile_,
    **{name: switch(name) for name in ("logging", "checkpoints")},
}

if __name__ == "__main__":
    sys.exit(main())
