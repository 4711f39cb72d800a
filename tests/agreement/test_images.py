"""The same images, end to end: beside torch-fidelity's and clean-fid's calls, in any order, batch size and threads."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch_fidelity
from cleanfid import fid as clean_fid
from PIL import Image
from torch.utils.data import Dataset
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

from tests.agreement.cases import SEED, SPLITS, SUBSET_SIZE, SUBSETS, ImageSets, N, image_sets
from tests.agreement.test_features import named
from tests.agreement.tolerances import SCORES, assert_agrees

KINDS = ["digits", "random"]


class OurNetwork(FeatureExtractorBase):
    """An extractor of this project in torch-fidelity's terms; its name is the kind of images."""

    def __init__(self, name, features_list, **_):
        super().__init__(name, features_list)
        self.extractor = image_sets(name).extractor

    @staticmethod
    def get_provided_features_list():
        return ("features", "logits")

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "logits" if metric == "isc" else "features"

    @staticmethod
    def can_be_compiled():
        return False

    def forward(self, images):
        found = dict(zip(("features", "logits"), self.extractor.forward(images.numpy()), strict=True))
        return tuple(torch.from_numpy(found[name]) for name in self.features_list)


class Images(Dataset):
    """Items as torch-fidelity wants them: bare uint8 tensors."""

    def __init__(self, images):
        self.images = torch.from_numpy(images)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]


@pytest.fixture(params=KINDS)
def sets(request) -> ImageSets:
    return image_sets(request.param)


@pytest.fixture(scope="module", autouse=True)
def _registered():
    for kind in KINDS:
        torch_fidelity.register_feature_extractor(kind, OurNetwork)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_equal_torch_fidelitys_own_call(kind):
    sets = image_sets(kind)
    found = torch_fidelity.calculate_metrics(
        input1=Images(sets.generated), input2=Images(sets.reference), feature_extractor=kind,
        isc=True, fid=True, kid=True, prc=True, isc_splits=SPLITS, kid_subsets=SUBSETS, kid_subset_size=SUBSET_SIZE,
        rng_seed=SEED, batch_size=100, cuda=False, cache=False, save_cpu_ram=True, verbose=False,
    )  # fmt: skip
    assert_agrees(sets.scores(), named(found), "torch-fidelity, same images")


@pytest.mark.filterwarnings("ignore:The `disp` argument:DeprecationWarning")
def test_scores_equal_clean_fids_own_call(sets, tmp_path):
    """Through folders of PNG files; the kernel distance from one subset, which is the whole of 400 images."""
    sets = dataclasses.replace(sets, generated=sets.generated[:400], reference=sets.reference[:400])
    channels = sets.generated.shape[1]
    for side in ("generated", "reference"):
        (tmp_path / side).mkdir()
        for index, image in enumerate(getattr(sets, side)):
            Image.fromarray(image[0] if channels == 1 else image.transpose(1, 2, 0)).save(
                tmp_path / side / f"{index:03}.png"
            )

    def features(images):
        return torch.from_numpy(sets.extractor.forward(images[:, :channels].numpy().astype(np.uint8))[0])

    options = {"mode": "clean", "custom_fn_resize": lambda image: image, "batch_size": 64, "num_workers": 0}
    options |= {"device": torch.device("cpu"), "verbose": False}
    folders = [str(tmp_path / side) for side in ("generated", "reference")]
    found = {"fid": clean_fid.compute_fid(*folders, custom_feat_extractor=features, use_dataparallel=False, **options)}
    rows = [clean_fid.get_folder_features(folder, features, **options) for folder in folders]
    found["kid"] = clean_fid.kernel_distance(*rows, num_subsets=1, max_subset_size=400)
    assert_agrees(sets.scores(), found, "clean-fid, same images")


def test_order_and_batch_size_change_nothing(sets):
    """The images within each split of the Inception score change places, and all images for the other scores."""
    expected = sets.scores()
    assert_agrees(sets.scores(batch=7), expected, "other order, batch size and threads")
    rng = np.random.default_rng(1)
    positions = np.random.RandomState(SEED).permutation(N)
    within_splits = np.arange(N)
    for split in np.array_split(positions, SPLITS):
        within_splits[split] = rng.permutation(split)
    reordered = dataclasses.replace(sets, generated=sets.generated[within_splits]).scores(batch=33)
    whole = dataclasses.replace(sets, generated=sets.generated[:SUBSET_SIZE], reference=sets.reference[:SUBSET_SIZE])
    anywhere = dataclasses.replace(
        whole, generated=rng.permutation(whole.generated), reference=rng.permutation(whole.reference)
    )
    assert_agrees(
        anywhere.scores() | {"is": reordered["is"]}, whole.scores() | {"is": expected["is"]},
        "other order, batch size and threads",
    )  # fmt: skip


def test_the_number_of_threads_changes_nothing():
    code = (
        "import json; from tests.agreement.cases import image_sets; "
        f"print(json.dumps([image_sets(kind).scores() for kind in {KINDS}]))"
    )
    threads = {f"{library}_NUM_THREADS": "2" for library in ("OMP", "OPENBLAS", "MKL")}
    result = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | threads, capture_output=True, text=True, check=True
    )
    for kind, found in zip(KINDS, json.loads(result.stdout), strict=True):
        assert_agrees(found, image_sets(kind).scores(), "other order, batch size and threads")


def test_images_of_noise_score_badly_and_the_real_ones_well():
    """A table that scores the reference in place of the first set shows a perfect first row: no score may."""
    sets = image_sets("digits")
    noise = np.random.default_rng(0).integers(0, 256, sets.generated.shape, dtype=np.uint8)
    real, bad = (dataclasses.replace(sets, generated=images).scores() for images in (sets.reference, noise))
    assert real["fid"] == pytest.approx(0, abs=1e-6)
    assert (real["precision"], real["recall"]) == (1, 1)
    assert bad["fid"] > 10
    assert bad["kid"] > 0.1 > real["kid"]
    assert bad["precision"] < 0.1
    assert bad["is"] < 0.7 * real["is"]
    assert set(SCORES) <= real.keys()
