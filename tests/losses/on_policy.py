"""Linear policies and values, and what losses say of them, once by numpy and finite differences."""

import numpy as np
import torch
from tensordict import TensorDict

from runner.distributions import Categorical, Normal

INPUTS, ACTIONS, SIZE = 3, 4, 10
STEP = 1e-6
LOW, HIGH = np.full(2, -9.0, np.float32), np.full(2, 9.0, np.float32)


class Discrete:
    """Logits ``x W``, of which ``mask`` leaves some."""

    distribution, outputs = Categorical(ACTIONS), ACTIONS

    @staticmethod
    def action(draw, outputs):
        return draw.integers(ACTIONS, size=SIZE)

    @staticmethod
    def log_probs(logits, mask=None):
        logits = logits if mask is None else np.where(mask, logits, -np.inf)
        shifted = logits - logits.max(-1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))

    @classmethod
    def log_prob(cls, outputs, action, mask=None):
        return cls.log_probs(outputs, mask)[np.arange(len(action)), action]

    @classmethod
    def entropy(cls, outputs, mask=None):
        logs = cls.log_probs(outputs, mask)
        return -np.where(np.isfinite(logs), np.exp(logs) * np.where(np.isfinite(logs), logs, 0), 0).sum(-1)

    @classmethod
    def kl(cls, outputs, other, mask=None):
        p, q = cls.log_probs(outputs, mask), cls.log_probs(other, mask)
        return (np.exp(p) * (p - q)).sum(-1)


class Vectors:
    """Means and log-deviations ``x W`` of two numbers."""

    distribution, outputs = Normal(LOW, HIGH), 4

    @staticmethod
    def action(draw, outputs):
        return outputs[:, :2] + np.exp(outputs[:, 2:]) * draw.normal(size=(SIZE, 2))

    @staticmethod
    def log_prob(outputs, action, mask=None):
        mean, deviation = outputs[:, :2], np.exp(outputs[:, 2:])
        return np.log(np.exp(-(((action - mean) / deviation) ** 2) / 2) / (deviation * np.sqrt(2 * np.pi))).sum(-1)

    @staticmethod
    def entropy(outputs, mask=None):
        return (np.log(2 * np.pi * np.e * np.exp(outputs[:, 2:]) ** 2) / 2).sum(-1)

    @staticmethod
    def kl(outputs, other, mask=None):
        (mean, deviation), (to, wide) = ((one[:, :2], np.exp(one[:, 2:])) for one in (outputs, other))
        return (np.log(wide / deviation) + (deviation**2 + (mean - to) ** 2) / (2 * wide**2) - 0.5).sum(-1)


class Case:
    """A random batch whose actions are of an older policy, and weights ``[policy W, value w]`` of now."""

    def __init__(self, kind, seed=0, masks=False, weights=False):
        self.kind, draw = kind, np.random.default_rng(seed)
        self.observation = draw.normal(size=(SIZE, INPUTS))
        old = 0.5 * draw.normal(size=(INPUTS, kind.outputs))
        self.weights = [old + 0.2 * draw.normal(size=old.shape), draw.normal(size=(INPUTS, 1))]
        self.old_outputs = self.observation @ old
        self.action = kind.action(draw, self.old_outputs)
        self.mask = None
        if masks:
            self.mask = draw.random((SIZE, ACTIONS)) < 0.6
            self.mask[np.arange(SIZE), self.action] = True
        self.old_log_prob = kind.log_prob(self.old_outputs, self.action, self.mask)
        self.advantage, self.target = draw.normal(size=(2, SIZE))
        self.old_value = draw.normal(size=SIZE)
        self.weight = draw.choice([0.0, 0.5, 2.0], SIZE) if weights else None

    def batch(self):
        entries = {
            "observation": self.observation,
            "action": self.action,
            "action_log_prob": self.old_log_prob,
            "policy_output": self.old_outputs if self.mask is None else np.where(self.mask, self.old_outputs, -1e8),
            "advantage": self.advantage,
            "value_target": self.target,
            "state_value": self.old_value,
        }
        optional = {"action_mask": self.mask, "importance_weight": self.weight}
        given = entries | {name: one for name, one in optional.items() if one is not None}
        return TensorDict({name: torch.from_numpy(np.asarray(one)) for name, one in given.items()}, [len(self.action)])

    def seen(self, weights):
        """Outputs and values under other weights, by numpy."""
        return self.observation @ weights[0], (self.observation @ weights[1])[:, 0]

    def ours(self, term, hyper_parameters):
        """What the loss gives, and the gradient of the sum of its losses."""
        weights = [torch.from_numpy(one).clone().requires_grad_() for one in self.weights]
        networks = {"policy": lambda x: x @ weights[0], "value": lambda x: x @ weights[1]}
        output = term(networks, self.batch(), hyper_parameters)
        total = sum(value for name, value in output.items() if name.startswith("loss_"))
        return output, torch.autograd.grad(total, weights, allow_unused=True)

    def check(self, term, hyper_parameters, reference):
        """``reference(outputs, values)`` are the losses by numpy; compares them and their slopes."""
        output, gradients = self.ours(term, hyper_parameters)
        expected = reference(*self.seen(self.weights))
        for name, value in expected.items():
            np.testing.assert_allclose(output[name].item(), value, rtol=1e-9, atol=1e-12, err_msg=name)
        assert {name for name in output.keys() if name.startswith("loss_")} == set(expected)
        for index, gradient in enumerate(gradients):
            slopes = self.slopes(index, lambda *seen: sum(reference(*seen).values()))
            np.testing.assert_allclose(gradient.numpy(), slopes, rtol=1e-5, atol=1e-7)
        return output

    def slopes(self, index, function):
        result = np.zeros_like(self.weights[index])
        for at in np.ndindex(result.shape):
            ends = []
            for sign in (1, -1):
                weights = [one.copy() for one in self.weights]
                weights[index][at] += sign * STEP
                ends.append(function(*self.seen(weights)))
            result[at] = (ends[0] - ends[1]) / (2 * STEP)
        return result


def huber(error):
    return np.where(np.abs(error) < 1, error**2 / 2, np.abs(error) - 0.5)
