"""Processes that step environments: forked by a process that does nothing else, and gone as soon as the run is."""

import ctypes
import faulthandler
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any, NoReturn

import torch

_DIE_WITH_PARENT = 1
"""``PR_SET_PDEATHSIG`` of Linux's ``prctl``."""
_OF_THE_RUN = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
CLOSE_SECONDS = 5.0
"""That workers have to close their environments; then they are killed."""

GONE = "the process that forks the collector's workers is gone"

Serve = Callable[[int, Connection], None]


class Died(Exception):
    """A process has ended that was still needed."""


class ForkServer:
    """A copy of this process as it is now, which forks a worker whenever it is asked to.

    A process with threads and connections cannot be forked safely; one that was forked before there were any can. A GPU
    that is in use then is never touched by workers. All of them end with this process (with its main thread, which has
    to make them), however that ends: the kernel kills them, and they own nothing that has a name.

    Args:
        serve: ``serve(index, connection)`` is what worker ``index`` does until it returns.
        let_go: closes what the copy must not hold open, such as the lock on a run.
    """

    def __init__(self, serve: Serve, let_go: Callable[[], None] = lambda: None) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise ValueError(
                "worker processes end with the thread that makes them: make their collector in the main thread"
            )
        self._connection, theirs = Pipe()
        parent = os.getpid()
        gc.collect()  # nothing of this process may be finalized by the copy
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            gc.freeze()
            _live_with(parent, partial(_fork_on_demand, theirs, serve), self._connection.close, let_go)
        theirs.close()

    def fork(self, index: int) -> tuple[int, Connection]:
        """The pid of a new worker, and the connection to it; raises ``Died`` where the server is gone."""
        ours, theirs = Pipe()
        try:
            self._connection.send(index)
            send_handle(self._connection, theirs.fileno(), self.pid)
            return self._connection.recv(), ours
        except (EOFError, OSError) as error:
            raise Died(GONE) from error
        finally:
            theirs.close()

    def end_of(self, pid: int) -> str:
        """Kill a worker, unless it is dead, and say how it ended."""
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        try:
            self._connection.send(-pid)
            code = self._connection.recv()
        except (EOFError, OSError) as error:
            raise Died(GONE) from error
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    def close(self, workers: Sequence[tuple[int, Connection]]) -> None:
        """End the server and the workers, which were asked to close, within ``CLOSE_SECONDS``; may be called twice."""
        if self._connection.closed:
            return
        deadline = time.monotonic() + CLOSE_SECONDS
        for pid, connection in workers:
            with suppress(EOFError, OSError):
                while connection.poll(max(deadline - time.monotonic(), 0.0)):
                    connection.recv_bytes()
            connection.close()
            with suppress(Died):
                self.end_of(pid)
        self._connection.close()
        with suppress(ProcessLookupError, ChildProcessError):  # it has nothing to lose
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


def _fork_on_demand(connection: Connection, serve: Serve) -> None:
    """Fork worker ``index`` for each ``index >= 0``, and say how ``pid`` ended for each ``-pid``."""
    server = os.getpid()
    while True:
        try:
            asked = connection.recv()
        except EOFError:
            return
        if asked < 0:
            connection.send(_exit_code(-asked))
            continue
        handle = recv_handle(connection)
        pid = os.fork()
        if pid == 0:
            _live_with(server, partial(_work, serve, asked, handle), connection.close)
        os.close(handle)
        connection.send(pid)


def _exit_code(pid: int) -> int:
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except ChildProcessError:
        return 0


def _work(serve: Serve, index: int, handle: int) -> None:
    serve(index, Connection(handle))


def _live_with(parent: int, live: Callable[[], None], *let_go: Callable[[], None]) -> NoReturn:
    """What a forked process does: ``live``, without the signals of its parent, and never longer than it."""
    code = 1
    try:
        _die_with(parent)
        for number in signal.valid_signals():  # what the run does about signals, it does for its workers as well
            if number in _OF_THE_RUN or callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        with suppress(OSError, ValueError, AttributeError):  # where stderr is no file
            faulthandler.enable()  # a simulator that crashes leaves its traceback
        for close in let_go:
            close()
        torch.set_num_threads(1)  # a thread pool does not survive a fork
        live()
        code = 0
    except (EOFError, BrokenPipeError, ConnectionResetError):
        code = 0  # the other end is gone: so is the reason to live
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _die_with(parent: int) -> None:
    """Be killed as soon as the parent ends; where the system has no such thing, an end of file has to do."""
    prctl: Any = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)
