"""What all collectors have in common."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

from tensordict import TensorDict, TensorDictBase

from runner.collectors.playing import VectorEnvironment
from runner.spec import Actor, Progress


class Batches(ABC):
    """Yields batches ``[N, T]`` of ``frames_per_batch`` env steps, without end.

    Every batch is a new TensorDict over the same memory, which the next one overwrites: copy what you keep.

    Args:
        environment: the environments.
        policy: its network is the learner's own.
        frames_per_batch: env steps of a batch.
        init_random_frames: env steps at the start of the run whose actions are random.
        progress: the run's counters, which exploration follows.
    """

    batch: TensorDictBase
    total_frames: int | None = None
    """Env steps of this collector after which there are no more batches, where that is not the trainer's business."""
    postproc: Callable[[TensorDictBase], TensorDictBase] | None = None
    """Applied to each batch before anyone sees it."""

    def __init__(
        self,
        environment: VectorEnvironment,
        policy: Actor,
        frames_per_batch: int,
        init_random_frames: int,
        progress: Progress | None,
    ) -> None:
        if init_random_frames and policy.exploration is None:
            words = f"collector.init_random_frames={init_random_frames} needs an exploration to draw the actions"
            raise ValueError(words)
        self.environment, self.policy = environment, policy
        self.frames_per_batch, self.init_random_frames = frames_per_batch, init_random_frames
        self.progress = progress or Progress(frame_skip=environment.spec.frame_skip)
        self.collected = 0

    def __iter__(self) -> Iterator[TensorDictBase]:
        self.start()
        while self.total_frames is None or self.collected < self.total_frames:
            batch = self.collect()
            self.collected += batch.numel()
            self.policy.describe(batch)
            yield batch if self.postproc is None else self.postproc(batch)

    @abstractmethod
    def start(self) -> None:
        """Get ready to play, where the environments are."""

    @abstractmethod
    def collect(self) -> TensorDict:
        """Play the next batch. An environment that fails for good leaves the state as it was before the batch."""

    def _steps(self, num_envs: int, whose: str) -> int:
        """Steps of each of the environments that a batch is of."""
        if self.frames_per_batch % num_envs:
            raise ValueError(
                f"collector.frames_per_batch={self.frames_per_batch} is not a multiple of {whose}={num_envs}"
            )
        return self.frames_per_batch // num_envs

    @property
    def resume_mode(self) -> str:
        """How environments in mid-episode are brought back: ``snapshot``, ``tape`` or ``none``."""
        return self.environment.resume_mode
