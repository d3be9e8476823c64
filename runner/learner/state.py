"""Parts of a Learner's state by name, such as ``rl_module/left``."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from runner.learner.module import Module
from runner.learner.precision import LossScaler
from runner.spec import CheckpointError, StateDict

RL_MODULE, OPTIMIZER, METRICS = "rl_module", "optimizer", "metrics_logger"
"""Networks with their targets; what moves them, and the noise of losses; what was measured."""
SELECTED = "should_module_be_updated"
"""Who is updated; stands in whole states alone."""
BY_FUNCTION = "by a function"
COMPONENTS = (RL_MODULE, OPTIMIZER, METRICS)

Names = str | Sequence[str] | None


class ModuleState:
    """What a Learner keeps for a module besides networks and optimizers, so that no other module has a say in it.

    Attributes:
        updates: those that the module has taken part in.
        shuffling: what its minibatches are shuffled from.
        scaler: of its losses, in fp16.
    """

    def __init__(self, shuffling: torch.Generator, scaler: LossScaler | None = None) -> None:
        self.updates, self.shuffling, self.scaler = 0, shuffling, scaler

    def state_dict(self) -> StateDict:
        scale = {} if self.scaler is None else {"scale": self.scaler.state_dict()}
        return {"updates": self.updates, "shuffling": self.shuffling.get_state(), **scale}

    def load_state_dict(self, state: StateDict) -> None:
        """A state of another precision starts the scale afresh: weights and moments are fp32 in all of them."""
        self.updates = state["updates"]
        self.shuffling.set_state(state["shuffling"])
        if self.scaler is not None and "scale" in state:
            self.scaler.load_state_dict(state["scale"])


def check_names(names: Names, modules: Iterable[str]) -> list[str]:
    """The names as a list; a ``ValueError`` for what is no component."""
    every = [names] if isinstance(names, str) else list(names or ())
    there = list(modules)
    known = [*COMPONENTS, *(f"{component}/{one}" for component in (RL_MODULE, OPTIMIZER) for one in there)]
    if unknown := [name for name in every if name not in known]:
        raise ValueError(f"there is no component {unknown[0]!r}; there are {', '.join(known)}")
    return every


def is_wanted(name: str, components: Sequence[str] | None, not_components: Sequence[str]) -> bool:
    """Whether a component is asked for: by its own name, by that of what it is in, or by that of something in it."""
    if name in not_components or any(name.startswith(f"{one}/") for one in not_components):
        return False
    related = (one == name or one.startswith(f"{name}/") or name.startswith(f"{one}/") for one in components or ())
    return components is None or any(related)


def networks_state(module: Module) -> StateDict:
    """All networks with their targets."""
    return {name: network.state_dict() for name, network in module.networks.items()}


def optimizations_state(module: Module) -> StateDict:
    """What moves the networks, and the noise of the loss."""
    noise = {"noise": module.generator.get_state()} if module.generator is not None else {}
    return {"optimizations": {one.name: one.state_dict() for one in module.optimizations}, **noise}


def load_networks(module_id: str, module: Module, state: Mapping[str, Any]) -> None:
    """Take over what :func:`networks_state` gave; a ``CheckpointError`` where it is of other networks."""
    _check_keys(f"networks of module {module_id!r}", state, module.networks)
    for name, network in module.networks.items():
        try:
            network.load_state_dict(state[name])
        except RuntimeError as error:  # torch's, where shapes or layers differ
            words = " ".join(str(error).split())
            raise CheckpointError(f"network {name!r} of module {module_id!r} is another one: {words}") from error


def load_optimizations(module_id: str, module: Module, state: Mapping[str, Any]) -> None:
    """Take over what :func:`optimizations_state` gave; a ``CheckpointError`` where it is of other ones."""
    names = [one.name for one in module.optimizations]
    _check_keys(f"optimizations of module {module_id!r}", state["optimizations"], names)
    for one in module.optimizations:
        one.load_state_dict(state["optimizations"][one.name])
    if module.generator is not None:
        if "noise" not in state:
            raise CheckpointError(f"the state of module {module_id!r} has no noise, and its loss draws some")
        module.generator.set_state(state["noise"])


def check_modules(state: Mapping[str, Any], modules: Iterable[str], is_whole: bool) -> None:
    """Raise ``CheckpointError`` for modules that there are not and, if it is to be whole, for missing ones."""
    there = list(modules)
    strange = [one for one in state if one not in there]
    missing = [one for one in there if one not in state] if is_whole else []
    if strange or missing:
        said = f"has {', '.join(strange)}" if strange else f"has no {', '.join(missing)}"
        raise CheckpointError(f"the saved state {said}, and there are the modules {', '.join(there)}")


def copied(tree: Any) -> Any:
    """The same with tensors of its own."""
    if isinstance(tree, Mapping):
        return {name: copied(value) for name, value in tree.items()}
    return tree.clone() if isinstance(tree, Tensor) else tree


def _check_keys(what: str, state: Mapping[str, Any], wanted: Iterable[str]) -> None:
    names, there = sorted(wanted), sorted(state)
    if names != there:
        raise CheckpointError(f"the {what} are {', '.join(names)}; those saved are {', '.join(there)}")
