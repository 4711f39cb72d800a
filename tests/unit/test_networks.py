"""The transformer: one set of names and shapes on both frameworks, its start, its gradients and its features."""

from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import equinox as eqx
import jax
import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_map

from harness.backends import BACKENDS, get_backend
from harness.backends.jax import JaxOps
from harness.backends.jax import _apply as jax_apply
from harness.backends.torch import TorchOps
from harness.conditions import Condition, Text, unconditional
from harness.diffusion import Array, CosineClock
from harness.method import Denoiser
from harness.networks.jax import Transformer as JaxTransformer
from harness.networks.torch import Transformer as TorchTransformer
from harness.networks.transformer import TransformerSpec, initial_weights, places
from tests.conftest import SPEC, generic_weights, random_batch, random_captions

CAPTIONED = replace(SPEC, text_width=8)
SPECS = {
    "tiny": SPEC,
    "colour": TransformerSpec(3, 8, 4, width=24, depth=3, heads=3, num_classes=5),
    "captioned": CAPTIONED,
}
each_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


def torch_network(spec: TransformerSpec, weights: dict[str, np.ndarray]) -> TorchTransformer:
    network = TorchTransformer(spec)
    network.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()}, strict=True)
    return network


def inputs(spec: TransformerSpec, count: int = 6) -> tuple[np.ndarray, np.ndarray, Condition]:
    """Images, times and labels, the last of which is "none", or captions, the first of which is."""
    labels = np.append(np.arange(count - 1) % spec.num_classes, spec.num_classes)
    condition = random_captions(spec, count) if spec.text_width else labels
    return random_batch(spec, count)["images"], np.linspace(0, 1, count, dtype=np.float32), condition


def tensors(*arrays: Any) -> tuple[Any, ...]:
    """In PyTorch, conditions too."""
    found: tuple[Any, ...] = tree_map(torch.from_numpy, arrays)
    return found


def doubles(*arrays: Any) -> tuple[Any, ...]:
    """In PyTorch and float64, but for classes and masks."""
    found: tuple[Any, ...] = tree_map(lambda x: x.double() if x.is_floating_point() else x, tensors(*arrays))
    return found


@cache
def compiled(name: str, spec: TransformerSpec) -> Any:
    """The denoiser of generic weights on one backend."""
    return get_backend(name).denoiser_step(spec, generic_weights(spec, 0), Denoiser.__call__, CosineClock())


def predictions(spec: TransformerSpec, *arrays: Any) -> list[np.ndarray]:
    """Its x_hat on each backend."""
    return [get_backend(name).to_numpy(compiled(name, spec)(*arrays)) for name in BACKENDS]


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
            several = {"qkv": 3, "text_kv": 2}.get(name.split(".")[-2], 1)  # layers in one matrix
            inputs_and_outputs = value.shape[0] // several + value.shape[1]
            bound = (6 / inputs_and_outputs) ** 0.5
            assert 0.9 * bound < np.abs(value).max() <= bound * (1 + 1e-6)
            assert value.std() == pytest.approx(bound / 3**0.5, rel=0.1)
    with torch.no_grad():
        v, features = torch_network(spec, weights)(*tensors(*inputs(spec)))
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
    v, _ = network(*doubles(*inputs(spec, count=2 * spec.num_classes + 2)))
    target = torch.from_numpy(np.random.default_rng(0).standard_normal(v.shape))
    gradients = torch.autograd.grad(((v - target) ** 2).sum(), list(network.parameters()))
    for (name, _), gradient in zip(network.named_parameters(), gradients, strict=True):
        assert gradient.abs().min() > 1e-10, name


@pytest.mark.parametrize("changed", ["z", "t", "condition"])
def test_the_output_depends_on_every_input(changed: str, weights: dict[str, np.ndarray]) -> None:
    network = torch_network(SPEC, weights)
    before = dict(zip(("z", "t", "condition"), map(torch.from_numpy, inputs(SPEC)), strict=True))
    after = before | {changed: before[changed].roll(1, 0)}
    with torch.no_grad():
        moved = (network(**before)[0] - network(**after)[0]).abs().amax(dim=(1, 2, 3))
    assert torch.all(moved > 1e-3)


def test_every_output_pixel_depends_on_every_input_pixel_and_on_no_other_image(weights: dict[str, np.ndarray]) -> None:
    network = torch_network(SPEC, weights).double()
    z, t, labels = doubles(*inputs(SPEC, count=2))
    jacobian = torch.autograd.functional.jacobian(lambda z: network(z, t, labels)[0], z).reshape(2, 16, 2, 16)
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


def test_both_backends_read_captions_alike() -> None:
    a, b = predictions(CAPTIONED, *inputs(CAPTIONED, count=12))
    assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(a)


def test_padding_has_no_effect_whatever_is_in_it() -> None:
    z, t, text = inputs(CAPTIONED, count=12)
    tokens = np.where(text.mask[:, :, None], text.tokens, 1e4 * text.tokens[::-1, ::-1])
    wider = np.concatenate([tokens, 1e4 * tokens], axis=1), np.pad(text.mask, ((0, 0), (0, 3)))
    changed, widened = (predictions(CAPTIONED, z, t, Text(*other)) for other in ((tokens, text.mask), wider))
    for expected, a, b in zip(predictions(CAPTIONED, z, t, text), changed, widened, strict=True):
        np.testing.assert_array_equal(a, expected)
        np.testing.assert_allclose(b, expected, rtol=0, atol=1e-6)  # longer sums may be rounded otherwise


def test_every_token_of_a_caption_counts_for_its_own_image_alone() -> None:
    z, t, text = inputs(CAPTIONED, count=4)  # of none to three tokens
    before = predictions(CAPTIONED, z, t, text)
    for word in range(3):
        tokens = text.tokens.copy()
        tokens[3, word] += 1
        for expected, found in zip(before, predictions(CAPTIONED, z, t, Text(tokens, text.mask)), strict=True):
            assert np.abs(found[3] - expected[3]).max() > 1e-3
            np.testing.assert_allclose(found[:3], expected[:3], rtol=0, atol=1e-6)


def test_tokens_enter_by_their_mean_and_by_attention() -> None:
    """Each way alone changes the prediction: of two captions of one mean, and with attention to text switched off."""
    network = torch_network(CAPTIONED, generic_weights(CAPTIONED, 0))
    z, t, (tokens, _) = tensors(*inputs(CAPTIONED))
    mask = torch.ones(tokens.shape[:2], dtype=torch.bool)
    other = torch.stack([tokens[:, 0] + 1, tokens[:, 1] - 1, tokens[:, 2]], dim=1)
    with torch.no_grad():
        by_attention = network(z, t, Text(tokens, mask))[0] - network(z, t, Text(other, mask))[0]
        for block in network.blocks:
            block.text_kv.weight.zero_()
        by_mean = network(z, t, Text(tokens, mask))[0] - network(z, t, Text(tokens + 1, mask))[0]
        neither = network(z, t, Text(tokens, mask))[0] - network(z, t, Text(other, mask))[0]
    assert by_attention.abs().amax(dim=(1, 2, 3)).min() > 1e-3
    assert by_mean.abs().amax(dim=(1, 2, 3)).min() > 1e-3
    assert neither.abs().max() < 1e-6


def test_captions_without_a_token_have_no_part_in_the_network() -> None:
    """Whatever the masked tokens are, v is that of the same network without captions, its class embedding zero."""
    z, t, text = inputs(CAPTIONED)
    weights = generic_weights(CAPTIONED, 0)
    plain = {name: weights.get(name, np.zeros(shape, np.float32)) for name, shape in SPEC.shapes().items()}
    assert plain.keys() - weights.keys() == {"label"}
    with torch.no_grad():
        expected, _ = torch_network(SPEC, plain)(*tensors(z, t, np.zeros(len(z), int)))
        for given in (unconditional(text, 3), Text(1e4 * text.tokens, np.zeros_like(text.mask))):
            found, _ = torch_network(CAPTIONED, weights)(*tensors(z, t, given))
            in_jax, _ = jax_apply(CAPTIONED)(weights, z, t, given)
            for v in (found.numpy(), np.asarray(in_jax)):
                np.testing.assert_allclose(v, expected.numpy(), rtol=0, atol=1e-5)


def test_gradients_are_finite_and_those_of_captions_zero_where_no_caption_has_a_token() -> None:
    arrays = inputs(CAPTIONED)
    arrays = (*arrays[:2], unconditional(arrays[2], 3))
    weights = generic_weights(CAPTIONED, 0)
    params = dict(zip(weights, tensors(*weights.values()), strict=True))
    network, given = TorchTransformer(CAPTIONED), tensors(*arrays)
    apply = jax_apply(CAPTIONED)
    by_torch = TorchOps().grad(
        lambda params: (torch.func.functional_call(network, params, given)[0] ** 2).sum(), params
    )
    by_jax = JaxOps().grad(lambda params: (apply(params, *arrays)[0] ** 2).sum(), weights)
    for name in weights:
        a, b = by_torch[name].numpy(), np.asarray(by_jax[name])
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(1.0, np.abs(a).max()))
        assert a.any() == b.any() == (not name.startswith("caption") and "text_kv" not in name), name


def test_the_derivative_along_the_parameters_is_that_of_finite_differences_and_of_both_backends() -> None:
    """Captions of every length: also where all tokens are masked, forward mode is exact."""
    arrays, h = inputs(CAPTIONED), 1e-5
    weights, tangents = generic_weights(CAPTIONED, 0), generic_weights(CAPTIONED, 1)
    network = TorchTransformer(CAPTIONED).double()
    given = doubles(*arrays)
    params, along = (dict(zip(by_name, doubles(*by_name.values()), strict=True)) for by_name in (weights, tangents))

    def v(params: Any) -> torch.Tensor:
        return torch.func.functional_call(network, params, given)[0]

    value, slope = TorchOps().jvp(v, params, along)
    moved = [v({name: params[name] + sign * h * along[name] for name in params}) for sign in (1, -1)]
    torch.testing.assert_close(slope, (moved[0] - moved[1]) / (2 * h), rtol=1e-6, atol=1e-6)
    assert slope.abs().amax(dim=(1, 2, 3)).min() > 1e-2
    in_jax = JaxOps().jvp(lambda params: jax_apply(CAPTIONED)(params, *arrays)[0], weights, tangents)
    for a, b in zip((value, slope), in_jax, strict=True):
        assert np.linalg.norm(a.detach().numpy() - np.asarray(b)) <= 1e-4 * a.norm()


def test_derivatives_along_parts_of_a_vector_are_no_larger_than_the_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[torch.Tensor] = []
    jvp = torch.func.jvp

    def recorded(function: Any, primals: Any, tangents: Any) -> Any:
        given.extend(primals[0].values())
        return jvp(function, primals, tangents)

    monkeypatch.setattr(torch.func, "jvp", recorded)
    vector = torch.arange(10.0)
    parts, along = {"a": vector[:4].view(2, 2), "b": vector[4:]}, {"a": torch.ones(2, 2), "b": 2 * torch.ones(6)}
    value, slope = TorchOps().jvp(lambda params: params["a"].square().sum() + params["b"].square().sum(), parts, along)
    assert (value, slope) == (vector.square().sum(), 2 * vector[:4].sum() + 4 * vector[4:].sum())
    assert [x.untyped_storage().nbytes() for x in given] == [16, 24]


def test_sincos_positions_are_waves_of_row_and_column() -> None:
    spec = TransformerSpec(3, 12, 4, width=16, depth=1, heads=2, num_classes=5, positions="sincos")  # 3x3 patches
    grid, pairs = 3, 4
    start = initial_weights(spec, 0)["position"]
    np.testing.assert_array_equal(start, places(spec))
    np.testing.assert_array_equal(start, initial_weights(spec, 1)["position"])
    assert start.dtype == np.float32
    for patch in range(grid**2):
        row, column = patch // grid, patch % grid
        for i in range(pairs):
            frequency = 100 ** (-i / (pairs - 1))
            waves = [f(frequency * place) for place in (row, column) for f in (np.sin, np.cos)]
            np.testing.assert_allclose(start[patch, i::pairs], waves, atol=1e-6)
    plain = initial_weights(replace(spec, positions="small"), 0)
    for name, value in initial_weights(spec, 0).items():
        assert np.array_equal(value, plain[name]) == (name != "position")
