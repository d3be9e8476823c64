"""Collection in the trainer's own process."""

from collections.abc import Iterator

from tensordict import TensorDict

from runner.collectors.arrays import Arrays
from runner.collectors.playing import VectorEnvironment, plan_of, play
from runner.spec import Actor, EnvFault, Progress, StateDict


class InProcessCollector:
    """Yields batches ``[N, T]`` of ``frames_per_batch`` env steps, without end.

    Every batch is a new TensorDict over the same memory, which the next one overwrites: copy what you keep.

    Args:
        environment: steps ``N`` environments together.
        policy: its network is the learner's own, so that new weights need no sending.
        frames_per_batch: env steps of all environments together, a multiple of N.
        init_random_frames: env steps at the start of the run whose actions are random.
        progress: the run's counters, which exploration follows.
    """

    def __init__(
        self,
        environment: VectorEnvironment,
        policy: Actor,
        frames_per_batch: int,
        init_random_frames: int = 0,
        progress: Progress | None = None,
    ) -> None:
        check_sizes(environment, policy, frames_per_batch, init_random_frames)
        environment.complete()
        self.environment, self.policy = environment, policy
        self.init_random_frames = init_random_frames
        self.frames_per_batch = frames_per_batch
        self.progress = progress or Progress(frame_skip=environment.spec.frame_skip)
        self._steps = frames_per_batch // environment.num_envs
        self._arrays = Arrays.allocate(self._steps, environment.num_envs, environment.spec)
        self.batch = self._arrays.as_batch()

    def __iter__(self) -> Iterator[TensorDict]:
        self.environment.start()
        while True:
            yield self.collect()

    def collect(self) -> TensorDict:
        """Play the next batch. An environment that fails for good leaves the state as it was before the batch."""
        policy_state = self.policy.state_dict()
        self.environment.mark()
        try:
            self._play()
        except EnvFault:
            self.environment.roll_back()
            self.policy.load_state_dict(policy_state)
            raise
        self.environment.check_bounds(self._arrays)
        return self.batch.copy()

    def _play(self) -> None:
        environment, policy = self.environment, self.policy
        plan = plan_of(policy, self._steps, environment.num_envs, self.progress.env_steps, self.init_random_frames)
        play(environment, policy.greedy, self._arrays, plan)

    @property
    def resume_mode(self) -> str:
        """How environments in mid-episode are brought back: ``snapshot``, ``tape`` or ``none``."""
        return self.environment.resume_mode

    def row_metrics(self) -> dict[str, float]:
        """For every row: what the environment counts."""
        return self.environment.row_metrics()

    def update_policy_weights_(self) -> None:
        """Nothing to do: the policy's network is the learner's."""

    def shutdown(self) -> None:
        self.environment.close()

    def state_dict(self) -> StateDict:
        return {"environment": self.environment.state_dict(), "policy": self.policy.state_dict()}

    def load_state_dict(self, state: StateDict) -> None:
        self.environment.load_state_dict(state["environment"])
        self.policy.load_state_dict(state["policy"])


def check_sizes(
    environment: VectorEnvironment, policy: Actor, frames_per_batch: int, init_random_frames: int
) -> None:
    """Raise ``ValueError`` where batches or random actions like these cannot be."""
    num_envs = environment.num_envs
    if frames_per_batch % num_envs:
        raise ValueError(f"collector.frames_per_batch={frames_per_batch} is not a multiple of env.num_envs={num_envs}")
    if init_random_frames and policy.exploration is None:
        raise ValueError(f"collector.init_random_frames={init_random_frames} needs an exploration to draw the actions")
