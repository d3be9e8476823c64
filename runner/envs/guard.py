"""What is done about an environment that fails: the run ends with a line that names it, or it is made anew."""

import logging
import re
from typing import Literal

from runner.envs.watch import Watch
from runner.spec import EnvFault, StateDict

log = logging.getLogger(__name__)

OnError = Literal["raise", "restart"]
TOLD_IN_FULL = 3
"""Faults; of more, those are told of whose number is a power of ten, and the others are in the log."""


class Guard:
    """Shared by all environments of a run, those of the evaluation too.

    Args:
        on_error: ``raise`` ends the run; ``restart`` makes the environment anew.
        max_restarts: of the whole run, however often it is resumed.
        watch: the deadline of every call.
    """

    def __init__(self, on_error: OnError = "raise", max_restarts: int = 0, watch: Watch | None = None) -> None:
        self.on_error, self.max_restarts = on_error, max_restarts
        self.watch = watch or Watch()
        self.restarts = 0
        self.cut_episodes = 0
        self.is_trying_out = True
        """Whether nothing has been trained or saved yet."""

    @property
    def restarting(self) -> bool:
        return self.on_error == "restart"

    def allow_restart(self, fault: EnvFault, cause: BaseException | None) -> None:
        """Count one more restart; raises the fault where none is wanted, or left."""
        if not self.restarting:
            mend = "mend it" if self.is_trying_out else "mend it and resume"
            hint = f"{mend}, or let env.on_error=restart make it anew"
            raise EnvFault(f"{fault}; {hint}") from cause
        if self.restarts >= self.max_restarts:
            limit = f"and {self.restarts} restarts have been made, env.max_restarts={self.max_restarts}"
            raise EnvFault(f"{fault}; {limit}") from cause
        self.restarts += 1
        words = "%s; it is made anew (%d of at most %d times)%s"
        log.log(_level(self.restarts), words, fault, self.restarts, self.max_restarts, _outlook(self.restarts))

    def cut(self, place: str) -> None:
        """Count an episode that could not be gone on with."""
        self.cut_episodes += 1
        words = "%s: it failed again: the episode ends here, as if by a time limit (%d so far)%s"
        log.log(_level(self.cut_episodes), words, place, self.cut_episodes, _outlook(self.cut_episodes))

    def row_metrics(self) -> dict[str, float]:
        """Nothing as long as nothing has failed."""
        if not self.restarts:
            return {}
        return {"perf/env_restarts": self.restarts, "perf/env_cut_episodes": self.cut_episodes}

    def state_dict(self) -> StateDict:
        return {"restarts": self.restarts, "cut_episodes": self.cut_episodes}

    def load_state_dict(self, state: StateDict) -> None:
        self.restarts, self.cut_episodes = state["restarts"], state["cut_episodes"]


def _level(number: int) -> int:
    """Of the log: only warnings are shown while the run goes on."""
    is_round = re.fullmatch("10+", str(number)) is not None
    return logging.WARNING if number <= TOLD_IN_FULL or is_round else logging.INFO


def _outlook(number: int) -> str:
    return "; of more, the 10th, 100th, ... are told of here, and all of them in run.log" * (number == TOLD_IN_FULL)
