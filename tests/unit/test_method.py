"""The registry, strict options, and the denoiser's parameterisation; what every method owes is in `tests/contract`."""

import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from harness.diffusion import CosineClock
from harness.errors import UserError
from harness.method import Denoiser, Method, Options
from harness.registry import get_method, registry
from harness.samplers import FAMILIES
from harness.teacher import Teacher, TeacherOptions

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
