"""Libraries that a part needs and that are not always there."""

from importlib.util import find_spec

from runner.spec import ConfigError


def need(module: str, extra: str, part: str) -> None:
    """``ConfigError``, with what to type, where ``module`` of the optional dependencies ``extra`` is not installed."""
    if find_spec(module) is None:
        raise ConfigError(f"{part} needs {module}, which is not installed: pip install 'hookline[{extra}]'")
