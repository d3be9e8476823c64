"""The house numbers hold, and the checks can fail."""

import pytest

from tests.structure import sizes
from tests.structure.sources import ROOT, read_sources, write_sources


def function(name, lines):
    return f"def {name}():\n" + "    a = 1\n" * (lines - 1)


def test_the_program_keeps_the_house_numbers(record_property):
    own = read_sources(ROOT)
    record_property("note", "sizes of " + sizes.summary(own))
    assert sizes.size_problems(own) == []


def test_functions_and_files_are_measured_in_lines(tmp_path):
    text = "".join(function(f"f{lines}", lines) for lines in range(2, 11))  # 9 functions of 2..10 lines: 54 lines
    stubs = "class P(Protocol):\n    def g(self): ...\n\n    def h(self):\n        '''Does.'''\n        ...\n"
    sources = write_sources(tmp_path, {"runner/metrics.py": text, "hooks/a.py": stubs, "runner/__init__.py": ""})
    assert sizes.numbers(sources) == {
        "function median": 6,
        "function p90": 10,
        "function max": 10,
        "file p90": 54,
        "file max": 54,
    }


@pytest.mark.parametrize(
    ("lengths", "figure"),
    [([9, 9, 2], "function median"), ([2] * 8 + [26] * 2, "function p90"), ([2] * 20 + [61], "function max")],
)
def test_long_functions_are_found(tmp_path, lengths, figure):
    text = "".join(function(f"f{i}", lines) for i, lines in enumerate(lengths))
    problems = sizes.size_problems(write_sources(tmp_path, {"runner/metrics.py": text}))
    assert len([line for line in problems if "are allowed" in line]) == 1
    assert problems[0].startswith(figure)


def test_a_function_at_the_limit_passes(tmp_path):
    text = function("a", 8) * 9 + function("b", 60)
    assert sizes.size_problems(write_sources(tmp_path, {"runner/metrics.py": text})) == []


@pytest.mark.parametrize(("files", "figure"), [([401] + [2] * 20, "file max"), ([251] * 2 + [2] * 8, "file p90")])
def test_long_files_are_found(tmp_path, files, figure):
    sources = write_sources(tmp_path, {f"runner/envs/e{i}.py": "a = 1\n" * lines for i, lines in enumerate(files)})
    problems = sizes.size_problems(sources)
    assert len([line for line in problems if "are allowed" in line]) == 1
    assert problems[0].startswith(figure)


@pytest.mark.parametrize(
    ("name", "arguments", "is_allowed"),
    [
        ("Learner", "self, a, b, c, d, e, f, g, h, i, j", True),
        ("Learner", "self, a, b, c, d, e, f, g, h, i, j, k", False),
        ("Learner", "self, a, b, c, d, e, /, f, g, h, i, *rest, k=1", False),
        ("Trainer", "self, a, b, c, d, e, f, g, h, i, j, k", True),
    ],
)
def test_a_constructor_with_many_arguments_is_found(tmp_path, name, arguments, is_allowed):
    text = f"class {name}:\n    def __init__({arguments}):\n        pass\n"
    assert (sizes.size_problems(write_sources(tmp_path, {"runner/trainer.py": text})) == []) == is_allowed
