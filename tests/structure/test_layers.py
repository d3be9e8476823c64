"""The layer table holds, and each check can fail."""

import re
import tomllib
from itertools import chain

import pytest

from tests.structure import layers
from tests.structure.sources import ROOT, read_sources, write_sources


@pytest.fixture(scope="module")
def own():
    return read_sources(ROOT)


def declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = chain(project["dependencies"], *project["optional-dependencies"].values())
    return {re.match(r"[\w.-]+", requirement)[0].lower() for requirement in requirements}


@pytest.mark.parametrize(
    "check",
    [
        layers.placement_problems,
        layers.layer_problems,
        layers.library_problems,
        layers.late_import_problems,
        layers.cycle_problems,
        layers.init_problems,
    ],
    ids=lambda check: check.__name__,
)
def test_the_program_passes(own, check):
    assert check(own) == []


def test_every_library_is_declared(own):
    assert layers.undeclared_problems(own, declared()) == []


@pytest.mark.parametrize(
    ("module", "text", "is_allowed"),
    [
        ("runner/envs/vector.py", "from runner import spec", True),
        ("runner/envs/vector.py", "from runner.envs.spaces import convert", True),
        ("runner/envs/vector.py", "import runner.networks.mlp", False),
        ("runner/envs/vector.py", "from runner import networks", False),
        ("runner/envs/vector.py", "from ..networks import mlp", False),
        ("runner/envs/vector.py", "from runner.learner.optimization import Optimization", False),
        ("runner/hook.py", "from runner.metrics import Metrics", False),
        ("runner/hook.py", "if TYPE_CHECKING:\n    from runner.trainer import Trainer", False),
        ("runner/losses/double.py", "from runner.losses.single import Loss", False),
        ("runner/losses/double.py", "from runner.returns import discounted", True),
        ("runner/learner/learner.py", "from runner.losses.single import Loss", False),
        ("hooks/recorder.py", "from hooks.progress_bar import ProgressBar", False),
        ("hooks/recorder.py", "from runner.evaluation import Evaluation", False),
        ("hooks/recorder.py", "from runner.hook import TrainerHookBase", True),
        ("runner/trainer.py", "from runner.learner.optimization import Optimization", True),
        ("runner/trainer.py", "from runner.checkpoint.store import CheckpointStore", True),
        ("runner/trainer.py", "from runner.data.replay import Replay", False),
        ("runner/trainer.py", "from runner.collectors.in_process import Collector", False),
        ("runner/evaluation.py", "from runner.checkpoint.store import CheckpointStore", False),
        ("runner/builders.py", "from runner.learner.learner import Learner\nfrom runner.trainer import Trainer", True),
        ("runner/builders.py", "import run", False),
        ("runner/config/main.py", "from runner.builders import make_trainer", True),
        ("run.py", "from runner.config.main import main", True),
        ("run.py", "from runner.trainer import Trainer", False),
        ("runner/runs.py", "from runner.spec import HooklineError", False),
        ("runner/types.py", "from runner.spec import Progress", False),
        ("runner/metrics.py", "from tests.conftest import STARTED", False),
    ],
)
def test_an_import_across_layers_is_found(tmp_path, module, text, is_allowed):
    sources = write_sources(tmp_path, {"runner/networks/__init__.py": "", "runner/networks/mlp.py": "", module: text})
    assert (layers.layer_problems(sources) == []) == is_allowed


def test_a_loss_may_import_its_one_named_parent(tmp_path, monkeypatch):
    monkeypatch.setitem(layers.PARENT_LOSSES, "runner.losses.double", "runner.losses.single")
    sources = write_sources(
        tmp_path, {"runner/losses/double.py": "from runner.losses.single import a\nimport runner.losses.other"}
    )
    assert layers.layer_problems(sources) == [
        "runner/losses/double.py:2: runner.losses.double may not import runner.losses.other"
    ]


def test_a_module_without_a_place_is_found(tmp_path):
    sources = write_sources(tmp_path, {"runner/spec.py": "", "runner/helpers.py": "", "runner/envs/new.py": ""})
    assert layers.placement_problems(sources) == ["runner/helpers.py: runner.helpers has no place in the layer table"]


@pytest.mark.parametrize(
    ("module", "text", "is_allowed"),
    [
        ("runner/trainer.py", "import hydra.utils", False),
        ("runner/builders.py", "from omegaconf import OmegaConf", False),
        ("runner/config/main.py", "import hydra\nfrom omegaconf import OmegaConf", True),
        ("runner/runs.py", "import json, os", True),
        ("runner/runs.py", "import yaml", False),
        ("runner/types.py", "from annotated_types import Gt", True),
        ("runner/types.py", "import torch", False),
        ("runner/spec.py", "import torch", True),
    ],
)
def test_a_library_in_the_wrong_place_is_found(tmp_path, module, text, is_allowed):
    assert (layers.library_problems(write_sources(tmp_path, {module: text})) == []) == is_allowed


def test_an_undeclared_library_is_found(tmp_path):
    sources = write_sources(tmp_path, {"runner/metrics.py": "import json\nimport torch\nimport yaml\nimport attr"})
    assert layers.undeclared_problems(sources, {"torch", "pyyaml"}) == [
        "runner/metrics.py:4: attr is no dependency of pyproject.toml"
    ]


@pytest.mark.parametrize(
    ("module", "text", "is_allowed"),
    [
        ("runner/trainer.py", "def run():\n    from runner import spec", False),
        ("runner/trainer.py", "def run():\n    import mlflow", True),
        ("runner/builders.py", "class A:\n    def run(self):\n        import runner.spec", False),
        ("runner/builders.py", "def run():\n    import_module('runner.spec')", False),
        ("runner/config/main.py", "def main():\n    from runner.builders import make_trainer", True),
        ("runner/config/check.py", "def main():\n    from runner.builders import make_trainer", False),
        ("run.py", "def main():\n    from runner.config.main import main", True),
    ],
)
def test_an_own_import_inside_a_function_is_found(tmp_path, module, text, is_allowed):
    assert (layers.late_import_problems(write_sources(tmp_path, {module: text})) == []) == is_allowed


def test_a_cycle_is_found_even_through_type_checking(tmp_path):
    files = {"runner/envs/a.py": "from runner.envs import b", "runner/envs/b.py": "from runner.envs.c import x"}
    straight = write_sources(tmp_path, files | {"runner/envs/c.py": ""})
    assert layers.cycle_problems(straight) == []
    circular = write_sources(tmp_path, {"runner/envs/c.py": "if TYPE_CHECKING:\n    import runner.envs.a"})
    (problem,) = layers.cycle_problems(circular)
    assert all(f"runner.envs.{name}" in problem for name in "abc")


def test_an_init_file_with_text_is_found(tmp_path):
    sources = write_sources(tmp_path, {"runner/__init__.py": "\n", "runner/envs/__init__.py": "import torch"})
    assert layers.init_problems(sources) == ["runner/envs/__init__.py is not empty"]
