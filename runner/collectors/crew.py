"""The workers of a collector, seen from the run: asked, heard, and begun anew when they die."""

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from runner.collectors.processes import Died, ForkServer
from runner.collectors.shared import Slot
from runner.collectors.worker import ERROR, FAULT, Patience, Player, patience_among, pickled, serve
from runner.spec import EnvFault, HooklineError, StateDict

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""To take the state of a worker that dies over it."""
LONGEST_LOG = 4096
"""Steps of a worker that are followed again when it dies; after so many its state is asked for."""


class WorkerError(HooklineError):
    """Something other than an environment's fault ended a worker's work."""


@dataclass(eq=False)
class Worker:
    """One process, and all that is needed to bring another one to where it was.

    That is a state (``base``), the actions since (``played``), what they lead to, and what the policy remembers there.
    """

    index: int
    first: int
    num_envs: int
    slots: Sequence[Slot]
    memory: np.ndarray
    base: StateDict | None = None
    played: list[np.ndarray] = field(default_factory=list)
    played_steps: int = 0
    observation: np.ndarray | None = None
    pid: int = 0
    connection: Connection | None = None
    patience: Patience | None = None
    counts: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        last = self.first + self.num_envs - 1
        return f"collector worker {self.index} (env {self.first}{f' to {last}' if last > self.first else ''})"

    def ask(self, command: str, *arguments: Any) -> None:
        """Send a command; raises ``Died``."""
        if self.connection is None:
            raise Died(str(self))
        try:
            self.connection.send_bytes(pickled(command, *arguments))
        except OSError as error:
            raise Died(str(self)) from error

    def answer(self) -> Any:
        """The answer to the oldest command without one; raises ``Died``, ``EnvFault`` or ``WorkerError``."""
        if self.connection is None:
            raise Died(str(self))
        if self.patience is not None:
            self.patience.wait()
        try:
            kind, value = self.connection.recv()
        except (EOFError, OSError) as error:
            raise Died(str(self)) from error
        if kind == FAULT:
            kind_of_error, line, trace = value
            log.info("%s:\n%s", self, trace)
            raise kind_of_error(line)
        if kind == ERROR:
            log.error("%s failed:\n%s", self, value)
            raise WorkerError(f"{self} failed: {value.strip().splitlines()[-1]} (its traceback is above)")
        return value

    def call(self, command: str, *arguments: Any) -> Any:
        self.ask(command, *arguments)
        return self.answer()

    def note_played(self, slot: Slot) -> None:
        """The batch in that slot counts from now on."""
        self.played.append(slot.arrays.action.copy())
        self.played_steps += len(slot.arrays.action)
        self.observation, self.memory = slot.observation.copy(), slot.memory_after.copy()

    def begin_log(self, base: StateDict) -> None:
        """``base`` is where it stands: a worker in its place would begin there."""
        self.base, self.played, self.played_steps, self.observation = base, [], 0, None


class Crew:
    """All workers of a collector.

    Args:
        workers: that are to be begun.
        make_player: makes what a worker is to do, in its process.
        max_failures: deaths in the whole run, however often it is resumed, after which it ends.
        let_go: closes what workers must not hold open.
    """

    def __init__(
        self,
        workers: Sequence[Worker],
        make_player: Callable[[Worker], Player],
        max_failures: int,
        let_go: Callable[[], None] = lambda: None,
    ) -> None:
        self.workers, self.max_failures, self.failures = list(workers), max_failures, 0
        self._patience = patience_among(len(self.workers) + 1)

        def serve_worker(index: int, connection: Connection) -> None:
            serve(connection, lambda: make_player(self.workers[index]), self._patience)

        self._make_server = partial(ForkServer, serve_worker, let_go)
        self._server = self._make_server()
        for worker in self.workers:
            self._begin(worker)

    def _begin(self, worker: Worker) -> None:
        try:
            worker.pid, worker.connection = self._server.fork(worker.index)
        except Died as error:  # killed by somebody, and all workers with it
            log.warning("%s; there is another one now", error)
            self._server.close([])
            self._server = self._make_server()
            worker.pid, worker.connection = self._server.fork(worker.index)
        worker.patience = Patience(worker.connection, self._patience)

    def begin(self) -> None:
        """Wait until every worker has made its environments."""
        for worker in self.workers:
            with suppress(Died):  # it is found out when the answer is waited for
                worker.ask("state")
        for worker in self.workers:
            worker.begin_log(self.settle(worker, partial(worker.call, "state")))

    def settle(self, worker: Worker, again: Callable[[], Any]) -> Any:
        """The answer to what was asked; a worker that dies over it is begun anew and asked ``again``."""
        try:
            return worker.answer()
        except Died:
            return self.revived(worker, again)

    def call(self, worker: Worker, command: str, *arguments: Any) -> Any:
        """Ask, and wait for the answer; a worker that dies over it is begun anew and asked again."""
        again = partial(worker.call, command, *arguments)
        try:
            return again()
        except Died:
            return self.revived(worker, again)

    def revived(self, worker: Worker, again: Callable[[], Any]) -> Any:
        """Begin a dead worker anew, as often as it takes, until it has done what it died over."""
        while True:
            self._count_death(worker)
            try:
                self._bring_back(worker)
                return again()
            except Died:
                continue

    def _count_death(self, worker: Worker) -> None:
        """Raises ``EnvFault`` where this was one death too many."""
        words = self._end(worker)
        self.failures += 1
        if self.failures > self.max_failures:
            limit = f"collector.max_failures={self.max_failures} are behind this run"
            raise EnvFault(f"{words}; {limit}" if self.max_failures else words)
        log.warning("%s; it is begun anew (%d of at most %d times)", words, self.failures, self.max_failures)

    def _end(self, worker: Worker) -> str:
        """Take its process away, and say how it ended."""
        if worker.connection is not None:
            worker.connection.close()
            worker.connection = None
        pid, worker.pid = worker.pid, 0
        try:
            return f"{worker} {self._server.end_of(pid)}" if pid else f"{worker} is gone"
        except Died:
            return f"{worker} has ended with the process that forks workers"

    def _bring_back(self, worker: Worker) -> None:
        """A new process for a worker, in the place of the one that died."""
        self._begin(worker)
        if worker.base is None:
            return
        try:
            self._lead(worker, worker.base)
        except EnvFault:
            self._end(worker)  # who knows where it stands now
            raise

    def _lead(self, worker: Worker, base: StateDict) -> None:
        """Bring its environments to where they were."""
        worker.call("load", base)
        can_follow = base["mode"] != "none"
        if worker.played and not (can_follow and worker.call("follow", worker.played, worker.observation)):
            log.warning("%s cannot be brought to where it was: its episodes restart", worker)
            worker.call("load", {**base, "mode": "none"})
            worker.begin_log(worker.call("state"))

    def state_of(self, worker: Worker, command: str = "state") -> StateDict:
        """Where its environments stand, for a checkpoint, also of a worker whose death has ended the run.

        Raises ``EnvFault`` where that cannot be found out: then there is nothing that could be saved.
        """
        words = ""
        for _ in range(ATTEMPTS):
            try:
                if worker.connection is None:
                    self._bring_back(worker)
                state = worker.call(command)
            except Died:
                words = self._end(worker)
                self.failures += 1
                log.warning("%s while its state was taken", words)
            else:
                worker.begin_log(state)
                return state
        raise EnvFault(f"{words}: nobody knows any more where its environments stand")

    def load(self, worker: Worker, state: StateDict) -> None:
        """Let its environments go on from that state."""
        worker.begin_log(state)
        self.call(worker, "load", state)

    def shorten_log(self, worker: Worker) -> None:
        """See that a worker that dies has not too much to follow."""
        if worker.played_steps >= LONGEST_LOG:
            worker.begin_log(self.call(worker, "state"))

    def close(self) -> None:
        """End all processes; may be called twice."""
        alive = [(worker.pid, worker.connection) for worker in self.workers if worker.connection is not None]
        for worker in self.workers:
            with suppress(Died):
                worker.ask("close")
            worker.connection = None
        self._server.close(alive)
