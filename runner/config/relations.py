"""Values that are right by themselves and wrong together, or with what the environment says; found without torch."""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from runner.config.origins import Origins
from runner.config.report import ENVIRONMENT, Problem, did_you_mean, nearest
from runner.config.schema import TARGET
from runner.config.signature import read_signature
from runner.config.tree import lookup
from runner.config.words import literals
from runner.loggers.mlflow_process import LOGGER

BACKEND = "CKPT_BACKEND"
TRACKING_URI = "MLFLOW_TRACKING_URI"
SCHEMES = ("http", "https", "file", "sqlite", "mysql", "postgresql", "mssql", "databricks", "databricks-uc", "uc")
"""How the addresses begin that MLflow takes, but for the paths of folders."""


def relation_problems(config: Mapping[str, Any], origins: Origins) -> Iterator[Problem]:
    """What the parts would refuse when they are built, or, worse, only when they have to work together."""
    yield from _of_sizes(config, origins)
    yield from _of_backend(config)
    yield from _of_addresses(config, origins)


def _of_sizes(config: Mapping[str, Any], origins: Origins) -> Iterator[Problem]:
    collected, envs = _ours(config, "collector", "frames_per_batch"), _ours(config, "env", "num_envs")
    capacity, learned = _ours(config, "source", "capacity"), _ours(config, "source", "batch_size")
    whose, number = f"env.num_envs={envs}", workers(config)
    if envs and number and number > envs:
        words = f"is more than {whose}: each worker needs an environment"
        yield _about(origins, "collector.num_collectors", number, words)
    elif envs and number and columns(config) != envs:
        if envs % number:
            words = f"is not a divisor of {whose}: asynchronous workers are all of one size"
            yield _about(origins, "collector.num_collectors", number, words)
        envs = columns(config)
        whose = f"the {envs} environments of a worker"
    if collected and envs and collected % envs:
        yield _about(origins, "collector.frames_per_batch", collected, f"is not a multiple of {whose}")
    batches = {"collector.frames_per_batch": collected or 0, "source.batch_size": learned or 0}
    largest = max(batches, key=lambda key: batches[key])
    if capacity and capacity < batches[largest]:
        yield _about(origins, "source.capacity", capacity, f"is less than a batch of {largest}={batches[largest]}")
    elif capacity and envs and capacity % envs:
        yield _about(origins, "source.capacity", capacity, f"is not a multiple of {whose}")


def workers(config: Mapping[str, Any]) -> int | None:
    """In how many processes the environments are to be, by whichever of the two keys says so."""
    envs, each = _ours(config, "env", "num_envs"), _ours(config, "collector", "env_per_collector")
    return _ours(config, "collector", "num_collectors") or (-(-envs // each) if envs and each else None)


def is_asynchronous(config: Mapping[str, Any]) -> bool:
    """Whether workers play on beside the updates."""
    return lookup(config, "collector.async_collection") is True


def columns(config: Mapping[str, Any]) -> int | None:
    """How many environments a batch is of: all of them, or those of one worker where each has batches of its own."""
    envs, number = _ours(config, "env", "num_envs"), workers(config)
    return envs // number if envs and number and is_asynchronous(config) else envs


def _ours(config: Mapping[str, Any], group: str, name: str) -> int | None:
    """A size of a part that is ours; what those of other people make of theirs is their business."""
    target, value = lookup(config, f"{group}.{TARGET}"), lookup(config, f"{group}.{name}")
    is_ours = isinstance(target, str) and target.startswith("runner.")
    return value if is_ours and type(value) is int and value > 0 else None


def _about(origins: Origins, key: str, value: int, words: str) -> Problem:
    return Problem(f"{key}={value}", origins.of(key), words, path=key)


def _of_backend(config: Mapping[str, Any]) -> Iterator[Problem]:
    node, chosen = config.get("checkpoint"), os.environ.get(BACKEND)
    if not chosen or not isinstance(node, Mapping) or node.get("backend") is not None:
        return
    target = node.get(TARGET)
    if isinstance(target, str) and target.startswith("runner."):
        choices = literals(read_signature(target).parameters["backend"].hint)
        if chosen not in choices:
            hint = did_you_mean(nearest(chosen, choices)) or f"choices: {', '.join(choices)}"
            yield Problem(f"{BACKEND}={chosen}", ENVIRONMENT, "there is no such backend", hint)


def _of_addresses(config: Mapping[str, Any], origins: Origins) -> Iterator[Problem]:
    loggers = config.get("logger")
    for name, node in loggers.items() if isinstance(loggers, Mapping) else ():
        if isinstance(node, Mapping) and node.get(TARGET) == LOGGER:
            key, typed = f"logger.{name}.tracking_uri", node.get("tracking_uri")
            shown, origin = (key, origins.of(key)) if typed else (TRACKING_URI, ENVIRONMENT)
            uri = typed or os.environ.get(TRACKING_URI)
            if isinstance(uri, str) and (wrong := wrong_address(uri)):
                yield Problem(f"{shown}={uri}", origin, *wrong)


def wrong_address(uri: str) -> tuple[str, str] | None:
    """What is wrong with MLflow's address, and what to write; a path is an address, too."""
    scheme, colon, rest = uri.partition(":")
    base = scheme.partition("+")[0].lower()
    if not colon or "/" in scheme or base in SCHEMES:
        return None
    words = f"MLflow takes no address that begins with {scheme}:"
    if re.match(r"\d+(/|$)", rest):
        return words, did_you_mean(f"http://{uri}")
    guess = nearest(base, SCHEMES)
    return words, did_you_mean(f"{guess}:{rest}") if guess else f"it takes a path, or {', '.join(SCHEMES)}"
