"""Random episodes with both kinds of end, and what plain Python loops make of them."""

import random

import torch
from tensordict import TensorDict


class Step:
    """One step of an environment; ``observation`` says which, ``following`` is the one after it."""

    def __init__(self, observation, trajectory, reward, kind):
        self.observation, self.trajectory, self.reward, self.kind = observation, trajectory, reward, kind

    @property
    def following(self):
        return -self.observation if self.kind != "goes on" else self.observation + 1


class Environments:
    """Environments whose episodes end at random; batches ``[N, T]`` of them go to ``columns``, in the order of time.

    With ``more`` environments than columns, a batch's columns are of any of them, as asynchronous workers deliver.
    """

    def __init__(self, num_columns, seed, more=0):
        self.random, self.columns = random.Random(seed), [[] for _ in range(num_columns)]
        self.trajectories = list(range(num_columns + more))
        self.clocks = [1000 * (env + 1) for env in self.trajectories]
        self.has_ids = more > 0

    def play(self, env):
        kind = self.random.choice(["goes on"] * 4 + ["terminated", "truncated"])
        step = Step(self.clocks[env], self.trajectories[env], self.random.uniform(-1, 1), kind)
        self.clocks[env] += 1
        if kind != "goes on":
            self.trajectories[env] = max(self.trajectories) + 1
            self.clocks[env] += 1
        return step

    def collect(self, steps):
        """The next batch."""
        chosen = list(range(len(self.columns)))
        if self.has_ids:
            chosen = self.random.sample(range(len(self.trajectories)), len(self.columns))
        new = [[self.play(env) for _ in range(steps)] for env in chosen]
        for column, played in zip(self.columns, new, strict=True):
            column.extend(played)
        return self._batch(new)

    def _batch(self, new):
        def field(of, dtype=torch.float32):
            return torch.tensor([[of(step) for step in column] for column in new], dtype=dtype)

        following = {
            "observation": field(lambda step: step.following),
            "reward": field(lambda step: step.reward),
            "terminated": field(lambda step: step.kind == "terminated", torch.bool),
            "truncated": field(lambda step: step.kind == "truncated", torch.bool),
            "done": field(lambda step: step.kind != "goes on", torch.bool),
        }
        observation = field(lambda step: step.observation)
        fields = {"observation": observation, "action": observation.long(), "next": following}
        if self.has_ids:
            fields["collector"] = {"traj_ids": field(lambda step: step.trajectory, torch.int64)}
        return TensorDict(fields, batch_size=[len(new), len(new[0])])

    def stored(self, rows):
        """The newest rows of each column, oldest first."""
        return [column[-rows:] for column in self.columns]

    def windows(self, rows, length):
        """For each stored step, by its observation, the up to ``length`` steps of its trajectory from there on."""
        found = {}
        for column in self.stored(rows):
            for first, step in enumerate(column):
                window = [step]
                for later in column[first + 1 : first + length]:
                    if window[-1].kind != "goes on" or later.trajectory != step.trajectory:
                        break
                    window.append(later)
                found[step.observation] = window
        return found
