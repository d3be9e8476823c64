"""Collection by worker processes in step with the updates."""

from contextlib import suppress
from functools import partial

from tensordict import TensorDict

from runner.collectors.arrays import Arrays
from runner.collectors.crew import Worker
from runner.collectors.multi_process import MultiProcessCollector
from runner.collectors.processes import Died
from runner.spec import EnvFault, StateDict


class SyncCollector(MultiProcessCollector):
    """Yields batches ``[N, T]`` that all workers have played together, by the same weights.

    The same seed gives the same batches, whatever becomes of workers in between.
    """

    def _prepare(self) -> None:
        environment = self.environment
        steps = self._steps_of_worker(0)
        self._arrays = Arrays.allocate(steps, environment.num_envs, environment.spec, self.policy.extra)
        self.batch = self._arrays.as_batch()

    def __str__(self) -> str:
        return f"in {len(self.crew.workers)} processes, in step with the updates"

    def collect(self) -> TensorDict:
        policy_state, workers = self.policy.state_dict(), self.crew.workers
        for worker in workers:
            self.crew.shorten_log(worker)
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

    def state_dict(self) -> StateDict:
        return self._state_dict(lambda worker: "state")
