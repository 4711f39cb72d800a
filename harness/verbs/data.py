"""`fewstep data`: the images that everything else reads."""

from harness.datasets import load_dataset
from harness.workspace import Workspace


def run(workspace: Workspace) -> None:
    """Write the training and the held-out split of the profile's data set."""
    workspace.data("train").parent.mkdir(parents=True, exist_ok=True)
    for split in ("train", "heldout"):
        images = load_dataset(split=split, **workspace.profile.data.model_dump())
        images.save(workspace.data(split))
        print(f"{workspace.data(split)}: {len(images)} images of {images.num_classes} classes")
