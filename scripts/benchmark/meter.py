"""What is measured inside the process of one run, in the same way for ours and for every peer's.

The environment's own ``step`` carries the counter, so that no framework is asked what it did. This module is imported
in the peers' virtual environments too: it may need nothing but gymnasium.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium

EVALUATION_EPISODES = 20
TRAINING_EPISODES = 20


@dataclass(frozen=True)
class Work:
    """Learning from a buffer, or in epochs over rollouts of ``train_every``; numbers of steps are of env steps.

    What begins with ``target_every`` is said of deep Q-learning on CartPole-v1 as CleanRL's ``dqn.py`` does it.
    """

    seed: int
    env_steps: int
    hidden: list[int]
    batch_size: int
    train_every: int
    learning_starts: int
    buffer_size: int = 10_000
    learning_rate: float = 2.5e-4
    gamma: float = 0.99
    target_every: int = 500
    exploration_fraction: float = 0.5
    final_epsilon: float = 0.05
    env_id: str = "CartPole-v1"
    num_envs: int = 1
    epochs: int = 0

    @property
    def exploration_steps(self) -> int:
        return int(self.exploration_fraction * self.env_steps)

    @property
    def window(self) -> tuple[int, int]:
        """The steady part: the second half, when epsilon is constant and whatever is imported late has been."""
        return self.env_steps // 2, self.env_steps


@dataclass
class Order:
    """What one process is told to do."""

    work: Work
    result: str
    started: float
    extra: list[str] = field(default_factory=list)

    def to_text(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> "Order":
        values = json.loads(text)
        return cls(**{**values, "work": Work(**values["work"])})


class Meter:
    """Clocks the steady window of this process's training, from counts in ``step`` of its environment."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.returns: list[float] = []
        self._marks: list[tuple[float, float, float]] = []
        self._env_steps, self._return = 0, 0.0
        self._due = iter([*order.work.window, 0])
        self._next = 1
        self._first_step = 0.0
        self._install()

    def _install(self) -> None:
        kind: Any = type(gymnasium.make(self.order.work.env_id).unwrapped)
        step, reset = kind.step, kind.reset

        def counted_step(env: Any, action: Any) -> Any:
            self._env_steps += 1
            if self._env_steps == self._next:
                self._mark()
            outcome = step(env, action)
            self._return += outcome[1]
            return outcome

        def counted_reset(env: Any, **arguments: Any) -> Any:
            if len(self._marks) < 2:  # evaluation, after the window, is no training
                self.returns.append(self._return)
                self._return = 0.0
            return reset(env, **arguments)

        kind.step, kind.reset = counted_step, counted_reset

    def _mark(self) -> None:
        if self._env_steps == 1:
            self._first_step = time.time() - self.order.started
        else:
            self._marks.append((time.perf_counter(), time.process_time(), seconds_of_children()))
        self._next = next(self._due, 0)

    def finish(self, act: Callable[[Any], Any], *packages: str) -> None:
        """Play the learned policy greedily and write down everything; ``packages``: whose versions to tell."""
        began = time.perf_counter()
        env_id = self.order.work.env_id
        returns = [play(act, 10_000 + episode, env_id) for episode in range(EVALUATION_EPISODES)]
        self.write(sum(returns) / len(returns), time.perf_counter() - began, *packages)

    def write(self, evaluation: float, evaluation_seconds: float, *packages: str) -> None:
        if len(self._marks) < 2:
            raise RuntimeError(
                f"only {self._env_steps} env steps were made; the window ends at {self.order.work.env_steps}"
            )
        wall, own, started = (after - before for before, after in zip(*self._marks, strict=True))
        begin, end = self.order.work.window
        result = {
            "env_steps": end - begin,
            "wall": wall,
            "cpu": own + started,
            "cpu_started": started,
            "first_step": self._first_step,
            "evaluation_seconds": evaluation_seconds,
            "train_return": mean(self.returns[-TRAINING_EPISODES:]),
            "eval_return": evaluation,
            "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "versions": {name: version(name) for name in (*packages, "torch", "gymnasium", "numpy")},
        }
        Path(self.order.result).write_text(json.dumps(result))


def seconds_of_children() -> float:
    """CPU time of the processes that this one started, those that are gone and those that are not."""
    waited_for = os.times()
    living = sum(_ticks(child) for child in _descendants(os.getpid())) / os.sysconf("SC_CLK_TCK")
    return waited_for.children_user + waited_for.children_system + living


def _descendants(process: int) -> list[int]:
    children = [int(word) for path in Path(f"/proc/{process}/task").glob("*/children") for word in _words(path)]
    return [*children, *(below for child in children for below in _descendants(child))]


def _ticks(process: int) -> int:
    """User and system time of a process and of those it waited for; none if it is gone."""
    fields = _words(Path(f"/proc/{process}/stat"))
    return sum(int(field) for field in fields[-39:-35])  # counted from the end: a name may have spaces


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def begin() -> tuple[Work, Meter, list[str]]:
    """The work this process was started for, its meter, and further arguments."""
    order = Order.from_text(sys.argv[1])
    return order.work, Meter(order), order.extra


def play(act: Callable[[Any], Any], seed: int, env_id: str) -> float:
    env = gymnasium.make(env_id)
    observation, _ = env.reset(seed=seed)
    total, is_over = 0.0, False
    while not is_over:
        observation, reward, terminated, truncated, _ = env.step(act(observation))
        total, is_over = total + float(reward), terminated or truncated
    return total


def mean(values: list[float]) -> float:
    return sum(values) / max(len(values), 1)


def one_thread() -> None:
    """Torch has its own mind about threads unless told; to be called after the environment variables are set."""
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
