"""Small learners of one or more modules, and batches for them."""

from functools import partial

import torch
from tensordict import TensorDict

from runner.learner.approximation import Approximation
from runner.learner.learner import Learner
from runner.learner.module import ModuleConfig, ModuleSpec
from runner.learner.optimizers import adam
from runner.learner.targets import FixedTarget
from runner.losses.dqn import DQNLoss
from runner.networks.mlp import MLP


def transitions(seed=0, size=6):
    generator = torch.Generator().manual_seed(seed)
    following = {
        "observation": torch.randn(size, 3, generator=generator),
        "reward": torch.randn(size, generator=generator),
        "terminated": torch.rand(size, generator=generator) < 0.5,
    }
    now = {
        "observation": torch.randn(size, 3, generator=generator),
        "action": torch.randint(0, 2, (size,), generator=generator),
    }
    return TensorDict({**now, "next": TensorDict(following, [size])}, [size])


def q_network(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return {"q": Approximation(MLP((3,), [8], 2, "relu"), name="q", target=FixedTarget(2))}


def config(**options):
    return ModuleConfig(**{"optimizer": partial(adam, lr=0.01), **options})


def spec(seed=0, loss=None, **options):
    return ModuleSpec(partial(q_network, seed), loss or DQNLoss(0.9, True, "smooth_l1"), config(**options))


def learner(*ids, kind=Learner, options=None, **more):
    """With a module for each id; of those that ``options`` names, otherwise configured."""
    specs = {one: spec(seed, **(options or {}).get(one, {})) for seed, one in enumerate(ids or ("default",))}
    return kind(specs, **more).build()


def parts(*ids, seed=0, size=6):
    return {one: transitions(seed + 100 * number, size) for number, one in enumerate(ids)}


def keyed(*ids, seed=0, size=6):
    return TensorDict(parts(*ids, seed=seed, size=size), [])


def update(one, batch):
    metrics = one.step(one.compute_losses(batch), batch)
    one.progress.updates += 1
    return metrics


def bits(one, module_id="default"):
    """All numbers that belong to a module: weights, targets, moments."""
    state = one.get_state()
    return [
        value
        for part in ("rl_module", "optimizer")
        for value in leaves(state[part].get(module_id, {}))
        if isinstance(value, torch.Tensor)
    ]


def leaves(tree):
    if isinstance(tree, dict):
        return [leaf for inner in tree.values() for leaf in leaves(inner)]
    return [tree.clone() if isinstance(tree, torch.Tensor) else tree]


def same(some, others):
    return len(some) == len(others) and all(torch.equal(*pair) for pair in zip(some, others, strict=True))
