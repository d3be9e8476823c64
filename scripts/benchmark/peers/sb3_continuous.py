"""The work for vectors as actions in Stable-Baselines3; argument: the name of its class."""

import numpy as np
import stable_baselines3
from stable_baselines3.common.noise import NormalActionNoise

from scripts.benchmark.meter import begin, one_thread

work, meter, (kind,) = begin()
one_thread()
options = {} if kind == "SAC" else {"action_noise": NormalActionNoise(np.zeros(6), 0.1 * np.ones(6))}
model = getattr(stable_baselines3, kind)(
    "MlpPolicy",
    work.env_id,
    learning_rate=work.learning_rate,
    buffer_size=work.buffer_size,
    learning_starts=work.learning_starts,
    batch_size=work.batch_size,
    gamma=work.gamma,
    train_freq=work.train_every,
    gradient_steps=1,
    policy_kwargs={"net_arch": work.hidden},
    seed=work.seed,
    device="cpu",
    **options,
)
model.learn(work.env_steps)
meter.finish(lambda observation: model.predict(observation, deterministic=True)[0], "stable_baselines3")
