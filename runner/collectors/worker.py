"""What a worker process does: it plays batches into shared memory, and answers for its environments."""

import os
import pickle
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from select import POLLIN, poll
from time import perf_counter
from typing import Any

import numpy as np
from torch import Tensor

from runner.collectors.arrays import Arrays, Planned
from runner.collectors.playing import VectorEnvironment, play
from runner.collectors.shared import SharedWeights, Slot
from runner.spec import Actor, EnvFault, HooklineError, StateDict

DONE, FAULT, ERROR = "done", "fault", "error"
"""How an answer begins: with a result, with an error that explains itself (its class, its line, a traceback), or with a
traceback alone."""


def pickled(*words: Any) -> bytes:
    """A message between two processes of one run; in a third of the time that ``Connection.send`` takes."""
    return pickle.dumps(words, pickle.HIGHEST_PROTOCOL)


class Player:
    """The environments of one worker; each public method is a command.

    Args:
        environment: its part of all environments.
        policy: a copy of its own.
        tensors: parameters and buffers of that policy's network.
    """

    def __init__(
        self,
        environment: VectorEnvironment,
        policy: Actor,
        tensors: Sequence[Tensor],
        weights: SharedWeights,
        slots: Sequence[Slot],
    ) -> None:
        self._environment, self._policy, self._tensors = environment, policy, list(tensors)
        self._weights, self._slots = weights, slots

    def play(self, number: int) -> tuple[int, dict[str, float]]:
        """Fill a slot by the newest weights; returns their version, and what the environment counts."""
        slot, environment = self._slots[number], self._environment
        version = self._weights.pull(self._tensors)
        environment.start()
        environment.mark()
        memory = slot.memory.copy()
        try:
            planned = Planned.of(slot.is_random, slot.actions, slot.noise, environment.spec)
            play(environment, self._policy, slot.arrays, planned, memory)
        except EnvFault:
            environment.roll_back()
            raise
        environment.check_bounds(slot.arrays)
        slot.observation[...], slot.memory_after[...] = environment.observation, memory
        return version, environment.row_metrics()

    def roll_back(self) -> None:
        """Be where the environments were before the last batch."""
        self._environment.roll_back()

    def state(self) -> StateDict:
        return self._environment.state_dict()

    def marked_state(self) -> StateDict:
        """The state before the last batch."""
        return self._environment.marked_state()

    def load(self, state: StateDict) -> None:
        self._environment.load_state_dict(state)

    def follow(self, played: Sequence[np.ndarray], expected: np.ndarray) -> bool:
        """Take actions whose outcomes are known, each ``[T, M, ...]``; false where they lead elsewhere."""
        environment = self._environment
        environment.start()
        for actions in played:
            scratch = Arrays.allocate(len(actions), environment.num_envs, environment.spec)
            for t, row in enumerate(actions):
                environment.step(self._policy.played(row), scratch, t)
        return np.array_equal(environment.observation, expected)

    def close(self) -> None:
        self._environment.close()


def patience_among(processes: int) -> float:
    """Seconds that processes wait for one another before they sleep: none where some of them share a core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 200e-6 if cores >= processes else 0.0


class Patience:
    """Waits for a message without sleeping, which costs a process 50 us and its caches, for as long as it is worth it.

    Args:
        seconds: after which whoever reads next had better sleep.
    """

    def __init__(self, connection: Connection, seconds: float) -> None:
        self.seconds = seconds
        self._poll = poll()
        self._poll.register(connection.fileno(), POLLIN)

    def wait(self) -> None:
        if self.seconds:
            deadline = perf_counter() + self.seconds
            while not self._poll.poll(0) and perf_counter() < deadline:
                pass


def serve(connection: Connection, make_player: Callable[[], Player], patience: float) -> None:
    """Do what is asked for, and answer, until told to close; ``patience``: see :class:`Patience`."""
    player: Player | None = None
    patient = Patience(connection, patience)
    while True:
        patient.wait()
        command, *arguments = connection.recv()
        if command == "close" and player is None:
            return
        answer: tuple[str, Any]
        try:
            player = player or make_player()
            answer = DONE, getattr(player, command)(*arguments)
        except HooklineError as error:
            answer = FAULT, (type(error), str(error), traceback.format_exc())
        except Exception:  # whatever it is, the run has to know
            answer = ERROR, traceback.format_exc()
        connection.send_bytes(pickled(*answer))
        if command == "close":
            return
