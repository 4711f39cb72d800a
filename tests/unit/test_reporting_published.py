"""Published numbers: read strictly, set beside what was measured alike, and beside nothing else."""

import csv
import math
import re
from pathlib import Path

import pytest
from scipy import stats

from harness.config import load_profile
from harness.errors import UserError
from harness.reporting.published import COLUMNS, PUBLISHED, load_tables, tables_for
from harness.reporting.published_tables import compare, published_blocks, write_published
from harness.reporting.records import DASH, load_records
from harness.verbs import table
from harness.workspace import Workspace
from tests.unit.test_reporting_tables import record, save

ALTERNATING = "moment-matching/alternating"
RENDERINGS = ("md", "tex", "html")
INDEX = "mine:\n  title: a benchmark\n  size: 64\n  n_samples: 50000\n  extractors: [inception-v3-compat]\n"
LINE = {
    "method": "Moment Matching",
    "variant": "Alternating",
    "ours": ALTERNATING,
    "nfe": "8",
    "fid": "1.40",
    "convention": "best checkpoint",
    "paper": "Salimans et al.",
    "year": "2024",
    "table_in_paper": "yes",
    "source": "Somebody 2025, Table 1",
    "verified": "yes",
}


def imagenet(method, fid, steps=8, seed=0, extractor="inception-v3-compat", **changes):
    """A record as the profile imagenet64 makes it."""
    changes = {"profile": "imagenet64", "n_samples": 50000, "identity": "c" * 12, "seed": seed} | changes
    made = record(method, steps=steps, fid=fid, **changes)
    return made | {"identity": {"extractor": extractor, "resize": "legacy_tensorflow"}}


def seeds(method, *fids, **changes):
    return [imagenet(method, fid, seed=seed, **changes) for seed, fid in enumerate(fids)]


def published(folder: Path, *lines: dict[str, str], index: str = INDEX) -> Path:
    """A folder with one published table, `mine`."""
    (folder / "tables.yaml").write_text(index)
    with (folder / "mine.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    return folder


def compared(folder, records, *lines, profile="imagenet64"):
    """What becomes of published lines beside these records, as if the profile named their table."""
    profile = load_profile(profile).model_copy(update={"published": "mine"})
    tables = tables_for(profile, load_tables(published(folder, *(lines or [LINE]))))
    paths = [path for number, made in enumerate(records) for path in save(folder / f"run{number}", made)]
    return compare(load_records(paths), profile, tables)


def rendered(folder: Path, kind: str) -> str:
    """A rendering with one way of writing cells and signs."""
    text = (folder / f"published.{kind}").read_text().replace("\N{NON-BREAKING HYPHEN}", "-")
    text = text.replace(r"$\dagger$", "†").replace(" & ", " | ")
    return re.sub("</td><td[^>]*>", " | ", text)


def test_the_committed_tables_are_read_and_unverified_rows_name_no_source():
    tables = load_tables()
    assert set(tables) == {"imagenet64", "imagenet128", "coco512", "cifar10"}
    for found in tables.values():
        assert len(found.rows) > 20
        assert {row.source == "unconfirmed" for row in found.rows if row.verified == "no"} <= {True}
    best = [row for row in tables["imagenet64"].rows if row.ours == ALTERNATING and row.nfe == 1 and row.fid]
    assert [(str(row.fid), row.verified, row.convention) for row in best] == [("3.00", "yes", "best checkpoint")]
    scores = [row for row in tables["imagenet64"].rows if row.method == "Moment Matching" and row.inception_score]
    assert {row.verified for row in scores} == {"no"}


def test_profiles_name_tables_of_their_own_image_size():
    tables = load_tables()
    for name in ("imagenet64", "imagenet128", "cifar10"):
        profile = load_profile(name)
        [found] = tables_for(profile, tables)
        assert found.name == name
        assert found.differences(profile, profile.extractor.name, profile.evaluation.n_samples) == []
    assert tables_for(load_profile("digits"), tables) == list(tables.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nfe": "8x"}, "mine.csv:2: nfe is '8x', but should be a valid integer"),
        ({"nfe": "0"}, "mine.csv:2: nfe is '0', but should be greater than or equal to 1"),
        ({"fid": "-1"}, "mine.csv:2: fid is '-1', but should be greater than 0"),
        ({"fid": "nan"}, "mine.csv:2: fid is 'nan', but should be a finite number"),
        ({"clip": "32.2"}, "mine.csv:2: clip is '32.2', but should be less than or equal to 1"),
        ({"params": "400"}, "mine.csv:2: params is '400', but should match pattern"),
        ({"source": ""}, "mine.csv:2: source is None, but should be text"),
        ({"verified": "maybe"}, "mine.csv:2: verified is 'maybe'; known: yes, no"),
        ({"source": "unconfirmed"}, "mine.csv:2: verified is yes, but the source is 'unconfirmed'"),
        ({"ours": "moment-matching/altrnating"}, f"mine.csv:2: ours: .* did you mean '{ALTERNATING}'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_cell_is_one_line_naming_file_line_and_column(tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as error:
        load_tables(published(tmp_path, LINE | changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("method,", "name,", "mine.csv:1: the columns are not method,variant"),
        ("Somebody 2025, Table 1", "Somebody", None),
        ('"Somebody 2025, Table 1"', "Somebody 2025, Table 1", "mine.csv:2: has 16 cells, not 15; quote a cell"),
        ('Table 1"', "Table 1", "mine.csv:2: not valid CSV"),
    ],
)
def test_a_wrong_layout_is_one_line(tmp_path, old, new, message):
    path = published(tmp_path, LINE) / "mine.csv"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    if message is None:
        assert len(load_tables(tmp_path)["mine"].rows) == 1
        return
    with pytest.raises(UserError, match=message):
        load_tables(tmp_path)


def test_repeated_rows_and_tables_without_a_protocol_are_user_errors(tmp_path):
    with pytest.raises(UserError, match=r"mine\.csv:3: says the same as line 2"):
        load_tables(published(tmp_path, LINE, LINE | {"fid": "1.5"}))
    for index, message in [
        ("{}", r"tables\.yaml: says nothing of mine\.csv; add a section mine"),
        (INDEX.replace("size", "sise"), "unknown key mine.sise; did you mean 'size'"),
        (INDEX + "other:" + INDEX.removeprefix("mine:"), r"other\.csv: cannot be read \(No such file"),
        ("- a", "holds no tables"),
    ]:
        with pytest.raises(UserError, match=message):
            load_tables(published(tmp_path, LINE, index=index))
    assert load_tables(tmp_path / "absent") == {}


def test_an_unknown_table_is_told_with_the_nearest():
    profile = load_profile("imagenet64").model_copy(update={"published": "imagenet"})
    with pytest.raises(UserError, match="published is the unknown table 'imagenet'; did you mean 'imagenet64'"):
        tables_for(profile, load_tables())
    with pytest.raises(UserError, match="run from a clone"):
        tables_for(profile, {})


@pytest.mark.parametrize(("printed", "within"), [("1.40", True), ("1.24", False), ("1.58", False)])
def test_the_difference_and_the_interval_over_seeds(tmp_path, printed, within):
    fids = (1.38, 1.42, 1.33)
    [found] = compared(tmp_path, seeds(ALTERNATING, *fids), LINE | {"fid": printed})
    logs = [math.log(fid) for fid in fids]
    low, high = stats.t.interval(0.95, 2, loc=sum(logs) / 3, scale=stats.sem(logs))
    assert (found.reproduced.value, found.reproduced.seeds) == (pytest.approx(stats.gmean(fids)), 3)
    assert (found.reproduced.low, found.reproduced.high) == pytest.approx((math.exp(low), math.exp(high)))
    assert found.difference == pytest.approx(stats.gmean(fids) - float(printed))
    assert found.within is within


def test_two_seeds_give_a_difference_and_no_interval(tmp_path):
    [found] = compared(tmp_path, seeds(ALTERNATING, 1.4, 1.4))
    assert (found.difference, found.reproduced.low, found.within) == (pytest.approx(0.0), None, None)


def test_inception_scores_are_compared_as_well(tmp_path):
    records = [imagenet(ALTERNATING, 1.4, **{"is": 70.0})]
    fid, score = compared(tmp_path, records, LINE | {"is": "78"})
    assert (fid.metric, score.metric, score.difference) == ("fid", "is", pytest.approx(-8.0))


def test_backends_conventions_and_identities_stay_apart(tmp_path):
    records = seeds(ALTERNATING, 1.3, 1.4) + seeds(ALTERNATING, 1.5, 1.6, 1.7, backend="jax")
    records += [imagenet(ALTERNATING, 1.2, convention="best of 5")]
    records += [imagenet(ALTERNATING, 1.9, identity="d" * 12)]
    found = [item.reproduced for item in compared(tmp_path, records)]
    assert {(one.backend, one.convention, one.identity[0], one.seeds) for one in found} == {
        ("torch", "final", "c", 2),
        ("jax", "final", "c", 3),
        ("torch", "best of 5", "c", 1),
        ("torch", "final", "d", 1),
    }


@pytest.mark.parametrize(
    "record",
    [
        imagenet(ALTERNATING, 1.4, steps=4),
        imagenet(ALTERNATING, 1.4, variant="ddim"),
        imagenet(ALTERNATING, 1.4, guidance=0.5),
        imagenet("moment-matching/instant", 1.4),
        imagenet(ALTERNATING, 1.4, n_samples=10000),
        imagenet(ALTERNATING, 1.4, extractor="digits-cnn"),
    ],
    ids=["steps", "variant", "guidance", "method", "sample count", "extractor"],
)
def test_what_was_measured_otherwise_reproduces_nothing(tmp_path, record):
    [found] = compared(tmp_path, [record])
    assert (found.reproduced, found.difference, found.within) == (None, None, None)


def test_a_row_that_names_no_method_of_ours_is_never_matched(tmp_path):
    [found] = compared(tmp_path, [imagenet(ALTERNATING, 1.4)], LINE | {"ours": ""})
    assert found.reproduced is None


def test_the_teacher_is_matched_by_guidance_and_ancestral_sampling(tmp_path):
    teachers = [imagenet("teacher", 1.5, steps=512, nfe=1024, guidance=0.1)]
    teachers += [imagenet("teacher", 9.0, steps=1024), imagenet("teacher", 8.0, steps=1024, sampler="ddim")]
    base = LINE | {"ours": "teacher", "nfe": "1024"}
    guided, plain = compared(tmp_path, teachers, base | {"guidance": "0.1"}, base | {"variant": "unguided"})
    assert [guided.reproduced.value, plain.reproduced.value] == pytest.approx([1.5, 9.0])


@pytest.mark.parametrize(
    ("profile", "changes", "reason"),
    [
        ("imagenet64", {"n_samples": 2000}, "2,000 samples, not 50,000"),
        (
            "imagenet64",
            {"extractor": "inception-v3-clean"},
            "the extractor inception-v3-clean, not inception-v3-compat",
        ),
        ("digits", {}, "another data set"),
        ("larger", {}, "images of 128 pixels, not 64"),
        ("elsewhere", {}, "another data set"),
    ],
)
def test_a_profile_that_does_not_match_gets_the_published_table_by_itself(tmp_path, profile, changes, reason):
    (tmp_path / "larger.yaml").write_text("extends: imagenet64\npublished: imagenet64\ndata: {size: 128}\n")
    (tmp_path / "elsewhere.yaml").write_text("extends: imagenet64\ndata: {path: flowers}\n")
    loaded = load_profile(tmp_path / f"{profile}.yaml" if (tmp_path / f"{profile}.yaml").exists() else profile)
    records = [imagenet(ALTERNATING, 7.6543, **changes)]
    write_published(save(tmp_path, *records), loaded, tmp_path)
    for kind in RENDERINGS:
        text = rendered(tmp_path, kind)
        assert reason in text
        assert "not measured here: not comparable with the results of profile" in text
        assert "7.65" not in text
    lines = list(csv.DictReader((tmp_path / "published.csv").read_text().splitlines()))
    assert {line["reproduced"] for line in lines} == {line["within"] for line in lines} == {""}


def test_unverified_values_are_marked_in_every_rendering(tmp_path):
    records = seeds(ALTERNATING, 1.38, 1.42, 1.33) + seeds(ALTERNATING, 2.9, 3.0, 3.11, steps=1)
    write_published(save(tmp_path, *records), load_profile("imagenet64"), tmp_path)
    for kind in RENDERINGS:
        text = rendered(tmp_path, kind)
        assert "†: unverified" in text, "the legend"
        assert "Moment Matching | Alternating | 1 | 3.00 | 3.00 | +0.00 | 2.75 to 3.27 | yes | torch, 3" in text
        assert "Moment Matching† | Alternating | 8 | 1.24† | 1.38 | +0.14† | 1.27 to 1.49 | no† | torch, 3" in text
    lines = list(csv.DictReader((tmp_path / "published.csv").read_text().splitlines()))
    said = {(line["published"], line["verified"]) for line in lines if line["method"] == "Moment Matching"}
    assert {("3.00", "yes"), ("1.24", "no")} <= said


def test_both_sides_name_their_sample_count_and_convention(tmp_path):
    profile = load_profile("imagenet64")
    records = load_records(save(tmp_path, *seeds(ALTERNATING, 1.3, 1.4)))
    fid, score = published_blocks(records, profile, tables_for(profile, load_tables())).compared
    assert fid.header[3:5] == ["FID-50k ↓ published", "FID-50k ↓ reproduced"]
    assert score.header[3:5] == ["IS-50k ↑ published", "IS-50k ↑ reproduced"]
    assert {"Published: 50,000 samples", "imagenet64, 50,000 samples a row", "resize legacy_tensorflow"} <= {
        part
        for part in re.findall(r"Published: [\d,]+ samples|imagenet64, [\d,]+ samples a row|resize \w+", fid.caption)
    }
    conventions = {row[-1].text for group in fid.groups for row in group}
    assert conventions == {"best checkpoint / final", f"best checkpoint / {DASH}", f"unknown / {DASH}"}


def test_the_caption_names_the_reference_images(tmp_path):
    profile, content = load_profile("imagenet64"), imagenet(ALTERNATING, 1.4)
    content["identity"] |= {"data": "imagenet64/train", "n_images": 1268000}
    records = load_records(save(tmp_path, content))
    caption = published_blocks(records, profile, tables_for(profile, load_tables())).compared[0].caption
    assert "reference: 1,268,000 images of imagenet64/train" in caption
    assert "of the published ones, by convention, the whole training set" in caption


def test_consistency_distillation_with_another_metric_than_the_profile_s_stands_alone():
    [method] = [method for method in load_profile("imagenet64").methods if method.id == "consistency-distillation"]
    rows = [row for row in load_tables()["imagenet64"].rows if row.method == "CD" and row.variant == "LPIPS"]
    expected = method.id if method.options["metric"] == "lpips" else None
    assert rows
    assert {row.ours for row in rows} == {expected}


def test_every_published_value_is_shown_once_whatever_was_reproduced(tmp_path):
    profile, tables = load_profile("imagenet64"), load_tables()
    values = [row.value(metric) for row in tables["imagenet64"].rows for metric in ("fid", "is")]
    for number, made in enumerate([imagenet("dmd", 2.5, steps=1), imagenet("dmd", 2.5, steps=7)]):
        records = load_records(save(tmp_path / str(number), made))
        blocks = published_blocks(records, profile, tables_for(profile, tables))
        shown = [row[3].text for block in blocks.compared for group in block.groups for row in group]
        alone = [row for block in blocks.alone.values() for group in block.groups for row in group]
        shown += [cell.text for row in alone for cell in row[5:7] if cell.text != DASH]
        assert sorted(text.rstrip("†") for text in shown) == sorted(str(value) for value in values if value is not None)


def test_published_numbers_never_enter_the_main_table(tmp_path, monkeypatch):
    paths = save(tmp_path, *seeds(ALTERNATING, 1.3, 1.4))
    monkeypatch.setattr(table, "records", lambda workspace: paths)
    workspace = Workspace("imagenet64", tmp_path)
    table.run(workspace)
    folder = workspace.root / "tables"
    names = {f"{name}.{kind}" for name in ("main", "published") for kind in ("csv", *RENDERINGS)}
    assert {path.name for path in folder.iterdir() if path.stem in ("main", "published")} == names
    assert len((folder / "main.csv").read_text().splitlines()) == 3
    for kind in ("csv", *RENDERINGS):
        assert "Salimans" not in (folder / f"main.{kind}").read_text()
        assert "Salimans" in (folder / f"published.{kind}").read_text()


def test_latex_is_ascii_and_every_row_has_a_cell_for_each_column(tmp_path):
    write_published(save(tmp_path, *seeds(ALTERNATING, 1.3, 1.4)), load_profile("imagenet64"), tmp_path)
    text = (tmp_path / "published.tex").read_text()
    assert text.isascii()
    for part in text.split(r"\begin{tabular}")[1:]:
        columns = len(re.match(r"\{(\w+)\}", part)[1])
        rows = [line for line in part.splitlines() if line.endswith(r"\\")]
        assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in rows} == {columns}


def test_the_readme_explains_every_column():
    text = (PUBLISHED / "README.md").read_text()
    assert all(f"`{column}`" in text for column in COLUMNS)
