"""Text-to-image tables: guidance is a dimension, and rows of different guidance are never compared."""

import csv
import json
import re

import numpy as np
import pytest
from scipy import stats

from harness.config import load_profile
from harness.errors import UserError
from harness.reporting.figures import write_figures
from harness.reporting.published import COLUMNS as PUBLISHED_COLUMNS
from harness.reporting.published import PublishedRow
from harness.reporting.published_tables import _reproductions
from harness.reporting.records import frame, is_ablation, labels, load_records, over_seeds, series_names, text_to_image
from harness.reporting.report import teacher_over_floor, teacher_ratios, write_report
from harness.reporting.statistics import (
    CLIP_COMPARISONS,
    CLIP_STATISTICS,
    STATISTICS,
    comparisons,
    comparisons_view,
    statistics,
    statistics_view,
    write_statistics,
)
from harness.reporting.tables import layout, main_table
from tests.unit.test_reporting_tables import COLUMNS, floor, record, save

STUDENT = "moment-matching/alternating"
POLICY = "captions of the held-out images: image i has caption i mod their number"


def captioned(method="teacher", backend="torch", steps=8, fid=1.0, clip=80.0, w=0.0, **changes):
    """A record of a text-to-image profile; a guided teacher costs two evaluations a step."""
    nfe = steps * (2 if w and method == "teacher" else 1)
    changes = {"profile": "shapes", "attribute_accuracy": 0.5, "nfe": nfe, "n_samples": 5000} | changes
    made = record(method, backend, steps, fid, guidance=w, clip=clip, **changes)
    made["extra"] |= {"fid_heldout": None, "clip_se": 0.1}
    made["identity"] |= {"label_policy": POLICY, "clip_extractor": "shapes-clip", "data": "shapes/heldout"}
    return made


def real(clip=94.0, fid=0.02):
    made = floor(fid)
    made["row"] |= {"profile": "shapes", "clip": clip, "attribute_accuracy": 0.99, "n_samples": 5000}
    made["extra"] |= {"clip_se": 0.03}
    return made


def loaded(folder, *contents):
    return load_records(save(folder, *contents))


def test_guidance_is_an_ablation_of_classes_and_a_dimension_of_captions(tmp_path):
    classes = frame(loaded(tmp_path / "a", record(), record(guidance=1.0), record("dmd2", variant="flat"), floor()))
    captions = [captioned(), captioned(w=1.0), captioned("dmd2", variant="flat", w=1.0), real()]
    shown = frame(loaded(tmp_path / "b", *captions))
    assert not text_to_image(classes).any()
    assert text_to_image(shown).all()
    assert [*is_ablation(classes)] == [False, False, True, True]  # the real-data record comes first
    assert [*is_ablation(shown)] == [False, False, False, True]
    assert labels(classes)[1:] == ["Teacher", "Teacher, w = 1", "DMD2 [flat]"]
    assert labels(shown)[1:] == ["Teacher", "Teacher", "DMD2 [flat]"]
    assert series_names(shown)[1:] == ["Teacher, w = 0", "Teacher, w = 1", "DMD2 [flat], w = 1"]
    assert series_names(classes) == labels(classes)


def test_the_main_table_has_the_columns_of_the_papers_third_table(tmp_path):
    contents = [captioned(steps=4, w=1.0, fid=2.0, clip=85.0), captioned(fid=3.0), captioned(STUDENT, w=1.0, clip=90.0)]
    [block] = layout(loaded(tmp_path, *contents, real(fid=0.25)))
    assert block.header[:5] == ["Method", "Backend", "Guidance", "# params", "NFE"]
    assert block.header[5:9] == ["FID-5k ↓", "CLIP score-5k ↑", "Attributes-5k ↑", "IS-5k ↑"]
    rows = [[cell.text for cell in row] for group in block.groups for row in group]
    assert [row[:3] + row[4:7] for row in rows] == [
        ["Real data", "\N{EN DASH}", "\N{EN DASH}", "\N{EN DASH}", "0.25", "94.0"],
        ["Teacher", "torch", "0", "8", "3.00", "80.0"],
        ["Teacher", "torch", "1", "8", "2.00", "85.0"],
        ["Moment matching, alternating", "torch", "1", "8", "1.00", "90.0"],
    ]
    assert [row[6].bold for row in block.groups[1]] == [False, False, True]
    assert f"Drawn for {POLICY}." in block.caption
    assert "by shapes-clip" in block.caption


def test_main_csv_has_the_scores_of_captions_after_recall_and_only_with_captions(tmp_path):
    plain = COLUMNS.split(",")
    place = plain.index("recall") + 1
    expected = [*plain[:place], "clip", "attribute_accuracy", *plain[place:]]
    assert list(main_table(loaded(tmp_path / "a", captioned(), real()))) == expected
    assert list(main_table(loaded(tmp_path / "b", record(), floor()))) == plain
    [block] = layout(loaded(tmp_path / "c", record()))
    assert "Guidance" not in block.header
    assert "Guidance" not in block.caption


def test_ablations_stand_beside_the_default_with_their_guidance(tmp_path):
    contents = [captioned(STUDENT, w=w, fid=1.0 + w) for w in (0.0, 1.0)]
    contents += [captioned(STUDENT, w=1.0, variant="flat", fid=9.0)]
    _, ablations = layout(loaded(tmp_path, *contents))
    assert [(row[0].text[-6:], row[2].text) for row in ablations.groups[0]] == [("nating", "1"), ("[flat]", "1")]


def test_comparisons_are_of_equal_guidance(tmp_path):
    ours = {0: 1.0, 1: 1.3, 2: 0.9}
    theirs = {0: 0.5, 1: 0.62, 2: 0.46}
    contents = [captioned(STUDENT, w=1.0, fid=fid, clip=80.0 + seed, seed=seed) for seed, fid in ours.items()]
    contents += [captioned("dmd2", w=1.0, fid=fid, clip=82.0 + 1.5 * seed, seed=seed) for seed, fid in theirs.items()]
    contents += [captioned(STUDENT, w=2.0, fid=7.0), captioned("dmd2", fid=0.1), captioned(w=2.0, fid=3.5), real()]
    found = comparisons(loaded(tmp_path, *contents))
    assert list(found.columns) == CLIP_COMPARISONS
    teacher, row = found.to_dict("records")
    assert (teacher["method"], teacher["guidance"], teacher["ratio"]) == ("teacher", 2.0, pytest.approx(0.5))
    gains = np.array([2.0, 2.5, 3.0])
    interval = stats.ttest_1samp(gains, 0).confidence_interval(0.95)
    assert (row["method"], row["guidance"], row["seeds"], row["verdict"]) == ("dmd2", 1.0, 3, "better")
    assert (row["clip_difference"], row["clip_low"], row["clip_high"]) == pytest.approx((2.5, *interval))
    view = comparisons_view(found)
    assert view.header[:5] == ["Method", "Backend", "Guidance", "k", "n"]
    assert [line[:3] for line in view.rows] == [["Teacher", "torch", "2"], ["DMD2", "torch", "1"]]
    assert "with as much guidance" in view.note


def test_statistics_tell_guidance_apart_and_give_the_clip_scores_interval(tmp_path):
    contents = [captioned(w=1.0, clip=81.0), *(captioned("dmd2", clip=clip, seed=i) for i, clip in enumerate((80, 83)))]
    found = statistics(loaded(tmp_path, *contents, captioned(w=2.0)))
    assert list(found.columns) == STATISTICS + CLIP_STATISTICS
    one, _, several = found.to_dict("records")
    half = 0.1 * stats.t.ppf(0.975, 4999)
    assert (one["clip_low"], one["clip_high"]) == pytest.approx((81 - half, 81 + half))
    assert one["clip_interval"] == "sampling"
    interval = stats.ttest_1samp([80, 83], 0).confidence_interval(0.95)
    assert (several["clip_low"], several["clip_high"]) == pytest.approx(tuple(interval))
    assert several["clip_interval"] == "training seeds"
    view = statistics_view(found)
    assert [line[:4] for line in view.rows] == [
        ["Teacher", "torch", "1", "8"],
        ["Teacher", "torch", "2", "8"],
        ["DMD2", "torch", "0", "8"],
    ]
    assert "CLIP score: mean over training seeds" in view.note


def test_statistics_of_classes_have_no_columns_of_captions(tmp_path):
    records = loaded(tmp_path, record(STUDENT), record("dmd2"), record("dmd2", guidance=1.0))
    assert list(statistics(records).columns) == STATISTICS
    assert not {"guidance", "clip_difference"} & set(comparisons(records).columns)
    assert len(comparisons(records)) == 1
    assert "Guidance" not in statistics_view(statistics(records)).header + comparisons_view(comparisons(records)).header
    assert "without guidance" in comparisons_view(comparisons(records)).note


def test_ratios_are_taken_at_equal_guidance(tmp_path):
    contents = [captioned(fid=8.0), captioned(w=1.0, fid=4.0), captioned(w=4.0, fid=20.0, steps=32)]
    contents += [captioned(w=1.0, fid=0.5, steps=32), captioned(STUDENT, w=1.0, fid=1.0)]
    contents += [captioned(STUDENT, w=2.0, fid=1.0), captioned("dmd2", fid=1.0), real(fid=0.25)]
    means = over_seeds(frame(loaded(tmp_path, *contents)))
    ratios = teacher_ratios(means)
    assert dict(zip(ratios["series"], ratios["ratio"], strict=True)) == {
        "Moment matching, alternating, w = 1": 0.25,
        "DMD2, w = 0": 0.125,
    }
    [most] = teacher_over_floor(means).to_dict("records")
    assert (most["steps"], most["guidance"], most["ratio"]) == (32, 1.0, 2.0)


def report(folder, contents, **arguments):
    paths = save(folder, *contents)
    write_figures(paths, folder)
    write_report(paths, folder, folder / "report.html", profile=load_profile("shapes"), **arguments)
    return (folder / "report.html").read_text()


def test_the_report_shows_the_best_scores_and_what_images_were_drawn_for(tmp_path):
    contents = [
        captioned(w=w, clip=80.0 + w, attribute_accuracy=0.6 + w / 10, images_per_second=90.0 - w) for w in (0, 2)
    ]
    contents += [captioned(STUDENT, w=1.0, clip=79.5, attribute_accuracy=0.7), captioned("dmd2", clip=70.0), real()]
    (tmp_path / "clip.json").write_text(json.dumps({"retrieval_heldout": 0.9876}))
    page = report(tmp_path, contents, clip=tmp_path / "clip.json")
    tiles = dict(re.findall(r"<b>([^<]+)</b><span>([^<]+)</span>", page))
    assert tiles["82.0"] == "highest CLIP score of the teacher (Teacher, w = 2, k = 8, torch); real images: 94.0"
    assert tiles["79.5"].startswith(
        "highest CLIP score of 2 students with 8 steps (Moment matching, alternating, w = 1"
    )
    assert {"80.0%", "70.0%", "98.8%"} <= set(tiles)
    assert f"images are drawn for {POLICY}." in page
    throughput = page[page.index("Sampling throughput") :]
    speeds = re.findall(
        r"<td class=\"text\">Teacher</td><td class=\"text\">torch</td><td>(\d)</td><td>(\d+)<", throughput
    )
    assert speeds == [("0", "90"), ("2", "88")]
    (tmp_path / "clip.json").write_text("[")
    with pytest.raises(UserError, match=r"clip\.json: missing or garbled"):
        report(tmp_path, contents, clip=tmp_path / "clip.json")


def test_a_report_of_classes_says_nothing_of_captions(tmp_path):
    page = report(tmp_path, [record(), record(STUDENT, fid=0.5), floor()])
    assert not re.search("CLIP score of|Text-to-image: |<th[^>]*>Guidance", page.split("Published by others")[0])


def test_published_clip_scores_are_cosines(tmp_path):
    row = dict.fromkeys(PUBLISHED_COLUMNS)
    row |= {"method": "m", "ours": STUDENT, "nfe": 8, "guidance": 1.0, "convention": "c", "paper": "p", "year": 2024}
    row |= {"table_in_paper": "yes", "source": "s", "verified": "no", "clip": "0.3"}
    published = PublishedRow.model_validate(row)
    measured = frame(loaded(tmp_path, captioned(STUDENT, w=1.0, clip=31.5), captioned(STUDENT, clip=20.0)))
    assert [one.value for one in _reproductions(measured, published, "clip")] == [pytest.approx(0.315)]


def test_files_of_captioned_records_are_whole(tmp_path):
    records = loaded(tmp_path, captioned(STUDENT, w=1.0), captioned("dmd2", w=1.0), real())
    write_statistics(records, tmp_path)
    with open(tmp_path / "comparisons.csv", newline="") as file:
        [line] = csv.DictReader(file)
    assert (line["method"], line["guidance"], line["clip_difference"]) == ("dmd2", "1.0", "0.0")
    for name in ("statistics", "comparisons"):
        lines = (tmp_path / f"{name}.md").read_text().splitlines()
        assert len({line.count(" | ") for line in lines if line.startswith("| ")}) == 1
