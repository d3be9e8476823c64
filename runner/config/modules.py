"""``learner.modules``: what is said of each module there, on top of what holds for the whole run."""

import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

from omegaconf import DictConfig, OmegaConf

from runner.config.origins import Origins
from runner.config.report import Problem, did_you_mean, nearest
from runner.config.tree import ABSENT, Unknown, lookup

MODULES = "learner.modules"
SELECTOR = "modules_to_train"
GROUPS = (
    *("env", "collector", "loss", "network", "exploration", "source", "optimizer", "scheduler", "target_updater"),
    *("evaluation", "learning", "learner"),
)
"""What a module has of its own; all else belongs to the run."""
OF_THE_RUN = ("modules", SELECTOR)
"""What the learner has besides what is said of each module."""
OF_THE_LEARNER = ("kind", "restore", "precision")
"""What no module has of its own: there is one learner, and ``restore`` says it by their ids."""
NOT_OF_MODULES = (*OF_THE_RUN, *OF_THE_LEARNER)
OVERRIDES = "overrides"
ADDS = "hooks.add_module.AddModule"
"""The hook whose ``overrides`` are those of a module, too."""
TARGET = "_target_"
TAKEN = ("default", "train", "eval", "loss", "grad_norm", "lr", "perf", "video")
"""What stands before names of metrics, and the name of a module that is alone."""
NAME = re.compile(r"\w+", re.ASCII)
INNER_LINK = re.compile(r"\$\{(\w+)([.}])")


def expand(tree: DictConfig) -> DictConfig:
    """The tree, or a copy in which every module is complete: what it does not say itself is ``${key}`` of the run."""
    plain: Any = OmegaConf.to_container(tree, resolve=False)
    sites = list(_sites(plain))
    expanded = deepcopy(tree) if sites else tree
    for key, own in sites:
        if isinstance(own, Mapping) or own is None:
            OmegaConf.update(expanded, key, _module(plain, own or {}, key), merge=False, force_add=True)
    return expanded


def _sites(plain: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Where modules are described: among the learner's, by names that they can have, and in the hooks that add one."""
    modules = lookup(plain, MODULES)
    for module_id, own in modules.items() if isinstance(modules, Mapping) else ():
        if not wrong_id(module_id):
            yield f"{MODULES}.{module_id}", own
    for group in ("learning", "hooks"):
        hooks = plain.get(group)
        for name, hook in hooks.items() if isinstance(hooks, Mapping) else ():
            if isinstance(hook, Mapping) and hook.get(TARGET) == ADDS:
                yield f"{group}.{name}.{OVERRIDES}", hook.get(OVERRIDES)


def _module(plain: Mapping[str, Any], own: Mapping[str, Any], key: str) -> dict[str, Any]:
    inherited: dict[str, Any] = {group: plain.get(group) for group in GROUPS}
    learner, learning = inherited["learner"], inherited["learning"]
    if isinstance(learner, Mapping):
        inherited["learner"] = {name: value for name, value in learner.items() if name not in NOT_OF_MODULES}
    if isinstance(learning, Mapping):  # a hook that adds modules is the run's, and not one of theirs
        inherited["learning"] = {name: hook for name, hook in learning.items() if lookup(hook, TARGET) != ADDS}
    return {str(name): value for name, value in _merged(inherited, own, "", key).items()}


def _merged(base: Mapping[str, Any], own: Mapping[str, Any], path: str, key: str) -> dict[Any, Any]:
    """``own`` and, where it is silent, links to ``base``; a node of another target takes nothing from the base's."""
    merged: dict[Any, Any] = {}
    for name in [*base, *(name for name in own if name not in base)]:
        inner = f"{path}.{name}".lstrip(".")
        if name not in base:
            merged[name] = own[name]
        elif name not in own:
            merged[name] = _inherited(base[name], inner, key)
        elif isinstance(own[name], Mapping) and isinstance(base[name], Mapping) and not _differs(own[name], base[name]):
            merged[name] = _merged(base[name], own[name], inner, key)
        else:
            merged[name] = own[name]
    return merged


def _inherited(value: Any, path: str, key: str) -> Any:
    if isinstance(value, Mapping):
        return _merged(value, {}, path, key)
    if path.endswith(TARGET) or value is None:
        return value
    if isinstance(value, str) and "${" in value:
        return INNER_LINK.sub(lambda link: _own_link(link[1], link[2], key), value)
    return f"${{{path}}}"


def _own_link(group: str, rest: str, key: str) -> str:
    return f"${{{key}.{group}{rest}" if group in GROUPS else f"${{{group}{rest}"


def _differs(own: Mapping[str, Any], base: Mapping[str, Any]) -> bool:
    return TARGET in own and own[TARGET] != base.get(TARGET)


def module_problems(tree: Mapping[str, Any], origins: Origins) -> Iterator[Problem]:
    """Names of modules, and groups in them, that there cannot be; ``tree`` has plain values."""
    modules = lookup(tree, MODULES)
    for module_id in modules if isinstance(modules, Mapping) else ():
        if words := wrong_id(module_id):
            yield Problem(f"{MODULES}.{module_id}", origins.of(f"{MODULES}.{module_id}"), words)
    for key, own in _sites(tree):
        if not isinstance(own, Mapping):
            yield Problem(key, origins.of(key), "expected a mapping of groups to what is different there")
            continue
        yield from _ignored(tree, own, key, origins)
        for group, value in own.items():
            if isinstance(value, Mapping) and isinstance(tree.get(group), Mapping) and TARGET not in tree[group]:
                value = None  # what is wrong with the run's own is said there
            yield from _group_problems(str(group), value, f"{key}.{group}", origins)
    yield from _of_selector(tree, modules, origins)


def _ignored(tree: Mapping[str, Any], own: Mapping[str, Any], key: str, origins: Origins) -> Iterator[Problem]:
    """What is said of a module and holds for the run alone, so that nobody would ever look at it."""
    said = own.get("learner")
    keys = [f"{key}.learner.{name}" for name in OF_THE_LEARNER if isinstance(said, Mapping) and name in said]
    every = lookup(own, "evaluation.every")
    if every is not ABSENT and every != lookup(tree, "evaluation.every"):
        keys += [f"{key}.evaluation.every"]
    for one in keys:
        yield Problem(one, origins.of(one), *(of_the_run(one) or ()))


def of_the_run(key: str) -> tuple[str, str] | None:
    """What to say of a key of a module that holds for the run alone, and what to do."""
    if not is_of_module(key):
        return None
    for name in OF_THE_LEARNER:
        if key.endswith(f".learner.{name}"):
            hint = f"set learner.{name}"
            if name == "restore":
                added = key.partition(f".{OVERRIDES}.")[0]
                hint = f"{added}.like=<module>" if added != key else "learner.restore={<module>: <folder>}"
            return "is said of the run: all modules are in one learner", hint
    if key.endswith(".evaluation.every"):
        return "is said of the run: all modules are evaluated at once", "set evaluation.every"
    return None


def _group_problems(group: str, value: Any, key: str, origins: Origins) -> Iterator[Problem]:
    if group not in GROUPS:
        guess = did_you_mean(nearest(group, GROUPS)) or f"it has {', '.join(GROUPS)}"
        yield Problem(key, origins.of(key), "a module has no such group", guess)
        return
    is_node = isinstance(value, Mapping) and (group == "learning" or TARGET in value)
    if not is_node and value is not None and not isinstance(value, Unknown):
        yield Problem(key, origins.of(key), "expected a mapping of what is different there", "", key)


def wrong_id(module_id: Any) -> str | None:
    """Why a module cannot be called that, if so."""
    if not isinstance(module_id, str) or not NAME.fullmatch(module_id):
        return f"a module is called by letters, digits and underscores; got {module_id!r}"
    return f"{module_id} is taken: give the module another name" if module_id in TAKEN else None


def _of_selector(tree: Mapping[str, Any], modules: Any, origins: Origins) -> Iterator[Problem]:
    key = f"learner.{SELECTOR}"
    chosen = lookup(tree, key)
    if chosen in (None, ABSENT):
        return
    if not modules:
        yield Problem(key, origins.of(key), "there is only one module, and a run trains that", f"set {MODULES}")
    added = {lookup(tree, f"{group}.{name}.module_id") for group in ("learning", "hooks")
             for name in (tree.get(group) or {}) if lookup(tree, f"{group}.{name}.{TARGET}") == ADDS}  # fmt: skip
    known = [*(modules or ()), *(one for one in added if isinstance(one, str))]
    for module_id in chosen if isinstance(chosen, list) and modules else ():
        if module_id not in known:
            guess = did_you_mean(nearest(str(module_id), known)) or f"there are {', '.join(known)}"
            yield Problem(f"{key} = {module_id}", origins.of(key), "there is no such module", guess, key)


def is_of_modules(key: str) -> bool:
    """Whether a typed key says which modules there are, or what one of them is like."""
    return key == MODULES or is_of_module(key)


def is_of_module(key: str) -> bool:
    """Whether a typed key is about one module, so that the run's files need not have it."""
    return key.startswith(f"{MODULES}.") or f".{OVERRIDES}." in key or key.endswith(f".{OVERRIDES}")
