"""The defaults list of a configuration file: does every group and choice that it names exist?"""

from collections.abc import Iterator
from typing import Protocol

import yaml

from runner.config.files import ConfigFile
from runner.config.report import Problem, choices_hint, did_you_mean, nearest

EXAMPLE = "write it as defaults: [choice, /group: choice]"
STRING = "tag:yaml.org,2002:str"
NULL = "tag:yaml.org,2002:null"


class Choices(Protocol):
    """The groups and choices there are."""

    def is_group(self, name: str) -> bool:
        """Whether there is a group of this name."""

    def choices(self, group: str) -> list[str]:
        """The choices of a group."""

    def groups(self) -> list[str]:
        """The names of the groups."""


def defaults_problems(root: yaml.MappingNode | None, file: ConfigFile, known: Choices) -> Iterator[Problem]:
    """What is wrong with the defaults list of a file."""
    listed = next((value for key, value in root.value if key.value == "defaults"), None) if root else None
    if listed is None:
        return
    check = _Defaults(file, known)
    if not isinstance(listed, yaml.SequenceNode):
        yield check.problem(listed, "expected a list", EXAMPLE)
        return
    for item in listed.value:
        yield from check.item(item)


class _Defaults:
    def __init__(self, file: ConfigFile, known: Choices) -> None:
        self._file, self._known = file, known
        self._here = file.config_path.rpartition("/")[0]
        self._seen: set[str] = set()

    def problem(self, node: yaml.Node, message: str, hint: str = "") -> Problem:
        return Problem("defaults", f"{self._file.label}:{node.start_mark.line + 1}", message, hint)

    def item(self, node: yaml.Node) -> Iterator[Problem]:
        if isinstance(node, yaml.ScalarNode) and node.tag == STRING:
            yield from self._choice_of(node, self._path(node.value))
        elif isinstance(node, yaml.MappingNode) and len(node.value) == 1 and node.value[0][0].tag == STRING:
            yield from self._group(*node.value[0])
        else:
            yield self.problem(node, "expected the name of a choice, or one group: choice", EXAMPLE)

    def _path(self, written: str) -> str:
        """The path of a group or choice that is written in this file, flags and package left out."""
        name = written.split()[-1].partition("@")[0] if written.split() else ""
        if name.startswith("/"):
            return name[1:]
        return f"{self._here}/{name}" if self._here else name

    def _choice_of(self, node: yaml.ScalarNode, path: str) -> Iterator[Problem]:
        """An item that is one path: a file beside this one, or /group/choice."""
        if path in self._seen:
            yield self.problem(node, f"{node.value} is in the list twice")
        self._seen.add(path)
        is_optional = "optional" in node.value.split()[:-1]
        if path.rpartition("/")[2] == "_self_" or "${" in path or is_optional:
            return
        group, _, choice = path.rpartition("/")
        if not self._known.is_group(group) or not self._is_choice(group, choice):
            yield self._no_choice(node, group, choice)

    def _group(self, key: yaml.ScalarNode, value: yaml.Node) -> Iterator[Problem]:
        group = self._path(key.value)
        *flags, _ = key.value.split() or [""]
        if unknown := set(flags) - {"optional", "override"}:
            yield self.problem(key, f"{', '.join(sorted(unknown))} is neither optional nor override")
        if not self._known.is_group(group):
            if "optional" not in flags:
                guess = nearest(group.rpartition("/")[2], self._known.groups())
                yield self.problem(key, f"there is no group {group}", did_you_mean(f"/{guess}" if guess else None))
            return
        for one in value.value if isinstance(value, yaml.SequenceNode) else [value]:
            if not isinstance(one, yaml.ScalarNode) or one.tag not in (STRING, NULL):
                yield self.problem(one, f"expected a choice of {group}", f"write it as {group}: choice")
            elif one.tag == STRING and not self._is_choice(group, one.value) and "optional" not in flags:
                yield self._no_choice(one, group, one.value)

    def _is_choice(self, group: str, written: str) -> bool:
        return "${" in written or written.removesuffix(".yaml") in self._known.choices(group)

    def _no_choice(self, node: yaml.Node, group: str, choice: str) -> Problem:
        if not self._known.is_group(group):
            return self.problem(node, f"there is no {group}/{choice}".replace(" /", " "))
        return self.problem(node, f"{group} has no choice {choice}", choices_hint(choice, self._known.choices(group)))
