"""The table of claims is complete, and what it refers to is there."""

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TABLE = Path(__file__).with_name("claims.md")
LAST = {"L": 51, "G": 8, "A": 12, "B": 27}
"""How many claims there are of each kind: the one place that says so."""

TEST = re.compile(r"(tests/[\w/]+\.py)::(test_\w+)")


def rows(text):
    """Claim, words, verdict, and what it is by, for each line that looks like a row of the table."""
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip()[1:-1])] for line in text.splitlines()
             if line.startswith("|")]  # fmt: skip
    return cells[2:]


@cache
def found_in(path):
    """The tests that pytest finds in a file; none where there is no such file."""
    if not (ROOT / path).is_file():
        return set()
    tree = ast.parse((ROOT / path).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def problems(text):
    """What is wrong with a table, one line each."""
    table = rows(text)
    expected = {f"{kind}{number}" for kind, last in LAST.items() for number in range(1, last + 1)}
    counts = Counter(row[0] for row in table)
    found = [f"{claim}: missing" for claim in sorted(expected - counts.keys())]
    found += [f"{claim}: there is no such claim" for claim in sorted(counts.keys() - expected)]
    found += [f"{claim}: {count} times" for claim, count in counts.items() if count > 1]
    return found + [f"{row[0]}: {problem}" for row in table for problem in problems_of(row)]


def problems_of(row):
    if len(row) != 4:
        return [f"has {len(row)} cells"]
    _, words, verdict, by = row
    found = [] if words else ["has no words"]
    named, rest = TEST.findall(by), TEST.sub("", by.replace("<br>", " ")).strip(" :")
    if verdict not in ("kept", "replaced"):
        found.append(f"is {verdict!r}")
    if verdict == "kept" and (not named or rest):
        found.append(f"is kept by tests alone, and not by {rest!r}")
    if verdict == "replaced" and len(rest) < 20:
        found.append("has no reason")
    if "tests/" in rest or "::" in rest:
        found.append(f"names a test that cannot be read: {rest!r}")
    found += [f"names {name} twice" for name, count in Counter(named).items() if count > 1]
    return found + [f"{path} has no {name}" for path, name in named if name not in found_in(path)]


def test_every_claim_is_kept_by_tests_that_there_are_or_replaced_for_a_reason(record_property):
    text = TABLE.read_text()
    assert problems(text) == []
    kept = Counter(row[0][0] for row in rows(text) if row[2] == "kept")
    said = ", ".join(f"{kind} {kept[kind]} of {last}" for kind, last in LAST.items())
    record_property("note", f"claims that are kept: {said}; the others are replaced; see tests/learner/claims.md")


@pytest.mark.parametrize(
    ("changed", "into", "problem"),
    [
        ("| L7 |", "| L8 |", "L7: missing"),
        ("| L7 |", "| L8 |", "L8: 2 times"),
        ("| B27 |", "| B28 |", "B28: there is no such claim"),
        ("test_sequences_stay_whole |", "test_sequences_stay |", "L38: tests/test_minibatches.py has no test_seq"),
        ("| kept | tests/test_minibatches.py::", "| kept | tests/test_minibatch.py::", "L38: tests/test_minibatch.py"),
        ("| kept | tests/test_minibatches.py::", "| kept | as far as it goes: tests/test_minibatches.py::", "alone"),
        ("| kept | tests/test_minibatches.py::", "| kept | tests/test_minibatches.py:", "L38: is kept by tests alone"),
        ("| kept | tests/test_minibatches.py::", "| mostly | tests/test_minibatches.py::", "L38: is 'mostly'"),
        ("| replaced | belongs to the issue about the launcher |", "| replaced | elsewhere |", "B21: has no reason"),
    ],
)
def test_what_is_missing_twice_or_made_up_is_found(changed, into, problem):
    text = TABLE.read_text()
    assert changed in text
    assert any(problem in line for line in problems(text.replace(changed, into, 1)))
