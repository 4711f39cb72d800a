"""The best of n evaluations stands beside the last and a fresh value, in a table and a figure of its own."""

import csv
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from harness.reporting.evaluation_figures import fid_against_n_figure, selection_figure
from harness.reporting.records import load_records
from harness.reporting.selection import SELECTION, write_selection
from tests.unit.test_reporting_tables import floor, record, save

METHOD = "moment-matching/instant"


def selected(**changes: object) -> dict:
    content = record(METHOD, fid=2.0, convention="best of 3 evaluations", n_samples=2048, updates=10, **changes)
    content["extra"] |= {"fid_by_update": {"4": 5.0, "8": 2.0, "10": 2.5}, "best_update": 8}
    content["extra"] |= {"fid_last": 2.5, "fid_fresh": 4.0}
    return content


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[plt.Figure]:
    kept: list[plt.Figure] = []
    monkeypatch.setattr("harness.reporting.evaluation_figures.save", lambda canvas, *_: kept.append(canvas) or tmp_path)
    yield kept
    plt.close("all")


def test_the_table_shows_what_selection_gains_and_how_much_of_it_is_chance(tmp_path: Path) -> None:
    write_selection(load_records(save(tmp_path, selected())), tmp_path)
    with open(tmp_path / "selection.csv", newline="") as file:
        [row] = csv.DictReader(file)
    assert list(row) == SELECTION
    assert (row["convention"], row["evaluations"], row["best_update"]) == ("best of 3 evaluations", "3", "8")
    assert [float(row[name]) for name in ("best_over_last", "best_over_fresh")] == [0.8, 0.5]
    text = (tmp_path / "selection.md").read_text()
    assert "| FID-2048, best | FID-2048, last | FID-2048, fresh |" in text
    assert "| 8 of 10 | 2 | 2.5 | 4 | 0.8 | 0.5 |" in text
    assert "convention of the best: best of 3 evaluations." in text


def test_the_figure_has_every_evaluation_the_best_and_the_fresh_one(tmp_path: Path, drawn: list[plt.Figure]) -> None:
    selection_figure(load_records(save(tmp_path, selected())), tmp_path)
    lines = [line.get_xydata().tolist() for line in drawn[0].axes[0].lines]
    assert lines == [[[4, 5], [8, 2], [10, 2.5]], [[8, 2]], [[8, 4]]]


def test_fid_against_n_is_drawn_over_its_limit(tmp_path: Path, drawn: list[plt.Figure]) -> None:
    n = np.array([1000, 2000, 5000, 10000])
    content = record("dmd2", fid=0.6)
    content["extra"] |= {"fid_by_n": {str(k): 0.5 + 1000 / k for k in n}, "fid_infinity": 0.5}
    guided = record(guidance=1.0)
    guided["extra"] |= content["extra"]
    records = load_records(save(tmp_path, content, guided, record("progressive"), floor()))
    assert fid_against_n_figure(records, tmp_path).keys() == {"fid-against-n"}
    [points, fitted] = drawn[0].axes[0].lines
    np.testing.assert_allclose(points.get_xydata(), np.stack([1 / n, 1 + 2000 / n], axis=1))
    np.testing.assert_allclose(fitted.get_xydata(), [[0, 1], [1 / 1000, 3]], atol=1e-9)
    assert fid_against_n_figure(load_records(save(tmp_path / "none", record())), tmp_path) == {}
