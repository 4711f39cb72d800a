"""The sections `extractor` and `evaluation` of a profile: which features the metrics see, and of which images."""

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, model_serializer, model_validator

from harness.validation import Count, Distinct, StrictModel


class ExtractorConfig(StrictModel):
    """An extractor by name; published weights need no more than that."""

    name: str = Field(description="as registered in harness.metrics.extractors")
    weights: str | None = Field(default=None, min_length=1, description="file or folder; default: the user's cache")
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$", description="of weights of one's own")

    @model_validator(mode="after")
    def _hash_has_a_file(self) -> "ExtractorConfig":
        if self.sha256 is not None and self.weights is None:
            raise ValueError("sha256 is stated without weights; name the file that it is the hash of")
        return self

    @model_serializer
    def _as_written(self) -> str | dict[str, str]:
        given = {"name": self.name, "weights": self.weights, "sha256": self.sha256}
        return self.name if self.weights is None else {key: value for key, value in given.items() if value is not None}

    @property
    def content(self) -> str | dict[str, str]:
        """What features depend on: the name, and the hash where it is not that of the published weights."""
        return self.name if self.sha256 is None else {"name": self.name, "sha256": self.sha256}


def _by_name(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


ExtractorSection = Annotated[ExtractorConfig, BeforeValidator(_by_name)]
"""`extractor: NAME`, or a mapping with the keys of `ExtractorConfig`."""


PARTS = (2, 5, 10)
"""Numbers of disjoint parts that the ten folds of the sampling error can be merged into."""


def _merges_folds(parts: int) -> int:
    if parts not in PARTS:
        raise ValueError(f"is {parts}, but ten folds make {', '.join(map(str, PARTS))} parts alone")
    return parts


class DuringConfig(StrictModel):
    """Evaluation while students train, for the reporting convention "best of n evaluations"."""

    every: Count = Field(description="updates between evaluations; the last weights are evaluated as well")
    n_samples: int = Field(ge=10, description="generated images of an evaluation, of one fixed noise")
    methods: Distinct[str] | None = Field(None, description="ids of the methods that are evaluated; default: all")


class EvaluationConfig(StrictModel):
    """The images that each metric sees."""

    n_samples: int = Field(ge=10, description="generated images; the Inception score needs ten")
    batch: Count = Field(description="images sampled at a time; it does not change them")
    fid_parts: Distinct[Annotated[int, AfterValidator(_merges_folds)]] = Field(
        [], description="FID also of this many disjoint parts of the images, and its limit for infinitely many"
    )
    clip: ExtractorSection | None = Field(
        None, description="the CLIP whose score images and captions get: as `extractor`"
    )
    during: DuringConfig | None = Field(None, description="evaluation while students train as well")

    @model_validator(mode="after")
    def _parts_have_images(self) -> "EvaluationConfig":
        if self.fid_parts and self.n_samples < 2 * max(self.fid_parts):
            raise ValueError(f"fid_parts: n_samples {self.n_samples} leaves a part fewer than two images")
        return self
