"""The section `extractor` of a profile: which features the metrics see, and of which weights."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_serializer, model_validator

from harness.validation import StrictModel


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
