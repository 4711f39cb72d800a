"""The registry, strict options, and the denoiser's parameterisation; what every method owes is in `tests/contract`."""

import inspect
from types import SimpleNamespace

import numpy as np
import pytest

import harness.method
from harness.diffusion import CosineClock
from harness.errors import UserError
from harness.method import Denoiser, Method, Options, get_method, registry
from harness.samplers import FAMILIES
from harness.teacher import Teacher, TeacherOptions

METHODS = registry()


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


def register(monkeypatch: pytest.MonkeyPatch, method_class: type[Method]) -> dict[str, type[Method]]:
    """The registry with an installed package that offers `method_class`."""
    entry = SimpleNamespace(load=lambda: method_class)
    monkeypatch.setattr(harness.method, "entry_points", lambda group: [entry] if group == "fewstep.methods" else [])
    return registry.__wrapped__()


def test_an_installed_method_is_found_through_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    class Another(Teacher):
        id = "another"

    assert register(monkeypatch, Another) == {**METHODS, "another": Another}


def test_a_second_method_of_the_same_id_is_refused_but_the_same_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    class Impostor(Teacher):
        pass

    with pytest.raises(UserError, match="'teacher' is registered twice"):
        register(monkeypatch, Impostor)
    assert register(monkeypatch, Teacher) == METHODS


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

    denoiser = Denoiser(network, "weights", CosineClock())
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
