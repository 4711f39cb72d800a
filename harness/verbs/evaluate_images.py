"""`fewstep evaluate --images`: score images of one's own, without a profile."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from harness.datasets.archive import array_headers
from harness.errors import UserError
from harness.files import write_atomic
from harness.metrics.cache import FeatureCache, user_cache
from harness.metrics.config import ExtractorConfig
from harness.metrics.evaluate import feature_scores, identity_digest, metric_identity, require_finite
from harness.metrics.extraction import gather
from harness.metrics.extractors import CLIPS, Extractor, load_extractor, module_of, require_available, require_clip
from harness.metrics.pretrained import libraries_for
from harness.metrics.reference import Identity, Reference, extractor_identity, source_reference
from harness.metrics.scores import IS_SPLITS
from harness.metrics.sources import ImageSource, open_images, read_captions
from harness.metrics.statistics import Moments
from harness.provenance import run_record
from harness.reporting.naming import frechet, sample_count
from harness.validation import validate

LABEL_POLICY = "as given"


@libraries_for("evaluate --images")
def run(
    images: Path,
    reference: Path | None,
    extractor: dict[str, str | None],
    captions: Path | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Print the scores of `images` against `reference`, or their CLIP score with `captions`, or both.

    Everything that the user may have got wrong is looked at before the first image passes through a network.
    """
    if extractor["name"] is None:
        raise UserError("evaluate --images: name the extractor (--extractor), for example inception-v3-compat")
    if reference is None and captions is None:
        raise UserError("evaluate --images: nothing to compare with; name real images (--reference) or --captions")
    if out is not None and not out.resolve().parent.is_dir():
        raise UserError(f"{out.parent}: the output folder does not exist; create it, or choose another")
    config = validate(ExtractorConfig, extractor, "--extractor, --weights, --sha256")
    if captions is not None:
        require_clip(config)
    require_available(config)
    source = open_images(images)
    real = None if reference is None else _open_reference(reference)
    texts = None if captions is None else read_captions(captions, source.names)
    if real is not None and len(source) < IS_SPLITS:
        raise UserError(f"{images}: {len(source)} images; the scores need at least {IS_SPLITS}, draw more")
    network, cache = load_extractor(config), user_cache()
    for given in (source, real):
        if isinstance(given, ImageSource):
            _require_shape(given, network)
    target = source_reference(real, network, cache) if isinstance(real, ImageSource) else real
    row, identity = score(source, target, texts, network, cache)
    row = {"images": str(images), "reference": None if reference is None else str(reference)} | row
    provenance = {"images_digest": source.digest, "evaluation": run_record()}
    record = json.dumps({"row": row, "identity": identity, "provenance": provenance}, indent=1)
    if out is not None:
        write_atomic(out, record + "\n")
    print(record if as_json else _table(row, network))
    if target is not None and len(source) <= network.dimension:
        few = f"note: only {len(source)} images for {network.dimension} features"
        print(f"{few}: the Frechet distance is far above what it would be with many", file=sys.stderr)


def score(
    source: ImageSource,
    target: Reference | None,
    captions: list[str] | None,
    extractor: Extractor,
    cache: FeatureCache | None = None,
) -> tuple[dict[str, Any], Identity]:
    """Scores of the images as a row, with None for what was not measured, and the identity of the numbers.

    CMMD is measured with CLIP's features, the CLIP score with captions. Raises UserError for too few images, for a
    reference of another extractor, and for a score that is not finite.
    """
    identity: Identity = extractor_identity(extractor) | {"n_samples": len(source)}
    if target is not None:
        identity, _ = metric_identity(extractor, target, len(source), LABEL_POLICY)
    identity |= {"images_quantiser": source.quantiser}
    features = gather(source.batches(extractor.batch), len(source), extractor, cache)
    keys = ("fid", "is", "is_std", "kid", "kid_std", "precision", "recall", "cmmd", "clip_score")
    scores: dict[str, float | None] = dict.fromkeys(keys)
    if target is not None:
        scores |= feature_scores(features, Moments(extractor.dimension).update(features.features), target)
    if module_of(ExtractorConfig(name=extractor.name)) in CLIPS:
        from harness.metrics import clip

        assert isinstance(extractor, clip.ClipExtractor)
        if target is not None:
            scores["cmmd"] = clip.cmmd(features.features, target.features)
            identity |= {"cmmd": clip.CMMD}
        if captions is not None:
            scores["clip_score"] = clip.clip_score(features.features, extractor.encode_text(captions))
            digest = hashlib.sha256(json.dumps(captions).encode()).hexdigest()[:12]
            identity |= {"clip_score": clip.CLIP_SCORE, "captions_digest": digest}
    require_finite(scores, extractor)
    counts = {"n_samples": len(source), "n_reference": None if target is None else len(target.features)}
    return scores | counts | {"identity": identity_digest(identity)}, identity


def _open_reference(path: Path) -> ImageSource | Reference:
    if path.suffix == ".npz" and not path.is_dir() and {"features", "identity"} <= array_headers(path).keys():
        return Reference.load(path)
    return open_images(path)


def _require_shape(source: ImageSource, extractor: Extractor) -> None:
    if extractor.image_shape not in (None, source.shape):
        wanted = f"the extractor {extractor.name!r} takes {extractor.image_shape}"
        raise UserError(f"{source.where}: its images are {source.shape}, but {wanted}; name another extractor")


def _table(row: dict[str, Any], extractor: Extractor) -> str:
    """The measured scores, one a line, each with the number of images in its name."""
    n, count = row["n_samples"], sample_count(row["n_samples"])
    columns = {
        f"{frechet(extractor.name)}-{count}": ("fid", "", 1),
        f"IS-{count}": ("is", "is_std", 1),
        f"KID-{count} x 1000": ("kid", "kid_std", 1e3),
        f"Precision-{count}": ("precision", "", 1),
        f"Recall-{count}": ("recall", "", 1),
        f"CMMD-{count}": ("cmmd", "", 1),
        f"CLIP score-{count}": ("clip_score", "", 1),
    }
    lines = [f"{extractor.name} ({extractor.resize}), weights {extractor.weights_hash[:12]}"]
    for header, (key, spread, scale) in columns.items():
        if row[key] is not None:
            deviation = f" ± {scale * row[spread]:.4f}" if spread else ""
            lines.append(f"{header:<18} {scale * row[key]:10.4f}{deviation}")
    against = f", against {row['n_reference']} of {row['reference']}" if row["reference"] else ""
    return "\n".join([*lines, f"{n} images of {row['images']}{against}; identity {row['identity']}"])
