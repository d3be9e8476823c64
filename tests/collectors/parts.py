"""Collectors over worker processes, and a look at processes from outside."""

import os
import signal
import time
from itertools import islice
from pathlib import Path

from runner.builders import make_environment
from runner.collectors.asynchronous import AsyncCollector
from runner.collectors.synchronous import SyncCollector
from runner.seeding import Streams
from tests.toys import policy


def partial_environment(make="CartPole-v1", num_envs=4, **options):
    """One whose environments are made where they are stepped."""
    given = {"id": make} if isinstance(make, str) else {"make": make}
    return make_environment(streams=Streams(0), num_envs=num_envs, **given, **options)


def workers(kind=SyncCollector, make="CartPole-v1", num_envs=4, frames=40, collectors=2, epsilon=0.3, **options):
    env = options.pop("env", None) or partial_environment(make, num_envs)
    return kind(env, policy(env, epsilon), frames, num_collectors=collectors, **options)


def beside(*arguments, **options):
    return workers(AsyncCollector, *arguments, **options)


def take(collector, number):
    """The next batches, as copies, counted as a trainer would."""
    copies = []
    for batch in islice(collector, number):
        collector.progress.count(batch)
        copies.append(batch.clone())
    return copies


def same(left, right):
    return len(left) == len(right) and all((one == other).all() for one, other in zip(left, right, strict=True))


def kill(worker, number=signal.SIGKILL):
    os.kill(worker.pid, number)


def family(pid):
    """The processes below this one, as long as it lives."""
    children = [int(child) for task in Path(f"/proc/{pid}/task").glob("*/children") for child in _words(task)]
    return [one for child in children for one in (child, *family(child))]


def _words(path):
    try:
        return path.read_text().split()
    except OSError:  # it has ended meanwhile
        return []


def are_gone(pids, within_seconds=5.0):
    """Whether all of these processes end in time; a zombie has ended."""
    deadline = time.monotonic() + within_seconds
    while any(_lives(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def _lives(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def shared_segments():
    """What has a name in the system's shared memory; folders there are those of other tests, which run beside."""
    return sorted(path.name for path in Path("/dev/shm").iterdir() if not path.is_dir())
