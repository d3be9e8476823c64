"""What collectors with worker processes have in common."""

from abc import abstractmethod
from collections.abc import Callable
from itertools import pairwise

import numpy as np

from runner.collectors.batches import Batches
from runner.collectors.crew import Crew, Worker
from runner.collectors.playing import VectorEnvironment
from runner.collectors.shared import SharedWeights, Slot
from runner.collectors.worker import Player
from runner.spec import Actor, Progress, StateDict


class MultiProcessCollector(Batches):
    """What collectors with worker processes have in common: each worker steps its part of the environments.

    Workers act by a copy of the policy, whose weights are those of the last ``update_policy_weights_``. One that is
    killed is begun anew where it was, by following the actions since its last known state, and its batch is played
    again. All randomness of exploration is drawn here.

    Args:
        num_collectors: worker processes; the environments are divided as evenly as they can be.
        max_failures: deaths of workers in the whole run after which it ends, saved.
        let_go: closes what workers must not hold open.
    """

    slots_each = 1

    def __init__(
        self,
        environment: VectorEnvironment,
        policy: Actor,
        frames_per_batch: int,
        init_random_frames: int = 0,
        progress: Progress | None = None,
        num_collectors: int = 1,
        max_failures: int = 10,
        let_go: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(environment, policy, frames_per_batch, init_random_frames, progress)
        if not 1 <= num_collectors <= environment.num_envs:
            raise ValueError(
                f"collector.num_collectors={num_collectors} leaves workers without an environment: "
                f"env.num_envs={environment.num_envs}"
            )
        self._weights, self._are_weights_known = SharedWeights(policy.tensors()), False
        acting = policy.copy("cpu", explores=True)
        environment.close()  # only for its spec: it is stepped elsewhere
        shares = fair_shares(environment.num_envs, num_collectors)
        workers = [self._make_worker(index, *share) for index, share in enumerate(shares)]
        self.crew = Crew(workers, lambda worker: self._make_player(worker, acting), max_failures, let_go)
        try:
            self._prepare()
            self.crew.begin()
        except BaseException:
            self.crew.close()
            raise

    @abstractmethod
    def _prepare(self) -> None:
        """Make what batches are put together in; the workers have been forked."""

    def _make_worker(self, index: int, first: int, num_envs: int) -> Worker:
        spec = self.environment.spec
        steps, extra = self._steps_of_worker(num_envs), self.policy.extra
        slots = [Slot.allocate(steps, num_envs, spec, extra) for _ in range(self.slots_each)]
        return Worker(index, first, num_envs, slots, np.zeros((num_envs, extra.memory), np.float32))

    def _steps_of_worker(self, num_envs: int) -> int:
        """Steps of each environment in a batch, for a worker with so many of them."""
        return self._steps(self.environment.num_envs, "env.num_envs")

    def _make_player(self, worker: Worker, acting: Actor) -> Player:
        part = self.environment.part(worker.first, worker.num_envs)
        return Player(part, acting, acting.tensors(), self._weights, worker.slots)

    def start(self) -> None:
        if not self._are_weights_known:
            self.update_policy_weights_()

    def _plan(self, workers: list[Worker], number: int, env_steps: int) -> None:
        """Draw the next batch's randomness, and write it into the workers' slots with what the policy remembers."""
        for worker in workers:
            worker.slots[number].memory[...] = worker.memory
        if self.policy.exploration is None:
            return
        shape = len(workers[0].slots[number].is_random), sum(worker.num_envs for worker in workers)
        plan = self.policy.exploration.plan(shape, env_steps, self.init_random_frames)
        first = workers[0].first
        for worker in workers:
            here = slice(worker.first - first, worker.first - first + worker.num_envs)
            slot = worker.slots[number]
            slot.is_random[...], slot.actions[...] = plan.is_random[:, here], plan.actions[:, here]
            slot.noise[...] = plan.noise[:, here]

    def row_metrics(self) -> dict[str, float]:
        """For every row: what the environments of all workers count, and how often workers were begun anew."""
        counts = [self.environment.row_metrics(), *(worker.counts for worker in self.crew.workers)]
        names = sorted({name for count in counts for name in count})
        sums = {name: sum(count.get(name, 0.0) for count in counts) for name in names}
        return {**sums, "perf/worker_restarts": self.crew.failures}

    def update_policy_weights_(self) -> None:
        """Let the next batches that are begun be played by the learner's weights as they are now."""
        self._weights.push()
        self._are_weights_known = True

    def shutdown(self) -> None:
        """End the workers, within seconds whatever they do; may be called twice."""
        self.crew.close()
        self.environment.close()

    def _state_dict(self, command: Callable[[Worker], str]) -> StateDict:
        """``command`` asks a worker for its state."""
        states = [self.crew.state_of(worker, command(worker)) for worker in self.crew.workers]
        return {
            "environment": self.environment.joined(states),
            "guards": [state["guard"] for state in states],
            "policy": self.policy.state_dict(),
            "weights": self._weights.read() if self._are_weights_known else None,
            "failures": self.crew.failures,
            "collected": self.collected,
            "memory": np.concatenate([worker.memory for worker in self.crew.workers]),
        }

    def load_state_dict(self, state: StateDict) -> None:
        """Go on from a state of this or another kind of collector, of as many environments."""
        environment, workers = state["environment"], self.crew.workers
        shares = [self.environment.share(environment, worker.first, worker.num_envs) for worker in workers]
        guards = state.get("guards", [])
        if len(guards) == len(workers):
            shares = [{**share, "guard": guard} for share, guard in zip(shares, guards, strict=True)]
        for worker, share in zip(workers, shares, strict=True):
            self.crew.load(worker, share)
            if "memory" in state:
                worker.memory[...] = state["memory"][worker.first : worker.first + worker.num_envs]
        counted = {name: sum(share["guard"][name] for share in shares) for name in environment["guard"]}
        self.environment.count_faults({name: total - counted[name] for name, total in environment["guard"].items()})
        self.policy.load_state_dict(state["policy"])
        self.crew.failures, self.collected = state.get("failures", 0), state.get("collected", 0)
        if state.get("weights") is not None:
            self._weights.write(state["weights"])
            self._are_weights_known = True


def fair_shares(num_envs: int, num_collectors: int) -> list[tuple[int, int]]:
    """The first environment and the number of them of each worker: in order, and as even as they can be."""
    edges = [num_envs * index // num_collectors for index in range(num_collectors + 1)]
    return [(first, after - first) for first, after in pairwise(edges)]
