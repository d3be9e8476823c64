"""What a person is told before a run (``explain=true``) and after it."""

import shlex
from pathlib import Path
from typing import Any

from runner.config.assemble import Config, Experiment
from runner.config.trust import packages_to_trust
from runner.evaluation import Evaluated, EvaluatedByModule
from runner.learner.learner import Learner
from runner.points import POINTS
from runner.runs import RunFolder
from runner.spec import Progress
from runner.text import own_command

NOBODY = "-"
RESTARTS = ("env_restarts", "env_cut_episodes", "worker_restarts")


def explain_schedule(config: Config, experiment: Experiment) -> str:
    """The hooks at each point in order, shapes, parameter counts, replay memory, and what will be run."""
    trainer = experiment.trainer
    collector: Any = trainer.collector
    playing = {module_id: (one.environment, one.collector) for module_id, one in experiment.modules.items()}
    sections = {
        "environment": [
            line
            for module_id, parts in (playing or {"": (experiment.environment, collector)}).items()
            for line in _describe_playing(module_id, *parts)
        ],
        "networks": [_describe_network(name, network) for name, network in experiment.networks.items()],
        "learning": [] if trainer.learner is None else _describe_learning(trainer.learner),
        "run": _describe_run(config, experiment),
        "hooks, in the order in which they fire": [
            f"{point:<20} {', '.join(name for name in names if name != NOBODY) or NOBODY}"
            for point, names in trainer.schedule().items()
            if point in POINTS
        ],
    }
    return "\n".join(
        line for title, lines in sections.items() if lines for line in (f"{title}:", *(f"  {one}" for one in lines))
    )


def _describe_playing(module_id: str, environment: Any, collector: Any) -> list[str]:
    spec = environment.spec
    number = f" x {environment.num_envs}" if collector.frames_per_batch else ""
    how = f", resumes by {collector.resume_mode}" if collector.frames_per_batch else ""
    return [
        f"{module_id}{': ' if module_id else ''}{spec.id}{number} {collector}{how}",
        f"observation {list(spec.observation_shape)} {spec.observation_dtype}, "
        f"action {list(spec.action_shape)} {spec.action_dtype}"
        + (f" of {spec.num_actions}" if spec.num_actions is not None else ""),
    ]


def _describe_network(name: str, network: Any) -> str:
    parameters = sum(parameter.numel() for parameter in network.parameters())
    shapes = " ".join(str(list(parameter.shape)) for parameter in network.parameters() if parameter.dim() > 1)
    return f"{name}: {parameters:,} parameters in {shapes}"


def _describe_learning(learner: Learner) -> list[str]:
    """Who moves what; a module that stands still says so where that is no matter of what is in a batch."""
    chosen = learner.modules_to_train
    lines = [f"{type(learner).__name__}, compile={learner.compile}, precision={learner.precision.name}"]
    for module_id, module in learner.modules.items():
        stands = "" if callable(chosen) or chosen is None or module_id in chosen else ", but is not trained"
        for one in module.optimizations:
            name = f"{module_id}/{one.name}" if learner.is_keyed else one.name
            number = sum(parameter.numel() for parameter in one.parameters)
            often = "" if one.every == 1 else f" in each {one.every}. update"
            rate = f"{type(one.optimizer).__name__}, lr={one.lr:g}"
            lines.append(f"{name}: {rate}, moves {number:,} numbers{often}{stands}")
    return lines


def _describe_run(config: Config, experiment: Experiment) -> list[str]:
    collector: Any = experiment.trainer.collector
    source: Any = experiment.source
    if not collector.frames_per_batch:
        updates = int(config["stop_after"]["updates"])
        return [f"{updates:,} updates, each by {source.batch_size:,} transitions", f"data: {source}"]
    per_batch = collector.frames_per_batch * config["frame_skip"]
    batches, learning = _batches(config, experiment)
    warmup = _warmup(experiment)
    sources = [one.source for one in experiment.modules.values()] or [source]
    lines = [
        f"{batches * per_batch:,} frames in {batches:,} batches of {collector.frames_per_batch} env steps",
        f"{learning * sources[0].optim_steps():,} updates, after a warm-up of {warmup:,} env steps",
    ]
    batch = collector.batch
    played = [batch.get(module_id) for module_id in experiment.modules] or [batch]
    sizes = [one.memory_bytes(part) for one, part in zip(sources, played, strict=True) if hasattr(one, "memory_bytes")]
    where = "files" if config["source"].get("storage") == "memmap" else "memory"
    return [*lines, f"replay {where} when full: {sum(sizes) / 2**20:,.1f} MiB"] if sizes else lines


def _warmup(experiment: Experiment) -> int:
    """Env steps before the first update, of all modules together."""
    if not experiment.modules:
        return experiment.source.warmup
    collector: Any = experiment.trainer.collector
    batches = (-(-one.source.warmup // one.collector.frames_per_batch) for one in experiment.modules.values())
    return int(min(batches) * collector.frames_per_batch)


def _batches(config: Config, experiment: Experiment) -> tuple[int, int]:
    """How many batches a run collects, and how many of them come after the warm-up."""
    collector: Any = experiment.trainer.collector
    batches = -(-config["total_frames"] // (collector.frames_per_batch * config["frame_skip"]))
    return batches, max(batches - max(-(-_warmup(experiment) // collector.frames_per_batch) - 1, 0), 0)


def learns_nothing(config: Config, experiment: Experiment) -> str | None:
    """Why a run will make no update at all, if that is so."""
    if not getattr(experiment.trainer.collector, "frames_per_batch", 0) or _batches(config, experiment)[1]:
        return None
    frames, skip = config["total_frames"], config["frame_skip"]
    steps = f"total_frames={frames}" + (f", which with frame_skip={skip} are {frames // skip} env steps" * (skip > 1))
    warmup = f"source.warmup={_warmup(experiment)} env steps"
    return f"this run learns nothing: {warmup} leave no update in {steps}"


def summarize(
    config: Config, experiment: Experiment, run: RunFolder, status: str, final: Evaluated | EvaluatedByModule | None
) -> str:
    """The closing lines of a run: what was reached, how fast, where things are, and what to type next."""
    progress, path = experiment.trainer.progress, shown(run.path)
    lines = [f"{status}: {experiment.trainer.stop_reason}"]
    if isinstance(final, EvaluatedByModule):
        means = final.metrics()
        lines.append(f"return      {means['eval/return_mean']:.1f}, the mean over {len(final.parts)} modules")
        lines += [f"  {module_id:<9} {_returns(part)}" for module_id, part in final.parts.items()]
    elif final is not None:
        lines.append(f"return      {_returns(final)}")
    more = _longer(config, experiment) if status == "done" else ""
    lines += [
        f"trained     {_how_much(progress)}",
        *_restarts(experiment),
        *_best(experiment),
        f"folder      {path}  (metrics.csv, run.json, run.log, ckpt/)",
        f"{go_on(config, run.path)}{more}",
    ]
    return "\n".join([*lines, *_ways_to_look(experiment)])


def _returns(final: Evaluated) -> str:
    mean_and_spread = f"{final.returns.mean():.1f} +- {final.returns.std():.1f}"
    return f"{mean_and_spread} ({len(final.returns)} greedy episodes of the final weights, seeds never used before)"


def _restarts(experiment: Experiment) -> list[str]:
    collector: Any = experiment.trainer.collector
    counts = collector.row_metrics()
    envs, cut, workers = (int(counts.get(f"perf/{name}", 0)) for name in RESTARTS)
    lines = [f"restarts    {envs} of environments that failed, {cut} episodes cut short by them"] if envs else []
    return [*lines, f"restarts    {workers} of worker processes that were killed"] if workers else lines


def _how_much(progress: Progress) -> str:
    rate = progress.place / max(progress.seconds, 1e-9)
    if progress.axis == "updates":
        return f"{progress.updates:,} updates in {progress.seconds:.1f} s ({rate:,.0f} updates/s)"
    return (
        f"{progress.env_steps:,} env steps, {progress.updates:,} updates, {progress.episodes:,} episodes "
        f"in {progress.seconds:.1f} s ({rate:,.0f} env steps/s)"
    )


def _longer(config: Config, experiment: Experiment) -> str:
    """What lets a run go on that has come to its end."""
    if experiment.trainer.stop_reason == "total_frames":
        return f" total_frames={2 * config['total_frames']}"
    if experiment.trainer.stop_reason == "stop_after.updates" and config["total_frames"] is None:
        return f" stop_after.updates={2 * int(config['stop_after']['updates'])}"
    return ""


def _best(experiment: Experiment) -> list[str]:
    """Where the best evaluated weights are, where they are to be kept."""
    store = experiment.trainer.checkpoint
    if store is None or not store.best.keep:
        return []
    best = store.find_best()
    if best is None:
        return [f"best        none: {store.best.metric} was not logged while it could be saved"]
    where = "update" if experiment.trainer.progress.axis == "updates" else "env step"
    place = shlex.quote(str(shown(best.folder)))
    return [f"best        {store.best.metric} {best.value:.1f} at {where} {best.env_steps:,}: resume={place} takes it"]


def go_on(config: Config, folder: Path) -> str:
    """The line that says what to type to go on with a run."""
    return f"go on       {own_command()} resume={shlex.quote(str(shown(folder)))}{_trust(config)}"


def _trust(config: Config) -> str:
    packages = packages_to_trust(config)
    return f" 'trust=[{','.join(packages)}]'" if packages else ""


def _ways_to_look(experiment: Experiment) -> list[str]:
    parts = (*experiment.trainer.metrics.loggers, *experiment.hooks.values())
    looks = [look() for part in parts if callable(look := getattr(part, "look", None))]
    return [f"look        {look}" for look in looks if look]


def command_to(*words: str) -> str:
    """What to type to have these words done."""
    return f"{own_command()} {shlex.join(words)}"


def shown(path: Path) -> Path:
    """The path as one would type it here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
