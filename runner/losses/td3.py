"""The losses of twin delayed deep deterministic policy gradients, and the double regression that others build on."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from runner.distributions import TanhDeterministic, outputs_of
from runner.returns import discounts
from runner.spec import (
    ACTION,
    IMPORTANCE_WEIGHT,
    NEXT_OBSERVATION,
    NEXT_REWARD,
    NEXT_STEPS,
    NEXT_TERMINATED,
    OBSERVATION,
    TD_ERROR,
    Stage,
)
from runner.types import Discount, NonNegativeFloat

Networks = Mapping[str, Callable[..., Any]]

TARGET_NOISE = ("noise", "target_action")


class TD3Loss:
    """Terms ``critic`` and ``actor`` of Fujimoto et al. (2018), algorithm 1.

    ``critic``: both values are regressed on ``r + gamma^n * min_i q_target_i(s', a')``, where ``a'`` is the action of
    the target policy with clipped noise (target policy smoothing, eq. 14); gives ``loss_critic`` (sum of both mean
    squared errors) and ``td_error`` ``[B]`` (absolute, mean of both). ``actor``: ``-q_1(s, policy(s))``, delayed with
    all targets to every second update. A batch is ``[B]``.

    Args:
        distribution: of the policy; it knows the bounds.
        target_noise: standard deviation of the noise on ``a'``, in halves of the range of an action.
        noise_clip: largest noise, in the same unit.
    """

    targets = ("q", "policy")
    outputs = (TD_ERROR,)
    stackable = True
    stages: Mapping[str, Stage] = {
        "critic": Stage(("critic",), ("q",), targets=()),
        "actor": Stage(("actor",), ("policy",), targets=("q", "policy"), every=2),
    }

    def __init__(
        self,
        distribution: TanhDeterministic,
        gamma: Discount = 0.99,
        target_noise: NonNegativeFloat = 0.2,
        noise_clip: NonNegativeFloat = 0.5,
    ) -> None:
        if getattr(distribution, "noise_size", None) != 0 or not hasattr(distribution, "box"):
            kind = type(distribution).__name__
            raise ValueError(f"loss: TD3Loss needs a deterministic policy within bounds, not {kind}")
        self.distribution = distribution
        self.hyper_parameters: dict[str, float | Tensor] = {
            "gamma": gamma,
            "target_noise": target_noise,
            "noise_clip": noise_clip,
        }
        self.terms = {"critic": self.critic, "actor": self.actor}

    def draw(self, batch: TensorDictBase, generator: torch.Generator) -> dict[Any, Tensor]:
        """Standard normal noise for each next action."""
        return {TARGET_NOISE: normal_like(batch.get(ACTION), generator)}

    def critic(
        self, networks: Networks, batch: TensorDictBase, hyper_parameters: Mapping[str, float | Tensor]
    ) -> TensorDict:
        """Gradients flow into ``networks["q"]`` alone."""
        with torch.no_grad():
            action = self._smoothed(networks["policy_target"], batch, hyper_parameters)
            value = networks["q_target"](batch.get(NEXT_OBSERVATION), action).amin(0)
            target = bootstrapped(batch, value, hyper_parameters["gamma"])
        loss, td_error = regression(networks["q"](batch.get(OBSERVATION), batch.get(ACTION)), target, batch)
        return TensorDict({"loss_critic": loss, TD_ERROR: td_error}, batch_size=[])

    def _smoothed(
        self, policy: Callable[..., Tensor], batch: TensorDictBase, hyper_parameters: Mapping[str, float | Tensor]
    ) -> Tensor:
        """The target policy's next actions, with noise, within the bounds."""
        action = self.distribution.mode(outputs_of(policy, batch.get("next")))
        low, high, _, half_range = self.distribution.box.tensors(action.device)
        clip = hyper_parameters["noise_clip"]
        noise = (batch.get(TARGET_NOISE) * hyper_parameters["target_noise"]).clamp(-clip, clip)
        return torch.minimum(torch.maximum(action + noise * half_range, low), high)

    def actor(
        self, networks: Networks, batch: TensorDictBase, hyper_parameters: Mapping[str, float | Tensor]
    ) -> TensorDict:
        """Deterministic policy gradient (Silver et al. 2014); the second value is not asked."""
        action = self.distribution.mode(outputs_of(networks["policy"], batch))
        value = networks["q"](batch.get(OBSERVATION), action, 1)
        return TensorDict({"loss_actor": -value.mean()}, batch_size=[])


def normal_like(action: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal noise of the shape and on the device of ``action``, drawn on that of the generator."""
    noise = torch.randn(action.shape, generator=generator, device=generator.device, dtype=action.dtype)
    return noise if noise.device == action.device else noise.to(action.device, non_blocking=True)


def bootstrapped(batch: TensorDictBase, value: Tensor, gamma: float | Tensor) -> Tensor:
    """``r + gamma^n * value``, without ``value`` where the episode terminated; all ``[B]``."""
    discount = discounts(gamma, batch.get(NEXT_TERMINATED), batch.get(NEXT_STEPS, None))
    return batch.get(NEXT_REWARD) + discount * value


def regression(values: Tensor, target: Tensor, batch: TensorDictBase) -> tuple[Tensor, Tensor]:
    """The sum over an ensemble of its mean squared errors, and the mean of the absolute ones for each sample.

    Args:
        values: ``[M, B]``.
        target: ``[B]``; importance weights in the batch multiply the errors of each sample.
    """
    if target.shape != values.shape[1:]:  # [B, 1] against [M, B] would broadcast
        raise ValueError(
            f"reward, terminated and steps must have the shape {list(values.shape[1:])} of the batch; "
            f"the regression target has {list(target.shape)}"
        )
    error = values - target
    squares, weight = error.square(), batch.get(IMPORTANCE_WEIGHT, None)
    if weight is not None and weight.shape != target.shape:
        raise ValueError(f"{IMPORTANCE_WEIGHT} must have the shape {list(target.shape)}, not {list(weight.shape)}")
    weighted = squares if weight is None else squares * weight
    return weighted.mean(tuple(range(1, values.ndim))).sum(), error.detach().abs().mean(0)
