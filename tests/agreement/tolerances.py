"""The declared tolerances, read from the table of results/README.md, which is their only place."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "results" / "README.md"
SCORES = ("fid", "kid", "is", "precision", "recall")


def read_tolerances(text: str) -> dict[str, dict[str, dict[str, float]]]:
    """{what is compared: {score: {"abs" or "rel": tolerance}}}; empty cells are left out."""
    table = re.search(r"<!-- agreement -->\n(.*?)<!-- /agreement -->", text, re.DOTALL)
    assert table, f"{README}: no table of tolerances"
    header, _, *rows = (
        [cell.strip() for cell in line.strip("|\n").split("|")] for line in table[1].splitlines() if line
    )
    assert [name.lower() for name in header[1:]] == list(SCORES)
    return {
        row[0]: {score: _tolerance(cell) for score, cell in zip(SCORES, row[1:], strict=True) if cell} for row in rows
    }


def _tolerance(cell: str) -> dict[str, float]:
    value, kind = cell.split()
    return {{"absolute": "abs", "relative": "rel"}[kind]: float(value)}


TOLERANCES = read_tolerances(README.read_text())


def assert_agrees(found: dict[str, float], expected: dict[str, float], comparison: str) -> None:
    """Every score that the table has for `comparison` is within its tolerance; `expected` must hold all of them."""
    for score, tolerance in TOLERANCES[comparison].items():
        ((kind, value),) = tolerance.items()
        other = {"abs": "rel", "rel": "abs"}[kind]
        assert found[score] == pytest.approx(expected[score], **{kind: value, other: 0}), (comparison, score)
