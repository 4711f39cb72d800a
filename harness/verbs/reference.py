"""`fewstep reference`: reference features and statistics, and the real-data floor."""

from harness.datasets import ImageSet
from harness.metrics.cache import FeatureCache
from harness.metrics.evaluate import FLOOR_DRAWS, real_data_floor
from harness.metrics.extractors import load_extractor
from harness.metrics.reference import cached_reference
from harness.verbs.evaluate import write_record
from harness.verbs.judge import Judge
from harness.workspace import Workspace

FLOOR_SEED = 0


def run(workspace: Workspace) -> None:
    """Write the references of both splits, and the record of n real images of the one that samples are held against.

    They are drawn with replacement; the scores of captions are those of all of that split's images.
    """
    extractor = load_extractor(workspace.profile.extractor)
    cache = FeatureCache(workspace.features)
    train, heldout = (ImageSet.load(workspace.data(split)) for split in ("train", "heldout"))
    workspace.reference("train").parent.mkdir(parents=True, exist_ok=True)
    for split, images in (("train", train), ("heldout", heldout)):
        cached_reference(workspace.reference(split), images, extractor, cache)
    n, judge = workspace.profile.evaluation.n_samples, Judge(workspace)
    scores = real_data_floor(
        train if judge.captions is None else heldout, heldout, n, FLOOR_SEED, extractor, judge.reference, judge.second,
        cache, train_images=train.pixels,
    )  # fmt: skip
    if judge.captions is not None and heldout.captions is not None:
        scores |= judge.captions.scores(heldout.pixels, heldout.captions.tolist(), heldout.labels, cache)
    row = {"backend": "-", "method": "real-data", "variant": "default", "sampler": "-", "guidance": None, "steps": 0}
    row |= {"nfe": 0, "seed": None, "params": None, "updates": None, "train_passes": None, "train_seconds": None}
    row |= {"peak_memory_mb": None, "images_per_second": None, "convention": f"{FLOOR_DRAWS} draws"}
    provenance = {"config": workspace.record_digest(None), "images": "with replacement, classes as they come"}
    write_record(workspace.floor, workspace, row, scores, judge, provenance)
    print(f"{workspace.floor}: FID {scores['fid']:.4f} for {n} images drawn with replacement")
