"""The section `text` of a profile: which features of its captions a generator is conditioned on."""

from pydantic import Field, model_validator

from harness.validation import StrictModel


class TextConfig(StrictModel):
    """A text encoder by name; those that read published weights want the folder of these."""

    encoder: str = Field(description="as registered in harness.text_encoders")
    weights: str | None = Field(
        default=None, min_length=1, description="folder; relative to that which FEWSTEP_DATA names, or the current one"
    )
    sha256: str | None = Field(
        default=None, pattern="^[0-9a-f]{64}$", description="that the weights must have, as `fewstep text` prints it"
    )

    @model_validator(mode="after")
    def _hash_has_weights(self) -> "TextConfig":
        if self.sha256 is not None and self.weights is None:
            raise ValueError("sha256 is stated without weights; name the folder that it is the hash of")
        return self

    @property
    def content(self) -> str | dict[str, str]:
        """What features depend on: the encoder, and the hash of its weights where it is stated.

        Where it is not, only the identity of a table of features says which weights they are of.
        """
        return self.encoder if self.sha256 is None else {"encoder": self.encoder, "sha256": self.sha256}
