"""What ``python run.py --help`` prints."""

import textwrap
from typing import Any

from runner.config.composer import Composer, Composition, as_plain
from runner.config.report import show
from runner.config.tree import ABSENT, lookup

USAGE = """\
Hookline trains reinforcement-learning agents. A run is one tree of settings, put together from groups.
"""

COMMANDS = {
    "algo={algo} env={env}": "train, evaluate, log, checkpoint",
    "env=gym env.id=FrozenLake-v1": "any environment of gymnasium, or my_pkg:MyEnv-v0",
    "-m seed=0,1,2 optimizer.lr=1e-3,5e-4": "a sweep: six runs",
    "resume=outputs/{algo}-{env}/<run>": "go on where a run stopped; resume=auto finds it",
    "sync=outputs/{algo}-{env}/<run>": "send MLflow the rows it did not get",
    "explain=true": "say what would run, then exit",
}

SETTINGS = {
    "seed": "one number fixes every random choice",
    "total_frames": "how long to train: env steps x frame_skip",
    "stop_after": "stop earlier: stop_after.updates=1000 (or env_steps, episodes, seconds)",
    "frame_skip": "how often each action is repeated",
    "device": "cpu, cuda or cuda:1",
    "compile": "or update (the whole of it by torch.compile), or none",
    "threads": "of torch; more than one only pays for large networks",
    "log_every": "a row of metrics: log_every.updates=100",
    "env.id": "the environment",
    "env.num_envs": "environments side by side",
    "env.on_error": "or restart: an environment that fails is made anew, and its episode goes on",
    "env.max_restarts": "of a whole run",
    "env.step_timeout": "seconds a step may take before it has hung",
    "collector.frames_per_batch": "env steps between two rounds of updates",
    "collector.num_collectors": "processes that share the environments: collector=sync, or async",
    "network.normalize_observations": "by their running mean and variance",
    "loss.gamma": "discount",
    "optimizer.lr": "learning rate",
    "source.capacity": "transitions kept",
    "source.storage": "or memmap: in files of the run's folder, which may be larger than memory",
    "source.batch_size": "transitions in one update",
    "source.optim_steps": "updates for each collected batch",
    "exploration.end": "and exploration.start, exploration.env_steps",
    "target_updater.rate": "of the way to the network that the target goes in each update",
    "target_updater.update_frequency": "updates between two copies",
    "learner.clip": "largest gradient",
    "learner.non_finite": "or skip such updates, or zero what is no number",
    "learner.precision": "or bf16, or fp16: how updates call networks",
    "learner.restore": "begin with another run's weights: learner.restore={default: <run>}",
    "learner.modules": "several agents, {left: {}, right: {}}: see experiment=two_tasks",
    "evaluation.every": "how often; evaluation.every.episodes=50 counts another unit",
    "evaluation.episodes": "in each evaluation",
    "evaluation.final_episodes": "in that of the final weights",
    "checkpoint.every": "how often; checkpoint.every.seconds=600 counts another unit",
    "trust": "packages of yours that a resumed run may name: 'trust=[my_parts]'",
}
"""The keys people type, in the order they think of them; keys that a configuration lacks are not shown."""

EXAMPLES = """\
More
  hooks=[default,early_stopping]     several choices of one group;  '~hooks.progress_bar' takes one out
  hooks.log_reward.window=20         settings of a hook by its name;  logger=csv picks one logger
  experiment=<name>                  a pinned recipe;  tuned=null leaves tuned values out
  +env.kwargs.sutton_barto_reward=true  a key that the file does not list
  --config-dir my_conf               groups of your own beside these;  _target_: my_pkg.MyHook names your code
  --cfg job                          print the whole tree;  --hydra-help, --info and --shell-completion are Hydra's

Where things go
  outputs/<algo>-<env>/<date_time>-s<seed>/ holds metrics.csv, run.log, run.json, command.txt and ckpt/;
  hydra.run.dir=<folder> puts it elsewhere. All runs: mlflow ui --backend-store-uri sqlite:///outputs/mlflow.db
  Exit codes: 0 done, 1 crashed, 2 configuration, 3 checkpoint, 75 stopped by a signal and saved.
  Environment: MLFLOW_TRACKING_URI; CKPT_BACKEND (torchsnapshot, torch); HOOKLINE_GRACE_SECONDS (to save in; 30)
"""

WIDTH = 118


def help_text(composer: Composer) -> str:
    """The whole page: usage, groups with their choices from disk, settings with their defaults, examples."""
    composition = composer.compose([])
    groups = [_group_line(group, composer.choices(group), composition) for group in composer.groups()]
    tree = as_plain(composition.tree)
    settings = [line for key, comment in SETTINGS.items() if (line := _setting_line(key, tree, comment))]
    return "\n".join(
        [
            USAGE,
            *_command_lines(composition.choices),
            "",
            "Groups (group=choice; * is the default)",
            *groups,
            "",
            "Settings (key=value)",
            *settings,
            "",
            EXAMPLES,
        ]
    ).rstrip()


def _command_lines(choices: dict[str, Any]) -> list[str]:
    named = {command.format(**choices): comment for command, comment in COMMANDS.items()}
    return [f"  python run.py {command:<40} {comment}" for command, comment in named.items()]


def _group_line(group: str, choices: list[str], composition: Composition) -> str:
    default = composition.choices.get(group)
    read = [file.config_path for file in composition.files]  # Hydra does not tell of several choices
    chosen = [default] if default else [choice for choice in choices if f"{group}/{choice}" in read]
    marked = "  ".join(f"*{choice}" if choice in chosen else choice for choice in choices)
    return textwrap.fill(marked, WIDTH, initial_indent=f"  {group:<16}", subsequent_indent=" " * 18)


def _setting_line(key: str, tree: dict[str, Any], comment: str) -> str | None:
    value = lookup(tree, key)
    if value is ABSENT:
        return None
    if isinstance(value, dict) and len(value) == 1:
        (unit,) = value
        key, value = f"{key}.{unit}", value[unit]
    written = value if isinstance(value, str) else show(value)
    return f"  {f'{key}={written}':<40} {comment}"
