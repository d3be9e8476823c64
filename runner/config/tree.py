"""Looking into trees of dicts and lists by dotted keys, and resolving interpolations one by one."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import Container, DictConfig, ListConfig, Node, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError

from runner.config.origins import Origins
from runner.config.report import Problem, did_you_mean, nearest_key

ABSENT = object()
CIRCLE = "it leads back to itself"
LONGEST_CHAIN = 20
LINK = re.compile(r"\$\{([\w.]+)\}")
HYDRA_LINK = re.compile(r"\$\{hydra:\s*([\w.]+)\}")


class Unknown:
    """A value that cannot be checked: missing, already reported, or known only while the run is being started."""


MISSING, REPORTED, LATER = Unknown(), Unknown(), Unknown()


def lookup(tree: Any, key: str) -> Any:
    """The value at a dotted key, or ``ABSENT``."""
    for part in key.split(".") if key else ():
        if isinstance(tree, Mapping):
            tree = tree.get(part, ABSENT)
        elif isinstance(tree, list) and part.isdigit() and int(part) < len(tree):
            tree = tree[int(part)]
        else:
            return ABSENT
    return tree


def all_keys(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Every dotted key of a tree, inner nodes included."""
    for name, value in tree.items():
        yield f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from all_keys(value, f"{prefix}{name}.")


def has_unknown(value: Any) -> bool:
    """Whether anything in a value cannot be checked."""
    if isinstance(value, Mapping):
        return any(has_unknown(item) for item in value.values())
    return isinstance(value, Unknown) or (isinstance(value, list) and any(has_unknown(item) for item in value))


def _is_copy(problem: Problem, other: Problem) -> bool:
    """Whether a module has taken over what is wrong with a setting of the run."""
    return problem.message == other.message and problem.key.endswith(f".{other.key}")


class Resolver:
    """Turns an OmegaConf tree into plain values; what cannot be resolved becomes a problem instead of an exception."""

    def __init__(self, origins: Origins, hydra: Mapping[str, Any] | None = None) -> None:
        self._origins, self._hydra = origins, hydra
        self.problems: list[Problem] = []
        self.links: dict[str, str] = {}  # keys that are nothing but ${other.key}, and that other key

    def plain(self, tree: DictConfig) -> dict[str, Any]:
        value = self._value(tree, "", 0)
        self.problems = [one for one in self.problems if not any(_is_copy(one, other) for other in self.problems)]
        return value if isinstance(value, dict) else {}

    def _value(self, node: Node | None, key: str, depth: int) -> Any:
        if node is None:
            return None
        if node._is_interpolation():
            return self._follow(node, key, depth)
        if node._is_missing():
            return MISSING
        if node._is_none() or not isinstance(node, Container):
            return node._value()
        if isinstance(node, DictConfig):
            return {str(name): self._child(node, name, key, depth) for name in node._content}  # type: ignore[union-attr]
        assert isinstance(node, ListConfig)
        return [self._child(node, index, key, depth) for index in range(len(node))]

    def _child(self, node: Any, name: Any, key: str, depth: int) -> Any:
        return self._value(node._get_node(name), f"{key}.{name}" if key else str(name), depth)

    def _follow(self, node: Node, key: str, depth: int) -> Any:
        written = str(node._value())
        if match := LINK.fullmatch(written):
            self.links[key] = match[1]
        if depth > LONGEST_CHAIN:
            return self._report_circle(key, written)
        if "${hydra:" in written and (self._hydra is not None or not HydraConfig.initialized()):
            return self._of_hydra(key, written)
        chained = self._next_interpolation(node, written)
        if chained is not None:  # what is wrong further along the chain is reported there, once
            return self._value(chained[1], chained[0], depth + 1)
        try:
            target = node._dereference_node()
        except InterpolationToMissingValueError:
            return REPORTED  # the key it points to is reported as missing
        except Exception as error:  # resolvers may raise anything
            if "recursi" in f"{type(error)} {error}".lower():
                return self._report_circle(key, written)
            return self._report(key, written, *self._reason(node, error))
        return self._value(target, key, depth + 1)

    def _reason(self, node: Node, error: Exception) -> tuple[str, str]:
        """Why an interpolation leads nowhere, and the key that it may mean."""
        words = str(error).strip().split("\n")[0].rstrip(".")
        absent = re.fullmatch(r"Interpolation key '([\w.]+)' not found", words)
        if not absent:
            return words, ""
        plain: Any = OmegaConf.to_container(node._get_root(), resolve=False)
        return f"'{absent[1]}' not found", did_you_mean(nearest_key(absent[1], list(all_keys(plain))))

    def _of_hydra(self, key: str, written: str) -> Unknown:
        """A setting of Hydra is known when the run starts; what is under ``runtime`` is not even listed before."""
        for name in HYDRA_LINK.findall(written) if self._hydra is not None else ():
            if not name.startswith("runtime.") and lookup(self._hydra, name) is ABSENT:
                return self._report(key, written, f"Hydra has no setting {name}")
        return LATER

    def _next_interpolation(self, node: Node, written: str) -> tuple[str, Node] | None:
        match = LINK.fullmatch(written)
        target: Any = node._get_root()
        for part in match[1].split(".") if match else ():
            is_mapping = isinstance(target, DictConfig) and not target._is_none()
            target = target._get_node(part, validate_access=False) if is_mapping else None
        return (match[1], target) if match and isinstance(target, Node) and target._is_interpolation() else None

    def _report_circle(self, key: str, written: str) -> Unknown:
        if any(CIRCLE in problem.message for problem in self.problems):
            return REPORTED
        return self._report(key, written, CIRCLE)

    def _report(self, key: str, written: str, reason: str, hint: str = "") -> Unknown:
        reported = {problem.key for problem in self.problems}
        if key not in reported:
            message = f"the interpolation {written} cannot be resolved: {reason}"
            self.problems.append(Problem(key, self._origins.of(key), message, hint))
        return REPORTED
