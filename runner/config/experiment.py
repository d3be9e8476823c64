"""The life of one run: built, perhaps resumed, trained, evaluated, and described to whoever started it."""

import logging
import math
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from runner.config.assemble import Config, Experiment, assemble
from runner.config.folder import check_folder
from runner.config.shown_warnings import shown_warnings
from runner.config.signals import PREEMPTED, StopSignals, read_grace_seconds
from runner.config.summary import explain_schedule, go_on, learns_nothing, shown, summarize
from runner.evaluation import Evaluated, EvaluatedByModule
from runner.runs import RunFolder, config_hash, read_git_sha
from runner.spec import Abandoned, CheckpointError, ConfigError, EnvFault, HooklineError
from runner.trainer import Trainer

log = logging.getLogger(__name__)

FINAL_RETURN = "eval/final_return_mean"


@dataclass(frozen=True)
class Outcome:
    """How a run ended; ``objective`` is the mean return of the final weights, for sweeps to maximize."""

    status: str
    objective: float = math.nan
    exit_code: int = 0


class NotStarted(ConfigError):
    """The parts that a configuration names could not be built; nothing was trained."""


class BrokenEnv(NotStarted):
    """An environment failed before anything was trained."""

    exit_code = 1


class RunCrashed(HooklineError):
    """Something other than Hookline's own checks ended a run."""


class CannotLog(HooklineError):
    """The disk takes no more rows of metrics; the run is saved, or its last checkpoint stays, and can go on later."""


def explain(config: Config) -> str:
    """What a run would do: the schedule of its hooks, shapes, and memory. Builds the parts and trains nothing."""
    torch.set_num_threads(config["threads"])
    return explain_schedule(config, _assemble(config))


def run_experiment(
    config: Config,
    folder: Path,
    resume: bool = False,
    algo: str = "",
    env: str = "",
    on_start: Callable[[RunFolder], None] = lambda run: None,
    take: str | None = None,
) -> Outcome:
    """Run (or go on with) the experiment ``config`` in ``folder``; ``algo`` and ``env`` name it in ``run.json``.

    ``on_start`` is called when everything has been built and loaded, before anything is trained. ``take`` is the name
    of the checkpoint that a resumed run goes on from, the newest good one if not given.
    """
    torch.set_num_threads(config["threads"])
    with shown_warnings(), _stop_signals() as signals:
        run = open_run(config, folder, resume, algo, env)
        try:
            experiment = _prepare(config, run, resume, take)
            on_start(run)
            return _train(config, experiment, run, signals)
        finally:
            run.unlock()


def _stop_signals() -> StopSignals:
    try:
        return StopSignals(read_grace_seconds())
    except ValueError as error:
        raise NotStarted(str(error)) from error


def _prepare(config: Config, run: RunFolder, resume: bool, take: str | None) -> Experiment:
    """Build everything and, for a run that goes on, load its newest good checkpoint."""
    try:
        experiment = _assemble(config, run)
    except Exception as error:
        if not resume:
            run.update(status="crashed", reason=f"{type(error).__name__}: {error}")
        raise
    trainer = experiment.trainer
    if resume:
        _load(trainer, run, take)
    if run.record["status"] == "done":
        trainer.forget_stop()  # whoever resumes a finished run wants it to go on
    if words := learns_nothing(config, experiment):
        log.warning("%s", words)
    trainer.metrics.log_hparams(config)
    log.info("the run %s at %s", "goes on" if resume else "begins", trainer.progress.place_in_words)
    progress, saved = trainer.progress.state_dict(), _saved_env_steps(trainer)
    run.update(status="running", config_hash=config_hash(config), progress=progress, saved_env_steps=saved)
    return experiment


def _saved_env_steps(trainer: Trainer) -> int | None:
    return trainer.checkpoint.saved_env_steps if trainer.checkpoint else None


def _train(config: Config, experiment: Experiment, run: RunFolder, signals: StopSignals) -> Outcome:
    trainer = experiment.trainer
    mlflow = _find_mlflow(trainer)
    trainer.ask_to_stop = lambda: _at_safe_point(trainer, run, signals, mlflow) or trainer.metrics.failure()
    experiment.evaluation.should_stop = lambda: signals.reason() is not None
    if mlflow is not None:
        mlflow.should_hurry = experiment.evaluation.should_stop
    try:
        with suppress(Abandoned):  # where the trainer cannot save what was given up, the checkpoint before has to do
            trainer.train()
        if signals.reason() is None:
            _check_rows(trainer)
        return _finish(config, experiment, run, signals)
    except Exception as error:
        failure = _crash(experiment, run, error)
        failure.go_on = go_on(config, run.path) if run.saved_env_steps is not None else ""
        raise failure from error
    finally:
        _close(experiment)


def open_run(config: Config, folder: Path, resume: bool, algo: str, env: str) -> RunFolder:
    """The folder of a run that begins, or goes on, there; no other process may come in until it is unlocked."""
    identity = {"seed": config["seed"], "config_hash": config_hash(config), "git_sha": read_git_sha(Path(__file__))}
    names = {"algo": algo, "env": env, "threads": config["threads"]}
    try:
        if resume:
            check_folder(folder)
        run = RunFolder.open(folder) if resume else RunFolder.start(folder, **names, **identity)
        run.lock()
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return run


def _assemble(config: Config, run: RunFolder | None = None) -> Experiment:
    """Build the parts; a value that one of them refuses is a mistake in the configuration."""
    if config["device"].startswith("cuda") and not torch.cuda.is_available():
        raise NotStarted(f"device={config['device']}: torch finds no GPU here; device=cpu runs anywhere")
    try:
        return assemble(config, run)
    except EnvFault as fault:
        raise BrokenEnv(str(fault)) from fault
    except (ConfigError, CheckpointError, ValueError) as error:
        raise NotStarted(" ".join(str(error).split())) from error
    except (MemoryError, RuntimeError) as error:  # torch has no exception of its own for this on the CPU
        if isinstance(error, MemoryError) or "allocate memory" in str(error) or "out of memory" in str(error):
            raise NotStarted(f"there is not enough memory for this: {' '.join(str(error).split())}") from error
        raise


def _load(trainer: Trainer, run: RunFolder, take: str | None) -> None:
    """Restore the checkpoint ``take``, or the newest good one; a run that was stopped before its first begins anew."""
    if take is not None:
        _go_back(trainer, take)
    elif trainer.checkpoint and trainer.checkpoint.folders():
        trainer.checkpoint.remove_stale()  # now, as a run that is over saves nothing any more
        _load_newest(trainer)
        if not trainer.checkpoint.rejected:
            _warn_if_thrown_back(trainer, run)
        _tell(f"going on from {trainer.progress.place_in_words} in {shown(trainer.checkpoint.folder.parent)}")
    else:
        if run.saved_env_steps is not None and trainer.checkpoint:
            words = f"the checkpoints of this run are gone: there is none in {shown(trainer.checkpoint.folder)}"
            raise CheckpointError(f"{words}; put one back, or start a new run in another folder")
        _tell("this run has no checkpoint yet: it begins anew")
        trainer.metrics.resume_without_state()


def _go_back(trainer: Trainer, take: str) -> None:
    """Restore the checkpoint ``take`` and save it again, so that from now on it is the newest."""
    if trainer.checkpoint is None:
        raise CheckpointError(f"checkpoint=null: {take} cannot be gone on from")
    trainer.checkpoint.remove_stale()
    trainer.load_from_file(take=take)
    trainer.save_trainer(force_save=True)
    _tell(f"going on from {take} in {shown(trainer.checkpoint.folder.parent)}")


def _load_newest(trainer: Trainer) -> None:
    """Load the newest good checkpoint; why each other one is none has been said by the time that this fails."""
    try:
        trainer.load_from_file()
    except CheckpointError as error:
        assert trainer.checkpoint is not None
        if not (count := len(trainer.checkpoint.rejected)):
            raise
        refused = "the one there is was" if count == 1 else f"each of the {count} there are was"
        words = f"no checkpoint in {shown(trainer.checkpoint.folder)} can be gone on with: {refused} refused, as said"
        raise CheckpointError(f"{words} above; a new run needs another folder") from error


def _warn_if_thrown_back(trainer: Trainer, run: RunFolder) -> None:
    """Tell of a checkpoint that the run had when it was last heard of, and that somebody removed."""
    saved = run.saved_env_steps
    if saved is not None and saved > trainer.progress.place:
        log.warning("%s: the checkpoint of env step %s, the last one saved, is gone", run.path, f"{saved:,}")


def _at_safe_point(trainer: Trainer, run: RunFolder, signals: StopSignals, mlflow: Any) -> str | None:
    """Write down, once, that there is a checkpoint and which MLflow run this is, and say whether a signal came."""
    if run.saved_env_steps is None and (saved := _saved_env_steps(trainer)) is not None:
        with suppress(OSError):  # a disk that is full then is told of by what writes there anyway
            run.update(saved_env_steps=saved)  # a killed run whose checkpoints are removed must not begin anew
    if mlflow is not None and run.mlflow_run_id is None and mlflow.run_id is not None:
        run.update(mlflow_run_id=mlflow.run_id)
    return signals.reason()


def _check_rows(trainer: Trainer) -> None:
    """End a saved run whose rows of metrics can no longer be written."""
    if failure := trainer.metrics.failure():
        place = f"saved at {trainer.progress.place_in_words}" if trainer.checkpoint else "this run saves nothing"
        raise CannotLog(f"{failure}; {place}, resume=<folder> goes on")


def _without_rows(trainer: Trainer, error: Exception) -> Exception:
    """The error, or where no checkpoint could be saved because rows could not be written, that this was so."""
    failure = trainer.metrics.failure()
    is_same = failure is None or not isinstance(error, CheckpointError)
    return error if is_same else CannotLog(f"{failure}; {error}; resume=<folder> goes on from the last one")


def _find_mlflow(trainer: Trainer) -> Any:
    """The logger whose server gives the run an id of its own, if there is one."""
    return next((logger for logger in trainer.metrics.loggers if hasattr(logger, "run_id")), None)


def _finish(config: Config, experiment: Experiment, run: RunFolder, signals: StopSignals) -> Outcome:
    trainer = experiment.trainer
    _close_hooks(experiment)  # the progress bar ends before the summary begins
    final = _evaluate_finally(experiment, signals)
    if final is None:
        trainer.metrics.close("preempted")
        _record(experiment, run, "preempted", signals.reason())
        _tell(summarize(config, experiment, run, "preempted", None))
        return Outcome("preempted", exit_code=PREEMPTED)
    reached = final.metrics()
    objective = reached["eval/return_mean"]
    trainer.metrics.add({FINAL_RETURN: objective, "eval/final_return_std": reached["eval/return_std"]})
    for module_id in experiment.modules:
        trainer.metrics.add({f"eval/{module_id}/final_return_mean": reached[f"eval/{module_id}/return_mean"]})
    trainer.write_row()
    trainer.metrics.flush()
    _check_rows(trainer)
    trainer.metrics.close("done")
    _record(experiment, run, "done", trainer.stop_reason)
    _tell(summarize(config, experiment, run, "done", final))
    return Outcome("done", objective)


def _evaluate_finally(experiment: Experiment, signals: StopSignals) -> Evaluated | EvaluatedByModule | None:
    """``None`` where a signal came; the evaluation is done when the run is resumed."""
    if signals.reason() is not None:
        return None
    try:
        return experiment.evaluation.run("final_evaluation")
    except Abandoned:
        return None


def _tell(text: str) -> None:
    """Say it on the terminal, if there still is one, and in the run's log."""
    with suppress(OSError):
        print(text, flush=True)
    log.info("%s", text)


def _record(experiment: Experiment, run: RunFolder, status: str, reason: str | None) -> None:
    trainer = experiment.trainer
    recorder, rate, axis = experiment.hooks.get("recorder"), trainer.steady_rate(), trainer.progress.axis
    run.update(
        status=status,
        reason=reason,
        progress=trainer.progress.state_dict(),
        metrics=trainer.metrics.last_row | ({f"perf/{axis}_per_second": rate} if rate is not None else {}),
        best={**getattr(recorder, "best", {}), **_best(trainer)},
        mlflow_run_id=getattr(_find_mlflow(trainer), "run_id", None),
        saved_env_steps=_saved_env_steps(trainer),
    )


def _best(trainer: Trainer) -> dict[str, Any]:
    """Where the best evaluated weights are, if they were kept."""
    store, best = trainer.checkpoint, None
    if store is not None and store.best.keep:
        with suppress(CheckpointError):  # whoever saves next tells of it
            best = store.find_best()
    if store is None or best is None:
        return {}
    return {
        store.best.metric: best.value,
        trainer.progress.axis: best.env_steps,
        "checkpoint": f"ckpt/{best.folder.name}",
    }


def _crash(experiment: Experiment, run: RunFolder, error: Exception) -> HooklineError:
    """Write down what happened; a failure that explains itself is passed on, any other in one line with its place."""
    log.error("the run crashed", exc_info=error)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(frame.filename).name}:{frame.lineno}"
    line = f"{type(error).__name__} in {where}: {' '.join(str(error).split())}"
    experiment.trainer.metrics.close("crashed")
    try:
        _record(experiment, run, "crashed", line)
    except OSError as failure:  # must not hide what happened
        log.warning("run.json cannot be written: %s", failure)
    told = _without_rows(experiment.trainer, error)
    return told if isinstance(told, HooklineError) else RunCrashed(line)


def _close_hooks(experiment: Experiment) -> None:
    for hook in experiment.hooks.values():
        close = getattr(hook, "close", None)
        if callable(close):
            close()


def _close(experiment: Experiment) -> None:
    _close_hooks(experiment)
    if experiment.trainer.checkpoint is not None:
        experiment.trainer.checkpoint.finish()
    experiment.evaluation.close()
    collector = experiment.trainer.collector
    if collector is not None:
        collector.shutdown()
