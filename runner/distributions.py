"""What the outputs of a policy's network mean: distributions over actions, as pure functions of outputs and noise.

Everything works on tensors and on arrays alike, so that a policy acts by numpy and learns by torch. Noise is an input,
drawn ahead from a stream of its own.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from tensordict import TensorDictBase
from torch import Tensor
from torch.nn import functional as F

from runner.spec import ACTION_MASK, OBSERVATION, EnvSpec

Numbers = Any
"""A tensor or an array."""

LOG_STD_RANGE = -5.0, 2.0
"""Of distributions whose standard deviation the network says for each observation."""
MASKED = -1e8
"""The logit of an action that cannot be taken; finite, so that no gradient becomes NaN."""
_HALF_LOG_2_PI = 0.5 * math.log(2 * math.pi)
_ENTROPY_OF_NORMAL = 0.5 + _HALF_LOG_2_PI


class Distribution(Protocol):
    """``outputs`` are ``[..., size]``, actions ``[..., *action]``, noise ``[..., noise_size]``, all else ``[...]``.

    Attributes:
        size: numbers that the network has to give for each observation.
        noise_size: random numbers that a sample takes; 0 where nothing is random.
    """

    size: int
    noise_size: int

    def mode(self, outputs: Numbers) -> Numbers: ...

    def sample(self, outputs: Numbers, noise: Numbers) -> Numbers: ...

    def played(self, actions: Numbers) -> Numbers: ...

    def draw(self, generator: np.random.Generator, shape: Sequence[int]) -> np.ndarray: ...

    def log_prob(self, outputs: Tensor, action: Tensor) -> Tensor: ...


class _Deterministic:
    """No distribution: nothing is drawn."""

    noise_size = 0

    def mode(self, outputs: Numbers) -> Numbers:
        raise NotImplementedError

    def sample(self, outputs: Numbers, noise: Numbers) -> Numbers:
        return self.mode(outputs)

    def played(self, actions: Numbers) -> Numbers:
        return actions

    def draw(self, generator: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
        return np.empty((*shape, 0), np.float32)

    def log_prob(self, outputs: Tensor, action: Tensor) -> Tensor:
        raise ValueError(f"{type(self).__name__} gives no probabilities: the loss needs a policy with a distribution")


class Argmax(_Deterministic):
    """The best of ``num_actions`` values."""

    def __init__(self, num_actions: int) -> None:
        self.size = num_actions

    def mode(self, outputs: Numbers) -> Numbers:
        return outputs.argmax(-1)


class ArgmaxOfMeans(_Deterministic):
    """The action whose value is the largest in the mean, of a distribution over values for each.

    Outputs are unnormalized log-probabilities ``[..., A * K]`` of the same ``K`` values for each of ``A`` actions
    (Bellemare et al. 2017, section 4.1: atoms), evenly spaced from ``v_min`` to ``v_max``.

    Attributes:
        atoms: these values, ``[K]``.
    """

    def __init__(self, num_actions: int, n_atoms: int, v_min: float, v_max: float) -> None:
        if n_atoms < 2:
            raise ValueError(f"n_atoms={n_atoms}: a distribution over values needs two of them or more")
        if not v_min < v_max or not math.isfinite(v_max - v_min):
            raise ValueError(
                f"v_min={v_min:g} and v_max={v_max:g}: values lie between two numbers, the lower one first"
            )
        self.size, self.num_actions, self.n_atoms = num_actions * n_atoms, num_actions, n_atoms
        self.v_min, self.v_max = v_min, v_max
        self.atoms = np.linspace(v_min, v_max, n_atoms, dtype=np.float32)
        self._tensor = torch.from_numpy(self.atoms)

    def atoms_like(self, tensor: Tensor) -> Tensor:
        """The values, of the type and on the device of ``tensor``."""
        if self._tensor.device != tensor.device:
            self._tensor = self._tensor.to(tensor.device)
        return self._tensor.to(tensor.dtype)

    def mode(self, outputs: Numbers) -> Numbers:
        return self.means(outputs).argmax(-1)

    def means(self, outputs: Numbers) -> Numbers:
        """What each action is worth in the mean, ``[..., A * K] -> [..., A]``; ``MASKED`` where it cannot be taken."""
        logits = self.by_action(outputs)
        if isinstance(logits, Tensor):
            probabilities = torch.softmax(logits, -1)
            means = (probabilities * self.atoms_like(probabilities)).sum(-1)  # a product of matrices may be in bfloat16
            return torch.where(logits[..., 0] < MASKED / 2, MASKED, means)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        return np.where(logits[..., 0] < MASKED / 2, MASKED, weights @ self.atoms / weights.sum(-1))

    def by_action(self, outputs: Numbers) -> Numbers:
        """``[..., A * K] -> [..., A, K]``."""
        return outputs.reshape(*outputs.shape[:-1], self.num_actions, self.n_atoms)

    def log_probs(self, outputs: Tensor, action: Tensor) -> Tensor:
        """Of the values of one action each, ``[..., A * K]`` and ``[...]`` to ``[..., K]``."""
        index = action[..., None, None].expand(*action.shape, 1, self.n_atoms)
        return F.log_softmax(self.by_action(outputs).gather(-2, index).squeeze(-2), -1)


class Categorical(Argmax):
    """One of ``num_actions``, by unnormalized log-probabilities; sampled by Gumbel noise (Maddison et al. 2014)."""

    def __init__(self, num_actions: int) -> None:
        super().__init__(num_actions)
        self.noise_size = num_actions

    def sample(self, outputs: Numbers, noise: Numbers) -> Numbers:
        return (outputs + noise).argmax(-1)

    def draw(self, generator: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
        exponential = generator.standard_exponential((*shape, self.size), dtype=np.float32)
        return -np.log(np.maximum(exponential, np.finfo(np.float32).tiny))

    def log_prob(self, outputs: Tensor, action: Tensor) -> Tensor:
        return F.log_softmax(outputs, -1).gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def entropy(self, outputs: Tensor) -> Tensor:
        log_probs = F.log_softmax(outputs, -1)
        return -(log_probs.exp() * log_probs).sum(-1)

    def kl(self, outputs: Tensor, other: Tensor) -> Tensor:
        """Divergence of ``other`` from ``outputs``: ``sum p log(p / q)``."""
        log_p, log_q = F.log_softmax(outputs, -1), F.log_softmax(other, -1)
        return (log_p.exp() * (log_p - log_q)).sum(-1)


class Normal:
    """Independent normal distributions, by means and logarithms of standard deviations, ``[..., 2 A]``.

    What is played of an action is clipped to the bounds; its probability is that of the action before clipping.
    """

    def __init__(self, low: np.ndarray, high: np.ndarray) -> None:
        self.low, self.high = low, high
        self.size, self.noise_size = 2 * low.size, low.size

    def mode(self, outputs: Numbers) -> Numbers:
        return self.played(_halves(outputs)[0])

    def sample(self, outputs: Numbers, noise: Numbers) -> Numbers:
        mean, log_std = _halves(outputs)
        return mean + _like(outputs, np.exp, torch.exp)(log_std) * noise

    def played(self, actions: Numbers) -> Numbers:
        if isinstance(actions, Tensor):
            low, high = torch.as_tensor(self.low), torch.as_tensor(self.high)
            return actions.clamp(low.to(actions.device), high.to(actions.device))
        return np.clip(actions, self.low, self.high)

    def draw(self, generator: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
        return generator.standard_normal((*shape, self.noise_size), dtype=np.float32)

    def log_prob(self, outputs: Tensor, action: Tensor) -> Tensor:
        mean, log_std = _halves(outputs)
        return _log_prob_of_noise((_as_vectors(action, mean) - mean) * torch.exp(-log_std), log_std)

    def entropy(self, outputs: Tensor) -> Tensor:
        return (_halves(outputs)[1] + _ENTROPY_OF_NORMAL).sum(-1)

    def kl(self, outputs: Tensor, other: Tensor) -> Tensor:
        """Divergence of ``other`` from ``outputs``."""
        (mean, log_std), (other_mean, other_log_std) = _halves(outputs), _halves(other)
        squares = torch.exp(2 * (log_std - other_log_std)) + ((mean - other_mean) * torch.exp(-other_log_std)).square()
        return (other_log_std - log_std + 0.5 * (squares - 1)).sum(-1)


class TanhNormal:
    """A normal distribution squashed into the bounds (Haarnoja et al. 2018, appendix C), by ``[..., 2 A]`` outputs.

    Densities are those of actions scaled to ``[-1, 1]``, so that an entropy means the same whatever the bounds.
    """

    def __init__(self, low: np.ndarray, high: np.ndarray) -> None:
        self.box = Box(low, high)
        self.size, self.noise_size = 2 * low.size, low.size

    def mode(self, outputs: Numbers) -> Numbers:
        return self.box.squash(_halves(outputs)[0])

    def sample(self, outputs: Numbers, noise: Numbers) -> Numbers:
        mean, log_std = self._parameters(outputs)
        return self.box.squash(mean + _like(outputs, np.exp, torch.exp)(log_std) * noise)

    def sample_with_log_prob(self, outputs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions and their log-densities, differentiable (the reparametrization trick)."""
        mean, log_std = self._parameters(outputs)
        before = mean + torch.exp(log_std) * noise
        return self.box.squash(before), _log_prob_of_noise(noise, log_std) - _log_slope_of_tanh(before).sum(-1)

    def played(self, actions: Numbers) -> Numbers:
        return actions

    def draw(self, generator: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
        return generator.standard_normal((*shape, self.noise_size), dtype=np.float32)

    def log_prob(self, outputs: Tensor, action: Tensor) -> Tensor:
        mean, log_std = self._parameters(outputs)
        before = self.box.unsquash(_as_vectors(action, mean))
        noise = (before - mean) * torch.exp(-log_std)
        return _log_prob_of_noise(noise, log_std) - _log_slope_of_tanh(before).sum(-1)

    def _parameters(self, outputs: Numbers) -> tuple[Numbers, Numbers]:
        mean, log_std = _halves(outputs)
        return mean, log_std.clip(*LOG_STD_RANGE)


class TanhDeterministic(_Deterministic):
    """One action within the bounds, by ``[..., A]`` outputs (Lillicrap et al. 2016)."""

    def __init__(self, low: np.ndarray, high: np.ndarray) -> None:
        self.box = Box(low, high)
        self.size = low.size

    def mode(self, outputs: Numbers) -> Numbers:
        return self.box.squash(outputs)


class Box:
    """Bounds ``[A]`` of actions, and the way between them and all numbers."""

    def __init__(self, low: np.ndarray, high: np.ndarray) -> None:
        if not is_bounded(low, high):
            raise ValueError(f"actions without bounds ({low} to {high}) cannot be squashed into them")
        self.low, self.high = low.astype(np.float32), high.astype(np.float32)
        self._center, self._scale = (self.high + self.low) / 2, (self.high - self.low) / 2
        arrays = (self.low, self.high, self._center, self._scale)
        self._tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]

    def squash(self, numbers: Numbers) -> Numbers:
        if isinstance(numbers, np.ndarray):
            return self._center + self._scale * np.tanh(numbers)
        _, _, center, scale = self.tensors(numbers.device)
        return center + scale * torch.tanh(numbers)

    def unsquash(self, actions: Tensor) -> Tensor:
        """What was squashed; an action on the bounds counts as one just within."""
        _, _, center, scale = self.tensors(actions.device)
        return torch.atanh(((actions - center) / scale).clamp(-1 + 1e-6, 1 - 1e-6))

    def tensors(self, device: torch.device) -> list[Tensor]:
        """Lowest and highest actions, and the middle and half of the range between them; each ``[A]``."""
        if self._tensors[0].device != device:
            self._tensors = [one.to(device) for one in self._tensors]
        return self._tensors


def is_bounded(low: np.ndarray, high: np.ndarray) -> bool:
    """Whether all bounds are numbers, and what lies between them is one too."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(high - low).all())


def stochastic(spec: EnvSpec) -> Categorical | Normal:
    """The distribution of a policy that explores by itself, for the actions that an environment takes."""
    if spec.num_actions is not None:
        return Categorical(spec.num_actions)
    return Normal(*bounds(spec))


def bounds(spec: EnvSpec) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest actions ``[A]``; a ``ValueError`` where actions are no vectors."""
    if spec.action_low is None or spec.action_high is None:
        raise ValueError(f"{spec.id} takes one of {spec.num_actions} actions, where vectors are needed")
    return spec.action_low.reshape(-1), spec.action_high.reshape(-1)


def outputs_of(network: Callable[..., Tensor], batch: TensorDictBase) -> Tensor:
    """What a network says of each step of a batch, called with what its ``in_keys`` name, else with the observation.

    Where the batch has an action mask, outputs for each action are masked by it.
    """
    return _masked_by(batch, network(*_inputs(network, batch)))


def _inputs(network: Callable[..., Tensor], batch: TensorDictBase) -> list[Tensor]:
    return [batch.get(key) for key in getattr(network, "in_keys", (OBSERVATION,))]


def _masked_by(batch: TensorDictBase, outputs: Tensor) -> Tensor:
    mask = batch.get(ACTION_MASK, None)
    return outputs if mask is None or mask.shape != outputs.shape else masked(outputs, mask)


def policy_and_value(networks: Mapping[str, Any], batch: TensorDictBase) -> tuple[Tensor, Tensor]:
    """What the networks ``policy`` ``[..., size]`` and ``value`` ``[...]`` say; a trunk they share is asked once."""
    policy, value = networks["policy"], networks["value"]
    is_shared = hasattr(policy, "trunk") and policy.trunk is getattr(value, "trunk", None)
    if not is_shared:
        return outputs_of(policy, batch), outputs_of(value, batch).squeeze(-1)
    features = policy.trunk(*_inputs(policy, batch))
    return _masked_by(batch, policy.head(features)), value.head(features).squeeze(-1)


def masked(outputs: Numbers, mask: Numbers) -> Numbers:
    """``outputs`` where the ``mask`` is true, and next to no chance elsewhere.

    A mask ``[..., A]`` of outputs ``[..., A * K]`` is about ``K`` of them at a time.
    """
    where = _like(outputs, np.where, torch.where)
    if mask.shape[-1] != outputs.shape[-1]:
        return where(mask[..., None], outputs.reshape(*mask.shape, -1), MASKED).reshape(outputs.shape)
    return where(mask, outputs, MASKED)


def _halves(outputs: Numbers) -> tuple[Numbers, Numbers]:
    size = outputs.shape[-1] // 2
    return outputs[..., :size], outputs[..., size:]


def _as_vectors(action: Tensor, mean: Tensor) -> Tensor:
    """Actions of whatever shape as ``[..., A]``."""
    return action if action.shape == mean.shape else action.reshape(mean.shape)


def _like(numbers: Numbers, of_arrays: Callable[..., Any], of_tensors: Callable[..., Any]) -> Callable[..., Any]:
    return of_tensors if isinstance(numbers, Tensor) else of_arrays


def _log_prob_of_noise(noise: Tensor, log_std: Tensor) -> Tensor:
    return -(0.5 * noise.square() + log_std + _HALF_LOG_2_PI).sum(-1)


def _log_slope_of_tanh(numbers: Tensor) -> Tensor:
    """``log(1 - tanh(x)^2)``, without the cancellation that this has for large ``x``."""
    return 2 * (math.log(2) - numbers - F.softplus(-2 * numbers))
