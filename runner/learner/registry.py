"""Which optimizers there are, by module and name, and which parameters each of them moves."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn, optim

from runner.learner.gradients import Clip
from runner.learner.module import DEFAULT_MODULE, Module, ModuleConfig, check_owners
from runner.learner.optimization import Optimization
from runner.learner.staged import make_optimizations, schedule_of
from runner.spec import ConfigError

DEFAULT_OPTIMIZER = "default"


class Registry:
    """The modules of a Learner and their optimizers."""

    def __init__(self) -> None:
        self.modules: dict[str, Module] = {}
        self.configs: dict[str, ModuleConfig] = {}

    def register_optimizer(
        self,
        *,
        module_id: str = DEFAULT_MODULE,
        optimizer_name: str = DEFAULT_OPTIMIZER,
        optimizer: optim.Optimizer,
        params: list[Tensor],
        lr_or_lr_schedule: Any = None,
        **options: Any,
    ) -> Optimization:
        """Let ``optimizer`` move ``params`` after those that are registered for the module.

        Args:
            params: all that the optimizer has.
            lr_or_lr_schedule: a number that stays, ``[[t, value], ...]`` over env steps, or any schedule; set at once.
            options: of :class:`Optimization`, such as ``terms`` and ``every``; clipping and the like are otherwise
                those of the module's configuration, and targets those of the networks that it moves: of several that
                move one network, the last takes its target along.
        """
        _check_optimizer(optimizer, params)
        schedule = schedule_of(lr_or_lr_schedule, optimizer)
        optimization = Optimization(
            optimizer, name=optimizer_name, schedule=schedule, **{**self._usual(module_id), **options}
        )
        optimization.set_lr(0)
        self.register(module_id, optimization)
        if "targets" not in options:
            self._follow(module_id, optimization)
        return optimization

    def _follow(self, module_id: str, optimization: Optimization) -> None:
        """Let the targets of the networks that an optimization moves come after its steps, and after no other's."""
        moved = {id(parameter) for parameter in optimization.parameters}
        networks = self.modules[module_id].networks.values()
        targets = [one.target for one in networks if any(id(own) in moved for own in one.model.parameters())]
        for other in self.modules[module_id].optimizations:
            other.targets = tuple(one for one in other.targets if all(one is not target for target in targets))
        optimization.targets = tuple(targets)

    def _usual(self, module_id: str) -> dict[str, Any]:
        config = self.configs.get(module_id)
        if config is None:
            return {}
        clip = None if config.clip is None else Clip(config.clip, config.clip_by)
        return {"clip": clip, "non_finite": config.non_finite, "non_finite_limit": config.non_finite_limit}

    def register(self, module_id: str, optimization: Optimization) -> None:
        """Let an optimization have its turn after the others of its module."""
        if module_id not in self.modules:
            raise ValueError(f"there is no module {module_id!r}; there are {', '.join(self.modules)}")
        module = self.modules[module_id]
        more = module._replace(optimizations=(*module.optimizations, optimization))
        check_owners({**self.modules, module_id: more})
        self.modules[module_id] = more

    def configure_optimizers(self) -> None:
        """Register the optimizers of all compatible modules that have a configuration; override this, or the next."""
        for module_id in list(self.modules):
            if module_id in self.configs and self.rl_module_is_compatible(self.modules[module_id]):
                with _naming(module_id, is_said=len(self.modules) > 1):
                    self.configure_optimizers_for_module(module_id, self.configs[module_id])

    def configure_optimizers_for_module(self, module_id: str, config: ModuleConfig) -> None:
        """Register one optimizer for each stage of the module's loss."""
        module = self.modules[module_id]
        for optimization in make_optimizations(module.loss, module.networks, config):
            self.register(module_id, optimization)

    @classmethod
    def rl_module_required_apis(cls) -> list[type]:
        """What the networks of a module have to be for it to get optimizers; others stay as they are."""
        return [nn.Module]

    def rl_module_is_compatible(self, module: Module) -> bool:
        required = tuple(self.rl_module_required_apis())
        return all(isinstance(network.model, one) for network in module.networks.values() for one in required)

    def get_optimizer(
        self, module_id: str = DEFAULT_MODULE, optimizer_name: str = DEFAULT_OPTIMIZER
    ) -> optim.Optimizer:
        """The optimizer of that name, which may be written as ``<module id>/<name>`` too; a ``KeyError`` else."""
        for one in self._of(module_id):
            if optimizer_name in (one.name, f"{module_id}/{one.name}"):
                return one.optimizer
        names = [f"{owner}/{one.name}" for owner, module in self.modules.items() for one in module.optimizations]
        raise KeyError(f"there is no optimizer {module_id}/{optimizer_name}; there are {', '.join(names) or 'none'}")

    def get_optimizers_for_module(self, module_id: str = DEFAULT_MODULE) -> list[tuple[str, optim.Optimizer]]:
        """Names and optimizers of a module, in the order of their turns."""
        return [(one.name, one.optimizer) for one in self._of(module_id)]

    def _of(self, module_id: str) -> Sequence[Optimization]:
        return self.modules[module_id].optimizations if module_id in self.modules else ()

    def filter_param_dict_for_optimizer(
        self, param_dict: Mapping[Hashable, Any], optimizer: optim.Optimizer
    ) -> dict[Hashable, Any]:
        """The entries of those parameters that ``optimizer`` moves, where there is a value."""
        references = [self.get_param_ref(one) for group in optimizer.param_groups for one in group["params"]]
        return {one: param_dict[one] for one in references if param_dict.get(one) is not None}

    def get_param_ref(self, param: Tensor) -> Hashable:
        """What stands for a parameter in a mapping: with torch, the parameter itself."""
        return param

    def get_parameters(self, module: Module | nn.Module) -> list[nn.Parameter]:
        """All parameters of a module's networks, each once."""
        if isinstance(module, nn.Module):
            return list(module.parameters())
        every = (one for network in module.networks.values() for one in network.model.parameters())
        return list(dict.fromkeys(every))

    def optimizations(self) -> list[Optimization]:
        """Those of all modules, in their order."""
        return [one for module in self.modules.values() for one in module.optimizations]

    def follower_of(self, network: nn.Module) -> str | None:
        """The optimization whose targets follow ``network``, if there is one."""
        targets = ((one.name, target) for one in self.optimizations() for target in one.targets)
        return next((name for name, target in targets if getattr(target, "network", None) is network), None)


@contextmanager
def _naming(module_id: str, is_said: bool) -> Iterator[None]:
    """Say of which module it is that something is wrong with its optimizers."""
    try:
        yield
    except (ConfigError, ValueError) as error:
        if is_said and type(error) in (ConfigError, ValueError):
            raise type(error)(f"module {module_id}: {error}") from error
        raise


def _check_optimizer(optimizer: Any, params: Any) -> None:
    if not isinstance(optimizer, optim.Optimizer):
        raise ValueError(f"optimizer: a {type(optimizer).__name__} is no torch optimizer")
    if not isinstance(params, list):
        raise ValueError(f"params must be a list of tensors; got a {type(params).__name__}")
    if strange := [one for one in params if not isinstance(one, torch.Tensor)]:
        raise ValueError(f"params must be a list of tensors; there is a {type(strange[0]).__name__} in it")
    own = {id(one) for group in optimizer.param_groups for one in group["params"]}
    if own != {id(one) for one in params}:
        raise ValueError("params must be those that the optimizer was made with")
