"""Collection by worker processes beside the updates."""

from contextlib import suppress
from functools import partial
from multiprocessing.connection import wait

import numpy as np
import torch
from tensordict import TensorDict

from runner.collectors.crew import Worker
from runner.collectors.multi_process import MultiProcessCollector
from runner.collectors.processes import Died
from runner.spec import TRAJ_IDS, EnvFault, StateDict


class AsyncCollector(MultiProcessCollector):
    """Yields batches ``[M, T]`` of one worker each, as soon as they are there; workers play on during updates.

    A batch was played by weights that may be some updates old, as ``perf/policy_lag_updates`` says, and which worker's
    batch comes first depends on the machine: the same seed gives another run each time. A resumed run goes on with
    every episode, but plays anew what no update has seen. ``("collector", "traj_ids")`` tells whose rows are whose.
    """

    slots_each = 2

    def _prepare(self) -> None:
        workers = self.crew.workers
        if len({worker.num_envs for worker in workers}) > 1:
            raise ValueError(
                f"collector.num_collectors={len(workers)} must divide env.num_envs={self.environment.num_envs}: "
                "asynchronous workers are all of one size"
            )
        self._batches = [[slot.arrays.as_batch() for slot in worker.slots] for worker in workers]
        self.batch = self._batches[0][0].copy()
        self.batch.set(TRAJ_IDS, torch.zeros(self.batch.batch_size, dtype=torch.int64))
        self._episodes = np.zeros(self.environment.num_envs, np.int64)
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
        try:
            self.crew.shorten_log(worker)
            self._begin(worker, 1 - number)
        except EnvFault as fault:  # this batch counts, the next one cannot be begun
            self._faults.append(fault)
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
                del self._under_way[worker]
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
        state = self._state_dict(lambda worker: "marked_state" if worker in self._under_way else "state")
        for worker, pid in before.items():
            if worker.pid != pid and worker in self._ready:  # begun anew before its batch, which nobody has seen
                del self._ready[worker]
                with suppress(Died):
                    worker.ask("play", self._under_way[worker])
        return {**state, "trajectories": self._episodes.copy()}

    def load_state_dict(self, state: StateDict) -> None:
        self._hear_all()
        self._faults.clear()
        self._under_way, self._waiting, self._ready = {}, [], {}
        super().load_state_dict(state)
        self._episodes[...] = state.get("trajectories", np.array(state["environment"]["episodes"]))
