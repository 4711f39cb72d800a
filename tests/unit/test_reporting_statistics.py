"""Statistics of rows and comparisons of methods: those of t-tests on log FID, corrected, and never of unlike rows."""

import csv
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from harness.reporting.records import Record, load_records
from harness.reporting.statistics import (
    COMPARISONS,
    STATISTICS,
    comparisons,
    comparisons_view,
    statistics,
    statistics_view,
    write_statistics,
)
from tests.unit.test_reporting_tables import floor, record, save

REFERENCE = "moment-matching/alternating"
FIDS = {0: 1.0, 1: 1.3, 2: 0.9}


def with_folds(content: dict, log_folds: np.ndarray, se: float = 0.02) -> dict:
    content["extra"] |= {"fid_folds": np.exp(log_folds).tolist(), "fid_log_se": se, "fid_infinity": 0.5}
    return content


def loaded(folder: Path, *contents: dict) -> list[Record]:
    return load_records(save(folder, *contents))


def test_several_seeds_have_the_t_interval_of_log_fid(tmp_path: Path) -> None:
    runs = [with_folds(record("dmd2", fid=fid, seed=seed), np.zeros(10), 0.01) for seed, fid in FIDS.items()]
    [row] = statistics(loaded(tmp_path, *runs, floor())).to_dict("records")
    logs = np.log(list(FIDS.values()))
    interval = stats.ttest_1samp(logs, 0).confidence_interval(0.95)
    assert (row["seeds"], row["interval"], row["method"]) == (3, "training seeds", "dmd2")
    assert row["fid"] == pytest.approx(stats.gmean(list(FIDS.values())))
    assert (row["fid_low"], row["fid_high"]) == pytest.approx((np.exp(interval.low), np.exp(interval.high)))
    assert row["log_sd"] == pytest.approx(logs.std(ddof=1))
    assert (row["best_seed"], row["best_seed_fid"]) == (2, 0.9)
    assert row["sampling_log_se"] == pytest.approx(0.01)
    assert row["fid_infinity"] == 0.5


def test_one_seed_has_the_interval_of_its_images_or_none(tmp_path: Path) -> None:
    contents = [with_folds(record(fid=2.0), np.zeros(10), 0.03), record("dmd2", fid=2.0)]
    measured, not_measured = statistics(loaded(tmp_path, *contents)).to_dict("records")
    factor = np.exp(0.03 * stats.t.ppf(0.975, 9))
    assert measured["interval"] == "sampling"
    assert (measured["fid_low"], measured["fid_high"]) == pytest.approx((2 / factor, 2 * factor))
    assert not_measured["interval"] == ""
    assert np.isnan([not_measured[name] for name in ("fid_low", "fid_high", "log_sd", "sampling_log_se")]).all()


def test_seeds_of_unlike_settings_are_not_averaged(tmp_path: Path) -> None:
    unlike = [{}, {"identity": "bbbb"}, {"convention": "best of 3 evaluations"}, {"guidance": 1.0}, {"steps": 2}]
    unlike += [{"backend": "jax"}, {"variant": "other"}]
    contents = [record("dmd2", seed=seed, **changes) for seed, changes in enumerate(unlike)]
    assert list(statistics(loaded(tmp_path, *contents))["seeds"]) == [1] * len(unlike)


def both(seeds: dict[int, float], other: dict[int, float], method: str = "dmd2") -> list[dict]:
    runs = [record(REFERENCE, fid=fid, seed=seed) for seed, fid in seeds.items()]
    return runs + [record(method, fid=fid, seed=seed) for seed, fid in other.items()]


def test_a_comparison_is_the_paired_t_test_of_the_common_seeds(tmp_path: Path) -> None:
    other = {0: 0.5, 1: 0.62, 2: 0.46, 7: 99.0}
    [row] = comparisons(loaded(tmp_path, *both(FIDS, other))).to_dict("records")
    test = stats.ttest_rel(*(np.log([of[seed] for seed in FIDS]) for of in (other, FIDS)))
    interval = test.confidence_interval(0.95)
    assert (row["seeds"], row["interval"], row["reference"]) == (3, "training seeds", REFERENCE)
    assert (row["ratio_low"], row["ratio_high"]) == pytest.approx((np.exp(interval.low), np.exp(interval.high)))
    assert row["p"] == row["p_holm"] == pytest.approx(test.pvalue)
    assert row["verdict"] == "better"
    [row] = comparisons(loaded(tmp_path / "turned", *both(other, FIDS))).to_dict("records")
    assert row["verdict"] == "worse"


def test_verdicts_account_for_the_number_of_comparisons(tmp_path: Path) -> None:
    close = {0: 0.83, 1: 1.15, 2: 0.80}
    [alone] = comparisons(loaded(tmp_path / "one", *both(FIDS, close))).to_dict("records")
    assert alone["verdict"] == "better"
    others = [record(f"m{i}", fid=fid, seed=seed) for i in range(9) for seed, fid in {0: 1.0, 1: 1.1, 2: 1.0}.items()]
    found = comparisons(loaded(tmp_path / "many", *both(FIDS, close), *others))
    row = found[found["method"] == "dmd2"].iloc[0]
    assert row["p"] == pytest.approx(alone["p"])
    assert row["p_holm"] == pytest.approx(10 * alone["p"])
    assert (row["comparisons"], row["verdict"]) == (10, "undecided")


def test_one_common_seed_is_undecided_and_has_the_paired_interval_of_its_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    common, own = 0.05 * rng.standard_normal(10), 0.001 * rng.standard_normal(10)
    contents = [with_folds(record(REFERENCE, fid=1.0), common), with_folds(record("dmd2", fid=0.2), common + own)]
    contents += [record("progressive", fid=0.3)]
    measured, not_measured = comparisons(loaded(tmp_path, *contents)).to_dict("records")
    half = np.sqrt(0.9 * ((own - own.mean()) ** 2).sum()) * stats.t.ppf(0.975, 9)
    assert (measured["interval"], measured["verdict"], measured["comparisons"]) == ("sampling", "undecided", 0)
    expected = (0.2 * np.exp(-half), 0.2 * np.exp(half))  # what both share has cancelled
    assert (measured["ratio_low"], measured["ratio_high"]) == pytest.approx(expected)
    assert (not_measured["interval"], not_measured["verdict"]) == ("", "undecided")
    assert np.isnan(not_measured["ratio_low"])


def test_what_was_measured_unlike_the_reference_is_not_compared_with_it(tmp_path: Path) -> None:
    unlike = [{"identity": "bbbb"}, {"convention": "best of 3 evaluations"}, {"steps": 2}, {"backend": "jax"}]
    unlike += [{"guidance": 1.0}, {"seed": 5}]
    contents = [record(REFERENCE), floor(), *(record("dmd2", **changes) for changes in unlike)]
    found = comparisons(loaded(tmp_path, *contents))
    assert list(found.columns) == COMPARISONS
    assert found.empty
    assert comparisons_view(found).rows == []


def test_files_have_the_columns_and_name_the_convention(tmp_path: Path) -> None:
    records = loaded(tmp_path, *both(FIDS, {0: 0.5, 1: 0.62, 2: 0.46}), floor())
    write_statistics(records, tmp_path)
    for name, columns in (("statistics", STATISTICS), ("comparisons", COMPARISONS)):
        with open(tmp_path / f"{name}.csv", newline="") as file:
            assert next(csv.reader(file)) == columns
        lines = (tmp_path / f"{name}.md").read_text().splitlines()
        assert len({line.count(" | ") for line in lines if line.startswith("| ")}) == 1
        assert lines[-1].endswith(": final.*")
    assert "corrects for the number of comparisons over seeds in this table, here 1;" in lines[-1]
    assert lines[2].endswith("| better |")


def test_readers_see_the_best_seed_only_beside_others(tmp_path: Path) -> None:
    view = statistics_view(statistics(loaded(tmp_path, *both(FIDS, {0: 0.5}))))
    best = [row[view.header.index("Best seed")] for row in view.rows]
    assert best == ["0.9", "\N{EN DASH}"]


def test_headers_name_the_sample_count_where_all_rows_share_it(tmp_path: Path) -> None:
    exact = loaded(
        tmp_path / "one", *(record(name, fid=1.0, n_samples=2048) for name in ("moment-matching/alternating", "dmd2"))
    )
    assert "FID-2048" in statistics_view(statistics(exact)).header
    assert "FID-2048 ratio" in comparisons_view(comparisons(exact)).header
    several = loaded(tmp_path / "two", record("dmd2", n_samples=2048), record("dmd2", n_samples=10000, steps=2))
    assert "FID" in statistics_view(statistics(several)).header
