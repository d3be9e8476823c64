"""Collection in the trainer's own process."""

import numpy as np
from tensordict import TensorDict

from runner.collectors.arrays import Arrays
from runner.collectors.batches import Batches
from runner.collectors.playing import VectorEnvironment, plan_of, play
from runner.spec import Actor, EnvFault, Progress, StateDict


class InProcessCollector(Batches):
    """Steps all environments itself; the policy's network is the learner's, so that new weights need no sending."""

    def __init__(
        self,
        environment: VectorEnvironment,
        policy: Actor,
        frames_per_batch: int,
        init_random_frames: int = 0,
        progress: Progress | None = None,
    ) -> None:
        super().__init__(environment, policy, frames_per_batch, init_random_frames, progress)
        environment.complete()
        self._arrays = Arrays.allocate(
            self._steps(environment.num_envs, "env.num_envs"), environment.num_envs, environment.spec, policy.extra
        )
        self._memory = np.zeros((environment.num_envs, policy.extra.memory), np.float32)
        self.batch = self._arrays.as_batch()

    def start(self) -> None:
        self.environment.start()

    def collect(self) -> TensorDict:
        policy_state, memory = self.policy.state_dict(), self._memory.copy()
        self.environment.mark()
        try:
            self._play()
        except EnvFault:
            self.environment.roll_back()
            self.policy.load_state_dict(policy_state)
            self._memory[...] = memory
            raise
        self.environment.check_bounds(self._arrays)
        return self.batch.copy()

    def _play(self) -> None:
        environment, policy = self.environment, self.policy
        plan = plan_of(policy, self._arrays.reward.shape, self.progress.env_steps, self.init_random_frames)
        play(environment, policy, self._arrays, plan, self._memory)

    def __str__(self) -> str:
        return "in this process"

    def row_metrics(self) -> dict[str, float]:
        """For every row: what the environment counts."""
        return self.environment.row_metrics()

    def update_policy_weights_(self) -> None:
        """Nothing to do: the policy's network is the learner's."""

    def shutdown(self) -> None:
        self.environment.close()

    def state_dict(self) -> StateDict:
        state = {"environment": self.environment.state_dict(), "policy": self.policy.state_dict()}
        return {**state, "collected": self.collected, "memory": self._memory.copy()}

    def load_state_dict(self, state: StateDict) -> None:
        self.environment.load_state_dict(state["environment"])
        self.policy.load_state_dict(state["policy"])
        self.collected = state.get("collected", 0)
        self._memory[...] = state.get("memory", 0)
