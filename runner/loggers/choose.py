"""Loggers by their names."""

from difflib import get_close_matches
from pathlib import Path
from typing import Any

from runner.loggers.base import Logger
from runner.loggers.csv import CSVLogger
from runner.loggers.mlflow import MLFlowLogger
from runner.loggers.tensorboard import TensorboardLogger
from runner.loggers.wandb import WandbLogger
from runner.spec import ConfigError

LOGGERS: dict[str, type[Logger]] = {
    "csv": CSVLogger,
    "mlflow": MLFlowLogger,
    "tensorboard": TensorboardLogger,
    "wandb": WandbLogger,
}


def get_logger(logger_type: str | None, logger_name: str | Path, experiment_name: str, **kwargs: Any) -> Logger | None:
    """A logger of that type in the folder ``logger_name``; ``None`` for the types ``""`` and ``None``.

    Args:
        kwargs: what else its class takes.
    """
    if not logger_type:
        return None
    if logger_type not in LOGGERS:
        near = get_close_matches(logger_type, LOGGERS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"there is no logger {logger_type!r}: choose from {', '.join(LOGGERS)}{hint}")
    return LOGGERS[logger_type](exp_name=experiment_name, log_dir=logger_name, **kwargs)
