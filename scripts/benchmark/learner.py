"""One update by a learner against the same one written out by hand, and four modules against one.

All take turns within one process, on the same numbers; what is compared is the CPU time of its thread.
"""

import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn, optim
from torch.nn import functional as F

from runner.builders import make_dqn_loss, make_learner, make_target_updater
from runner.config.build import Builder
from scripts.benchmark.rounds import machine, median, paired, quantile, table

GAMMA, LR, CLIP, RATE = 0.99, 1e-3, 10.0, 0.005
OBSERVATION, ACTION = 17, 6
MODULES = 4
VALUES = {
    "_target_": "runner.networks.mlp.MLP",
    "input_shape": [4],
    "hidden": [120, 84],
    "outputs": 2,
    "activation": "relu",
}
CRITICS = {
    "_target_": "runner.networks.ensemble.QEnsemble",
    "inputs": OBSERVATION + ACTION,
    "hidden": [256, 256],
    "activation": "relu",
    "members": 2,
}
OPTIMIZER = {"_target_": "runner.learner.optimizers.adam", "lr": LR}
HAND = "by hand, backward()"

Update = Callable[[], Any]
LossOf = Callable[[nn.Module, nn.Module, Mapping[str, Tensor]], Tensor]


class Critic:
    """The regression of two values on the smaller one of their targets, for a batch that knows the next actions."""

    networks = targets = ("q",)
    outputs = ("td_error",)
    stackable = True

    def __init__(self) -> None:
        self.hyper_parameters = {"gamma": GAMMA}
        self.terms = {"critic": self.critic}

    def critic(
        self, networks: Mapping[str, Any], batch: TensorDictBase, hyper_parameters: Mapping[str, Any]
    ) -> TensorDict:
        """The only term."""
        following = batch.get("next")
        with torch.no_grad():
            value = networks["q_target"](following.get("observation"), following.get("action")).amin(0)
            discount = hyper_parameters["gamma"] * ~following.get("terminated")
            target = following.get("reward") + discount * value
        error = networks["q"](batch.get("observation"), batch.get("action")) - target
        outputs = {"loss_critic": error.square().mean(1).sum(), "td_error": error.detach().abs().mean(0)}
        return TensorDict(outputs, batch_size=[])


def values_by_hand(network: nn.Module, target: nn.Module, data: Mapping[str, Tensor]) -> Tensor:
    """Of deep Q-learning."""
    chosen = network(data["observation"]).gather(1, data["action"].unsqueeze(1)).squeeze(1)
    with torch.no_grad():
        wanted = data["reward"] + GAMMA * ~data["terminated"] * target(data["following"]).amax(1)
    return F.mse_loss(chosen, wanted)


def critic_by_hand(network: nn.Module, target: nn.Module, data: Mapping[str, Tensor]) -> Tensor:
    """Of :class:`Critic`."""
    with torch.no_grad():
        value = target(data["following"], data["next_action"]).amin(0)
        wanted = data["reward"] + GAMMA * ~data["terminated"] * value
    return (network(data["observation"], data["action"]) - wanted).square().mean(1).sum()


class Work(NamedTuple):
    """What is updated: a network by a loss, once as ours and once as a plain function, with a batch."""

    title: str
    make_network: Callable[[], nn.Module]
    loss: Any
    loss_of: LossOf
    batch: TensorDict


def make_batch(size: int, observation: int, action: Tensor, following_action: Tensor | None = None) -> TensorDict:
    """Random transitions ``[size]``."""
    following = {
        "observation": torch.randn(size, observation),
        "reward": torch.randn(size),
        "terminated": torch.rand(size) < 0.01,
        **({} if following_action is None else {"action": following_action}),
    }
    now = {"observation": torch.randn(size, observation), "action": action}
    return TensorDict({**now, "next": TensorDict(following, [size])}, [size])


def works() -> list[Work]:
    """A small network of values, and two larger ones of a critic."""
    values = make_batch(128, 4, torch.randint(0, 2, (128,)))
    critic = make_batch(256, OBSERVATION, torch.rand(256, ACTION), torch.rand(256, ACTION))
    return [
        Work(
            "values of discrete actions, 120-84, batch 128",
            partial(Builder().build, VALUES),
            make_dqn_loss(GAMMA, double=False, loss_function="l2"),
            values_by_hand,
            values,
        ),
        Work(
            "two critics, 256-256, batch 256",
            partial(Builder().build, CRITICS),
            Critic(),
            critic_by_hand,
            critic,
        ),
    ]


def by_hand(work: Work, network: nn.Module, uses_grad: bool = False) -> Update:
    """Forward, backward, clip, fused Adam, target."""
    target = deepcopy(network).requires_grad_(False)
    parameters: list[Tensor] = list(network.parameters())
    copies: list[Tensor] = list(target.parameters())
    optimizer = optim.Adam(parameters, lr=LR, fused=True)
    names = {"following": ("next", "observation"), "next_action": ("next", "action")}
    names |= {"reward": ("next", "reward"), "terminated": ("next", "terminated")}
    data = {name: work.batch.get(names.get(name, name), None) for name in ("observation", "action", *names)}

    def differentiate(loss: Tensor) -> None:
        if not uses_grad:
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            return
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient

    def update() -> None:
        differentiate(work.loss_of(network, target, data))
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(copies, parameters, RATE)

    return update


def by_learner(work: Work, networks: list[nn.Module], compile: Any) -> Update:
    """The same for one module, or for several with a batch each."""
    learner, *others = (
        make_learner(
            {"q": network},
            work.loss,
            lambda params: Builder().build(OPTIMIZER, params=params),
            target_updater=make_target_updater(rate=RATE),
            clip=CLIP,
            compile=compile,
        )
        for network in networks
    )
    for index, other in enumerate(others):
        learner.add_module(module_id=f"module{index}", module_spec=other.module["default"])
    given = TensorDict({name: work.batch.clone() for name in learner.module}, []) if others else work.batch.clone()

    def update() -> None:
        learner.step(learner.compute_losses(given), given)
        learner.progress.updates += 1

    return update


def sides(work: Work) -> dict[str, Update]:
    """All ways to do the work, each with networks of its own that begin with the same weights."""
    first = work.make_network()
    updates, networks = {}, {}

    def add(name: str, make: Callable[..., Update], *more: Any) -> None:
        networks[name] = deepcopy(first)
        updates[name] = make(work, networks[name], *more)

    def learner(work: Work, network: nn.Module, compile: str, modules: int = 1) -> Update:
        return by_learner(work, [network, *(deepcopy(network) for _ in range(modules - 1))], compile)

    add(HAND, by_hand)
    add("by hand, autograd.grad", by_hand, True)
    for compile in ("none", "trace"):
        add(f"learner, {compile}", learner, compile)
        add(f"learner, {compile}, {MODULES} modules", learner, compile, MODULES)
    check_equal(networks, updates)
    return updates


def check_equal(networks: Mapping[str, nn.Module], updates: Mapping[str, Update]) -> None:
    """Refuse to compare what does not compute the same: the weights after ten updates."""
    for update in updates.values():
        for _ in range(10):
            update()
    for name, network in networks.items():
        for own, other in zip(network.parameters(), networks[HAND].parameters(), strict=True):
            if not torch.allclose(own, other, rtol=1e-3, atol=1e-5):
                raise AssertionError(f"{name} computes something else than {HAND}")


def clock(update: Update, repeats: int) -> float:
    """Microseconds of CPU time for one update."""
    started = time.thread_time()
    for _ in range(repeats):
        update()
    return (time.thread_time() - started) / repeats * 1e6


def measure_learner(rounds: int, repeats: int = 20) -> None:
    """Print for each work what an update costs each way, and the median over rounds of the ratios."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"\nlearner: {rounds} rounds of {repeats} updates each way, 1 thread\n{machine()}")
    for work in works():
        updates = sides(work)
        measured: dict[str, list[float]] = {name: [] for name in updates}
        for _ in range(rounds):
            for name, update in updates.items():
                measured[name].append(clock(update, repeats))
        print(f"\n{work.title}\n{report(measured)}")


def report(measured: Mapping[str, list[float]]) -> str:
    """A line for each way: its time, against the hand-written loop, and for many modules against one."""
    rows = []
    for name, times in measured.items():
        alone = name.rpartition(", ")[0] if name.endswith("modules") else None
        rows.append(
            [
                name,
                f"{median(times):.0f}",
                _ratio(measured[HAND], times),
                _ratio(measured[alone], times) if alone else "",
            ]
        )
    return table(["update", "CPU us", "x by hand (half of the rounds)", "x one module"], rows)


def _ratio(base: list[float], times: list[float]) -> str:
    ratios = paired(base, times)
    return f"{median(ratios):.3f} ({quantile(ratios, 0.25):.3f}-{quantile(ratios, 0.75):.3f})"
