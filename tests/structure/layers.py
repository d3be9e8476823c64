"""Who may import whom. Each check takes the sources and returns one line for each violation."""

import sys
from graphlib import CycleError, TopologicalSorter

from tests.structure.sources import Import, Source, imports_of

LAYERS = {
    0: ("runner.types", "runner.text", "runner.spec", "runner.extras", "runner.kept_batches"),
    1: (
        "runner.batch_source",
        "runner.minibatches",
        "runner.returns",
        "runner.schedules",
        "runner.seeding",
        "runner.distributions",
        "runner.metrics",
        "runner.hook",
        "runner.points",
        "runner.video",
    ),
    2: (
        "runner.envs",
        "runner.networks",
        "runner.exploration",
        "runner.data",
        "runner.loggers",
        "runner.record",
        "runner.checkpoint",
        "runner.runs",
    ),
    3: ("runner.losses", "runner.learner", "runner.estimators", "hooks"),
    4: ("runner.policy", "runner.collectors", "runner.evaluation", "runner.trainer"),
    5: (
        "runner.builders",
        "runner.collector_builders",
        "runner.learner_builders",
        "runner.env_builders",
        "runner.dataset_builders",
        "runner.offline_builders",
        "runner.trainer_builder",
        "runner.config",
        "runner.sweeps",
        "runner.auto",
    ),
    6: ("run", "scripts", "scripts.benchmark", "runner.__main__"),
}
"""Every module belongs to one of these, by the longest matching name. A new one must be placed here."""

MAY_IMPORT = {0: {0}, 1: {0}, 2: {0, 1}, 3: {0, 1}, 4: {0, 1}, 5: {0, 1, 2, 3, 4, 5}, 6: {5}}
"""By layer; a part may always import itself."""

EACH_FILE_APART = ("runner.losses", "hooks", "scripts")
"""Parts whose files may not import one another."""

EXCEPTIONS = {
    # The constructor that users call takes a raw loss module, an optimizer and the name of a file.
    ("runner.trainer", "runner.learner"),
    ("runner.trainer", "runner.checkpoint"),
    ("scripts", "scripts.benchmark"),  # scripts/bench.py is its command line
}

PARENT_LOSSES: dict[str, str] = {
    "runner.losses.cql": "runner.losses.dqn",
    "runner.losses.sac": "runner.losses.td3",
}
"""A loss that builds on another one: the module's name, and that of its one parent."""

ONLY_IN = {"hydra": ("runner.config", "runner.sweeps"), "omegaconf": ("runner.config", "runner.sweeps")}
"""Libraries that only these parts may import."""

LIGHT = {"runner.types": {"annotated_types"}, "runner.runs": set()}
"""Modules that must import fast: nothing of our own, and of other libraries only these."""

LATE_IMPORTS_IN = ("runner.config.main",)
"""Modules that, like layer 6, check the configuration before torch is imported."""

ROOT_PACKAGE = "runner"
"""Empty, and therefore without a layer."""

ELSEWHERE = "scripts.benchmark.peers"
"""Runs in the peers' virtual environments, with their dependencies."""

DISTRIBUTIONS = {
    "PIL": "pillow",
    "ale_py": "ale-py",
    "annotated_types": "annotated-types",
    "hydra": "hydra-core",
    "pydantic_core": "pydantic",
    "yaml": "pyyaml",
}
"""Import names that differ from the name of the distribution."""

UNITS = {name: layer for layer, names in LAYERS.items() for name in names}


def unit_of(module: str) -> str | None:
    """The part that a module belongs to, for example ``runner.envs`` for ``runner.envs.vector``."""
    found = [name for name in UNITS if module == name or module.startswith(name + ".")]
    return max(found, key=len, default=None)


def placement_problems(sources: list[Source]) -> list[str]:
    return [
        f"{source.path}: {source.name} has no place in the layer table"
        for source in sources
        if unit_of(source.name) is None and source.name != ROOT_PACKAGE
    ]


def layer_problems(sources: list[Source]) -> list[str]:
    """Imports of our own modules that the layer table forbids."""
    return [
        f"{source.path}:{imported.line}: {source.name} may not import {imported.name}"
        for source, imported in _imports(sources)
        if imported.is_own and not _is_allowed(source.name, imported.name)
    ]


def _is_allowed(importer: str, imported: str) -> bool:
    unit, other = unit_of(importer), unit_of(imported)
    if unit is None:
        return True  # reported by placement_problems
    if unit in LIGHT:
        return False
    if imported == ROOT_PACKAGE:
        return True
    if other is None:
        return False
    if (unit, other) in EXCEPTIONS or PARENT_LOSSES.get(importer) == imported:
        return True
    if unit == other:
        return unit not in EACH_FILE_APART or imported == unit
    return UNITS[other] in MAY_IMPORT[UNITS[unit]]


def library_problems(sources: list[Source]) -> list[str]:
    """Imports of libraries in modules that must do without them."""
    problems = []
    for source, imported in _imports(sources):
        top = imported.name.split(".")[0]
        if imported.is_own or top in sys.stdlib_module_names:
            continue
        unit = unit_of(source.name)
        if (top in ONLY_IN and unit not in ONLY_IN[top]) or (unit in LIGHT and top not in LIGHT[unit]):
            problems.append(f"{source.path}:{imported.line}: {source.name} may not import {top}")
    return problems


def undeclared_problems(sources: list[Source], declared: set[str]) -> list[str]:
    """Imports of libraries that are not among the ``declared`` distributions (in lower case)."""
    here = [source for source in sources if not source.name.startswith(ELSEWHERE)]
    tops = [(source, imported, imported.name.split(".")[0]) for source, imported in _imports(here)]
    return [
        f"{source.path}:{imported.line}: {top} is no dependency of pyproject.toml"
        for source, imported, top in tops
        if not imported.is_own and top not in sys.stdlib_module_names and DISTRIBUTIONS.get(top, top) not in declared
    ]


def late_import_problems(sources: list[Source]) -> list[str]:
    """Imports of our own modules inside functions."""
    return [
        f"{source.path}:{imported.line}: {imported.name} is imported inside a function"
        for source, imported in _imports(sources)
        if imported.is_own and imported.is_late and not _may_import_late(source.name)
    ]


def _may_import_late(module: str) -> bool:
    unit = unit_of(module)
    return module in LATE_IMPORTS_IN or (unit is not None and UNITS[unit] == 6)


def cycle_problems(sources: list[Source]) -> list[str]:
    names = {source.name for source in sources}
    graph: dict[str, set[str]] = {name: set() for name in names}
    for source, imported in _imports(sources):
        if imported.name in names:
            graph[source.name].add(imported.name)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return ["import cycle: " + " <- ".join(error.args[1])]
    return []


def init_problems(sources: list[Source]) -> list[str]:
    return [
        f"{source.path} is not empty"
        for source in sources
        if source.path.endswith("__init__.py") and source.text.strip()
    ]


def _imports(sources: list[Source]) -> list[tuple[Source, Import]]:
    names = {source.name for source in sources}
    return [(source, imported) for source in sources for imported in imports_of(source, names)]
