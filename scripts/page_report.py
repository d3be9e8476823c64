"""Which test pins what TorchRL's trainer page documents, and which bug seen upstream it excludes: a Markdown table.

    python scripts/page_report.py            every name, where it is, the key to type, its tests
    python scripts/page_report.py --missing  only what no test pins yet

A test says so by `@pytest.mark.pins("<name on the page>", excludes="<the bug in a few words>")`. Tests, sources and
this table are read, not imported.
"""

import argparse
import ast
import re
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
    "OptimizerHook": "learning.optimizer, optimizer, learner; several: OptimizerHook(optimization=...) in Python",
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
    "get_logger": "logger=csv, logger=[csv,tensorboard], ...",
    "generate_exp_name": "hydra.run.dir: a run's folder is its name",
    "VideoRecorder": "hooks=[default,record_video], hooks.record_video.recorder",
    "TensorDictRecorder": "hooks=[default,record_tensordict]",
    "PixelRenderTransform": "env.transforms.<name>={_target_: runner.envs.transforms.PixelRenderTransform}",
}
"""Every name of the page, and of the hooks it has got since, with the keys by which it is reached."""

KEYWORDS = {
    "OnPolicyCollectorConfig": {
        "collector_device": "device; worker processes act on the CPU",
        "pin_memory": "nothing: batches lie in memory that the processes share",
        "frames_per_batch": "make_collector_onpolicy(frames_per_batch)",
        "total_frames": "make_trainer(total_frames)",
        "num_workers": "make_environment(num_envs)",
        "env_per_collector": "make_collector_onpolicy(env_per_collector)",
        "seed": "Streams(seed)",
        "exploration_type": "make_policy(exploration)",
        "async_collection": "make_collector_offpolicy(async_collection)",
    },
    "OffPolicyCollectorConfig": {
        "multi_step": "make_replay_buffer(n_step)",
        "n_steps_return": "make_replay_buffer(n_step)",
        "init_random_frames": "make_collector_offpolicy(init_random_frames)",
    },
    "ReplayArgsConfig": {
        "buffer_size": "make_replay_buffer(capacity)",
        "prb": "make_replay_buffer(sampler)",
        "buffer_scratch_dir": "make_replay_buffer(run)",
        "buffer_prefetch": "nothing: a sub-batch is gathered into memory that is reused",
    },
    "LossConfig": {
        "loss": "make_dqn_loss(loss)",
        "hard_update": "make_target_updater(hard_update)",
        "loss_function": "make_dqn_loss(loss_function)",
        "value_network_update_interval": "make_target_updater(value_network_update_interval)",
        "gamma": "make_dqn_loss(gamma)",
        "num_q_values": "make_stochastic_policy_and_values(members)",
        "target_entropy": "SACLoss(target_entropy)",
    },
    "A2CLossConfig": {
        "gamma": "A2CLoss(gamma)",
        "entropy_coeff": "A2CLoss(entropy_coeff)",
        "critic_coeff": "A2CLoss(critic_coeff)",
        "critic_loss_function": "A2CLoss(value_loss)",
    },
    "PPOLossConfig": {
        "loss": "PPOLoss(kind)",
        "gamma": "PPOLoss(gamma)",
        "lmbda": "GAE(lmbda)",
        "entropy_bonus": "PPOLoss(entropy_coeff)",
        "entropy_coeff": "PPOLoss(entropy_coeff)",
        "samples_mc_entropy": "nothing: entropies are exact",
        "loss_function": "PPOLoss(value_loss)",
        "critic_coeff": "PPOLoss(critic_coeff)",
        "clip_epsilon": "PPOLoss(clip_epsilon)",
        "dtarg": "AdaptiveKL(dtarg)",
        "beta": "PPOLoss(beta)",
        "increment": "AdaptiveKL(increment)",
        "decrement": "AdaptiveKL(decrement)",
        "samples_mc_kl": "nothing: divergences are exact",
    },
    "LoggerConfig": {
        "logger": "get_logger(logger_type)",
        "record_video": "hooks=[default,record_video]",
        "no_video": "hooks=default",
        "exp_name": "get_logger(experiment_name)",
        "record_interval": "make_evaluation(every)",
        "record_frames": "VideoRecorder(max_frames)",
        "recorder_log_keys": "not yet: evaluation logs returns and lengths alone",
        "offline_logging": "WandbLogger(offline)",
        "project_name": "WandbLogger(project)",
    },
    "TrainerConfig": {
        name: f"TrainerOptions({name})"
        for name in (
            "optim_steps_per_batch optimizer lr_scheduler selected_keys batch_size log_interval lr weight_decay "
            "clip_norm clip_grad_norm normalize_rewards_online normalize_rewards_online_scale "
            "normalize_rewards_online_decay sub_traj_len"
        ).split()
    },
    "EnvConfig": {
        **{
            name: f"transformed_env({name})"
            for name in (
                "env_library env_name env_task from_pixels frame_skip reward_scaling reward_loc vecnorm norm_rewards "
                "norm_stats noops catframes center_crop grayscale max_frames_per_traj image_size "
                "categorical_action_encoding"
            ).split()
        },
        "init_env_steps": "get_stats_random_rollout(init_env_steps)",
        "batch_transform": "parallel_env_constructor(batch_transform)",
    },
    "DiscreteModelConfig": {
        "annealing_frames": "EpsilonGreedy(env_steps)",
        "noisy": "not yet: of a network that is later work",
        "distributional": "algo=c51, or network=q_dist",
        "atoms": "make_q_dist_network(n_atoms)",
    },
}
"""The fields of the page's configuration classes, and the parameters that carry them here."""

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


def find_parameters(root: Path) -> dict[str, set[str]]:
    """What each function and class of the program can be given by name."""
    found: dict[str, set[str]] = {}
    for path in sorted([*root.glob("runner/**/*.py"), *root.glob("hooks/*.py")]):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef):
                found.setdefault(node.name, _parameters(node))
            elif isinstance(node, ast.ClassDef):
                made = (one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__")
                fields = {one.target.id for one in node.body
                          if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)}  # fmt: skip
                found.setdefault(node.name, fields.union(*map(_parameters, made)))
    return found


def _parameters(node: ast.FunctionDef) -> set[str]:
    return {one.arg for one in (*node.args.args, *node.args.kwonlyargs)}


def keyword_problems(root: Path) -> list[str]:
    """Fields whose parameter is not there."""
    parameters = find_parameters(root)
    carried = [
        (field, *re.fullmatch(r"(\w+)\((\w+)\)", place).groups())  # type: ignore[union-attr]
        for fields in KEYWORDS.values()
        for field, place in fields.items()
        if place.endswith(")")
    ]
    return [
        f"{field} is said to be {function}({name}), which is not there"
        for field, function, name in carried
        if name not in parameters.get(function, ())
    ]


def keyword_rows() -> Iterator[str]:
    """The lines of the second table."""
    yield "| class | field | here |"
    yield "| --- | --- | --- |"
    for owner, fields in KEYWORDS.items():
        for field, place in fields.items():
            yield f"| `{owner}` | `{field}` | {f'`{place}`' if place.endswith(')') else place} |"


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
    found = [*problems(ROOT), *keyword_problems(ROOT)]
    if not parser.parse_args().missing:
        print("\n".join([*rows(ROOT), "", *keyword_rows()]))
    print("\n".join(found), file=sys.stderr) if found else None
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
