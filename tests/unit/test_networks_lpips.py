"""LPIPS beside the package of its authors, with random features and the published heads; and the user's files."""

import hashlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import lpips as published
import numpy as np
import pytest
import torch
from torchvision.models import vgg

from harness.backends.jax import JaxOps
from harness.backends.torch import TorchOps
from harness.errors import UserError
from harness.networks import lpips
from harness.noise import Noise

HEADS = Path(published.__file__).parent / "weights" / "v0.1" / "vgg.pth"


@pytest.fixture(scope="module")
def oracle() -> torch.nn.Module:
    """The package's own network, without the classifier that it never uses."""
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        features = vgg.make_layers(vgg.cfgs["D"], batch_norm=False)
        patch.setattr(published.pretrained_networks.tv, "vgg16", lambda pretrained: SimpleNamespace(features=features))
        return published.LPIPS(net="vgg", pnet_rand=True, verbose=False)


@pytest.fixture(scope="module")
def folder(oracle: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two files, that of VGG16 with the oracle's weights, and one of the classifier's."""
    folder = tmp_path_factory.mktemp("lpips")
    state: dict[str, torch.Tensor] = {}
    for block in range(1, 6):
        state |= getattr(oracle.net, f"slice{block}").state_dict(prefix="features.")
    torch.save({**state, "classifier.6.bias": torch.zeros(1000)}, folder / "vgg16-397923af.pth")
    (folder / "vgg.pth").write_bytes(HEADS.read_bytes())
    return folder


@pytest.fixture
def paths(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files, as found; the random ones pass for the published ones."""
    monkeypatch.setenv(lpips.FOLDER, str(folder))
    name = "vgg16-397923af.pth"
    monkeypatch.setitem(lpips.FILES, name, hashlib.sha256((folder / name).read_bytes()).hexdigest())
    return lpips.files()


def images(channels: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Two batches of three in [-1, 1], near one another in the last."""
    x = 2 * Noise(0).uniform("x", 0, 0, 3, (channels, size, size)) - 1
    y = 2 * Noise(0).uniform("y", 0, 0, 3, (channels, size, size)) - 1
    y[2] = 0.9 * x[2] + 0.1 * y[2]
    return x.astype(np.float32), y.astype(np.float32)


def expected(oracle: torch.nn.Module, x: np.ndarray, y: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The oracle's distances, and the gradient of their sum in x, in float64; images enlarged by PyTorch."""
    oracle = oracle.double()
    a, b = torch.from_numpy(x).double().requires_grad_(), torch.from_numpy(y).double()

    def prepared(image: torch.Tensor) -> torch.Tensor:
        colour = image.expand(-1, 3, -1, -1)
        return torch.nn.functional.interpolate(colour, size=(size, size), mode="bilinear", align_corners=False)

    values = oracle(prepared(a), prepared(b)).flatten()
    (gradient,) = torch.autograd.grad(values.sum(), a)
    return values.detach().numpy(), gradient.numpy()


def ours(backend: str, params: dict[str, Any], x: np.ndarray, y: np.ndarray, size: int) -> tuple[Any, Any]:
    """The same by this project's definition, in the precision of the arrays."""
    if backend == "jax":
        weights = {name: jnp.asarray(value) for name, value in params.items()}

        def total(a: Any, weights: Any) -> Any:
            values = lpips.distance(weights, a, jnp.asarray(y), JaxOps(), size)
            return values.sum(), values

        (_, values), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(jnp.asarray(x), weights)
        return np.asarray(values), np.asarray(gradient)
    weights = {name: torch.from_numpy(value) for name, value in params.items()}
    a = torch.from_numpy(x).requires_grad_()
    values = lpips.distance(weights, a, torch.from_numpy(y), TorchOps(), size)
    (gradient,) = torch.autograd.grad(values.sum(), a)
    return values.detach().numpy(), gradient.numpy()


@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 12)], ids=["as it is", "grey and enlarged"])
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_values_and_gradients_are_those_of_its_authors(
    oracle: torch.nn.Module, paths: list[Path], backend: str, channels: int, size: int
) -> None:
    x, y = images(channels, size)
    values, gradient = expected(oracle, x, y, 32)
    assert values[2] < 0.5 * values[0]
    found, slope = ours(backend, lpips.read(paths), x, y, 32)
    np.testing.assert_allclose(found, values, rtol=1e-5)
    assert np.linalg.norm(slope - gradient) <= 1e-4 * np.linalg.norm(gradient)


def test_in_float64_it_is_theirs_but_for_their_float32_constants(oracle: torch.nn.Module, paths: list[Path]) -> None:
    x, y = (array.astype(np.float64) for array in images(3, 12))
    values, gradient = expected(oracle, x, y, 32)
    params = {name: value.astype(np.float64) for name, value in lpips.read(paths).items()}
    found, slope = ours("torch", params, x, y, 32)
    np.testing.assert_allclose(found, values, rtol=1e-7)
    np.testing.assert_allclose(slope, gradient, rtol=0, atol=1e-6 * np.abs(gradient).max())


def test_the_loss_sees_images_of_224_pixels(oracle: torch.nn.Module, paths: list[Path]) -> None:
    x, y = (array[:1] for array in images(3, 8))
    weights = {name: torch.from_numpy(value) for name, value in lpips.read(lpips.LPIPS.files()).items()}
    with torch.no_grad():
        found = lpips.LPIPS.apply(weights, torch.from_numpy(x), torch.from_numpy(y), TorchOps())
    np.testing.assert_allclose(found.numpy(), expected(oracle, x, y, 224)[0], rtol=1e-5)


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_images_without_features_have_no_distance_and_a_finite_gradient(paths: list[Path], backend: str) -> None:
    params = {
        name: np.full_like(value, -1.0) if name.endswith("bias") else 0 * value
        for name, value in lpips.read(paths).items()
    }
    values, gradient = ours(backend, params, *images(3, 16), 16)
    assert not values.any()
    assert not gradient.any(), "not a number where the root of zero is differentiated"


def test_only_features_and_heads_are_read(paths: list[Path]) -> None:
    params = lpips.read(paths)
    assert len(params) == 2 * 13 + 5
    assert params["features.28.weight"].shape == (512, 512, 3, 3)
    assert sum(value.size for value in params.values()) == 14_714_688 + 1_472
    assert {value.dtype for value in params.values()} == {np.dtype(np.float32)}


def test_the_packages_heads_are_the_published_ones() -> None:
    assert hashlib.sha256(HEADS.read_bytes()).hexdigest() == lpips.FILES["vgg.pth"]


def test_a_file_that_is_missing_is_one_line_with_the_remedy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(lpips.FOLDER, str(folder / "nowhere"))
    with pytest.raises(UserError, match=r"\A\S+/nowhere/vgg16-397923af\.pth: no such file, .* set FEWSTEP_LPIPS .*\Z"):
        lpips.files()


def test_another_file_is_refused_before_it_is_parsed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in lpips.FILES:
        (tmp_path / name).write_bytes(b"not what it says it is")
    monkeypatch.setenv(lpips.FOLDER, str(tmp_path))
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("parsed"))
    with pytest.raises(UserError, match=r"\A\S+/vgg16-397923af\.pth: not the published file \(its SHA-256 is .*\Z"):
        lpips.read(lpips.files())


def test_without_pytorch_reading_says_so(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"\ALPIPS's files are read with PyTorch; install it: .*\Z"):
        lpips.read(paths)
