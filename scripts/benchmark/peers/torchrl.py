"""The work in TorchRL, from the components of its DQN example; argument: env steps per collected batch."""

import torch
from tensordict.nn import TensorDictSequential
from torch import nn
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import GymEnv, RewardSum, StepCounter, TransformedEnv
from torchrl.modules import MLP, EGreedyModule, QValueActor
from torchrl.objectives import DQNLoss, HardUpdate

from scripts.benchmark.meter import begin, one_thread

work, meter, extra = begin()
one_thread()
torch.manual_seed(work.seed)
frames_per_batch = int(extra[0]) if extra else work.train_every
env = TransformedEnv(GymEnv("CartPole-v1", categorical_action_encoding=True), RewardSum())
env.append_transform(StepCounter())
env.set_seed(work.seed)
network = MLP(in_features=4, out_features=2, num_cells=work.hidden, activation_class=nn.ReLU)
actor = QValueActor(network, in_keys=["observation"], spec=env.action_spec)
greedy = EGreedyModule(
    env.action_spec, eps_init=1.0, eps_end=work.final_epsilon, annealing_num_steps=work.exploration_steps
)
collector = Collector(
    env,
    TensorDictSequential(actor, greedy),
    frames_per_batch=frames_per_batch,
    total_frames=work.env_steps,
    device="cpu",
    storing_device="cpu",
)
buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(work.buffer_size, device="cpu"), batch_size=work.batch_size)
loss = DQNLoss(actor, loss_function="l2", delay_value=True, double_dqn=False)
loss.make_value_estimator(gamma=work.gamma)
target = HardUpdate(loss, value_network_update_interval=work.target_every // work.train_every)
optimizer = torch.optim.Adam(loss.parameters(), lr=work.learning_rate)

collected = 0
for batch in collector:
    buffer.extend(batch.reshape(-1))
    collected += batch.numel()
    greedy.step(batch.numel())
    if collected < work.learning_starts:
        continue
    for _ in range(frames_per_batch // work.train_every):
        optimizer.zero_grad()
        loss(buffer.sample())["loss"].backward()
        optimizer.step()
        target.step()
    collector.update_policy_weights_()
collector.shutdown()


@torch.no_grad()
def act(observation):
    return int(network(torch.as_tensor(observation)).argmax())


meter.finish(act, "torchrl", "tensordict")
