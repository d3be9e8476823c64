"""The work by epochs over rollouts in Stable-Baselines3: environments side by side, networks of their own."""

import stable_baselines3
from stable_baselines3.common.env_util import make_vec_env

from scripts.benchmark.meter import begin, one_thread

work, meter, _ = begin()
one_thread()
model = stable_baselines3.PPO(
    "MlpPolicy",
    make_vec_env(work.env_id, n_envs=work.num_envs, seed=work.seed),
    learning_rate=lambda left: work.learning_rate * left,
    n_steps=work.train_every // work.num_envs,
    batch_size=work.batch_size,
    n_epochs=work.epochs,
    gamma=work.gamma,
    ent_coef=0.01,
    vf_coef=0.5,
    clip_range=0.2,
    policy_kwargs={"net_arch": {"pi": work.hidden, "vf": work.hidden}},
    seed=work.seed,
    device="cpu",
)
model.learn(work.env_steps)
meter.finish(lambda observation: model.predict(observation, deterministic=True)[0], "stable_baselines3")
