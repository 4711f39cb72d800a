"""Numbers that others published (results/published): read strictly, each with its source and whether it was verified.

`tables.yaml` says what each table was measured with, `<table>.csv` holds its rows, README.md explains the columns.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from harness.config import REPOSITORY, Profile
from harness.datasets.config import ImageFilesConfig
from harness.errors import UserError
from harness.registry import get_method
from harness.validation import StrictModel, parse_yaml, suggest, validate

PUBLISHED = REPOSITORY / "results" / "published"
METRICS = ("fid", "is", "clip")
UNCONFIRMED = "unconfirmed"

Text = Annotated[str, Field(min_length=1)]


class PublishedRow(BaseModel):
    """One line of a table, an empty cell being None; numbers keep the digits that were printed."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    method: Text
    variant: Text | None
    ours: Text | None
    params: Annotated[str, Field(pattern=r"^[0-9.]+[MB]$")] | None
    nfe: int | None = Field(ge=1)
    guidance: float | None
    fid: Decimal | None = Field(gt=0)
    inception_score: Decimal | None = Field(alias="is", ge=1)
    clip: Decimal | None = Field(ge=0, le=1)
    convention: Text
    paper: Text
    year: int
    table_in_paper: Literal["yes", "no"]
    source: Text
    verified: Literal["yes", "no"]

    @model_validator(mode="after")
    def _verified_somewhere(self) -> "PublishedRow":
        if self.verified == "yes" and self.source == UNCONFIRMED:
            raise ValueError(f"verified is yes, but the source is {UNCONFIRMED!r}; name the text that it was read in")
        return self

    def value(self, metric: str) -> Decimal | None:
        """The printed value of fid, is or clip."""
        found: Decimal | None = getattr(self, "inception_score" if metric == "is" else metric)
        return found


COLUMNS = [field.alias or name for name, field in PublishedRow.model_fields.items()]


class Protocol(StrictModel):
    """What the numbers of one table were measured with."""

    title: str = Field(min_length=1, description="the benchmark, in words")
    size: int = Field(ge=1, description="side of the images, pixels")
    n_samples: int = Field(ge=1, description="generated images, by the convention of the field")
    extractors: list[str] = Field(min_length=1, description="extractors of this project that follow the convention")


@dataclass(frozen=True)
class PublishedTable:
    """The rows of one benchmark and what they were measured with."""

    name: str
    protocol: Protocol
    rows: Sequence[PublishedRow]

    def differences(self, profile: Profile, extractor: str, n_samples: int) -> list[str]:
        """Why numbers of this profile, with this extractor and sample count, are not comparable with the table's.

        Nothing where they are: the profile names the table, and everything that the table was measured with agrees.
        """
        found = [] if profile.published == self.name else ["another data set"]
        size = profile.data.size if isinstance(profile.data, ImageFilesConfig) else None
        if size != self.protocol.size and not found:
            found.append(f"images of {size} pixels, not {self.protocol.size}")
        if extractor not in self.protocol.extractors:
            found.append(f"the extractor {extractor}, not {' or '.join(self.protocol.extractors)}")
        if n_samples != self.protocol.n_samples:
            found.append(f"{n_samples:,} samples, not {self.protocol.n_samples:,}")
        return found


def load_tables(folder: Path = PUBLISHED) -> dict[str, PublishedTable]:
    """Every published table by name; none where the project was installed without them.

    Raises UserError naming file, line and column of what is wrong.
    """
    if not folder.is_dir():
        return {}
    index = folder / "tables.yaml"
    protocols = parse_yaml(_read(index), str(index))
    if not isinstance(protocols, dict):
        raise UserError(f"{index}: holds no tables; give each CSV file beside it a section")
    if missing := sorted({path.stem for path in folder.glob("*.csv")} - set(protocols)):
        raise UserError(f"{index}: says nothing of {missing[0]}.csv; add a section {missing[0]}")
    return {
        name: PublishedTable(name, validate(Protocol, values, str(index), (name,)), _rows(folder / f"{name}.csv"))
        for name, values in protocols.items()
    }


def tables_for(profile: Profile, tables: dict[str, PublishedTable]) -> list[PublishedTable]:
    """The table that the profile names under `published`, or all of them where it names none.

    Raises UserError where there is no such table.
    """
    if profile.published is None:
        return list(tables.values())
    if profile.published not in tables:
        hint = suggest(profile.published, tables) if tables else "run from a clone, which has results/published"
        raise UserError(f"profile {profile.name!r}: published is the unknown table {profile.published!r}; {hint}")
    return [tables[profile.published]]


def _rows(path: Path) -> list[PublishedRow]:
    reader = csv.reader(_read(path).splitlines(), strict=True)
    rows: list[PublishedRow] = []
    seen: dict[tuple[object, ...], int] = {}
    try:
        header = next(reader, [])
        if header != COLUMNS:
            raise UserError(f"{path}:1: the columns are not {','.join(COLUMNS)}")
        for cells in reader:
            where = f"{path}:{reader.line_num}"
            if len(cells) != len(COLUMNS):
                raise UserError(f"{where}: has {len(cells)} cells, not {len(COLUMNS)}; quote a cell that has commas")
            row = validate(PublishedRow, {name: cell or None for name, cell in zip(COLUMNS, cells, strict=True)}, where)
            _known_method(row, where)
            given = tuple(metric for metric in METRICS if row.value(metric) is not None)
            key = (row.method, row.variant, row.nfe, row.guidance, row.verified, given)
            if key in seen:
                raise UserError(f"{where}: says the same as line {seen[key]}; keep one, or tell them apart by variant")
            seen[key] = reader.line_num
            rows.append(row)
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: not valid CSV: {error}") from None
    return rows


def _known_method(row: PublishedRow, where: str) -> None:
    if row.ours is not None:
        try:
            get_method(row.ours)
        except UserError as error:
            raise UserError(f"{where}: ours: {error}") from None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text") from None
