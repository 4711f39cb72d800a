"""The section `data` of a profile, one model for each data set; their fields are the options of its loader."""

from typing import Literal

from pydantic import Field

from harness.validation import StrictModel


class DigitsConfig(StrictModel):
    """scikit-learn's handwritten digits."""

    name: Literal["digits"] = "digits"


class ImageFilesConfig(StrictModel):
    """What every set of the user's own image files has."""

    path: str = Field(min_length=1, description="relative to the folder that FEWSTEP_DATA names, or the current one")
    size: int = Field(ge=1, description="side of the images after cropping and resizing, pixels")
    heldout: float = Field(0.1, gt=0, lt=1, description="share of each class that is held out from training")


class FolderConfig(ImageFilesConfig):
    """A folder of images, with a sub-folder for each class or none."""

    name: Literal["folder"] = "folder"


class ParquetConfig(ImageFilesConfig):
    """One parquet file, or a folder of them, with encoded images and labels."""

    name: Literal["parquet"] = "parquet"
    image_column: str = Field("image", description="column of encoded images")
    label_column: str = Field("label", description="column of class numbers")


DataConfig = DigitsConfig | FolderConfig | ParquetConfig
