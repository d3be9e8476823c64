"""Chains of signals: a run is begun, told to stop at an instant of some phase, resumed, told again, and so on."""

import itertools
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import runner.evaluation
from runner.loggers.csv import CSVLogger
from tests.whole.children import Child, fork, half_written, is_done
from tests.whole.runs import differences, end_of

DEADLINE_SECONDS = 5.0
"""A CartPole run must have saved and ended by then."""

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PREEMPTED = 75


class Phase(NamedTuple):
    """What a run is doing when it is told to stop: the n-th call, with n drawn up to ``most``, of a function."""

    name: str
    owner: Any
    function: str
    most: int


PHASES = (
    Phase("any instant", None, "", 0),
    Phase("save", os, "fsync", 40),
    Phase("evaluation", runner.evaluation, "play", 5),
    Phase("logger flush", CSVLogger, "flush", 12),
)


@dataclass
class Signalled:
    """What became of one signal."""

    number: signal.Signals
    phase: str
    seconds: float
    end: int


@dataclass
class SignalChain:
    """One run, and the signals it got; ``random_seed`` draws them."""

    random_seed: int
    signals: list[Signalled] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        sent = ", ".join(f"{one.number.name} in {one.phase}: {one.end}" for one in self.signals)
        return f"random seed {self.random_seed}, {sent}: {'; '.join(self.problems[:5])}"


class Meeting:
    """Lets a child wait in the midst of a phase until the signal has been sent."""

    def __init__(self, phase: Phase, count: int) -> None:
        self.phase, self.count = phase, count
        self._reached, self._reach = os.pipe()
        self._waiting, self._go_on = os.pipe()

    def prepare(self) -> None:
        """In the child: stop at the call where the two meet."""
        os.setsid()
        if self.phase.owner is None:
            return
        original = getattr(self.phase.owner, self.phase.function)

        def wait_here(*arguments: Any, **options: Any) -> Any:
            self.count -= 1
            if self.count == 0:
                os.write(self._reach, b"!")
                os.read(self._waiting, 1)  # goes on waiting after a signal's handler
            return original(*arguments, **options)

        setattr(self.phase.owner, self.phase.function, wait_here)

    def wait(self, child: Child, seconds: float) -> bool:
        """In the parent: true when the child is there, false if it ends before."""
        if self.phase.owner is None:
            return not child.has_ended(seconds)
        os.set_blocking(self._reached, False)
        while not child.has_ended(0.0005):
            try:
                return bool(os.read(self._reached, 1))
            except BlockingIOError:
                continue
        return False

    def close(self) -> None:
        os.write(self._go_on, b"!")
        for descriptor in (self._reached, self._reach, self._waiting, self._go_on):
            os.close(descriptor)


def play(
    chain: SignalChain,
    config: dict[str, Any],
    folder: Path,
    signals: int,
    seconds: float,
    uninterrupted: dict[str, Any],
) -> None:
    """Send up to so many signals, each to the resumed run, and compare how it ends when none comes any more."""
    draw = random.Random(chain.random_seed)
    phases = itertools.cycle(draw.sample(PHASES, len(PHASES)))
    is_over = False
    while not is_over and len(chain.signals) < signals:
        phase = next(phases)
        meeting = Meeting(phase, draw.randint(1, max(phase.most, 1)))
        child = fork(config, folder, meeting.prepare)
        if meeting.wait(child, draw.uniform(0, seconds)):
            chain.signals.append(stop(child, draw.choice(SIGNALS), phase.name, meeting.close))
            chain.problems += left_behind(child, folder)
            is_over = child.end != PREEMPTED or is_done(folder)  # the last may come between the two
        else:
            meeting.close()
            is_over = True
    chain.problems += [f"ends with {one.end}" for one in chain.signals[:-1] if one.end != PREEMPTED]
    if not is_done(folder) and (child := fork(config, folder)).wait() != 0:
        chain.problems.append(f"the resumed run ended with {child.end}: {child.output()[-500:]}")
    else:
        chain.problems += differences(end_of(config, folder), uninterrupted)


def stop(child: Child, number: signal.Signals, phase: str, go_on: Callable[[], None]) -> Signalled:
    """Send the signal and wait for the end; one that takes too long fails the test."""
    sent = time.monotonic()
    child.send(number)
    go_on()
    child.wait(DEADLINE_SECONDS)
    assert child.end is not None
    return Signalled(number, phase, time.monotonic() - sent, child.end)


def left_behind(child: Child, folder: Path) -> list[str]:
    """Processes and temporary files that a run which was told to stop must not leave."""
    files = [*half_written(folder), *(path.name for path in folder.glob(".*") if path.name not in (".lock", ".hydra"))]
    orphans = [pid for pid in os.listdir("/proc") if pid.isdigit() and session_of(int(pid)) == child.pid]
    return [f"{name} is left" for name in files] + [f"process {pid} is left" for pid in orphans]


def session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def table(chains: Sequence[SignalChain]) -> str:
    lines = [f"{'signal':<9}{'phase':<14}{'sent':>5}{'exit 75':>9}{'done before':>13}{'longest':>10}"]
    sent = [one for chain in chains for one in chain.signals]
    for key in sorted({(one.number.name, one.phase) for one in sent}):
        lines.append("{:<9}{:<14}".format(*key) + _sums([one for one in sent if (one.number.name, one.phase) == key]))
    identical = sum(len(chain.signals) for chain in chains if not chain.problems)
    return "\n".join([*lines, f"{'all':<23}{_sums(sent)}", f"{len(sent)} signals: {identical} resumed bit for bit"])


def _sums(signals: Sequence[Signalled]) -> str:
    preempted = sum(one.end == PREEMPTED for one in signals)
    done = sum(one.end == 0 for one in signals)
    return f"{len(signals):>5}{preempted:>9}{done:>13}{max(one.seconds for one in signals):>8.2f} s"
