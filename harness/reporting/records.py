"""Records of evaluated sample sets: read strictly, ordered, averaged over seeds.

A record is the JSON file `<backend>/<method>/<variant>/<student>/seed<s>/metrics-<sampler>-k<k>.json`. Its neighbours
`samples-<sampler>-k<k>.npz` and `train.jsonl` hold the images and the training log; either may be absent.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.errors import UserError
from harness.reporting.naming import sample_count as sample_count

DASH = "\N{EN DASH}"
SAMPLERS = {"ancestral": "ancestral", "ddim": "DDIM", "renoise": "re-noise"}
FIRST_METHODS = ["real-data", "teacher", "moment-matching/alternating", "moment-matching/instant"]
FIRST_BACKENDS = ["-", "torch", "jax"]


class Row(BaseModel):
    """One line of main.csv, in its column order; a null is an empty cell.

    `clip` and `attribute_accuracy` are those of text-to-image profiles; without any, main.csv lacks these columns.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    profile: str
    backend: str
    method: str
    variant: str
    sampler: str
    guidance: float | None
    steps: int = Field(ge=0)
    nfe: int = Field(ge=0)
    params: int | None
    seed: int | None
    n_samples: int = Field(gt=0)
    fid: float
    inception_score: float | None = Field(alias="is")
    kid: float
    precision: float
    recall: float
    clip: float | None = None
    attribute_accuracy: float | None = None
    updates: int | None
    train_passes: int | float | None
    train_seconds: float | None
    peak_memory_mb: float | None
    images_per_second: float | None
    convention: str
    identity: str


class Extra(BaseModel):
    """Measurements beside main.csv.

    `nn_distance_heldout` is given by the real-data floor alone, `class_distance` (mean distance between features of
    one class) by records that measured it, and so are the rest: `fid_folds`, the FID without each fold of the images;
    `fid_log_se`, the jackknife's standard error of log FID; `fid_by_n` and `fid_infinity`, the FID of fewer images and
    its limit for infinitely many. Of captioned images: `clip_se`, the standard error of the CLIP score over images, and
    `attributes`, the shares of images in which each attribute is right, for `one_object` and for `two_objects`.
    """

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    is_std: float | None
    kid_std: float | None
    fid_heldout: float | None
    nn_distance: float | None
    nn_distance_heldout: float | None = None
    class_distance: float | None = None
    fid_folds: list[float] | None = None
    fid_log_se: float | None = None
    fid_by_n: dict[int, float] | None = None
    fid_infinity: float | None = None
    clip_se: float | None = None
    attributes: dict[str, dict[str, float]] | None = None


class Record(BaseModel):
    """One evaluated sample set and the file it was read from."""

    model_config = ConfigDict(extra="forbid")

    row: Row
    extra: Extra
    identity: dict[str, Any]
    provenance: dict[str, Any]
    path: Path = Field(default=Path(), exclude=True)

    @property
    def samples(self) -> Path:
        """Where the images of this record lie, if they were kept."""
        return self.path.with_name(self.path.name.replace("metrics-", "samples-", 1)).with_suffix(".npz")

    @property
    def log(self) -> Path:
        """Where the training log of this record's network lies, if it was kept."""
        return self.path.with_name("train.jsonl")

    @property
    def student(self) -> str:
        """The student's folder name: k8, k4, ... or all."""
        return self.path.parent.parent.name


COLUMNS = [field.alias or name for name, field in Row.model_fields.items()]
CAPTION_COLUMNS = ["clip", "attribute_accuracy"]
# Averaged over seeds: metrics with their spread, costs without.
METRICS = [
    "fid",
    "is",
    "kid",
    "precision",
    "recall",
    *CAPTION_COLUMNS,
    "fid_heldout",
    "nn_distance",
    "nn_distance_heldout",
]
METRICS += ["class_distance", "images_per_second"]
COSTS = ["updates", "train_passes", "train_seconds", "peak_memory_mb"]
# Rows may be compared where these agree.
ALIKE = ["profile", "identity", "n_samples"]
# What tells two records apart, the seed excepted.
SETTING = ["profile", "n_samples", "identity", "convention", "backend", "method", "variant", "sampler", "guidance"]
SETTING += ["steps", "nfe", "params"]


def load_records(paths: Sequence[Path | str]) -> list[Record]:
    """Read records and order them: real data, teacher, methods; then backend, sampler, steps, seed.

    Raises UserError naming the file, and the key where there is one, of a missing, garbled, incomplete or repeated
    record, and where `paths` is empty.
    """
    records = [_load(Path(path)) for path in paths]
    if not records:
        raise UserError("no records were given; evaluate at least one sample set first")
    seen: dict[tuple[Any, ...], Path] = {}
    for record in records:
        row = record.row.model_dump(by_alias=True)
        key = (*(row[name] for name in SETTING), row["seed"])
        if key in seen:
            raise UserError(f"{record.path}: describes the same run and seed as {seen[key]}; give only one of them")
        seen[key] = record.path
    return sorted(records, key=lambda record: _order(record.row))


def _load(path: Path) -> Record:
    try:
        record = Record.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: the record cannot be read ({error.strerror}); evaluate its samples first") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: {key + ': ' if key else ''}{first['msg']}; evaluate its samples again") from None
    return record.model_copy(update={"path": path})


def _rank(value: str, first: list[str]) -> tuple[int, str]:
    return (first.index(value) if value in first else len(first), value)


def _order(row: Row) -> tuple[Any, ...]:
    method, backend = _rank(row.method, FIRST_METHODS), _rank(row.backend, FIRST_BACKENDS)
    numbers = (row.guidance or 0.0, row.steps, -1 if row.seed is None else row.seed)
    variant = _rank(row.variant, ["-", "default"])
    return (row.profile, method, variant, backend, row.sampler, *numbers, row.convention, row.identity)


def frame(records: Sequence[Record]) -> pd.DataFrame:
    """Rows, extras, readable `label`s and `series` (`series_names`) of records, one line each, in their order."""
    rows = [record.row.model_dump(by_alias=True) | record.extra.model_dump() for record in records]
    # An explicit dtype keeps counts whole beside nulls (Int64) and floats at full precision.
    columns = {name: _series([row.get(name) for row in rows]) for name in dict.fromkeys(COLUMNS + METRICS + [*rows[0]])}
    table = pd.DataFrame(columns)
    table["label"] = labels(table)
    table["series"] = series_names(table)
    return table


def _series(values: list[Any]) -> "pd.Series[Any]":
    given = {type(value) for value in values if value is not None}
    if given == {int}:
        return pd.Series(values, dtype="Int64")
    return pd.Series(values, dtype="float64" if given and given <= {int, float} else "object")


def labels(table: pd.DataFrame) -> list[str]:
    """What a reader calls each row: method, and whatever sets it apart from its method's other rows.

    Not the guidance of text-to-image rows, which is a column of its own, or part of a series' name.
    """
    rows = table.assign(guidance=table["guidance"].mask(text_to_image(table))).to_dict("records")
    samplers: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        samplers.setdefault((row["method"], row["variant"]), set()).add(row["sampler"])
    names = []
    for row in rows:
        name = method_name(row["method"])
        if len(samplers[row["method"], row["variant"]]) > 1:
            name += f", {SAMPLERS.get(row['sampler'], row['sampler'])}"
        if row["variant"] not in ("default", "-"):
            name += f" [{row['variant']}]"
        if pd.notna(row["guidance"]) and row["guidance"]:
            name += f", w = {row['guidance']:g}"
        names.append(name if row["convention"] == "final" else f"{name} ({row['convention']})")
    return names


def series_names(table: pd.DataFrame) -> list[str]:
    """What a figure calls the curve of each labelled row: its label, of text-to-image rows with the guidance weight."""
    shown = table["guidance"].where(text_to_image(table))
    return [
        label if pd.isna(weight) else f"{label}, w = {weight:g}"
        for label, weight in zip(table["label"], shown, strict=True)
    ]


def text_to_image(table: pd.DataFrame) -> "pd.Series[bool]":
    """Which rows are of a profile whose images are scored against captions.

    There guidance is a dimension of tables and figures, as the step count is, and no ablation.
    """
    scored = pd.Series(data=False, index=table.index)
    for name in CAPTION_COLUMNS:
        if name in table:
            scored |= table[name].notna()
    return scored.groupby(table["profile"]).transform("any").astype(bool)


def matched_guidance(table: pd.DataFrame) -> "pd.Series[float]":
    """The guidance that rows must share to be compared: that of text-to-image rows, 0 of all others."""
    return table["guidance"].astype("float64").where(text_to_image(table), 0.0).fillna(0.0)


def is_ablation(table: pd.DataFrame) -> "pd.Series[bool]":
    """Which rows of `frame` are ablations: variants of a method, and guided samples of profiles without captions."""
    guided = (table["guidance"].fillna(0) != 0) & ~text_to_image(table)
    return ~table["variant"].isin(["default", "-"]) | guided


def plain_teachers(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the teacher's ancestral sampling, without guidance; of text-to-image rows, with every weight."""
    return table[(table["method"] == "teacher") & (table["sampler"] == "ancestral") & ~is_ablation(table)]


def method_name(method: str) -> str:
    """`moment-matching/alternating` as a reader writes it."""
    if method.startswith("dmd"):
        return method.upper()
    if method == "diff-instruct":
        return "Diff-Instruct"
    text = method.replace("/", ", ").replace("-", " ")
    return text[:1].upper() + text[1:]


def count(value: Any) -> str:
    """A count with three digits: 740, 10k, 152k, 1.5M; a dash for none."""
    if pd.isna(value) or not value:
        return DASH
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g}{letter}"
    return f"{value:.0f}"


def over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """Average `frame` over seeds: metrics and costs, `<metric>_sd` (ddof 1, NaN for one seed) and `seeds`."""
    numeric = table.astype({name: "float64" for name in METRICS + COSTS})
    groups = numeric.groupby([*SETTING, "label", "series"], dropna=False, sort=False)
    spread = groups[METRICS].std(ddof=1).add_suffix("_sd")
    return pd.concat([groups[METRICS + COSTS].mean(), spread, groups.size().rename("seeds")], axis=1).reset_index()


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested keys joined by dots, values as text; long hexadecimal digests are cut to 12 digits."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            text = "\N{EN DASH}" if value is None else str(value)
            digest = len(text) >= 32 and all(character in "0123456789abcdef" for character in text)
            flat[f"{prefix}{key}"] = text[:12] if digest else text
    return flat
