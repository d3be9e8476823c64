"""The hook that sets how much a policy pays for moving."""

from typing import Any

from tensordict import TensorDictBase
from torch import Tensor

from runner.hook import Hook
from runner.metrics import Gauge
from runner.spec import KL, ConfigError, StateDict
from runner.types import OpenFraction, PositiveFloat


class AdaptiveKL(Hook):
    """Adapts the loss's ``beta`` after each batch (Schulman et al. 2017, section 4): see ``dtarg``.

    Args:
        dtarg: divergence to aim at; ``beta`` is multiplied by ``increment`` where that of the batch's last update is
            more than 1.5 times that, and by ``decrement`` where it is less than a 1.5th.
    """

    point = "post_optim_log"

    def __init__(
        self,
        loss: Any,
        dtarg: PositiveFloat = 0.01,
        increment: PositiveFloat = 2.0,
        decrement: OpenFraction = 0.5,
    ) -> None:
        super().__init__()
        beta = getattr(loss, "hyper_parameters", {}).get("beta")
        if not isinstance(beta, Tensor) or getattr(loss, "kind", None) != "kl_penalty":
            raise ConfigError("adaptive_kl: this loss has no penalty to adapt; loss.kind=kl_penalty has")
        self.beta, self.dtarg, self.increment, self.decrement = beta, dtarg, increment, decrement
        self._last: Tensor | None = None

    def register(self, trainer: Any, name: str | None = None) -> None:
        super().register(trainer, name)
        trainer.register_op("post_steps", self.adapt)

    def __call__(self, sub_batch: TensorDictBase) -> dict[str, Any]:
        self._last = sub_batch.get(KL).mean()
        return {"train/beta": Gauge(self.beta.item())}

    def adapt(self) -> None:
        """After the updates of a batch."""
        if self._last is None:
            return
        kl, self._last = self._last.item(), None
        if kl > 1.5 * self.dtarg:
            self.beta.mul_(self.increment)
        elif kl < self.dtarg / 1.5:
            self.beta.mul_(self.decrement)

    def state_dict(self) -> StateDict:
        return {**super().state_dict(), "beta": self.beta.item()}

    def load_state_dict(self, state: StateDict) -> None:
        super().load_state_dict(state)
        self.beta.fill_(state["beta"])
