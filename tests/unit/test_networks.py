"""The transformer: one set of names and shapes on both frameworks, its start, its gradients and its features."""

from itertools import pairwise

import equinox as eqx
import jax
import numpy as np
import pytest
import torch

from harness.backends import get_backend
from harness.diffusion import Array, CosineClock
from harness.method import Denoiser
from harness.networks.jax import Transformer as JaxTransformer
from harness.networks.torch import Transformer as TorchTransformer
from harness.networks.transformer import TransformerSpec, initial_weights
from tests.conftest import SPEC, generic_weights, random_batch

SPECS = {"tiny": SPEC, "colour": TransformerSpec(3, 8, 4, width=24, depth=3, heads=3, num_classes=5)}
each_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


def torch_network(spec: TransformerSpec, weights: dict[str, np.ndarray]) -> TorchTransformer:
    network = TorchTransformer(spec)
    network.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()}, strict=True)
    return network


def inputs(spec: TransformerSpec, count: int = 6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, times and labels, the last of which is "none"."""
    labels = np.append(np.arange(count - 1) % spec.num_classes, spec.num_classes)
    return random_batch(spec, count)["images"], np.linspace(0, 1, count, dtype=np.float32), labels


@each_spec
def test_one_set_of_names_and_shapes(spec: TransformerSpec) -> None:
    in_torch = {name: tuple(value.shape) for name, value in TorchTransformer(spec).state_dict().items()}
    leaves = jax.tree_util.tree_leaves_with_path(eqx.filter(JaxTransformer(spec), eqx.is_array))
    in_jax = {jax.tree_util.keystr(path, simple=True, separator="."): leaf.shape for path, leaf in leaves}
    assert in_torch == in_jax == spec.shapes()
    assert {name: value.shape for name, value in initial_weights(spec, 0).items()} == spec.shapes()


@each_spec
def test_number_of_parameters(spec: TransformerSpec) -> None:
    assert spec.n_parameters == sum(parameter.numel() for parameter in TorchTransformer(spec).parameters())


def test_attention_has_no_bias_on_keys() -> None:
    assert not [name for name in SPEC.shapes() if "qkv.bias" in name]


@each_spec
def test_initial_weights_are_bounded_and_predict_nothing(spec: TransformerSpec) -> None:
    weights = initial_weights(spec, 0)
    for name, value in weights.items():
        assert value.dtype == np.float32
        if name in ("position", "label"):
            assert np.abs(value).max() < 0.2
            assert value.std() == pytest.approx(0.02, rel=0.2)
        elif value.any():
            inputs_and_outputs = 2 * spec.width if "qkv" in name else sum(value.shape)  # q, k and v are three layers
            bound = (6 / inputs_and_outputs) ** 0.5
            assert 0.9 * bound < np.abs(value).max() <= bound * (1 + 1e-6)
            assert value.std() == pytest.approx(bound / 3**0.5, rel=0.1)
    with torch.no_grad():
        v, features = torch_network(spec, weights)(*map(torch.from_numpy, inputs(spec)))
    assert not v.any()
    assert all(torch.equal(features[0], later) for later in features), "every block starts as the identity"
    assert features[0].std() > 0.01


def test_seeds_give_other_weights_and_the_same_ones_again() -> None:
    first, again, other = (initial_weights(SPEC, seed) for seed in (0, 0, 1))
    for name, value in first.items():
        np.testing.assert_array_equal(value, again[name])
        assert not value.any() or not np.array_equal(value, other[name])


@each_spec
def test_every_element_of_every_parameter_has_a_gradient(spec: TransformerSpec) -> None:
    """In float64, where a true zero (as of a key bias) leaves rounding noise of 1e-17."""
    network = torch_network(spec, generic_weights(spec, 0)).double()
    z, t, labels = map(torch.from_numpy, inputs(spec, count=2 * spec.num_classes + 2))
    v, _ = network(z.double(), t.double(), labels)
    target = torch.from_numpy(np.random.default_rng(0).standard_normal(v.shape))
    gradients = torch.autograd.grad(((v - target) ** 2).sum(), list(network.parameters()))
    for (name, _), gradient in zip(network.named_parameters(), gradients, strict=True):
        assert gradient.abs().min() > 1e-10, name


@pytest.mark.parametrize("changed", ["z", "t", "labels"])
def test_the_output_depends_on_every_input(changed: str, weights: dict[str, np.ndarray]) -> None:
    network = torch_network(SPEC, weights)
    before = dict(zip(("z", "t", "labels"), map(torch.from_numpy, inputs(SPEC)), strict=True))
    after = before | {changed: before[changed].roll(1, 0)}
    with torch.no_grad():
        moved = (network(**before)[0] - network(**after)[0]).abs().amax(dim=(1, 2, 3))
    assert torch.all(moved > 1e-3)


def test_every_output_pixel_depends_on_every_input_pixel_and_on_no_other_image(weights: dict[str, np.ndarray]) -> None:
    network = torch_network(SPEC, weights).double()
    z, t, labels = map(torch.from_numpy, inputs(SPEC, count=2))
    z = z.double()
    jacobian = torch.autograd.functional.jacobian(lambda z: network(z, t.double(), labels)[0], z).reshape(2, 16, 2, 16)
    assert jacobian[0, :, 0].abs().min() > 1e-8
    assert jacobian[1, :, 1].abs().min() > 1e-8
    assert not jacobian[0, :, 1].any()
    assert not jacobian[1, :, 0].any()


def test_features_are_the_tokens_after_each_block_on_both_backends(weights: dict[str, np.ndarray]) -> None:
    results = []

    def step(denoiser: Denoiser, *arrays: Array) -> tuple[Array, ...]:
        x, features = denoiser(*arrays, features=True)
        return denoiser(*arrays), x, *features

    for name in ("torch", "jax"):
        backend = get_backend(name)
        out = backend.denoiser_step(SPEC, weights, step, CosineClock())(*inputs(SPEC))
        results.append([backend.to_numpy(array) for array in out])
    assert [array.shape for array in results[0]] == [(6, 1, 4, 4)] * 2 + [(6, 4, 16)] * SPEC.depth
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    for plain, x, *features in results:
        np.testing.assert_allclose(plain, x, atol=1e-6)
        assert all(np.abs(a - b).max() > 0.1 for a, b in pairwise(features))
