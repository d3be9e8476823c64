"""The table of claims is complete, and what it refers to is there."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TABLE = Path(__file__).with_name("claims.md")
CLAIMS = [
    *(f"L{number}" for number in range(1, 52)),
    *(f"A{number}" for number in range(1, 13)),
    *(f"B{number}" for number in range(1, 21)),
]


def rows():
    cells = [[cell.strip() for cell in line.strip("|\n ").split(" | ")] for line in TABLE.read_text().splitlines()]
    return [row for row in cells if re.fullmatch(r"[LAB]\d+", row[0])]


def functions_in(path):
    return {node.name for node in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(node, ast.FunctionDef)}


def test_every_claim_is_kept_by_a_test_that_there_is_or_replaced_for_a_reason(record_property):
    table = rows()
    assert sorted(row[0] for row in table) == sorted(CLAIMS)
    for claim, words, verdict, by in table:
        assert words, claim
        named = re.findall(r"(tests/[\w/]+\.py)::(\w+)", by)
        assert verdict in ("kept", "replaced"), claim
        assert named if verdict == "kept" else len(by) > 20, claim
        for path, name in named:
            assert name.startswith("test_"), claim
            assert name in functions_in(path), f"{claim}: {path} has no {name}"
    kept = sum(row[2] == "kept" for row in table)
    record_property("note", f"claims: {kept} kept, {len(table) - kept} replaced; see tests/learner/claims.md")
