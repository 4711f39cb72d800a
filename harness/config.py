"""Profiles: typed and strict descriptions of everything that a run depends on, read from YAML.

Every mistake is a UserError of one line that names the file, the dotted key and the remedy.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, JsonValue, PrivateAttr, model_validator

from harness.addresses import guidance_suffix
from harness.clock_config import CosineClockConfig, KarrasClockConfig
from harness.datasets.config import DataConfig
from harness.errors import UserError
from harness.metrics.config import EvaluationConfig, ExtractorSection
from harness.networks.transformer import Positions
from harness.text_encoders.config import TextConfig
from harness.validation import Count, Distinct, Model, StrictModel, parse_yaml, suggest, validate

PROFILE_FOLDER = Path("workflows/config")
REPOSITORY = Path(__file__).resolve().parents[1]

Steps = Distinct[Count]


class NetworkConfig(StrictModel):
    """The diffusion transformer."""

    patch: Count = Field(description="side of a patch, pixels")
    width: Count = Field(description="channels of a token")
    depth: Count = Field(description="transformer blocks")
    heads: Count = Field(description="attention heads; they divide the width")
    positions: Positions = Field("small", description="start of the patches' positions: small noise, or sincos")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "NetworkConfig":
        if self.width % 2:
            raise ValueError(f"width {self.width} is odd; the time embedding needs pairs of channels")
        if self.positions == "sincos" and self.width % 4:
            raise ValueError(f"width {self.width} is not divisible by 4; sincos positions need that")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by heads {self.heads}")
        return self


class OptimiserConfig(StrictModel):
    """Adam with linear warm-up, then linear decay to zero."""

    learning_rate: float = Field(gt=0, description="peak, per update")
    beta1: float = Field(ge=0, lt=1, description="decay of the gradient's first moment, per update")
    beta2: float = Field(ge=0, lt=1, description="decay of the gradient's second moment, per update")
    eps: float = Field(gt=0, description="added to the root of the second moment")
    warmup_updates: int = Field(ge=0, description="updates from rate zero to the peak")
    clip: float = Field(gt=0, description="largest global gradient norm")


GuidanceWeights = Distinct[Annotated[float, Field(ge=0)]]


class GuidanceConfig(StrictModel):
    """Classifier-free guidance of the teacher's ancestral sampling."""

    weights: GuidanceWeights = Field(description="w of g_c + w (g_c - g_u); 0 is none")
    steps: Steps = Field(description="step counts to sample with at every weight")


class PairsConfig(StrictModel):
    """Pairs of noise and image along the teacher's deterministic sampler, for methods that regress on them."""

    count: Count = Field(description="pairs")
    steps: Count = Field(description="DDIM steps from noise to image")


class TeacherConfig(StrictModel):
    """Training and sampling of the teacher."""

    batch: Count = Field(description="images per update")
    updates: Count = Field(description="parameter updates")
    optimiser: OptimiserConfig
    label_dropout: float = Field(ge=0, le=1, description="share of classes or captions hidden in training")
    ema_decay: float = Field(ge=0, lt=1, description="decay of the averaged weights, per update")
    weight: str = Field(description="weight of the squared error in x, by name")
    checkpoint_every: Count = Field(description="updates between checkpoints")
    samplers: dict[Literal["ancestral", "ddim"], Steps] = Field(
        min_length=1, description="step counts to sample with, for each sampler family"
    )
    guidance: GuidanceConfig | None = Field(None, description="further ancestral samples, with guidance")
    sampling_noise: float = Field(
        0.0, ge=0, le=1, description="ancestral variance, log-linear from the posterior's (0) to its upper bound (1)"
    )


class StudentOverrides(StrictModel):
    """What one student does differently; the two mappings are partial."""

    batch: int | None = Field(None, description="images per update")
    updates: int | None = Field(None, description="parameter updates")
    optimiser: dict[str, JsonValue] = Field({}, description="keys of OptimiserConfig")
    options: dict[str, JsonValue] = Field({}, description="the method's own")


StudentName = Annotated[str, Field(pattern=r"^(k[1-9][0-9]*|all)$")]
BackendName = Literal["torch", "jax"]
Seed = Annotated[int, Field(ge=0)]


class MethodConfig(StrictModel):
    """One distillation method, or one ablation of it, at several step counts."""

    id: str = Field(pattern=r"^[a-z0-9-]+(/[a-z0-9-]+)?$", description="as registered")
    variant: str = Field("default", pattern=r"^[a-z0-9][a-z0-9.-]*$", description="name of the ablation")
    steps: Steps = Field(description="step counts of the students")
    guidance: GuidanceWeights = Field([0.0], description="weights with which the teacher is guided, a student of each")
    batch: Count = Field(description="images per update")
    updates: Count = Field(description="parameter updates, all turns together")
    optimiser: OptimiserConfig
    checkpoint_every: Count = Field(description="updates between checkpoints")
    options: dict[str, JsonValue] = Field({}, description="the method's own, see `validate_options`")
    backends: Distinct[BackendName] | None = Field(None, description="trained on these alone; default: the profile's")
    repeats: dict[BackendName, dict[StudentName, Distinct[Seed]]] = Field(
        {}, description="further training seeds of a student on a backend, from the teacher of the profile's first seed"
    )
    overrides: dict[StudentName, StudentOverrides] = Field({}, description="differences by student: k8, k4, ... or all")

    def for_student(self, name: str) -> "MethodConfig":
        """This method with the overrides of student `name` ("k4", "all") merged in, and none left."""
        return MethodConfig.model_validate(self._merged(name))

    def _merged(self, student: str) -> dict[str, Any]:
        patch = self.overrides[student].model_dump(exclude_unset=True) if student in self.overrides else {}
        return _merge(self.model_dump(exclude={"overrides"}), patch)


class Profile(StrictModel):
    """Everything that the runs of one workflow depend on."""

    seeds: Distinct[Seed] = Field(description="one complete run each")
    backends: Distinct[BackendName] = Field(description="each method is trained on every one, unless it names its own")
    data: DataConfig = Field(discriminator="name")
    heldout: DataConfig | None = Field(
        None, discriminator="name", description="another data set, all of it in place of the held-out split (zero-shot)"
    )
    text: TextConfig | None = Field(None, description="encoder of the captions that networks are conditioned on")
    extractor: ExtractorSection = Field(description="the feature extractor of the metrics: a name, or more")
    published: str | None = Field(None, description="table of results/published whose data set this is, if any")
    network: NetworkConfig
    clock: CosineClockConfig | KarrasClockConfig = Field(discriminator="name")
    teacher: TeacherConfig
    pairs: PairsConfig | None = Field(None, description="made once for each teacher that a method wants them of")
    methods: list[MethodConfig] = Field(min_length=1)
    ablations: list[MethodConfig] = Field([], description="further variants, run for the target all_ablations alone")
    matched_passes: Count | None = Field(
        None, description="network passes of an image for each step count of a student, in place of its updates"
    )
    evaluation: EvaluationConfig
    log_every: Count = Field(description="updates between lines of the training log")
    _name: str = PrivateAttr("")

    @property
    def name(self) -> str:
        """The file's name without its suffix, as in paths and tables; no part of the hash."""
        return self._name

    @property
    def variants(self) -> list[MethodConfig]:
        """All methods and all ablations."""
        return [*self.methods, *self.ablations]

    @model_validator(mode="after")
    def _methods_have_distinct_folders(self) -> "Profile":
        folders = [
            f"{method.id.replace('/', '-')}/{method.variant}{guidance_suffix(weight)}"
            for method in self.variants
            for weight in method.guidance
        ]
        for folder in folders:
            if folders.count(folder) > 1:
                raise ValueError(f"the method and variant {folder} occur twice; give one of them another variant")
        return self

    @model_validator(mode="after")
    def _guidance_needs_hidden_conditions(self) -> "Profile":
        weights = [
            *(self.teacher.guidance.weights if self.teacher.guidance else []),
            *(w for method in self.variants for w in method.guidance),
        ]
        if any(weights) and self.teacher.label_dropout == 0:
            raise ValueError("teacher.label_dropout: guidance needs a share of hidden conditions, say 0.1")
        return self

    @model_validator(mode="after")
    def _text_has_captions(self) -> "Profile":
        for data in (self.data, self.heldout):
            if self.text is not None and data is not None and not data.captioned:
                raise ValueError(f"text: the data set {data.name!r} has no captions; drop the section, or name another")
        if self.heldout is not None and self.text is None:
            raise ValueError("heldout: only captions of another data set can be drawn for; add the section text")
        if self.evaluation.clip is not None and self.text is None:
            raise ValueError("evaluation.clip: images have no captions to be scored with; add the section text")
        return self

    @model_validator(mode="after")
    def _evaluated_methods_are_named(self) -> "Profile":
        named = [method.id for method in self.methods]
        for method in (self.evaluation.during and self.evaluation.during.methods) or []:
            if method not in named:
                raise ValueError(f"evaluation.during names the method {method!r}; {suggest(method, named)}")
        return self

    @model_validator(mode="after")
    def _methods_stay_within_seeds_and_backends(self) -> "Profile":
        for method in self.variants:
            where = f"{method.id} ({method.variant})"
            backends = method.backends or self.backends
            for backend in {*backends, *method.repeats}:
                if backend not in self.backends or backend not in backends:
                    raise ValueError(f"{where} names the backend {backend}, on which it is not trained; drop it")
            for student, seeds in (item for students in method.repeats.values() for item in students.items()):
                if shared := set(seeds) & set(self.seeds):
                    raise ValueError(f"{where} repeats {student} with the profile's own seed {min(shared)}; drop it")
        return self


def load_profile(name_or_path: str | Path) -> Profile:
    """Load a profile by name (a file of workflows/config in the repository or the current folder) or by path (*.yaml).

    With the key `extends: NAME` a profile says only what differs from another one; its lists replace that one's lists.
    Raises UserError for anything wrong.
    """
    path = _find_profile(str(name_or_path))
    data, where = _read_profile(path), str(path)
    profile = validate(Profile, data, where)
    for section in ("methods", "ablations"):
        for position, method in enumerate(getattr(profile, section)):
            for student in method.overrides:
                validate(MethodConfig, method._merged(student), where, (section, str(position), "overrides", student))
    profile._name = path.stem
    return profile


def validate_options(model: type[Model], options: Mapping[str, Any], where: str) -> Model:
    """A method's own options as its pydantic model, whose config is to be strict and to forbid extra keys.

    `where` opens the message of the UserError that is raised for wrong options.
    """
    return validate(model, dict(options), where)


def digest(value: BaseModel | Mapping[str, Any]) -> str:
    """12 hexadecimal digits that identify a JSON-like value, whatever the order of its keys."""
    data = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    canonical = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def _read_profile(path: Path) -> Any:
    """The plain values of a profile's file, over those of the profile that it extends."""
    data = _read_yaml(path)
    if not isinstance(data, dict) or "extends" not in data:
        return data
    base_path = _find_profile(str(data.pop("extends")))
    base = _read_yaml(base_path)
    if not isinstance(base, dict) or "extends" in base:
        raise UserError(f"{path}: extends {base_path}, which is no complete profile; extend one that is")
    return _merge(base, {"published": None} | data if "data" in data else data)  # another data set speaks for itself


def _read_yaml(path: Path) -> Any:
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise UserError(f"{path}: the profile cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: the profile is not UTF-8 text") from None


def _find_profile(name: str) -> Path:
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    folders = (PROFILE_FOLDER, REPOSITORY / PROFILE_FOLDER)  # the later one wins
    known = {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}
    if name not in known:
        raise UserError(f"unknown profile {name!r}; {suggest(name, known)}, or give a path that ends in .yaml")
    return known[name]


def _merge(base: dict[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in patch.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merge(base[key], value) if both else value
    return merged
