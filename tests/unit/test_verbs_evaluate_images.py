"""`fewstep evaluate --images`: the numbers of other libraries on the same files, and every mistake before any work."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_fidelity

from harness.datasets import load_dataset
from harness.errors import UserError
from harness.metrics.clip import cmmd
from harness.metrics.extractors import Extractor, load_extractor
from harness.metrics.reference import build_reference
from harness.verbs.evaluate_images import run
from tests.pretrained import configured, random_images, write_folder


@pytest.fixture(autouse=True)
def _own_feature_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def digits(tmp_path):
    """A folder of held-out digits, one of training digits, and the saved reference of the latter."""
    train, heldout = load_dataset("digits", "train"), load_dataset("digits", "heldout")
    write_folder(tmp_path / "samples", heldout.pixels)
    write_folder(tmp_path / "real", train.pixels[:300])
    build_reference(train, load_extractor("digits-cnn")).save(tmp_path / "reference.npz")
    return tmp_path


def evaluated(capsys, images, reference=None, captions=None, out=None, as_json=True, **extractor):
    run(images, reference, {"name": "digits-cnn"} | extractor, captions, out, as_json)
    printed = capsys.readouterr()
    return (json.loads(printed.out) if as_json else printed.out), printed.err


def stated(name, path):
    return configured(name, path).model_dump()


def test_inception_gives_the_numbers_of_torch_fidelity_and_extracts_once(capsys, inception_file, tmp_path, monkeypatch):
    samples = write_folder(tmp_path / "samples", random_images(10))
    real = write_folder(tmp_path / "real", random_images(10, seed=1))
    record, note = evaluated(capsys, samples, real, **stated("inception-v3-compat", inception_file))
    state = torch.get_rng_state()
    theirs = torch_fidelity.calculate_metrics(
        input1=str(samples), input2=str(real), cuda=False, batch_size=10, isc=True, fid=True, kid=True, prc=True,
        feature_extractor="inception-v3-compat", feature_extractor_weights_path=str(inception_file),
        kid_subset_size=10, isc_splits=10, cache=False, save_cpu_ram=True, verbose=False,
    )  # fmt: skip
    torch.set_rng_state(state)
    row = record["row"]
    assert row["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    assert row["kid"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)
    assert row["is"] == pytest.approx(theirs["inception_score_mean"], rel=1e-5)
    assert (row["precision"], row["recall"]) == pytest.approx((theirs["precision"], theirs["recall"]))
    assert record["identity"]["extractor_weights"] == stated("inception-v3-compat", inception_file)["sha256"]
    assert note.startswith("note: only 10 images for 2048 features")
    monkeypatch.setattr(Extractor, "extract", lambda *_: pytest.fail("features are not read from the cache"))
    again, _ = evaluated(capsys, samples, real, **stated("inception-v3-compat", inception_file))
    assert again["row"] == row


def test_record_and_table_name_what_was_measured(capsys, digits):
    out = digits / "metrics.json"
    record, _ = evaluated(capsys, digits / "samples", digits / "real", out=out)
    assert json.loads(out.read_text()) == record
    row = record["row"]
    assert (row["n_samples"], row["n_reference"]) == (179, 300)
    assert row["cmmd"] is row["clip_score"] is None
    assert record["provenance"]["evaluation"]["versions"]["pillow"]
    table, _ = evaluated(capsys, digits / "samples", digits / "real", as_json=False)
    assert f"FID-179            {row['fid']:10.4f}\n" in table
    assert f"KID-179 x 1000     {1e3 * row['kid']:10.4f} ± {1e3 * row['kid_std']:.4f}" in table
    assert f"identity {row['identity']}" in table
    assert "CMMD" not in table


def test_a_saved_reference_serves_as_its_images_do(capsys, digits):
    saved, _ = evaluated(capsys, digits / "samples", digits / "reference.npz")
    load_dataset("digits", "train").save(digits / "train.npz")
    images, _ = evaluated(capsys, digits / "samples", digits / "train.npz")
    for key in ("fid", "kid", "precision", "recall", "is"):
        assert saved["row"][key] == pytest.approx(images["row"][key], rel=1e-9)


def test_identity_knows_the_reference_and_the_number_of_images_but_no_path(capsys, digits):
    record, _ = evaluated(capsys, digits / "samples", digits / "real")
    (digits / "real").rename(digits / "elsewhere")
    moved, _ = evaluated(capsys, digits / "samples", digits / "elsewhere")
    assert moved["row"]["identity"] == record["row"]["identity"]
    (digits / "elsewhere" / "00007.png").unlink()
    fewer, _ = evaluated(capsys, digits / "samples", digits / "elsewhere")
    (digits / "samples" / "00007.png").unlink()
    fewest, _ = evaluated(capsys, digits / "samples", digits / "elsewhere")
    assert len({each["row"]["identity"] for each in (record, fewer, fewest)}) == 3


def test_networks_without_logits_have_no_inception_score(capsys, dinov2_folder, tmp_path):
    samples = write_folder(tmp_path / "samples", random_images(12))
    weights = stated("dinov2-vit-l-14", dinov2_folder / "model.safetensors")
    record, _ = evaluated(capsys, samples, samples, **weights)
    assert record["row"]["is"] is record["row"]["is_std"] is None
    assert record["row"]["fid"] == pytest.approx(0, abs=1e-3)
    table, _ = evaluated(capsys, samples, samples, as_json=False, **weights)
    assert "FD-12 " in table
    assert "IS-" not in table


def test_clip_adds_cmmd_and_with_captions_its_score(capsys, clip_file, tmp_path):
    samples = write_folder(tmp_path / "samples", random_images(12))
    real = write_folder(tmp_path / "real", random_images(12, seed=1))
    captions = tmp_path / "captions.txt"
    captions.write_text("\n".join(f"a picture of {row}" for row in range(12)))
    config = configured("clip-vit-l-14", clip_file)
    record, _ = evaluated(capsys, samples, real, captions, **config.model_dump())
    extractor = load_extractor(config)
    ours, theirs = (extractor.extract(random_images(12, seed=seed)).features for seed in (0, 1))
    assert record["row"]["cmmd"] == pytest.approx(cmmd(ours, theirs), rel=1e-6)
    texts = extractor.encode_text(captions.read_text().splitlines())
    cosines = (ours * texts).sum(axis=1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(texts, axis=1)
    assert record["row"]["clip_score"] == pytest.approx(100 * cosines.mean(), rel=1e-6)
    assert record["identity"]["cmmd"] == "rbf10x1000-v-statistic"
    assert record["identity"]["clip_score"] == "100*cosine, template '{}'"
    alone, _ = evaluated(capsys, samples, None, captions, **config.model_dump())
    assert alone["row"]["clip_score"] == record["row"]["clip_score"]
    captions.write_text(captions.read_text().replace("picture of 7", "drawing of 7"))
    others, _ = evaluated(capsys, samples, None, captions, **config.model_dump())
    assert others["row"]["identity"] != alone["row"]["identity"]
    assert alone["row"]["fid"] is alone["row"]["n_reference"] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": None}, "name the extractor"),
        ({"name": "inception"}, "unknown extractor 'inception'; did you mean 'inception-v3-"),
        ({"sha256": "0" * 64}, "sha256 is stated without weights; name the file"),
        ({"sha256": "abc", "weights": "w"}, "sha256 is 'abc', but should match pattern"),
        ({"reference": None}, "nothing to compare with"),
        ({"reference": Path("missing")}, "missing: no folder of images"),
        ({"images": Path("missing")}, "missing: no folder of images"),
        ({"out": Path("missing/metrics.json")}, "missing: the output folder does not exist"),
        ({"captions": Path("captions.txt")}, "'digits-cnn' is no CLIP, which the CLIP score needs; name one"),
        ({"name": "inception-v3-compat", "weights": "missing"}, "missing: no such file"),
    ],
)
def test_mistakes_are_one_line_before_any_network_is_loaded(digits, monkeypatch, changes, message):
    monkeypatch.setattr("harness.verbs.evaluate_images.load_extractor", None)
    extractor = {"name": "digits-cnn", "weights": None, "sha256": None}
    arguments = {"images": digits / "samples", "reference": digits / "real", "captions": None, "out": None}
    extractor |= {key: value for key, value in changes.items() if key in extractor}
    arguments |= {key: value for key, value in changes.items() if key in arguments}
    with pytest.raises(UserError, match=message) as raised:
        run(extractor=extractor, as_json=False, **arguments)
    assert "\n" not in str(raised.value)


def test_a_reference_of_another_extractor_is_refused(digits, inception_file):
    extractor = stated("inception-v3-compat", inception_file)
    with pytest.raises(UserError, match="was computed with another extractor"):
        run(digits / "samples", digits / "reference.npz", extractor, None, None, False)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            random_images(12, 8, 8),
            r"mine: its images are \(3, 8, 8\), but .* 'digits-cnn' takes \(1, 8, 8\)",
        ),
        (random_images(9, 8, 8, channels=1), "mine: 9 images; the scores need at least 10, draw more"),
    ],
)
def test_images_that_cannot_be_scored_are_refused_before_the_reference_is_extracted(
    digits, monkeypatch, images, message
):
    monkeypatch.setattr(Extractor, "extract", lambda *_: pytest.fail("extracted"))
    samples = write_folder(digits / "mine", images)
    with pytest.raises(UserError, match=message):
        run(samples, digits / "real", {"name": "digits-cnn", "weights": None, "sha256": None}, None, None, False)


def test_a_missing_library_is_one_line_with_its_remedy(digits, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UserError, match=r"^evaluate --images needs PIL, .*; pip install 'fewstep\[metrics\]'$"):
        run(digits / "samples", digits / "real", {"name": "digits-cnn"}, None, None, False)
