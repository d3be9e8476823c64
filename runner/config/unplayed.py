"""What a run that plays nothing has to be told, and what it cannot have; found without torch."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from runner.config.origins import Origins
from runner.config.report import Problem, show
from runner.config.schema import TARGET
from runner.config.tree import ABSENT, lookup
from runner.types import MINARI

COLLECTOR = "runner.collectors.offline.OfflineCollector"
SOURCE = "runner.builders.make_offline_source"
MIXTURE = "runner.builders.make_mixture"
OURS = "runner."
PLAYED = ("env_steps", "frames", "episodes")
"""Counters that stay at 0 where nothing is played."""
INTERVALS = ("log_every", "evaluation.every", "checkpoint.every")


def is_unplayed(config: Mapping[str, Any]) -> bool:
    """Whether the run learns from recorded data alone."""
    return lookup(config, f"collector.{TARGET}") == COLLECTOR


def unplayed_problems(config: Mapping[str, Any], origins: Origins) -> Iterator[Problem]:
    """Where the collector, the data source and the end of the run do not go together."""
    yield from _of_paths(config.get("source"), "source", origins)
    if is_unplayed(config):
        yield from _of_the_end(config, origins)
        yield from _of_intervals(config, origins)
        if _has_data(config.get("source")):
            yield from _of_updates(config, origins)
        else:
            words = "nothing is played (collector=offline), so it would stay empty"
            yield Problem("source", origins.of("source"), words, "source=offline source.path=<a dataset>")
        return
    if config.get("total_frames") is None:
        yield Problem(
            "total_frames = null", origins.of("total_frames"), "expected a whole number > 0", "", "total_frames"
        )
    collector = lookup(config, f"collector.{TARGET}")
    if isinstance(collector, str) and collector.startswith(OURS) and _is_recorded(config.get("source")):
        words = "what is played would never be learnt from"
        hint = "collector=offline stop_after.updates=<number>, or source=mixture for both"
        yield Problem("source", origins.of("source"), words, hint)


def _of_paths(source: Any, key: str, origins: Origins) -> Iterator[Problem]:
    """Datasets that are not there, wherever in a mixture."""
    inner = source.get("sources") if isinstance(source, Mapping) else None
    for name, one in inner.items() if isinstance(inner, Mapping) else ():
        yield from _of_paths(one, f"{key}.sources.{name}", origins)
    path = source.get("path") if _is_recorded(source) else None
    if isinstance(path, str) and not path.startswith(MINARI) and not os.path.isdir(path):
        yield Problem(f"{key}.path={path}", origins.of(f"{key}.path"), "there is no such folder", "", f"{key}.path")


def _of_the_end(config: Mapping[str, Any], origins: Origins) -> Iterator[Problem]:
    frames, key = config.get("total_frames"), "total_frames"
    if frames is not None:
        words = "no frame is played (collector=offline), so that they never end the run"
        yield Problem(f"{key}={show(frames)}", origins.of(key), words, f"{key}=null stop_after.updates=100000", key)
    if lookup(config, "stop_after.updates") is ABSENT:
        words = "missing: a run that plays nothing (collector=offline) ends after so many updates"
        yield Problem("stop_after.updates", origins.of("stop_after"), words, "add stop_after.updates=100000")


def _of_intervals(config: Mapping[str, Any], origins: Origins) -> Iterator[Problem]:
    for key in INTERVALS:
        every = lookup(config, key)
        for unit, number in every.items() if isinstance(every, Mapping) else ():
            if unit in PLAYED:
                shown, words = f"{key}.{unit}", "never comes round, as nothing is played (collector=offline)"
                yield Problem(shown, origins.of(shown), words, f"{key}.updates={show(_whole(number))}", shown)


def _of_updates(config: Mapping[str, Any], origins: Origins) -> Iterator[Problem]:
    """What would leave a run without updates, which then never ends."""
    for name, words, is_wrong in (
        ("warmup", "no env step is played (collector=offline), so that it never ends", lambda number: number > 0),
        ("optim_steps", "a run that plays nothing (collector=offline) ends by updates", lambda number: number == 0),
    ):
        key, number = f"source.{name}", lookup(config, f"source.{name}")
        if type(number) is int and is_wrong(number):
            yield Problem(f"{key}={number}", origins.of(key), words, f"{key}={int(number == 0)}", key)


def _whole(number: float) -> float:
    return int(number) if number == int(number) else number


def _has_data(source: Any) -> bool:
    """Whether there is something to learn from; what a source of other people has is their business."""
    target = source.get(TARGET) if isinstance(source, Mapping) else None
    if target == MIXTURE and isinstance(source.get("sources"), Mapping):
        return all(_has_data(one) for one in source["sources"].values())
    return _is_recorded(source) or not (isinstance(target, str) and target.startswith(OURS))


def _is_recorded(source: Any) -> bool:
    return isinstance(source, Mapping) and source.get(TARGET) == SOURCE
