"""What is done about an environment that fails: the run ends with a line that names it, or it is made anew."""

import logging
from typing import Literal

from runner.envs.watch import Watch
from runner.spec import EnvFault, StateDict

log = logging.getLogger(__name__)

OnError = Literal["raise", "restart"]


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

    @property
    def restarting(self) -> bool:
        return self.on_error == "restart"

    def allow_restart(self, fault: EnvFault, cause: BaseException | None) -> None:
        """Count one more restart; raises the fault where none is wanted, or left."""
        if not self.restarting:
            hint = "mend it and resume, or let env.on_error=restart make it anew"
            raise EnvFault(f"{fault}; {hint}") from cause
        if self.restarts >= self.max_restarts:
            limit = f"and {self.restarts} restarts have been made, env.max_restarts={self.max_restarts}"
            raise EnvFault(f"{fault}; {limit}") from cause
        self.restarts += 1
        log.warning("%s; it is made anew (%d of at most %d times)", fault, self.restarts, self.max_restarts)

    def cut(self, place: str) -> None:
        """Count an episode that could not be gone on with."""
        self.cut_episodes += 1
        log.warning("%s: it failed again: the episode ends here, as if by a time limit", place)

    def row_metrics(self) -> dict[str, float]:
        """Nothing as long as nothing has failed."""
        if not self.restarts:
            return {}
        return {"perf/env_restarts": self.restarts, "perf/env_cut_episodes": self.cut_episodes}

    def state_dict(self) -> StateDict:
        return {"restarts": self.restarts, "cut_episodes": self.cut_episodes}

    def load_state_dict(self, state: StateDict) -> None:
        self.restarts, self.cut_episodes = state["restarts"], state["cut_episodes"]
