"""From nodes of a checked configuration to objects."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from runner.config.signature import read_signature
from runner.config.targets import resolve_target
from runner.config.words import is_factory, is_not_built, is_wrapper, item_hint, union_members


class Builder:
    """Calls the target of a node with the node's values, and with runtime values by its parameters' names.

    ``runtime`` grows while a run is put together: what has been built is what later parts are given. A value of the
    node comes first; a nested node is built too, or handed over as a function where the parameter is a ``Factory``.
    """

    def __init__(self, **runtime: Any) -> None:
        self.runtime = dict(runtime)

    def build(self, node: Mapping[str, Any] | None, **more: Any) -> Any:
        """Build ``node`` (``None`` for none), with ``more`` runtime values for this node alone."""
        if node is None:
            return None
        return self._call(node, more)()

    def build_later(self, node: Mapping[str, Any] | None) -> partial[Any] | None:
        """What builds ``node`` once it is called with the first argument of its target."""
        return None if node is None else self._call(node, {})

    def _call(self, node: Mapping[str, Any], more: Mapping[str, Any]) -> partial[Any]:
        """The target with its arguments, not called yet; it can be pickled where they can."""
        target = node["_target_"]
        parameters = read_signature(target).parameters
        arguments = {
            name: self._value(value, more, parameters[name].hint if name in parameters else Any)
            for name, value in node.items()
            if name != "_target_"
        }
        runtime = {**self.runtime, **more}
        given = {name: runtime[name] for name in parameters if name in runtime and name not in arguments}
        return partial(resolve_target(target), **given, **arguments)

    def build_all(self, nodes: Mapping[str, Any]) -> dict[str, Any]:
        """Build a dict of named nodes; a name set to ``null`` is left out."""
        return {name: self.build(node) for name, node in nodes.items() if node is not None}

    def _value(self, value: Any, more: Mapping[str, Any], hint: Any = Any) -> Any:
        if _is_node(value):
            if is_wrapper(hint):
                return self._call(value, more)
            return partial(self.build, value, **more) if _wants_factory(hint) else self.build(value, **more)
        if is_not_built(hint):
            return value
        if isinstance(value, dict):
            return {name: self._value(inner, more, item_hint(hint)) for name, inner in value.items()}
        if isinstance(value, list):
            return [self._value(inner, more, item_hint(hint)) for inner in value]
        return value


def _is_node(value: Any) -> bool:
    return isinstance(value, Mapping) and "_target_" in value


def _wants_factory(hint: Any) -> bool:
    return any(is_factory(member) for member in union_members(hint))
