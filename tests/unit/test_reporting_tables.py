"""Records and tables: read strictly, written exactly, ranked only within one identity."""

import csv
import json
import math
import re
from pathlib import Path

import pandas as pd
import pytest

from harness.errors import UserError
from harness.reporting.records import frame, load_records, over_seeds
from harness.reporting.tables import latex, layout, main_table, markdown, write_tables

COLUMNS = (
    "profile,backend,method,variant,sampler,guidance,steps,nfe,params,seed,n_samples,fid,is,kid,precision,recall,"
    "updates,train_passes,train_seconds,peak_memory_mb,images_per_second,convention,identity"
)


def record(method="teacher", backend="torch", steps=1, fid=1.0, **changes):
    row = {
        "profile": "digits",
        "backend": backend,
        "method": method,
        "variant": "default",
        "sampler": "ancestral",
        "guidance": 0.0,
        "steps": steps,
        "nfe": steps,
        "params": 151744,
        "seed": 0,
        "n_samples": 10000,
        "fid": fid,
        "is": 9.0,
        "kid": 0.001,
        "precision": 0.9,
        "recall": 0.8,
        "updates": 4000,
        "train_passes": 12000,
        "train_seconds": 80.5,
        "peak_memory_mb": None,
        "images_per_second": 1e4 / 3,
        "convention": "final",
        "identity": "aaaa",
    } | changes
    extra = {"is_std": 0.1, "kid_std": 0.0, "fid_heldout": fid + 0.2, "nn_distance": 4.0}
    identity = {"extractor": "digits-cnn", "data_digest": row["identity"]}
    return {"row": row, "extra": extra, "identity": identity, "provenance": {"config": "c0ffee"}}


def floor(fid=0.02):
    empty = dict.fromkeys(["params", "updates", "train_passes", "train_seconds", "images_per_second", "guidance"])
    made = record("real-data", "-", 0, fid, sampler="-", **empty)
    made["extra"]["nn_distance_heldout"] = 4.3
    return made


def save(folder: Path, *contents) -> list[Path]:
    """Each record in a file of its own, in the folder that the workflow would give it."""
    paths = []
    for content in contents:
        row = content["row"]
        run = f"{row['backend']}/{row['method'].replace('/', '-')}/{row['variant']}/k{row['steps']}/seed{row['seed']}"
        target = folder / row["identity"] / run
        target.mkdir(parents=True, exist_ok=True)
        guided = f"-w{row['guidance']:g}" if row["guidance"] else ""
        paths.append(target / f"metrics-{row['sampler']}{guided}-k{row['steps']}.json")
        paths[-1].write_text(json.dumps(content))
    return paths


def test_main_csv_has_the_columns_and_loses_no_digit(tmp_path):
    fid = math.pi / 7
    write_tables(save(tmp_path, record(fid=fid), floor()), tmp_path)
    lines = (tmp_path / "main.csv").read_text().splitlines()
    assert lines[0] == COLUMNS
    real, teacher = csv.DictReader(lines)
    assert (float(teacher["fid"]), float(teacher["images_per_second"])) == (fid, 1e4 / 3)
    assert (teacher["train_passes"], teacher["peak_memory_mb"]) == ("12000", "")
    assert {real[name] for name in ("params", "updates", "train_passes", "train_seconds", "guidance")} == {""}


def test_rows_are_ordered_whatever_the_order_of_the_files(tmp_path):
    contents = [record("moment-matching/alternating"), record(backend="jax"), record(steps=8), record(), floor()]
    paths = save(tmp_path, *contents)
    expected = main_table(load_records(paths))
    assert list(expected["method"]) == ["real-data", *["teacher"] * 3, "moment-matching/alternating"]
    assert list(zip(expected["backend"], expected["steps"], strict=True))[1:4] == [
        ("torch", 1),
        ("torch", 8),
        ("jax", 1),
    ]
    pd.testing.assert_frame_equal(expected, main_table(load_records(paths[::-1])))


def test_the_true_best_of_each_nfe_group_is_bold(tmp_path):
    contents = [record(fid=5.0), record("dmd2", fid=3.25, **{"is": 9.5}), record("progressive", fid=4.0)]
    contents += [record(fid=0.7, steps=8), record("dmd2", fid=0.9, steps=8), floor()]
    [block] = layout(load_records(save(tmp_path, *contents)))
    fids = {
        tuple(row[3].text for row in group): [c.text for row in group for c in row[4:5] if c.bold]
        for group in block.groups
    }
    assert fids == {("\N{EN DASH}",): [], ("1", "1", "1"): ["3.250"], ("8", "8"): ["0.700"]}
    assert [c.text for row in block.groups[1] for c in row[5:6] if c.bold] == ["9.50"]  # IS: the largest
    assert {"3.250", "9.50", "0.700"} <= set(re.findall(r"\*\*(.+?)\*\*", markdown([block])))
    assert r"\textbf{3.250}" in latex([block])


def test_values_of_different_identities_are_never_ranked_together(tmp_path):
    contents = [record(fid=5.0), record("dmd2", fid=3.0), record("progressive", fid=0.1, identity="bbbb")]
    blocks = layout(load_records(save(tmp_path, *contents)))
    assert [[c.text for g in b.groups for row in g for c in row[4:5] if c.bold] for b in blocks] == [["3.00"], []]
    assert all("not to be compared" in block.note for block in blocks)
    assert "data_digest bbbb" in blocks[1].note


def test_reporting_conventions_are_not_ranked_together(tmp_path):
    contents = [record(fid=5.0), record("dmd2", fid=3.0), record("progressive", fid=0.1, convention="best of 5")]
    [block] = layout(load_records(save(tmp_path, *contents)))
    assert [row[4].bold for row in block.groups[0]] == [False, True, False]
    assert "best of 5" in block.groups[0][2][0].text
    assert "best of 5, final" in block.caption


def test_seeds_are_averaged_and_their_spread_shown(tmp_path):
    contents = [record(fid=fid, seed=seed) for seed, fid in enumerate((1.0, 2.0, 4.5))] + [record("dmd2", fid=9.0)]
    records = load_records(save(tmp_path, *contents))
    assert len(main_table(records)) == 4
    teacher, other = over_seeds(frame(records)).to_dict("records")
    assert (teacher["fid"], teacher["seeds"]) == (2.5, 3)
    assert teacher["fid_sd"] == pytest.approx(math.sqrt((1.5**2 + 0.5**2 + 2.0**2) / 2))
    assert math.isnan(other["fid_sd"])
    [block] = layout(records)
    assert "**2.50 ± 1.80**" in markdown([block])
    assert [row[block.header.index("Seeds")].text for row in block.groups[0]] == ["3", "1"]
    assert "at most 3" in block.caption


def test_what_training_cost_stands_in_every_rendering(tmp_path):
    costs = {"updates": 1500, "train_passes": 123456, "peak_memory_mb": 739.7}
    write_tables(save(tmp_path, record("progressive", **costs), record(peak_memory_mb=None)), tmp_path)
    [block] = layout(load_records(tmp_path.rglob("metrics-*.json")))
    assert block.header[-3:] == ["Updates", "Training passes", "Peak memory, MB"]
    for text in [(tmp_path / f"main.{kind}").read_text() for kind in ("md", "html", "tex")]:
        assert {"1.5k", "123k", "740"} <= set(re.findall(r"[\w.]+", text))
        assert all(header in text.replace("\N{NON-BREAKING HYPHEN}", "-") for header in block.header[-3:])
    assert block.groups[0][0][-1].text == "\N{EN DASH}"


def test_ablations_stand_in_a_table_of_their_own_beside_what_they_vary(tmp_path):
    contents = [record("dmd2", steps=k) for k in (1, 8)] + [record("progressive", steps=8, fid=0.1)]
    contents += [
        record("dmd2", steps=8, variant="flat", fid=0.5),
        record(steps=8),
        record(steps=8, guidance=1.0, nfe=16),
    ]
    main, ablations = layout(load_records(save(tmp_path, *contents, floor())))
    rows = {
        name: [row[0].text for group in block.groups for row in group]
        for name, block in (("m", main), ("a", ablations))
    }
    assert rows == {
        "m": ["Real data", "DMD2", "Teacher", "DMD2", "Progressive"],
        "a": ["Teacher", "DMD2", "DMD2 [flat]", "Teacher, w = 1"],
    }
    fid = main.header.index("FID-10k ↓")
    assert [row[fid].bold for row in main.groups[-1]] == [False, False, True]
    assert [row[fid].bold for row in ablations.groups[0]] == [False, False, True], "not ranked against other methods"
    assert ablations.caption.startswith("Ablations.")


@pytest.mark.parametrize(("n", "name"), [(50000, "50k"), (2000, "2k"), (2048, "2048"), (9999, "9999")])
def test_the_exact_sample_count_is_part_of_every_metrics_name(tmp_path, n, name):
    write_tables(save(tmp_path, record(n_samples=n)), tmp_path)
    [block] = layout(load_records(tmp_path.rglob("metrics-*.json")))
    metrics = [
        f"FID-{name}",
        f"IS-{name}",
        f"KID-{name}",
        f"Precision-{name}",
        f"Recall-{name}",
        f"FID-{name} held-out",
    ]
    assert all(header.startswith(metric) for header, metric in zip(block.header[4:10], metrics, strict=True))
    for text in [(tmp_path / f"main.{kind}").read_text() for kind in ("md", "html", "tex")]:
        plain = re.sub(r"\\(?=-)", "", text.replace("\N{NON-BREAKING HYPHEN}", "-").replace("\N{NO-BREAK SPACE}", " "))
        assert all(metric in plain for metric in metrics)


@pytest.mark.parametrize(
    ("extractor", "name"),
    [
        ("inception-v3-clean", "FID-10k"),
        ("shapes-cnn", "FID-10k"),
        ("dinov2-vit-l-14", "FD-10k"),
        ("clip-vit-l-14", "FD-10k"),
    ],
)
def test_the_frechet_distance_is_fid_with_classifiers_alone(tmp_path, extractor, name):
    [block] = layout(load_records(save(tmp_path, record() | {"identity": {"extractor": extractor}})))
    assert {f"{name} ↓", f"{name} held-out ↓"} <= set(block.header)


def test_special_characters_are_escaped_in_every_rendering(tmp_path):
    write_tables(save(tmp_path, record(variant="a_b&50%|<i>")), tmp_path)
    assert r"[a\_b\&50\%|\textless{}i\textgreater{}]" in (tmp_path / "main.tex").read_text()
    assert r"\[a\_b&50%\|\<i>]" in (tmp_path / "main.md").read_text()
    assert "[a_b&amp;50%|&lt;i&gt;]" in (tmp_path / "main.html").read_text()


def test_latex_rows_have_as_many_cells_as_columns(tmp_path):
    write_tables(save(tmp_path, record(), record("dmd2", steps=2), floor()), tmp_path)
    text = (tmp_path / "main.tex").read_text()
    columns = len(re.search(r"begin\{tabular\}\{(\w+)\}", text)[1])
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 4
    assert {line.count(" & ") + 1 for line in rows} == {columns}
    assert "FID-10k" in text
    assert text.isascii()


def _without(content, part, key):
    del content[part][key]
    return content


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (_without(record(), "row", "fid"), "row.fid"),
        (_without(record(), "extra", "nn_distance"), "extra.nn_distance"),
        (record(fid=math.nan), "row.fid"),
        (record(steps="8"), "row.steps"),
        (record(surplus=1), "row.surplus"),
    ],
)
def test_a_bad_record_is_one_line_naming_file_and_key(tmp_path, content, named):
    path = tmp_path / "metrics-x.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"^{re.escape(str(path))}: {re.escape(named)}: .*$"):
        load_records([path])


def test_missing_garbled_repeated_and_no_records_are_user_errors(tmp_path):
    [path] = save(tmp_path, record())
    for paths, message in (([tmp_path / "none.json"], "none.json"), ([path, path], "same run"), ([], "no records")):
        with pytest.raises(UserError, match=message):
            load_records(paths)
    path.write_text(path.read_text()[:-20])
    with pytest.raises(UserError, match=re.escape(str(path))):
        load_records([path])


def test_a_missing_inception_score_is_a_dash_beside_others(tmp_path):
    records = load_records(save(tmp_path, record(), record("progressive", steps=2, **{"is": None})))
    lines = [line for line in markdown(layout(records)).splitlines() if line.startswith("|")]
    column = [cell.strip() for cell in lines[0].split("|")].index("IS-10k ↑")
    assert [line.split("|")[column].strip() for line in lines[2:]] == ["9.00", "\N{EN DASH}"]
