"""The work in Tianshou, by its trainer; no logger, no test episodes."""

import gymnasium
import numpy as np
import torch
from tianshou.algorithm import DQN
from tianshou.algorithm.modelfree.dqn import DiscreteQLearningPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Collector, ReplayBuffer
from tianshou.env import DummyVectorEnv
from tianshou.trainer import OffPolicyTrainerParams
from tianshou.utils.net.common import Net

from scripts.benchmark.meter import begin, one_thread

work, meter, _ = begin()
one_thread()
np.random.seed(work.seed)
torch.manual_seed(work.seed)
env = DummyVectorEnv([lambda: gymnasium.make("CartPole-v1")])
env.seed(work.seed)
network = Net(state_shape=4, action_shape=2, hidden_sizes=work.hidden)
policy = DiscreteQLearningPolicy(model=network, action_space=gymnasium.spaces.Discrete(2), eps_training=1.0)
algorithm = DQN(
    policy=policy,
    optim=AdamOptimizerFactory(lr=work.learning_rate),
    gamma=work.gamma,
    target_update_freq=work.target_every // work.train_every,
    is_double=False,
)
collector = Collector(algorithm, env, ReplayBuffer(work.buffer_size), exploration_noise=True)
collector.reset()
env_steps = work.learning_starts
collector.collect(n_step=env_steps, random=True)


def anneal(epoch: int, step: int) -> None:
    fraction = min((work.learning_starts + step) / work.exploration_steps, 1.0)
    policy.set_eps_training(1.0 + fraction * (work.final_epsilon - 1.0))


algorithm.run_training(
    OffPolicyTrainerParams(
        training_collector=collector,
        max_epochs=1,
        epoch_num_steps=work.env_steps - work.learning_starts,
        collection_step_num_env_steps=work.train_every,
        update_step_num_gradient_steps_per_sample=1 / work.train_every,
        batch_size=work.batch_size,
        training_fn=anneal,
        verbose=False,
        show_progress=False,
    )
)


@torch.no_grad()
def act(observation):
    return int(network(observation[None])[0].argmax())


meter.finish(act, "tianshou")
