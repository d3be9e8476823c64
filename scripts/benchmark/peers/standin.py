"""The work as a single plain file does it, for where CleanRL's is not at hand; shown to cost what that costs.

The same parts in the same places: a vector of one environment, Stable-Baselines3's replay buffer, networks of
``nn.Sequential``, Adam as torch ships it, a TensorBoard writer, and one Python loop over env steps.
"""

import random
import time
from collections.abc import Iterator

import gymnasium
import numpy as np
import torch
from stable_baselines3.common.buffers import ReplayBuffer
from torch import nn
from torch.nn import functional as F
from torch.utils.tensorboard import SummaryWriter

from scripts.benchmark.meter import Work, begin, one_thread


def make_env(seed: int) -> gymnasium.Env:
    env = gymnasium.wrappers.RecordEpisodeStatistics(gymnasium.make("CartPole-v1"))
    env.action_space.seed(seed)
    return env


class QNetwork(nn.Module):
    """A multi-layer perceptron from four numbers to two values."""

    def __init__(self, hidden: list[int]) -> None:
        super().__init__()
        sizes = [4, *hidden]
        pairs = zip(sizes, hidden, strict=False)
        layers = [layer for inputs, outputs in pairs for layer in (nn.Linear(inputs, outputs), nn.ReLU())]
        self.values = nn.Sequential(*layers, nn.Linear(sizes[-1], 2))

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        return self.values(observation)


class Agent:
    """Two networks, their optimizer, and what is written down about them."""

    def __init__(self, work: Work, writer: SummaryWriter) -> None:
        self.work, self.writer, self.started = work, writer, time.time()
        self.network, self.target = QNetwork(work.hidden), QNetwork(work.hidden)
        self.target.load_state_dict(self.network.state_dict())
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=work.learning_rate)

    def epsilon(self, step: int) -> float:
        slope = (self.work.final_epsilon - 1.0) / self.work.exploration_steps
        return max(1.0 + slope * step, self.work.final_epsilon)

    def act(self, observations: np.ndarray) -> np.ndarray:
        values = self.network(torch.Tensor(observations).to("cpu"))
        return torch.argmax(values, dim=1).cpu().numpy()

    def learn(self, batch, step: int) -> None:
        with torch.no_grad():
            following, _ = self.target(batch.next_observations).max(dim=1)
            wanted = batch.rewards.flatten() + self.work.gamma * following * (1 - batch.dones.flatten())
        values = self.network(batch.observations).gather(1, batch.actions).squeeze()
        loss = F.mse_loss(wanted, values)
        if step % 100 == 0:
            self.log(loss, values, step)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def log(self, loss: torch.Tensor, values: torch.Tensor, step: int) -> None:
        rate = int(step / (time.time() - self.started))
        self.writer.add_scalar("loss", loss, step)
        self.writer.add_scalar("values", values.mean().item(), step)
        self.writer.add_scalar("rate", rate, step)
        print(step, rate)

    def renew_target(self) -> None:
        for old, new in zip(self.target.parameters(), self.network.parameters(), strict=True):
            old.data.copy_(1.0 * new.data + 0.0 * old.data)


def episodes(infos: dict) -> Iterator[dict]:
    return (info["episode"] for info in infos.get("final_info", ()) if info and "episode" in info)


def train(work: Work) -> Agent:
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(work.seed)
    envs = gymnasium.vector.SyncVectorEnv([lambda: make_env(work.seed)])
    space = envs.single_action_space
    agent = Agent(work, SummaryWriter("runs"))
    buffer = ReplayBuffer(work.buffer_size, envs.single_observation_space, space, handle_timeout_termination=False)
    observations, _ = envs.reset(seed=work.seed)
    for step in range(work.env_steps):
        is_random = random.random() < agent.epsilon(step)
        actions = np.array([space.sample()]) if is_random else agent.act(observations)
        following, rewards, terminated, truncated, infos = envs.step(actions)
        for episode in episodes(infos):
            print(step, episode["r"])
            agent.writer.add_scalar("return", episode["r"], step)
            agent.writer.add_scalar("length", episode["l"], step)
        last = following.copy()
        for index, is_cut in enumerate(truncated):
            if is_cut:
                last[index] = infos["final_observation"][index]
        buffer.add(observations, last, actions, rewards, terminated, infos)
        observations = following
        if step > work.learning_starts:
            if step % work.train_every == 0:
                agent.learn(buffer.sample(work.batch_size), step)
            if step % work.target_every == 0:
                agent.renew_target()
    return agent


work, meter, _ = begin()
one_thread()
agent = train(work)
meter.finish(lambda observation: int(agent.act(observation[None])[0]), "tensorboard")
