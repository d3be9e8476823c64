"""Whether gymnasium knows an environment's id, found out without making the environment."""

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from runner.config.origins import Origins
from runner.config.report import Problem, did_you_mean, nearest, show
from runner.config.source import find_spec

OWN = "runner.envs.two_tasks"
"""Registers the environments that are ours; imports gymnasium, which takes a tenth of a second."""


def unknown_env_ids(config: Mapping[str, Any], origins: Origins) -> Iterator[Problem]:
    """A problem where a typed ``env.id`` is not registered; what ``module:Id`` names is known once it is imported."""
    env = config.get("env")
    id = env.get("id") if isinstance(env, Mapping) else None
    if not isinstance(id, str):
        return
    module, colon, _ = id.rpartition(":")
    if colon:
        if find_spec(module) is None:
            yield Problem(f"env.id = {show(id)}", origins.of("env.id"), f"there is no module {module}", "", "env.id")
        return
    import gymnasium  # a tenth of a second, which nobody need wait for who did not type an id

    importlib.import_module(OWN).register()
    is_game = id.startswith("ALE/")
    if is_game and find_spec("ale_py") is not None:
        importlib.import_module("ale_py")  # registers its games
    elif is_game:
        hint = "pip install ale-py opencv-python-headless, or hookline[atari]"
        yield Problem(f"env.id = {show(id)}", origins.of("env.id"), "games need the package ale_py", hint, "env.id")
        return
    if id not in gymnasium.registry:
        hint = did_you_mean(nearest(id, gymnasium.registry)) or "module:Id names one that a module of yours registers"
        yield Problem(
            f"env.id = {show(id)}", origins.of("env.id"), "gymnasium knows no such environment", hint, "env.id"
        )
