"""The work in Stable-Baselines3; as it ships, it uses a Huber loss and clips gradients at 10."""

from stable_baselines3 import DQN

from scripts.benchmark.meter import begin, one_thread

work, meter, _ = begin()
one_thread()
model = DQN(
    "MlpPolicy",
    "CartPole-v1",
    learning_rate=work.learning_rate,
    buffer_size=work.buffer_size,
    learning_starts=work.learning_starts,
    batch_size=work.batch_size,
    gamma=work.gamma,
    train_freq=work.train_every,
    gradient_steps=1,
    target_update_interval=work.target_every,
    exploration_fraction=work.exploration_fraction,
    exploration_final_eps=work.final_epsilon,
    policy_kwargs={"net_arch": work.hidden},
    seed=work.seed,
    device="cpu",
)
model.learn(work.env_steps)
meter.finish(lambda observation: int(model.predict(observation, deterministic=True)[0]), "stable_baselines3")
