"""The registry, strict options, the denoiser, its guidance; what every method owes is in `tests/contract`."""

import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from baselines.progressive import Progressive
from harness.backends.torch import TorchOps
from harness.conditions import Condition, Text, unconditional
from harness.diffusion import CosineClock
from harness.errors import UserError
from harness.method import Denoiser, Method, Options, bind
from harness.moment_matching import AlternatingMomentMatching
from harness.registry import get_method, registry
from harness.samplers import FAMILIES
from harness.teacher import Teacher, TeacherOptions
from tests.conftest import SPEC
from tests.contract.probe import Probe

METHODS = registry()
Register = Callable[..., dict[str, type[Method]]]


def test_the_engines_own_methods_are_registered_under_their_ids() -> None:
    assert {"teacher", "moment-matching/alternating"} <= METHODS.keys()
    assert all(method_class.id == name for name, method_class in METHODS.items())
    assert get_method("teacher") is Teacher


@pytest.mark.parametrize("method_class", METHODS.values(), ids=METHODS)
def test_a_method_says_what_it_is(method_class: type[Method]) -> None:
    assert inspect.getdoc(method_class) not in (None, inspect.getdoc(Method))
    assert method_class.family(method_class.Options()) in FAMILIES
    assert method_class.sampler in FAMILIES
    assert issubclass(method_class.Options, Options)
    assert method_class.Options.model_config["extra"] == "forbid"


@pytest.mark.parametrize(("unknown", "hint"), [("teachr", "did you mean 'teacher'? "), ("no-such-thing-at-all", "")])
def test_an_unknown_method_is_one_line_with_the_list(unknown: str, hint: str) -> None:
    with pytest.raises(UserError) as error:
        get_method(unknown)
    assert str(error.value) == f"unknown method '{unknown}'; {hint}known methods: {', '.join(sorted(METHODS))}"


MODULE = """
from harness.teacher import Teacher
from harness.method import Method

class Another(Teacher):
    id = "another"

class Impostor(Teacher):
    id = "another"

class Nameless(Method):
    pass

number = 1
"""


@pytest.fixture
def register(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Register:
    """The registry once a package is installed that has these entry points, by name, and these lines in its module."""

    def registered(entries: dict[str, str], module: str = MODULE) -> dict[str, type[Method]]:
        (tmp_path / "plugged.py").write_text(module)
        (tmp_path / "plugged-1.0.dist-info").mkdir()
        lines = ["[fewstep.methods]", *(f"{name} = {value}" for name, value in entries.items())]
        (tmp_path / "plugged-1.0.dist-info" / "entry_points.txt").write_text("\n".join(lines))
        (tmp_path / "plugged-1.0.dist-info" / "METADATA").write_text("Name: plugged\nVersion: 1.0\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "plugged", raising=False)
        return registry.__wrapped__()

    return registered


def test_an_installed_method_is_found_through_its_entry_point(register: Register) -> None:
    methods = register({"any-name": "plugged:Another"})
    assert methods == {**METHODS, "another": sys.modules["plugged"].Another}


def test_a_method_may_be_offered_twice(register: Register) -> None:
    assert register({"teacher": "harness.teacher:Teacher"}) == METHODS


def test_two_methods_of_one_id_are_refused(register: Register) -> None:
    message = "^method 'another' is registered twice; rename one of the two: plugged.Another and plugged.Impostor$"
    with pytest.raises(UserError, match=message):
        register({"one": "plugged:Another", "two": "plugged:Impostor"})


@pytest.mark.parametrize(
    ("value", "module", "problem"),
    [
        ("plugged:Another", "import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("plugged:Another", "raise RuntimeError('two\\nlines')", "RuntimeError: two lines"),
        ("plugged:Another", "class", "SyntaxError: invalid syntax (plugged.py, line 1)"),
        ("plugged:Missing", MODULE, "AttributeError: module 'plugged' has no attribute 'Missing'"),
        ("plugged.deeper", MODULE, "ModuleNotFoundError: No module named 'plugged.deeper'; 'plugged' is not a package"),
    ],
)
def test_an_entry_point_that_cannot_be_imported_is_one_line(
    register: Register, value: str, module: str, problem: str
) -> None:
    message = f"the entry point mine = {value} in fewstep.methods cannot be imported ({problem}); mend or uninstall its"
    with pytest.raises(UserError, match=rf"\A{re.escape(message)} package\Z"):
        register({"mine": value}, module)


@pytest.mark.parametrize("name", [":Nameless", ":number", ":Teacher.draw", ""])
def test_an_entry_point_that_is_no_method_is_one_line(register: Register, name: str) -> None:
    message = f"the entry point mine = plugged{name} in fewstep.methods is not a subclass of Method with an id; mend"
    with pytest.raises(UserError, match=rf"\A{re.escape(message)} or uninstall its package\Z"):
        register({"mine": f"plugged{name}"})


@pytest.mark.parametrize("options", [{"weigth": "edm"}, {"weight": "edn"}, {"ema_decay": 1.0}, {"label_dropout": "1"}])
def test_mistyped_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        TeacherOptions.model_validate(options)


def test_a_denoiser_turns_v_into_x_and_passes_features_on() -> None:
    z, v = np.random.default_rng(0).standard_normal((2, 3, 1, 2, 2))
    t, labels = np.array([0.1, 0.5, 0.9]), np.array([0, 1, 2])
    seen = []

    def network(params: str, *arrays: np.ndarray) -> tuple[np.ndarray, list[str]]:
        seen.append((params, *arrays))
        return v, ["tokens"]

    denoiser = Denoiser(network, "weights", CosineClock(), num_classes=3)
    x, features = denoiser(z, t, labels, features=True)
    at = CosineClock()(t)
    alpha, sigma = (a.reshape(3, 1, 1, 1) for a in at[1:])
    eps = sigma * z + alpha * v  # the rotation by (alpha, sigma) that takes (x, eps) to (z, v)
    np.testing.assert_allclose(alpha * x + sigma * eps, z, atol=1e-12)
    np.testing.assert_array_equal(denoiser(z, t, labels), x)
    assert features == ["tokens"]
    denoiser.at("others")(z, t, labels)
    assert [call[0] for call in seen] == ["weights", "weights", "others"]
    assert all(call[1] is z and call[2] is t and call[3] is labels for call in seen)


CLOCK = CosineClock()
CAPTIONS = Text(np.arange(12.0).reshape(3, 2, 2) / 12, np.array([[True, True], [True, False], [False, False]]))
CONDITIONS = {"classes": np.array([0, 1, 3]), "captions": CAPTIONS}
"""The last of each is "none" already."""
each_condition = pytest.mark.parametrize("condition", CONDITIONS.values(), ids=CONDITIONS)


def network(params: Any, z: Any, t: Any, condition: Condition) -> tuple[Any, list[Any]]:
    """v = params (z + one number for each condition), which is also the feature."""
    if isinstance(condition, Text):
        shift = (condition.tokens * condition.mask[:, :, None]).sum((1, 2))
    else:
        shift = (condition + 1.0) ** 2
    return params * (z + shift.reshape(-1, 1, 1, 1)), [shift]


def inputs() -> tuple[np.ndarray, np.ndarray]:
    return np.random.default_rng(0).standard_normal((3, 1, 2, 2)), np.array([0.1, 0.5, 0.9])


@each_condition
def test_a_guided_denoiser_extrapolates_from_the_unconditional_prediction(condition: Condition) -> None:
    (z, t), w = inputs(), 1.5
    alpha, sigma = (a.reshape(3, 1, 1, 1) for a in CLOCK(t)[1:])
    nothing = unconditional(condition, 3)
    g_c, g_u = (alpha * z - sigma * network(0.7, z, t, given)[0] for given in (condition, nothing))
    assert np.abs(g_c[:2] - g_u[:2]).min() > 0.01
    guided = Denoiser(network, 0.7, CLOCK, 3, guidance=w)
    x, features = guided(z, t, condition, features=True)
    np.testing.assert_allclose(x, g_c + w * (g_c - g_u), rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(guided(z, t, condition), x)
    np.testing.assert_array_equal(guided.guided(g_c, z, t, condition), x)
    np.testing.assert_array_equal(features[0], network(0.7, z, t, condition)[1][0], "of the conditional call")
    np.testing.assert_allclose(x[2], g_u[2], rtol=1e-12, err_msg="what is not conditioned has no guidance")
    # with other parameters, and without guidance, both ways
    for plain in (guided.at(0.3), Denoiser(network, 0.3, CLOCK, 3)):
        np.testing.assert_array_equal(plain(z, t, condition), alpha * z - sigma * network(0.3, z, t, condition)[0])
        np.testing.assert_array_equal(plain.guided(g_c, z, t, condition), g_c)


@each_condition
def test_straight_through_has_the_value_of_guidance_and_the_gradient_of_the_network(condition: Condition) -> None:
    z, t = map(torch.from_numpy, inputs())
    given = Text(*map(torch.from_numpy, condition)) if isinstance(condition, Text) else torch.from_numpy(condition)
    params = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    guided = Denoiser(network, params.detach(), CLOCK, 3, guidance=1.5)
    found = guided.straight_through(params, z, t, given, TorchOps())
    torch.testing.assert_close(found, guided(z, t, given), rtol=1e-12, atol=1e-12)
    cotangent = torch.linspace(1, 2, 12, dtype=torch.float64).reshape(3, 1, 2, 2)
    slopes = [
        torch.autograd.grad((x * cotangent).sum(), params)[0]
        for x in (found, guided.at(params)(z, t, given), Denoiser(network, params, CLOCK, 3, 1.5)(z, t, given))
    ]
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-12, atol=0)
    assert abs(slopes[0] - slopes[2]) > 0.1, "the gradient of what guidance makes is another"
    plain = Denoiser(network, params, CLOCK, 3)
    assert torch.equal(plain.straight_through(params, z, t, given, TorchOps()), plain(z, t, given))


def test_a_guided_network_that_passes_gradients_to_its_input_is_guided() -> None:
    """As a student moves when its loss flows through the teacher: by the gradient of both predictions."""
    z, t = map(torch.from_numpy, inputs())

    def square(params: dict[str, Tensor], z: Tensor, t: Tensor, labels: Tensor) -> tuple[Tensor, None]:
        return (1 + labels).reshape(-1, 1, 1, 1) * params["a"] * z**2, None

    params = {"a": torch.tensor(0.7, dtype=torch.float64, requires_grad=True)}
    guided, labels, z = (
        Denoiser(square, params, CLOCK, 3, 1.5).constant(TorchOps()),
        torch.arange(3),
        z.requires_grad_(),
    )
    (gradient,) = torch.autograd.grad(guided(z, t, labels).sum(), z)
    level = CLOCK(t)
    factor = 2.5 * (1 + labels) - 1.5 * 4  # (1 + w) of the class's, less w of that of "none"
    expected = level.alpha.reshape(3, 1, 1, 1) - (level.sigma * factor).reshape(3, 1, 1, 1) * 2 * 0.7 * z
    torch.testing.assert_close(gradient, expected.detach(), rtol=1e-12, atol=1e-12)


def test_guidance_is_given_to_the_copies_that_no_turn_trains_by_their_source() -> None:
    method = Probe(2, 100, CLOCK, Probe.Options(), SPEC, {"teacher": 1.5, "parent": 0.5})
    nets = bind(method, method.networks(), network, dict.fromkeys(method.networks(), 0.7))
    weights = {name: net.guidance for name, net in nets.items() if isinstance(net, Denoiser)}
    assert weights == {"teacher": 1.5, "average": 0.0, "student": 0.0, "auxiliary": 0.0}
    progressive = Progressive(2, 100, CLOCK, Progressive.Options(), SPEC, {"teacher": 1.5, "parent": 0.5})
    nets = bind(progressive, progressive.networks(), network, {"parent": 0.7, "student": 0.7})
    assert (nets["parent"].guidance, nets["student"].guidance) == (0.5, 0.0)


def test_the_cost_of_guidance_is_counted_where_a_network_is_guided() -> None:
    def passes(kind: type[Method], guidance: dict[str, float], turn: str = "student") -> int:
        return kind(2, 100, CLOCK, kind.Options(), SPEC, guidance).passes(turn)

    for turn in ("auxiliary", "student"):
        plain = passes(AlternatingMomentMatching, {}, turn)
        assert passes(AlternatingMomentMatching, {"teacher": 0.0, "parent": 0.0}, turn) == plain
        assert passes(AlternatingMomentMatching, {"teacher": 1.5, "parent": 1.5}, turn) == plain + 1
    first, second = {"teacher": 1.5, "parent": 1.5}, {"teacher": 1.5, "parent": 0.0}
    assert passes(Progressive, first) == passes(Progressive, {}) + 2
    assert passes(Progressive, second) == passes(Progressive, {}), "its parent has the guidance in it"
