"""Signatures are read from source: nothing is imported, and what cannot be read that way still is."""

import sys
from typing import Any

import pytest

from runner.config.injected import INJECTED
from runner.config.signature import REQUIRED, Parameter, read_signature
from runner.config.source import find_spec
from runner.config.targets import TargetError
from runner.config.words import describe, is_factory
from runner.types import Every, PositiveFloat

HEAD = """
import pathlib
from typing import Annotated, Literal
import annotated_types
from runner.types import Every, Factory, PositiveFloat
from runner.learner.gradients import ClipBy
import torch
Mode = Literal["fast", "slow"]
raise RuntimeError("imported")
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """``package(name, text)`` writes a module that fails when it is imported."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name: str, text: str, head: str = HEAD) -> None:
        tmp_path.joinpath(f"{name}.py").write_text(head + text)

    return write


def hints(target: str) -> dict[str, Any]:
    return {name: parameter.hint for name, parameter in read_signature(target).parameters.items()}


def test_hints_and_defaults_are_read_without_importing_the_module(package):
    package("sig_one", "def make(lr: PositiveFloat, every: Every = {'updates': 1}, *, mode: Mode = 'fast'): ...\n")
    signature = read_signature("sig_one.make")
    assert signature.parameters["lr"] == Parameter("lr", PositiveFloat, REQUIRED)
    assert signature.parameters["every"] == Parameter("every", Every, {"updates": 1})
    assert describe(signature.parameters["mode"].hint) == "one of fast, slow"
    assert not signature.takes_any
    assert "sig_one" not in sys.modules


def test_an_alias_of_another_module_is_followed(package):
    package("sig_alias", "def make(by: ClipBy): ...\n")
    assert "global_norm" in describe(hints("sig_alias.make")["by"])


def test_what_needs_torch_counts_as_any_value(package):
    package("sig_any", "def make(x: torch.Tensor, y: 'torch.Tensor | None', z: int | None, **rest): ...\n")
    assert hints("sig_any.make") == {"x": Any, "y": Any, "z": int | None}
    assert read_signature("sig_any.make").takes_any


def test_a_class_is_read_by_its_constructor_and_else_by_that_of_its_base(package):
    package("sig_base", "class Base:\n    def __init__(self, size: int, make: Factory | None = None): ...\n")
    package("sig_child", "from sig_base import Base\nclass Child(Base):\n    size = 3\nclass Bare: ...\n")
    found = hints("sig_child.Child")
    assert list(found) == ["size", "make"]
    assert found["size"] is int
    assert is_factory(found["make"].__args__[0])
    assert hints("sig_child.Bare") == {}


def test_an_import_from_elsewhere_is_followed_to_its_definition(package):
    package("sig_home", "def make(size: int): ...\n")
    package("sig_shop", "from sig_home import make as build\n")
    assert hints("sig_shop.build") == {"size": int}


def test_what_the_source_does_not_tell_is_asked_of_the_object(package):
    head = "import dataclasses\nfrom runner.types import PositiveFloat\n"
    package("sig_data", "@dataclasses.dataclass\nclass Data:\n    size: int\n    lr: PositiveFloat = 1.0\n", head)
    signature = read_signature("sig_data.Data")
    assert signature.parameters["size"].default is REQUIRED
    assert signature.parameters["lr"] == Parameter("lr", PositiveFloat, 1.0)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("runner.builders.make_dqn_los", "did you mean make_dqn_loss?"),
        ("runner.buildes.make_dqn_loss", "did you mean builders?"),
        ("runner.builders", "is a module"),
        ("nowhere", "cannot be found"),
        ("a b.c", "cannot be found"),
        ("os.path", "neither a class nor a function"),
    ],
)
def test_a_target_that_is_not_there_is_named_with_the_nearest(target, words):
    with pytest.raises(TargetError, match=words.replace("?", r"\?")):
        read_signature(target)


def test_a_module_that_cannot_be_imported_says_why(package):
    package("sig_broken", "@decorated\ndef make(): ...\n", "raise RuntimeError('no luck')\n")
    with pytest.raises(TargetError, match="importing sig_broken failed: RuntimeError: no luck"):
        read_signature("sig_broken.make")


def test_parameters_of_the_builder_are_known_by_name():
    parameters = read_signature("runner.builders.make_collector_offpolicy").parameters
    assert {"environment", "policy"} <= set(parameters) & INJECTED


def test_a_module_in_folders_that_are_no_packages_is_found_without_importing_them(package, tmp_path):
    (tmp_path / "sig_outer" / "inner").mkdir(parents=True)
    (tmp_path / "sig_outer" / "inner" / "part.py").write_text("class Part: ...\n")
    spec = find_spec("sig_outer.inner.part")
    assert spec is not None
    assert spec.origin == str(tmp_path / "sig_outer" / "inner" / "part.py")
    assert find_spec("sig_outer.inner.prat") is None
    assert find_spec("sig_outer.absent.part") is None
    assert not any(name.startswith("sig_outer") for name in sys.modules)
