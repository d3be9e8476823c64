"""Collection by worker processes, in step with the updates or beside them."""

import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import pairwise
from multiprocessing.connection import wait

import numpy as np
import torch
from tensordict import TensorDict

from runner.collectors.arrays import Arrays
from runner.collectors.batches import Batches
from runner.collectors.crew import Crew, Worker
from runner.collectors.playing import VectorEnvironment
from runner.collectors.processes import Died
from runner.collectors.shared import SharedWeights, Slot
from runner.collectors.worker import Player
from runner.spec import TRAJ_IDS, Actor, EnvFault, Progress, StateDict

log = logging.getLogger(__name__)


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
        acting = policy.copy("cpu")
        environment.close()  # only for its spec: it is stepped elsewhere
        shares = fair_shares(environment.num_envs, num_collectors)
        workers = [self._make_worker(index, *share) for index, share in enumerate(shares)]
        self.crew = Crew(workers, lambda worker: self._make_player(worker, acting), max_failures, let_go)
        try:
            self.crew.begin()
        except BaseException:
            self.crew.close()
            raise

    def _make_worker(self, index: int, first: int, num_envs: int) -> Worker:
        spec = self.environment.spec
        slots = [Slot.allocate(self._steps_of_worker(num_envs), num_envs, spec) for _ in range(self.slots_each)]
        return Worker(index, first, num_envs, slots)

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
        """Draw which actions of the next batch are random, and write that into the workers' slots."""
        if self.policy.exploration is None:
            return
        shape = len(workers[0].slots[number].is_random), sum(worker.num_envs for worker in workers)
        plan = self.policy.exploration.plan(shape, env_steps, self.init_random_frames)
        first = workers[0].first
        for worker in workers:
            here = slice(worker.first - first, worker.first - first + worker.num_envs)
            worker.slots[number].is_random[...] = plan.is_random[:, here]
            worker.slots[number].actions[...] = plan.actions[:, here]

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

    def _state_dict(self, command: str) -> StateDict:
        states = [self.crew.state_of(worker, command) for worker in self.crew.workers]
        return {
            "environment": self.environment.joined(states),
            "policy": self.policy.state_dict(),
            "weights": self._weights.read() if self._are_weights_known else None,
            "failures": self.crew.failures,
            "collected": self.collected,
        }

    def load_state_dict(self, state: StateDict) -> None:
        """Go on from a state of this or another kind of collector, of as many environments."""
        for worker in self.crew.workers:
            share = self.environment.share(state["environment"], worker.first, worker.num_envs)
            self.crew.load(worker, share)
        self.policy.load_state_dict(state["policy"])
        self.crew.failures, self.collected = state.get("failures", 0), state.get("collected", 0)
        if state.get("weights") is not None:
            self._weights.write(state["weights"])
            self._are_weights_known = True


class SyncCollector(MultiProcessCollector):
    """Yields batches ``[N, T]`` that all workers have played together, by the same weights.

        The same seed gives the same batches, whatever becomes of workers in between.
    Every batch is a new TensorDict over
        the same memory, which the next one overwrites.
    """

    def __init__(self, environment: VectorEnvironment, policy: Actor, frames_per_batch: int, **options: object) -> None:
        super().__init__(environment, policy, frames_per_batch, **options)  # type: ignore[arg-type]
        self._arrays = Arrays.allocate(self._steps_of_worker(0), environment.num_envs, environment.spec)
        self.batch = self._arrays.as_batch()

    def __str__(self) -> str:
        return f"in {len(self.crew.workers)} processes, in step with the updates"

    def collect(self) -> TensorDict:
        policy_state, workers = self.policy.state_dict(), self.crew.workers
        self._plan(workers, 0, self.progress.env_steps)
        played: list[Worker] = []
        fault: EnvFault | None = None
        for worker in workers:
            with suppress(Died):
                worker.ask("play", 0)
        for worker in workers:
            try:
                _, worker.counts = self.crew.settle(worker, partial(worker.call, "play", 0))
                played.append(worker)
            except EnvFault as error:
                fault = fault or error
        if fault is not None:
            self._roll_back(played, policy_state)
            raise fault
        self._gather(workers)
        return self.batch.copy()

    def _roll_back(self, played: list[Worker], policy_state: StateDict) -> None:
        for worker in played:
            with suppress(Died):
                worker.call("roll_back")
        self.policy.load_state_dict(policy_state)

    def _gather(self, workers: list[Worker]) -> None:
        """Put the workers' parts together."""
        for worker in workers:
            slot, here = worker.slots[0], slice(worker.first, worker.first + worker.num_envs)
            for whole, part in zip(self._arrays, slot.arrays, strict=True):
                whole[:, here] = part
            worker.note_played(slot)
            self.crew.shorten_log(worker)

    def state_dict(self) -> StateDict:
        return self._state_dict("state")


class AsyncCollector(MultiProcessCollector):
    """Yields batches ``[M, T]`` of one worker each, as soon as they are there; workers play on during updates.

    A batch was played by weights that may be some updates old, as ``perf/policy_lag_updates`` says, and which worker's
    batch comes first depends on the machine: the same seed gives another run each time. A resumed run goes on with
    every episode, but plays anew what no update has seen. ``("collector", "traj_ids")`` tells whose rows are whose.
    """

    slots_each = 2

    def __init__(self, environment: VectorEnvironment, policy: Actor, frames_per_batch: int, **options: object) -> None:
        super().__init__(environment, policy, frames_per_batch, **options)  # type: ignore[arg-type]
        workers = self.crew.workers
        if len({worker.num_envs for worker in workers}) > 1:
            self.crew.close()
            raise ValueError(
                f"collector.num_collectors={len(workers)} must divide env.num_envs={environment.num_envs}: "
                "asynchronous workers are all of one size"
            )
        self._batches = [[slot.arrays.as_batch() for slot in worker.slots] for worker in workers]
        self._traj_ids = np.zeros(workers[0].slots[0].is_random.shape, np.int64)
        self.batch = self._batches[0][0].copy()
        self.batch.set(TRAJ_IDS, torch.from_numpy(self._traj_ids).transpose(0, 1))
        self._episodes = np.zeros(environment.num_envs, np.int64)
        self._under_way: dict[Worker, int] = {}
        self._waiting: list[Worker] = []
        self._ready: dict[Worker, int] = {}
        self._faults: list[EnvFault] = []
        self._updates_at: dict[int, int] = {}
        self._lags: list[int] = []

    def _steps_of_worker(self, num_envs: int) -> int:
        return self._steps(num_envs, "the environments of a worker")

    def __str__(self) -> str:
        return f"in {len(self.crew.workers)} processes, beside the updates (no seed repeats such a run)"

    def start(self) -> None:
        super().start()
        self._updates_at.setdefault(self._weights.version, self.progress.updates)
        for worker in self.crew.workers:
            if worker not in self._under_way:
                self._begin(worker, 0)

    def collect(self) -> TensorDict:
        """The batch that one of the workers has played; it begins the next one at once."""
        if self._faults:
            raise self._faults.pop(0)
        worker = self._next()
        number = self._under_way.pop(worker)
        worker.note_played(worker.slots[number])
        self.crew.shorten_log(worker)
        self._begin(worker, 1 - number)
        return self._tagged(worker, number)

    def _begin(self, worker: Worker, number: int) -> None:
        """Let a worker play its next batch."""
        ahead = len(self._under_way) * self.frames_per_batch
        self._plan([worker], number, self.progress.env_steps + ahead)
        self._under_way[worker] = number
        self._waiting.append(worker)
        with suppress(Died):  # it is found out when the answer is waited for
            worker.ask("play", number)

    def _next(self) -> Worker:
        """The worker that has waited longest of those whose batch is there, when one is."""
        while True:
            for worker in self._waiting:
                if worker in self._ready or worker.connection is None or worker.connection.poll():
                    self._hear(worker)
                    self._waiting.remove(worker)
                    self._lags.append(self.progress.updates - self._updates_at.get(self._ready.pop(worker), 0))
                    return worker
            wait([worker.connection for worker in self._waiting if worker.connection is not None])

    def _hear_all(self) -> None:
        """Wait for all batches under way; of faults in them nobody needs to know before the next batch is asked for."""
        for worker in list(self._waiting):
            try:
                self._hear(worker)
            except EnvFault as fault:
                self._faults.append(fault)

    def _hear(self, worker: Worker) -> None:
        """Take the answer of a worker that has played its batch."""
        if worker not in self._ready:
            number = self._under_way[worker]
            try:
                version, worker.counts = self.crew.settle(worker, partial(worker.call, "play", number))
            except EnvFault:
                self._waiting.remove(worker)
                raise
            self._ready[worker] = version

    def _tagged(self, worker: Worker, number: int) -> TensorDict:
        """The batch, with a number for each episode that no other of the run has."""
        done = worker.slots[number].arrays.done
        here = slice(worker.first, worker.first + worker.num_envs)
        before = np.cumsum(done, axis=0) - done
        ids = (self._episodes[here] + before) * self.environment.num_envs + np.arange(here.start, here.stop)
        self._episodes[here] += done.sum(axis=0)
        batch = self._batches[worker.index][number].copy()
        batch.set(TRAJ_IDS, torch.from_numpy(ids).transpose(0, 1))
        return batch

    def update_policy_weights_(self) -> None:
        super().update_policy_weights_()
        self._updates_at[self._weights.version] = self.progress.updates
        for old in [version for version in self._updates_at if version < self._weights.version - 1000]:
            del self._updates_at[old]

    def row_metrics(self) -> dict[str, float]:
        """The same, and by how many updates the weights were too old that the row's batches were played by."""
        metrics = super().row_metrics()
        if self._lags:
            metrics["perf/policy_lag_updates"] = sum(self._lags) / len(self._lags)
            self._lags.clear()
        return metrics

    def state_dict(self) -> StateDict:
        """Waits for the batches that are under way, and forgets them: a resumed run plays them anew."""
        self._hear_all()
        before = {worker: worker.pid for worker in self._under_way}
        state = self._state_dict("marked_state" if self._under_way else "state")
        for worker, pid in before.items():
            if worker.pid != pid and worker in self._ready:  # begun anew before its batch, which nobody has seen
                del self._ready[worker]
                worker.ask("play", self._under_way[worker])
        return {**state, "trajectories": self._episodes.copy()}

    def load_state_dict(self, state: StateDict) -> None:
        self._hear_all()
        self._faults.clear()
        self._under_way, self._waiting, self._ready = {}, [], {}
        super().load_state_dict(state)
        self._episodes[...] = state.get("trajectories", np.array(state["environment"]["episodes"]))


def fair_shares(num_envs: int, num_collectors: int) -> list[tuple[int, int]]:
    """The first environment and the number of them of each worker: in order, and as even as they can be."""
    edges = [num_envs * index // num_collectors for index in range(num_collectors + 1)]
    return [(first, after - first) for first, after in pairwise(edges)]
