"""Profiles: what is right loads as written, and each mistake is one line that names the key and the remedy."""

import copy
import hashlib
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel, Field

from harness import config
from harness.config import Profile, digest, load_profile, validate_options
from harness.errors import UserError
from harness.validation import StrictModel

PROFILES = Path(__file__).parents[2] / "workflows" / "config"
LEARNING_RATE = "teacher.optimiser.learning_rate"


@pytest.fixture
def content():
    """The default profile with its first method alone."""
    content = yaml.safe_load((PROFILES / "digits.yaml").read_text())
    del content["ablations"]
    return content | {"methods": [content["methods"][0] | {"repeats": {}}]}


@pytest.fixture
def load(tmp_path):
    def load(content, **options):
        path = tmp_path / "mine.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
        return load_profile(path, **options)

    return load


def _edit(content, key, value):
    """The content with the value of a dotted key replaced; `...` removes the key."""
    content = copy.deepcopy(content)
    *parents, last = [int(part) if part.isdecimal() else part for part in key.split(".")]
    inner = content
    for part in parents:
        inner = inner[part]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return content


def _leaves(value, key=""):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        return [(key, value)]
    return [leaf for name, item in items for leaf in _leaves(item, f"{key}.{name}" if key else str(name))]


def _over(base, value):
    """What a profile that says `value` makes of the base's: sections are merged, everything else is replaced."""
    if not isinstance(base, dict) or not isinstance(value, dict):
        return value
    return base | {key: _over(base.get(key), item) for key, item in value.items()}


@pytest.mark.parametrize("path", sorted(PROFILES.glob("*.yaml")), ids=lambda path: path.stem)
def test_committed_profiles_load_as_written(path):
    profile = load_profile(path.stem)
    assert profile.name == path.stem
    written = yaml.safe_load(path.read_text())
    if "extends" in written:
        base = load_profile(written.pop("extends")).model_dump(mode="json", exclude_unset=True)
        base |= {"published": None} if "data" in written else {}  # whose table that is depends on the data
        written = _over(base, written)
    assert dict(_leaves(profile.model_dump(mode="json", exclude_unset=True))) == dict(_leaves(written))


def test_every_change_of_a_value_changes_the_hash(content, load):
    closed = ("data.name", "network.width", "network.heads", "clock.name", "backends.", "evaluation.fid_parts.")
    changes = [(key, value) for key, value in _leaves(content) if not key.startswith(closed)]  # not any value
    other = {int: lambda value: value + 1000, float: lambda value: value + 0.0005, str: lambda value: f"{value}-2"}
    edited = [_edit(content, key, other[type(value)](value)) for key, value in changes]
    edited += [
        _edit(content, "data", {"name": "folder", "path": "images", "size": 8}),
        _edit(content, "network.heads", 8),
        _edit(content, "backends", ["jax"]),
        _edit(content, "evaluation.fid_parts", [2]),
        _edit(content, "clock.shift_high", 1.0),
    ]
    hashes = {digest(load(each)) for each in (content, *edited)}
    assert len(hashes) == 1 + len(edited) > 50


def test_order_comments_name_and_explicit_defaults_leave_the_hash(content, load):
    before = digest(load(content))
    reordered = {key: content[key] for key in reversed(content)}
    reordered["clock"] = {"shift_high": None, **content["clock"]}
    reordered["teacher"] = {**content["teacher"], "batch": 128}
    assert digest(load("# a comment\n" + yaml.safe_dump(reordered))) == before


def test_digest_is_sha256_of_canonical_json():
    expected = hashlib.sha256(b'{"a":[1,2.5,null],"b":{"c":"x","d":true}}').hexdigest()[:12]
    assert digest({"b": {"d": True, "c": "x"}, "a": [1, 2.5, None]}) == expected


def test_an_integer_is_a_number(content, load):
    profile = load(_edit(content, "teacher.optimiser.clip", 1))
    assert isinstance(profile.teacher.optimiser.clip, float)
    assert digest(profile) == digest(load(content))


def test_nothing_changes_after_loading():
    with pytest.raises(ValueError, match="frozen"):
        load_profile("digits").teacher.updates = 1


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("teacher.updatse", 3, "unknown key teacher.updatse; did you mean 'updates'? known: batch, updates, optimiser"),
        ("methods.0.optimiser.beta3", 3.0, "unknown key methods.0.optimiser.beta3; did you mean 'beta2'?"),
        ("methods.0.overrides.k1.bach", 3, "unknown key methods.0.overrides.k1.bach; did you mean 'batch'?"),
        (
            "methods.0.overrides.k1.optimiser",
            {"eta": 1.0},
            "unknown key methods.0.overrides.k1.optimiser.eta; did you mean",
        ),
        ("clock.sigma_min", 1.0, "unknown key clock.sigma_min; known: name, logsnr_min, logsnr_max, shift, shift_high"),
        (
            "clock",
            {"name": "karras", "logsnr_min": 0.0},
            "unknown key clock.logsnr_min; known: name, sigma_min, sigma_max",
        ),
        ("teacher.optimiser.eps", ..., "the key teacher.optimiser.eps is missing"),
        ("clock.name", ..., "the key clock.name is missing"),
        ("teacher.updates", "many", "teacher.updates is 'many', but should be a whole number"),
        ("teacher.updates", 1.5, "teacher.updates is 1.5, but should be a whole number"),
        ("teacher.updates", True, "teacher.updates is True, but should be a whole number"),
        (LEARNING_RATE, True, f"{LEARNING_RATE} is True, but should be a number"),
        (LEARNING_RATE, float("nan"), f"{LEARNING_RATE} is nan, but should be a finite number"),
        ("data", "digits", "data is 'digits', but should be a mapping"),
        ("clock", "cosine", "clock is 'cosine', but should be a mapping"),
        ("seeds", 0, "seeds is 0, but should be a list"),
        (LEARNING_RATE, "1e-4", f"{LEARNING_RATE} is the text '1e-4'; write 1.0e-4"),
        (LEARNING_RATE, "1.5E4", f"{LEARNING_RATE} is the text '1.5E4'; write 1.5e+4"),
        (LEARNING_RATE, "0.1", f"{LEARNING_RATE} is the text '0.1'; write 0.1 without quotes"),
        ("teacher.updates", "6e3", "teacher.updates is the text '6e3'; write 6000"),
        ("methods.0.steps", [4, 0], "methods.0.steps.1 is 0, but should be greater than or equal to 1"),
        ("methods.0.steps", [], "methods.0.steps is empty"),
        ("methods.0.steps", [4, 2, 4], "methods.0.steps: holds 4 twice"),
        ("teacher.samplers.ddim", [], "teacher.samplers.ddim is empty"),
        ("teacher.samplers", {}, "teacher.samplers is empty"),
        ("methods", [], "methods is empty"),
        ("teacher.label_dropout", 1.1, "teacher.label_dropout is 1.1, but should be less than or equal to 1"),
        ("methods.0.overrides.k1.updates", 0, "methods.0.overrides.k1.updates is 0, but should be greater than"),
        ("network.heads", 5, "network: width 64 is not divisible by heads 5"),
        ("clock.logsnr_min", 11.0, "clock: logsnr_min 11.0 is not below logsnr_max 10.0"),
        ("clock", {"name": "karras", "sigma_min": 90.0}, "clock: sigma_min 90.0 is not below sigma_max 80.0"),
        ("backends", ["touch"], "backends.0 is 'touch'; did you mean 'torch'? known: torch, jax"),
        ("clock.name", "cosin", "clock is called 'cosin'; did you mean 'cosine'? known: cosine, karras"),
        ("teacher.samplers.dim", [1], "teacher.samplers.dim is 'dim'; did you mean 'ddim'? known: ancestral, ddim"),
        ("evaluation.fid_parts", [3], "evaluation.fid_parts.0: is 3, but ten folds make 2, 5, 10 parts alone"),
        ("evaluation.n_samples", 15, "evaluation: fid_parts: n_samples 15 leaves a part fewer than two images"),
        (
            "evaluation.during",
            {"every": 5, "n_samples": 10, "methods": ["dmd3"]},
            "evaluation.during names the method 'dmd3'; known: moment-matching/alternating",
        ),
        ("methods.0.variant", "../x", "methods.0.variant is '../x', but should match pattern"),
        ("methods.0.overrides.four", {}, "methods.0.overrides.four is 'four', but should match pattern"),
    ],
)
def test_each_mistake_is_one_line_with_key_and_remedy(content, load, key, value, message):
    with pytest.raises(UserError) as error:
        load(_edit(content, key, value))
    text = str(error.value)
    assert f"mine.yaml: {message}" in text
    assert "\n" not in text


def test_a_mistyped_key_is_called_unknown_rather_than_missing(content, load):
    content["teachr"] = content.pop("teacher")
    with pytest.raises(UserError, match=r"unknown key teachr; did you mean 'teacher'\?"):
        load(content)


def test_equal_methods_are_refused_and_other_variants_are_not(content, load):
    content["methods"].append({**content["methods"][0], "variant": "ddim"})
    assert [method.variant for method in load(content).methods] == ["default", "ddim"]
    content["methods"][1]["variant"] = "default"
    with pytest.raises(UserError, match=r"moment-matching-alternating/default occur twice"):
        load(content)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "seeds: [0]\nteacher:\n  batch: 1\n  batch: 2\n",
            r"mine\.yaml:4: not valid YAML: the key 'batch' occurs twice",
        ),
        ("seeds: [0]\nseeds: [1]\n", r"mine\.yaml:2: not valid YAML: the key 'seeds' occurs twice"),
        ("seeds: [0\nteacher: 1\n", r"mine\.yaml:2: not valid YAML"),
        ("a: b\n\tc: d\n", r"mine\.yaml:2: not valid YAML"),
        ("a: 2020-13-45\n", r"mine\.yaml: not valid YAML"),
        ("", r"mine\.yaml: the whole is None, but should be a mapping"),
        ("- 1\n", r"mine\.yaml: the whole is \[1\], but should be a mapping"),
        ("!!python/object/apply:os.getcwd []\n", r"mine\.yaml:1: not valid YAML: could not determine a constructor"),
    ],
)
def test_broken_yaml_is_placed(load, text, message):
    with pytest.raises(UserError, match=message) as error:
        load(text)
    assert "\n" not in str(error.value)


def test_unreadable_files_are_user_errors(tmp_path):
    with pytest.raises(UserError, match=r"absent\.yaml: the profile cannot be read \(No such file"):
        load_profile(tmp_path / "absent.yaml")
    (tmp_path / "latin.yaml").write_bytes("# é".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        load_profile(tmp_path / "latin.yaml")


def test_profiles_are_found_in_the_repository_and_in_the_current_folder(tmp_path, monkeypatch):
    folder = tmp_path / "workflows" / "config"
    folder.mkdir(parents=True)
    text = (PROFILES / "smoke.yaml").read_text()
    (folder / "mine.yaml").write_text(text)
    (folder / "smoke.yaml").write_text("the repository's own comes first")
    with pytest.raises(UserError, match="unknown profile 'mine'"):
        load_profile("mine")
    monkeypatch.chdir(tmp_path)
    assert digest(load_profile("mine")) == digest(load_profile("smoke"))
    assert load_profile("mine").name == "mine"
    monkeypatch.setattr(config, "REPOSITORY", tmp_path / "nowhere")
    with pytest.raises(UserError, match="unknown profile 'digits'; known: mine, smoke, or"):
        load_profile("digits")


def test_an_unknown_profile_brings_the_list_and_the_nearest():
    with pytest.raises(UserError, match=r"unknown profile 'digit'; did you mean 'digits'\? known: .*digits, .*smoke"):
        load_profile("digit")


def test_a_profile_says_only_what_differs_from_the_one_that_it_extends(tmp_path):
    path = tmp_path / "wide.yaml"
    path.write_text("extends: smoke\nnetwork: {width: 64}\nseeds: [5]\n")
    wide, smoke = load_profile(path), load_profile("smoke")
    expected = smoke.model_dump() | {"seeds": [5]}
    expected["network"]["width"] = 64
    assert wide.model_dump() == expected
    for text, message in [
        ("extends: smke", "unknown profile 'smke'; did you mean 'smoke'"),
        (f"extends: {path}", "wide.yaml, which is no complete profile; extend one that is"),
    ]:
        (tmp_path / "wrong.yaml").write_text(text)
        with pytest.raises(UserError, match=message):
            load_profile(tmp_path / "wrong.yaml")


def test_another_data_set_does_not_inherit_the_published_table(tmp_path):
    path = tmp_path / "mine.yaml"
    for text, table in [
        ("seeds: [5]", "imagenet64"),
        ("data: {path: flowers}", None),
        ("data: {path: elsewhere/imagenet}\npublished: imagenet64", "imagenet64"),
    ]:
        path.write_text(f"extends: imagenet64\n{text}\n")
        assert load_profile(path).published == table


def test_seeds_and_backends_of_a_method_are_the_profiles(content, load):
    method = content["methods"][0]
    content |= {"seeds": [0, 1], "backends": ["jax"]}
    for change, message in [
        ({"backends": ["torch"]}, r"\(default\) names the backend torch, on which it is not trained; drop it"),
        ({"repeats": {"torch": {"k8": [2]}}}, r"\(default\) names the backend torch, on which it is not trained"),
        ({"repeats": {"jax": {"k8": [2, 1]}}}, r"repeats k8 with the profile's own seed 1; drop it"),
        ({"repeats": {"jax": {"eight": [2]}}}, r"repeats.jax.eight"),
    ]:
        content["methods"] = [method | change]
        with pytest.raises(UserError, match=message):
            load(content)
    content["methods"] = [method | {"repeats": {"jax": {"k8": [2, 3]}}}]
    assert load(content).methods[0].repeats == {"jax": {"k8": [2, 3]}}


def test_for_student_merges_deeply_and_leaves_no_overrides(content, load):
    content["methods"][0] |= {
        "options": {"weight": "edm", "nested": {"a": 1, "b": 2}},
        "overrides": {"k1": {"batch": 7, "optimiser": {"clip": 2.0}, "options": {"nested": {"b": 3}, "list": [1]}}},
    }
    method = load(content).methods[0]
    student = method.for_student("k1")
    expected = copy.deepcopy(content["methods"][0]) | {"batch": 7, "overrides": {}, "backends": None, "repeats": {}}
    expected |= {"guidance": [0.0]}
    expected["optimiser"]["clip"] = 2.0
    expected["options"] = {"weight": "edm", "nested": {"a": 1, "b": 3}, "list": [1]}
    assert student.model_dump() == expected
    assert method.for_student("k8") == method.model_copy(update={"overrides": {}})
    assert digest(method.for_student("k8")) != digest(student)


def test_options_are_validated_in_the_same_style():
    class Options(StrictModel):
        weight: str = "edm"
        ratio: float = Field(5.0, gt=0)

    options = validate_options(Options, {"ratio": 2}, "dmd2")
    assert (options.weight, options.ratio) == ("edm", 2.0)
    for given, message in [
        ({"wait": "edm"}, "dmd2: unknown key wait; did you mean 'weight'? known: weight, ratio"),
        ({"ratio": "1e-2"}, "dmd2: ratio is the text '1e-2'; write 1.0e-2"),
        ({"ratio": 0.0}, "dmd2: ratio is 0.0, but should be greater than 0"),
    ]:
        with pytest.raises(UserError) as error:
            validate_options(Options, given, "dmd2")
        assert str(error.value) == message


def _below(model: type[BaseModel]) -> list[type[BaseModel]]:
    return [found for below in model.__subclasses__() for found in (below, *_below(below))]


def test_every_value_is_described():
    pending: list[type[BaseModel]] = [Profile]
    while pending:
        model = pending.pop()
        for name, field in model.model_fields.items():
            inner = [item for item in _below(config.StrictModel) if item.__name__ in str(field.annotation)]
            pending += inner
            assert inner or name == "name" or field.description, f"{model.__name__}.{name}"


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ("inception-v3-compat", "inception-v3-compat"),
        ({"name": "inception-v3-compat", "weights": "here.pth"}, "inception-v3-compat"),
        (
            {"name": "inception-v3-compat", "weights": "here.pth", "sha256": "a" * 64},
            {"name": "inception-v3-compat", "sha256": "a" * 64},
        ),
    ],
)
def test_an_extractor_is_a_name_or_more_and_depends_on_no_path(content, load, section, key):
    profile = load(content | {"extractor": section})
    assert profile.extractor.content == key
    assert profile.model_dump()["extractor"] == section


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (3, "extractor is 3, but should be a mapping"),
        ({"weights": "here.pth"}, "the key extractor.name is missing"),
        ({"name": "a", "weight": "b"}, "unknown key extractor.weight; did you mean 'weights'?"),
        ({"name": "a", "sha256": "a" * 64}, "extractor: sha256 is stated without weights; name the file"),
        ({"name": "a", "weights": "b", "sha256": "A" * 64}, "extractor.sha256 is .*, but should match pattern"),
    ],
)
def test_wrong_extractors_are_one_line(content, load, section, message):
    with pytest.raises(UserError, match=message):
        load(content | {"extractor": section})
