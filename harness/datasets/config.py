"""The section `data` of a profile, one model for each data set; their fields are the options of its loader."""

from typing import ClassVar, Literal

from pydantic import Field

from harness.validation import StrictModel


class DataSetConfig(StrictModel):
    """Any data set."""

    always_captioned: ClassVar[bool] = False

    @property
    def captioned(self) -> bool:
        """Whether its images have captions."""
        return self.always_captioned


class DigitsConfig(DataSetConfig):
    """scikit-learn's handwritten digits."""

    name: Literal["digits"] = "digits"


class ImageFilesConfig(DataSetConfig):
    """What every set of the user's own image files has."""

    path: str = Field(min_length=1, description="relative to the folder that FEWSTEP_DATA names, or the current one")
    size: int = Field(ge=1, description="side of the images after cropping and resizing, pixels")
    heldout: float = Field(0.1, gt=0, lt=1, description="share of each class that is held out from training")


class FolderConfig(ImageFilesConfig):
    """A folder of images, with a sub-folder for each class or none."""

    name: Literal["folder"] = "folder"


class ParquetConfig(ImageFilesConfig):
    """One parquet file, or a folder of them, with encoded images and labels or captions."""

    name: Literal["parquet"] = "parquet"
    image_column: str = Field("image", description="column of encoded images")
    label_column: str = Field("label", description="column of class numbers")
    caption_column: str | None = Field(None, description="column of captions, in place of class numbers")

    @property
    def captioned(self) -> bool:
        """Where it names a column of captions."""
        return self.caption_column is not None


class ShapesConfig(DataSetConfig):
    """Captioned shapes, drawn by the project."""

    always_captioned = True
    name: Literal["shapes"] = "shapes"


class CaptionedFolderConfig(ImageFilesConfig):
    """A folder of images with a caption each: a text file beside each image, or one table of all."""

    always_captioned = True
    name: Literal["captioned-folder"] = "captioned-folder"
    caption_column: str = Field("text", description="column of captions, where there is a table")


class CocoConfig(ImageFilesConfig):
    """A folder of images, and the captions of COCO in JSON; each image has its first caption."""

    always_captioned = True
    name: Literal["coco"] = "coco"
    annotations: str = Field(min_length=1, description="the JSON file of captions; relative, as `path` is")


class WebDatasetConfig(ImageFilesConfig):
    """One tar file, or a folder of them, where an image and its caption share their name up to the suffix."""

    always_captioned = True
    name: Literal["webdataset"] = "webdataset"
    caption_key: str = Field("caption", description="key of the caption, where captions are in JSON files")


DataConfig = (
    DigitsConfig | FolderConfig | ParquetConfig | ShapesConfig | CaptionedFolderConfig | CocoConfig | WebDatasetConfig
)
