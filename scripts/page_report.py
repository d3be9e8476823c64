"""Which test pins what TorchRL's trainer page documents, and which bug seen upstream it excludes: a Markdown table.

    python scripts/page_report.py            every name, where it is, the key to type, its tests
    python scripts/page_report.py --missing  only what no test pins yet

A test says so by `@pytest.mark.pins("<name on the page>", excludes="<the bug in a few words>")`. Tests, sources and
this table are read, not imported.
"""

import argparse
import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]

NAMES = {
    "Trainer": "total_frames, frame_skip, stop_after, log_every",
    "TrainerHookBase": "hooks.<name>._target_",
    "BatchSubSampler": "learning=[off_policy,batch_sub_sampler]",
    "ClearCudaCache": "hooks=[default,clear_cuda_cache]",
    "CountFramesLog": "hooks=[default,count_frames]",
    "LogReward": "hooks.log_reward",
    "LogScalar": "hooks=[default,log_scalar]",
    "OptimizerHook": "learning.optimizer, optimizer, learner",
    "Recorder": "hooks.recorder, evaluation",
    "ReplayBufferTrainer": "learning.replay_buffer",
    "RewardNormalizer": "learning=[off_policy,reward_normalizer]",
    "SelectKeys": "learning=[select_keys,off_policy]",
    "UpdateWeights": "learning.update_weights",
    "TargetNetUpdaterHook": "learning=[off_policy,target_net_updater]",
    "LRSchedulerHook": "learning=[off_policy,lr_scheduler]",
    "ValueEstimatorHook": "learning=[off_policy,value_estimator]",
    "LogTiming": "hooks=[default,log_timing]",
    "EarlyStopping": "hooks=[default,early_stopping]",
    "ProgressBar": "hooks.progress_bar",
    "make_collector_offpolicy": "collector=in_process, collector=sync, collector=async",
    "make_collector_onpolicy": "collector=on_policy",
    "make_dqn_loss": "loss=dqn",
    "make_replay_buffer": "source=replay",
    "make_target_updater": "target_updater=interval",
    "make_trainer": "optimizer, scheduler, learner, source, learning, hooks, log_every",
    "parallel_env_constructor": "env.num_envs, env.transforms",
    "transformed_env_constructor": "env=transformed, env.make.<keyword>",
    "sync_async_collector": "collector=async",
    "sync_sync_collector": "collector=sync",
    "correct_for_frame_skip": "frame_skip",
    "get_stats_random_rollout": "learning.normalize_observations.init_env_steps",
    "Logger": "logger",
    "CSVLogger": "logger=csv",
    "MLFlowLogger": "logger=mlflow",
    "TensorboardLogger": "logger=tensorboard",
    "WandbLogger": "logger=wandb",
    "get_logger": "logger",
    "generate_exp_name": "hydra.run.dir",
    "VideoRecorder": "hooks",
    "TensorDictRecorder": "hooks",
    "PixelRenderTransform": "env",
}
"""Every name of the page, and of the hooks it has got since, with the keys by which it is reached."""

NOT_YET = "not yet: later work"


class Pin(NamedTuple):
    """One mark of one test."""

    name: str
    test: str
    excludes: str | None


def find_pins(root: Path) -> list[Pin]:
    """The marks of all tests below ``root``."""
    found = []
    for path in sorted(root.glob("tests/**/test_*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef):
                test = f"{path.relative_to(root)}::{node.name}"
                found += [Pin(name, test, excludes) for name, excludes in _marks(node)]
    return found


def _marks(node: ast.FunctionDef) -> Iterator[tuple[str, str | None]]:
    for one in node.decorator_list:
        if isinstance(one, ast.Call) and ast.unparse(one.func) == "pytest.mark.pins":
            (name,) = (ast.literal_eval(argument) for argument in one.args)
            keywords = {keyword.arg: ast.literal_eval(keyword.value) for keyword in one.keywords}
            yield name, keywords.get("excludes")


def find_places(root: Path) -> dict[str, str]:
    """Where each class and function of the program stands, by its name."""
    places: dict[str, str] = {}
    for path in sorted([*root.glob("runner/**/*.py"), *root.glob("hooks/*.py")]):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                places.setdefault(node.name, str(path.relative_to(root)))
    return places


def problems(root: Path) -> list[str]:
    """Marks that name nothing, and names of the page that are in the program and pinned by no test."""
    pins, places = find_pins(root), find_places(root)
    pinned = {pin.name for pin in pins}
    unknown = [f"{pin.test} pins {pin.name}, which has no row in scripts/page_report.py" for pin in pins
               if pin.name not in NAMES]  # fmt: skip
    unpinned = [name for name in NAMES if name in places and name not in pinned]
    gone = [name for name in pinned if name in NAMES and name not in places]
    return [
        *unknown,
        *(f"no test pins {name}" for name in unpinned),
        *(f"{name} is pinned and is not there" for name in gone),
    ]


def rows(root: Path) -> Iterator[str]:
    """The lines of the table."""
    pins, places = find_pins(root), find_places(root)
    yield "| name | file | key | tests that pin it | bug seen upstream that it excludes |"
    yield "| --- | --- | --- | --- | --- |"
    for name, key in NAMES.items():
        own = [pin for pin in pins if pin.name == name]
        place = places.get(name, NOT_YET)
        plain = [f"`{pin.test}`" for pin in own if pin.excludes is None]
        excluding = [pin for pin in own if pin.excludes is not None]
        yield f"| `{name}` | {place} | `{key}` | {'<br>'.join(plain) or '-'} | |"
        for pin in excluding:
            yield f"| | | | `{pin.test}` | {pin.excludes} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--missing", action="store_true", help="only what no test pins yet")
    found = problems(ROOT)
    if not parser.parse_args().missing:
        print("\n".join(rows(ROOT)))
    print("\n".join(found), file=sys.stderr) if found else None
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
