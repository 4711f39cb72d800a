"""Extractors of published networks: the features of their own libraries, and files that are checked before use."""

import dataclasses
import hashlib
import pickle
import warnings
from pathlib import Path

import cleanfid.downloads_helper
import cleanfid.inception_pytorch
import numpy as np
import pytest
import torch
from cleanfid.features import build_feature_extractor
from cleanfid.fid import get_folder_features
from cleanfid.inception_torchscript import InceptionV3W
from PIL import Image
from torch_fidelity import feature_extractor_inceptionv3
from torch_fidelity.utils import extract_featuresdict_from_input_id

from harness.errors import UserError
from harness.metrics import pretrained
from harness.metrics.config import ExtractorConfig
from harness.metrics.extraction import gather
from harness.metrics.extractors import load_extractor, require_available
from harness.metrics.pretrained import PRETRAINED
from harness.metrics.reference import source_reference
from harness.metrics.sources import from_array, open_images
from tests.pretrained import configured, random_images, write_folder

IMAGES = random_images(4)
CLEAN = ["inception-v3-clean", "inception-v3-legacy-tensorflow", "inception-v3-legacy-pytorch"]
FORMATS = {
    "inception-v3-compat": "inception_file",
    "inception-v3-clean": "torchscript_file",
    "inception-v3-legacy-tensorflow": "torchscript_file",
    "inception-v3-legacy-pytorch": "inception_file",
    "dinov2-vit-l-14": "dinov2_folder",
    "clip-vit-l-14": "clip_file",
    "clip-vit-l-14-336": "clip_file",
}


@pytest.fixture
def load(request):
    """name -> the extractor with random weights."""

    def loaded(name):
        path = request.getfixturevalue(FORMATS[name])
        return load_extractor(configured(name, path / PRETRAINED[name].file if path.is_dir() else path))

    return loaded


@pytest.fixture
def published(monkeypatch, tmp_path):
    """(name, file) -> the file is now the published one of that extractor; every cache is an empty folder."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))

    def publish(name, path):
        entry = dataclasses.replace(
            PRETRAINED[name],
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
            cache=lambda: tmp_path / "cache" / "hub" / "checkpoints",
        )
        monkeypatch.setitem(PRETRAINED, name, entry)
        return entry

    return publish


def features_of(extractor, folder):
    source = open_images(folder)
    return gather(source.batches(3), len(source), extractor)


def test_every_pretrained_extractor_has_random_weights_here():
    assert FORMATS.keys() == PRETRAINED.keys()


def test_compat_has_the_features_and_logits_of_torch_fidelity(load, inception_file, tmp_path):
    folder = write_folder(tmp_path / "images", IMAGES)
    network = feature_extractor_inceptionv3.FeatureExtractorInceptionV3(
        "theirs", ["2048", "logits_unbiased"], str(inception_file)
    )
    theirs = extract_featuresdict_from_input_id(
        1, network, input1=str(folder), batch_size=4, cuda=False, save_cpu_ram=True, verbose=False
    )
    ours = features_of(load("inception-v3-compat"), folder)
    assert ours.features.std() > 0.1
    np.testing.assert_allclose(ours.features, theirs["2048"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours.logits, theirs["logits_unbiased"], rtol=1e-5, atol=1e-4)


def test_colour_images_of_an_npz_file_are_taken_as_they_are(load, tmp_path):
    """They are read-only arrays, of which PyTorch would warn."""
    np.savez(tmp_path / "images.npz", IMAGES.transpose(0, 2, 3, 1))
    folder, extractor = write_folder(tmp_path / "images", IMAGES), load("inception-v3-compat")
    for name in ("images.npz", folder):
        source = open_images(tmp_path / name)
        found = gather(source.batches(4), len(source), extractor)
        np.testing.assert_allclose(found.features, extractor.extract(IMAGES).features, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CLEAN)
def test_clean_protocols_have_the_features_of_clean_fid(
    load, name, inception_file, torchscript_file, tmp_path, monkeypatch
):
    folder = write_folder(tmp_path / "images", IMAGES)
    mode = name.removeprefix("inception-v3-").replace("-", "_")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if mode == "legacy_pytorch":
            checkpoints = tmp_path / "hub" / "checkpoints"
            checkpoints.mkdir(parents=True)
            (checkpoints / PRETRAINED[name].file).symlink_to(inception_file)
            monkeypatch.setenv("TORCH_HOME", str(tmp_path))
            network = build_feature_extractor(mode, device=torch.device("cpu"), use_dataparallel=False)
        else:
            inside = mode == "legacy_tensorflow"
            network = InceptionV3W(str(torchscript_file.parent), download=False, resize_inside=inside).eval()
        theirs = get_folder_features(
            str(folder), network, num_workers=0, batch_size=4, device=torch.device("cpu"), mode=mode, verbose=False
        )
    ours = features_of(load(name), folder)
    assert ours.logits is None
    assert theirs.std() > 0.1
    np.testing.assert_allclose(ours.features, theirs, rtol=1e-4, atol=1e-5)


def test_the_four_protocols_of_inception_differ_in_their_resize_and_say_so(load):
    extractors = [load(name) for name in ("inception-v3-compat", *CLEAN)]
    features = [extractor.extract(IMAGES[:1]).features for extractor in extractors]
    for place, one in enumerate(features):
        for other in features[:place]:
            assert np.abs(one - other).max() > 1e-3
    assert len({extractor.resize for extractor in extractors}) == 4


def test_one_file_of_weights_with_two_protocols_has_two_identities(load):
    clean, legacy = (load(name) for name in CLEAN[:2])
    assert clean.weights_hash == legacy.weights_hash
    source = from_array(IMAGES[:2])
    assert source_reference(source, clean).identity != source_reference(source, legacy).identity


def test_dinov2_has_the_class_token_of_transformers(load, dinov2_folder):
    from transformers import Dinov2Model

    network = Dinov2Model.from_pretrained(dinov2_folder).eval()
    extractor = load("dinov2-vit-l-14")
    assert extractor.dimension == 128
    pixels = np.stack(
        [
            [np.asarray(Image.fromarray(channel.astype(np.float32)).resize((224, 224), Image.Resampling.BICUBIC))
             for channel in image]
            for image in IMAGES
        ]
    ).clip(0, 255)  # fmt: skip
    mean, deviation = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]
    with torch.inference_mode():
        theirs = network(torch.from_numpy(((pixels / 255 - mean) / deviation).astype(np.float32))).pooler_output
    np.testing.assert_allclose(extractor.extract(IMAGES).features, theirs, rtol=1e-4, atol=1e-4)


def test_clip_has_the_embeddings_of_open_clip(load, clip_file):
    import open_clip

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = open_clip.load_openai_model(str(clip_file), precision="fp32", device="cpu")
    preprocess = open_clip.image_transform(32, is_train=False)
    extractor = load("clip-vit-l-14")
    captions = ["a red circle", "two dogs, running"]
    with torch.inference_mode():
        images = torch.stack([preprocess(Image.fromarray(image.transpose(1, 2, 0))) for image in IMAGES])
        theirs = network.encode_image(images)
        texts = network.encode_text(open_clip.tokenize(captions))
    np.testing.assert_allclose(extractor.extract(IMAGES).features, theirs, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(extractor.encode_text(captions), texts, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["inception-v3-compat", "inception-v3-clean", "dinov2-vit-l-14", "clip-vit-l-14"])
def test_features_depend_neither_on_the_batch_nor_on_grey_being_written_as_rgb(load, name):
    extractor = load(name)
    grey = random_images(3, channels=1)
    whole = extractor.extract(grey)
    np.testing.assert_allclose(extractor.extract(grey, batch_size=2).features, whole.features, atol=2e-5)
    np.testing.assert_allclose(extractor.extract(np.repeat(grey, 3, axis=1)).features, whole.features, atol=2e-5)
    assert extractor.resize.endswith("grey as RGB")


@pytest.mark.parametrize("name", FORMATS)
def test_loading_leaves_random_state_and_warnings_of_the_process_alone(load, name):
    load(name)  # the first time imports libraries, which add filters of their own
    state, filters = torch.get_rng_state(), list(warnings.filters)
    load(name)
    assert torch.equal(torch.get_rng_state(), state)
    assert warnings.filters == filters


@pytest.mark.parametrize("name", FORMATS)
def test_another_file_than_the_published_one_is_refused_before_it_is_parsed(name, tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(pickle.dumps(print))
    with pytest.raises(UserError, match=rf"^{path}: its sha256 [0-9a-f]{{64}} is not that of the published") as raised:
        load_extractor(ExtractorConfig(name=name, weights=str(path)))
    assert PRETRAINED[name].sha256 in str(raised.value)


def test_a_stated_hash_is_compared_in_place_of_the_published_one(inception_file):
    with pytest.raises(UserError, match=f"is not the stated {'0' * 64}; restore the file"):
        load_extractor(ExtractorConfig(name="inception-v3-compat", weights=str(inception_file), sha256="0" * 64))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("content", [b"another format", pickle.dumps(print), b""])
def test_a_file_of_another_format_is_refused_in_one_line(name, content, tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"^{path}: not weights of this extractor \(.*\); name another file") as raised:
        load_extractor(configured(name, path))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("inception-v3-compat", "torchscript_file"),
        ("inception-v3-clean", "clip_file"),
        ("inception-v3-legacy-pytorch", "clip_file"),
        ("clip-vit-l-14", "torchscript_file"),
    ],
)
def test_weights_of_another_network_are_refused(name, other, request):
    with pytest.raises(UserError, match="not weights of this extractor"):
        load_extractor(configured(name, request.getfixturevalue(other)))


def test_a_tensor_that_is_missing_is_named(dinov2_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    state = load_file(dinov2_folder / "model.safetensors")
    del state["layernorm.bias"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"layernorm\.bias"):
        load_extractor(configured("dinov2-vit-l-14", tmp_path / "model.safetensors"))


@pytest.mark.parametrize("name", FORMATS)
def test_a_missing_file_names_the_path_and_the_remedy(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=rf"^{tmp_path}/.*{PRETRAINED[name].file}: no such file; .*--download {name}"):
        require_available(ExtractorConfig(name=name))
    with pytest.raises(UserError, match=f"^{tmp_path}/elsewhere: no such file"):
        require_available(ExtractorConfig(name=name, weights=str(tmp_path / "elsewhere")))


def test_weights_are_found_in_the_cache_and_in_a_folder(published, inception_file):
    entry = published("inception-v3-compat", inception_file)
    entry.cache().mkdir(parents=True)
    (entry.cache() / entry.file).symlink_to(inception_file)
    assert load_extractor("inception-v3-compat").weights_hash == entry.sha256
    config = ExtractorConfig(name="inception-v3-compat", weights=str(entry.cache()))
    assert pretrained.locate(config) == entry.cache() / entry.file


@pytest.mark.parametrize(
    ("name", "module", "constant"),
    [
        ("inception-v3-compat", feature_extractor_inceptionv3, "URL_INCEPTION_V3"),
        ("inception-v3-clean", cleanfid.downloads_helper, "inception_url"),
        ("inception-v3-legacy-pytorch", cleanfid.inception_pytorch, "FID_WEIGHTS_URL"),
    ],
)
def test_a_download_is_verified_and_kept(published, tmp_path, monkeypatch, name, module, constant):
    origin = tmp_path / "origin"
    origin.write_bytes(b"the published bytes")
    entry = published(name, origin)
    monkeypatch.setattr(module, constant, origin.as_uri())
    path = pretrained.download(name)
    assert path == entry.cache() / entry.file
    assert path.read_bytes() == b"the published bytes"
    origin.unlink()
    assert pretrained.download(name) == path  # it is there


def test_clip_is_downloaded_by_open_clip(published, tmp_path, monkeypatch):
    origin = tmp_path / "ViT-L-14-336px.pt"
    origin.write_bytes(b"the published bytes")
    entry = published("clip-vit-l-14-336", origin)
    models = []
    monkeypatch.setattr("harness.metrics.clip.get_pretrained_url", lambda *tag: models.append(tag) or origin.as_uri())
    assert pretrained.download("clip-vit-l-14-336").read_bytes() == b"the published bytes"
    assert models == [("ViT-L-14-336", "openai")]
    assert entry.cache().is_dir()


def test_dinov2_is_downloaded_into_the_hub_s_cache(published, tmp_path, monkeypatch):
    origin = tmp_path / "origin"
    origin.write_bytes(b"the published bytes")
    entry = published("dinov2-vit-l-14", origin)

    def fetch(repository, file, revision):
        assert (repository, revision) == ("facebook/dinov2-large", pretrained.DINOV2_REVISION)
        (entry.cache() / file).write_bytes(origin.read_bytes())
        return str(entry.cache() / file)

    monkeypatch.setattr("harness.metrics.dinov2.hf_hub_download", fetch)
    assert pretrained.download("dinov2-vit-l-14").read_bytes() == b"the published bytes"


def test_a_download_that_fails_or_differs_leaves_nothing(published, tmp_path, monkeypatch):
    origin = tmp_path / "origin"
    origin.write_bytes(b"the published bytes")
    entry = published("inception-v3-compat", origin)
    monkeypatch.setattr(feature_extractor_inceptionv3, "URL_INCEPTION_V3", origin.as_uri())
    origin.write_bytes(b"others")
    with pytest.raises(UserError, match="is not that of the published"):
        pretrained.download("inception-v3-compat")
    origin.unlink()
    with pytest.raises(UserError, match=r"cannot be downloaded \(.*\); fetch it by other means"):
        pretrained.download("inception-v3-compat")
    assert not list(entry.cache().iterdir())
    with pytest.raises(
        UserError, match="'digits-cnn' has no weights to download; those that have: inception-v3-compat"
    ):
        pretrained.download("digits-cnn")


def test_committed_extractors_take_no_weights(tmp_path):
    with pytest.raises(UserError, match="'digits-cnn' is committed with its weights"):
        load_extractor(ExtractorConfig(name="digits-cnn", weights=str(tmp_path)))


def test_published_hashes_are_those_that_file_names_and_libraries_carry():
    """The first digits are in the names of FID's files; open_clip carries the hashes of OpenAI's archives whole."""
    from open_clip.pretrained import get_pretrained_url

    for entry in PRETRAINED.values():
        if entry.file.endswith(".pth"):
            assert entry.sha256.startswith(Path(entry.file).stem.split("-")[-1])
    for name, model in (("clip-vit-l-14", "ViT-L-14"), ("clip-vit-l-14-336", "ViT-L-14-336")):
        assert get_pretrained_url(model, "openai").split("/")[-2:] == [PRETRAINED[name].sha256, PRETRAINED[name].file]
