"""Every committed profile fits the methods that it names: their options, chains, samplers and networks."""

import re
from pathlib import Path

import pytest

from harness.addresses import TEACHER
from harness.datasets.shapes import SCENES
from harness.method import Method
from harness.metrics import shapes_clip, shapes_cnn
from harness.networks.transformer import TransformerSpec
from harness.registry import registry
from harness.workspace import Workspace

FOLDER = Path(__file__).parents[2] / "workflows" / "config"
PROFILES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
PAPER_SCALE = {"cifar10": (10, 56e6), "imagenet64": (1000, 400e6), "imagenet128": (1000, 400e6)}
"""Classes, and about how many parameters the networks of the literature have."""
TEXT_TO_IMAGE = {"coco512": 4096}
"""The width of the captions' tokens (T5-XXL); no published network of the sizes there is known."""
HYPERPARAMETERS = ("network", "clock", "teacher", "pairs", "methods")
PROVENANCE = re.compile(r"\[(paper|code|ours)|'s default")


def spec_of(workspace: Workspace) -> TransformerSpec:
    """The network for the profile's images, whose files are not needed to know it."""
    data, name = workspace.profile.data, workspace.profile.name
    if data.name == "digits":
        return workspace.spec((1, 8, 8), 10)
    if data.name == "shapes":
        return workspace.spec(shapes_cnn.IMAGE_SHAPE, len(SCENES), shapes_clip.CONFIG["text_cfg"]["width"])
    if name in TEXT_TO_IMAGE:
        return workspace.spec((3, data.size, data.size), 1, TEXT_TO_IMAGE[name])
    return workspace.spec((3, data.size, data.size), PAPER_SCALE[name][0])


@pytest.mark.parametrize("name", PROFILES)
def test_every_run_has_a_method_that_accepts_its_options(name: str) -> None:
    workspace = Workspace(name)
    spec = spec_of(workspace)
    for run in [*workspace.runs(), *workspace.ablations()]:
        method = workspace.make_method(run, spec)
        assert isinstance(method, Method)
        assert method.networks()
        schedule, adam = workspace.training(run)
        assert schedule.warmup_updates < schedule.updates
        assert schedule.checkpoint_every <= schedule.updates
        assert schedule.learning_rate_at(schedule.warmup_updates) == pytest.approx(schedule.learning_rate)
        assert 0 <= adam.beta1 <= adam.beta2 < 1
        assert workspace.settings(run)
        if run.method != TEACHER:
            assert workspace.parent(run) in workspace.runs()
            workspace.needs_pairs(run)  # raises where the profile lacks their section


@pytest.mark.parametrize("name", PAPER_SCALE)
def test_paper_scale_profiles_have_every_method_and_the_size_of_the_literature(name: str) -> None:
    workspace = Workspace(name)
    named = {method.id for method in workspace.profile.methods}
    own = {name for name, method in registry().items() if method.__module__.startswith(("harness.", "baselines."))}
    assert named == own - {TEACHER}
    _, parameters = PAPER_SCALE[name]
    assert spec_of(workspace).n_parameters == pytest.approx(parameters, rel=0.05)


@pytest.mark.parametrize("name", [*PAPER_SCALE, *TEXT_TO_IMAGE])
def test_every_hyperparameter_of_a_paper_scale_profile_says_where_it_comes_from(name: str) -> None:
    """In a comment on its own line, or on the line that opens a section around it."""
    around: list[tuple[int, bool]] = []  # indent of each open section, and whether it speaks for what is in it
    top, checked = "", 0
    for number, line in enumerate((FOLDER / f"{name}.yaml").read_text().splitlines(), 1):
        text, _, comment = line.partition("#")
        if not text.strip():
            continue
        indent = len(text) - len(text.lstrip())
        around = [section for section in around if section[0] < indent]
        said = bool(PROVENANCE.search(comment)) or any(speaks for _, speaks in around)
        key, _, value = text.strip().partition(":")
        top = key if indent == 0 else top
        if top in HYPERPARAMETERS and key != "- id" and (re.search(r"\d", value) or key == "weight"):
            assert said, f"{name}.yaml:{number}: {line}"
            checked += 1
        around.append((indent, said))
    assert checked >= 2
