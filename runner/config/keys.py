"""Does each typed key exist? Answered from the tree that the choices of groups give, and from the signatures."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from runner.config.composer import Composer
from runner.config.groups import unchosen_keys
from runner.config.injected import INJECTED
from runner.config.modules import of_the_run
from runner.config.origins import Origins
from runner.config.overrides import Typed
from runner.config.report import Problem, did_you_mean, nearest, nearest_key, show
from runner.config.schema import ROOT, TARGET
from runner.config.signature import Parameter, Signature, read_signature
from runner.config.targets import TargetError
from runner.config.tree import ABSENT, all_keys, lookup
from runner.config.words import describe, literal_keys

ALIASES = {
    "learning_rate": "optimizer.lr",
    "total_timesteps": "total_frames",
    "total_steps": "total_frames",
    "steps": "total_frames",
    "timesteps": "total_frames",
    "n_envs": "env.num_envs",
    "buffer_size": "source.capacity",
    "learning_starts": "source.warmup",
    "gradient_steps": "source.optim_steps",
    "train_freq": "collector.frames_per_batch",
    "discount": "loss.gamma",
    "tau": "target_updater.rate",
    "target_network_frequency": "target_updater.update_frequency",
    "epsilon": "exploration.end",
    "max_grad_norm": "learner.clip",
    "eval_freq": "evaluation.every",
}
"""What other libraries call our keys."""


def parameter_at(tree: Mapping[str, Any], key: str) -> tuple[Parameter | None, list[str]]:
    """The parameter that a key belongs to, and the rest of the key inside its value."""
    parts = key.split(".")
    for depth in range(len(parts) - 1, -1, -1):
        node = lookup(tree, ".".join(parts[:depth]))
        signature = _signature(ROOT if depth == 0 else node.get(TARGET) if isinstance(node, Mapping) else None)
        if signature:
            parameter = signature.parameters.get(parts[depth])
            if parameter is None and signature.takes_any:
                parameter = Parameter(parts[depth])
            return parameter, parts[depth + 1 :]
    return None, []


def _signature(target: Any) -> Signature | None:
    try:
        return read_signature(target) if isinstance(target, str) else None
    except TargetError:
        return None  # reported with the node


def units_at(tree: Mapping[str, Any], key: str) -> tuple[tuple[str, ...], bool]:
    """The units that the value at this key may name, and whether it names exactly one."""
    parameter, rest = parameter_at(tree, key)
    return literal_keys(parameter.hint) if parameter and not rest else ((), False)


def find_unit(tree: Mapping[str, Any], key: str) -> tuple[str, tuple[str, ...], bool] | None:
    """For a key such as ``log_every.updates``: its parent, the units allowed there, and whether one excludes others."""
    parent = key.rpartition(".")[0]
    units, one = units_at(tree, parent) if parent else ((), False)
    return (parent, units, one) if units else None


def check_key(item: Typed, tree: Mapping[str, Any], origins: Origins, composer: Composer) -> Problem | None:
    """A problem where Hydra would refuse the key, or ``None``."""
    value = lookup(tree, item.key)
    if item.prefix == "++":
        return _unit_problem(item, tree)
    if item.prefix == "+":
        if value is ABSENT or value is None or isinstance(value, Mapping | list):
            return _unit_problem(item, tree) or _parent_problem(item, tree, composer)
        where = f"is already set ({origins.of(item.key)})"
        return item.problem(item.key, where, f"leave out the +: {item.text.lstrip('+')}")
    if value is ABSENT:
        return _unit_problem(item, tree) or _absent(item, tree, composer)
    if item.prefix == "~" and value is None:
        return item.problem(f"~{item.key}", "there is nothing to take out: it is null")
    if item.prefix == "~" and item.values[0] not in (None, value):
        words = f"is not taken out: it is {show(value)}, not {show(item.values[0])}"
        return item.problem(item.text, words, f"write ~{item.key}")
    return None


def _unit_problem(item: Typed, tree: Mapping[str, Any]) -> Problem | None:
    found = find_unit(tree, item.key)
    unit = item.key.rpartition(".")[2]
    if found is None or unit in found[1]:
        return None
    parent, units, _ = found
    guess = nearest(unit, units)
    allowed = f"{parent} takes {', '.join(units)}"
    hint = f"{did_you_mean(f'{parent}.{guess}')} {allowed}" if guess else allowed
    return item.problem(item.key, f"there is no unit {unit}", hint)


def _parent_problem(item: Typed, tree: Mapping[str, Any], composer: Composer) -> Problem | None:
    parent = item.key.rpartition(".")[0]
    parameter, _ = parameter_at(tree, item.key)
    if not parent or parameter is not None or isinstance(lookup(tree, parent), Mapping):
        return None  # a name that the node's signature does not know is reported with the node
    return _absent(item, tree, composer)


def _absent(item: Typed, tree: Mapping[str, Any], composer: Composer) -> Problem:
    parent = _deepest_parent(tree, item.key)
    if parent and not isinstance(lookup(tree, parent), Mapping | list):
        return item.problem(item.key, f"{parent} is a value, it has no keys in it")
    if told := of_the_run(item.key):
        return item.problem(item.key, *told)
    parameter, rest = parameter_at(tree, item.key)
    if parameter is not None and item.prefix != "~" and parameter.name not in INJECTED:
        takes = f"{'.'.join(item.key.split('.')[: -len(rest) or None])} takes {describe(parameter.hint)}"
        inside = [key for key in all_keys(tree) if key.startswith(f"{'.'.join(item.key.split('.')[: -len(rest)])}.")]
        if rest and (guess := nearest_key(item.key, inside)):
            return item.problem(item.key, "there is no such key", did_you_mean(guess))
        return item.problem(item.key, f"is not in the configuration yet; {takes}", f"add it with +{item.text}")
    return item.problem(f"{item.prefix}{item.key}", "there is no such key", _guess(item, tree, composer))


def _deepest_parent(tree: Mapping[str, Any], key: str) -> str:
    parts = key.split(".")
    return next((".".join(parts[:n]) for n in range(len(parts) - 1, 0, -1)
                 if lookup(tree, ".".join(parts[:n])) is not ABSENT), "")  # fmt: skip


def _guess(item: Typed, tree: Mapping[str, Any], composer: Composer) -> str:
    parent = _deepest_parent(tree, item.key)
    node = lookup(tree, parent) if parent else {}
    signature = _signature(node.get(TARGET)) if isinstance(node, Mapping) else None
    takes = [name for name in signature.parameters if name not in INJECTED] if signature else []
    unlisted = [f"{parent}.{name}" for name in takes]
    listed = [key for key in (*all_keys(tree), *composer.groups()) if not key.endswith(TARGET)]
    unchosen = {} if item.prefix == "~" else unchosen_keys(item.key.partition(".")[0], tree, composer)
    if choice := next((unchosen[key] for key in unchosen if f"{item.key}.".startswith(f"{key}.")), None):
        return f"{choice} has it" if item.key in unchosen else f"{_named_item(item.key)} comes with {choice}"
    known_as = ALIASES.get(item.key.rpartition(".")[2])
    if known_as in listed:
        return did_you_mean(known_as)
    guess = nearest_key(item.key, [*listed, *unlisted, *unchosen])
    if guess is None or (signature and not _is_near(guess, item.key, parent)):
        return f"{parent} takes {', '.join(takes) or 'nothing'}" if signature else "python run.py --help lists the keys"
    if guess in unchosen:
        return f"{did_you_mean(guess)} {unchosen[guess]} has it"
    return did_you_mean(guess if guess in listed else f"+{guess}")


def _is_near(guess: str, key: str, parent: str) -> bool:
    """Whether a guess is in the node that the key was looked for in, or has its last name."""
    return guess.startswith(f"{parent}.") or guess.rpartition(".")[2] == key.rpartition(".")[2]


def _named_item(key: str) -> str:
    return ".".join(key.split(".")[:2])


def with_guess(problem: Problem, keys: list[str], composer: Composer) -> Problem:
    """An override that cannot be read, with the key or the choice that may be meant."""
    group, _, choice = problem.key.partition("=")
    if problem.path in composer.groups() and choice:
        guess = nearest(choice, composer.choices(group))
        return replace(problem, hint=did_you_mean(f"{group}={guess}")) if guess else problem
    guess = nearest_key(problem.path, keys) if problem.path and problem.path not in keys else None
    return replace(problem, hint=did_you_mean(guess)) if guess else problem
