"""`fewstep data`: the images that everything else reads."""

from harness.datasets import load_dataset
from harness.workspace import Workspace


def run(workspace: Workspace) -> None:
    """Write the training and the held-out split of the profile's data set, or of another one in the latter's place."""
    workspace.data("train").parent.mkdir(parents=True, exist_ok=True)
    profile = workspace.profile
    for split in ("train", "heldout"):
        if split == "heldout" and profile.heldout is not None:
            images = load_dataset(split="all", **profile.heldout.model_dump())
        else:
            images = load_dataset(split=split, **profile.data.model_dump())
        images.save(workspace.data(split))
        print(f"{workspace.data(split)}: {len(images)} images of {images.num_classes} classes")
