"""Where everything that a profile generates lies, and what each run is made from."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.backends.base import Adam
from harness.config import MethodConfig, OptimiserConfig, Profile, digest, load_profile, validate_options
from harness.diffusion import Clock, make_clock
from harness.errors import UserError
from harness.method import Method, get_method
from harness.networks.transformer import TransformerSpec
from harness.training import Schedule

DEFAULT_RESULTS = Path("results/runs")
TEACHER = "teacher"


@dataclass(frozen=True)
class RunAddress:
    """Which run: its folder is <backend>/<method>/<variant>/<student>/seed<seed>, the method's slash as a dash."""

    backend: str
    method: str
    variant: str
    student: str
    seed: int

    def __post_init__(self) -> None:
        if self.method == TEACHER and (self.variant, self.student) != ("default", TEACHER):
            raise UserError(f"the teacher has no student {self.student!r} ({self.variant}); name a --method as well")

    @property
    def name(self) -> str:
        """What is trained, whatever the backend and the seed: the middle of the folder's path."""
        return f"{self.method.replace('/', '-')}/{self.variant}/{self.student}"

    @property
    def folder(self) -> Path:
        """The run's folder below the profile's."""
        return Path(self.backend, self.name, f"seed{self.seed}")


@dataclass(frozen=True)
class Setting:
    """One way to draw samples from a network."""

    sampler: str
    steps: int
    guidance: float = 0.0

    @property
    def name(self) -> str:
        """As in file names: samples-<name>.npz, metrics-<name>.json."""
        guided = "" if self.guidance == 0 else f"-w{self.guidance:g}"
        return f"{self.sampler}{guided}-k{self.steps}"


class Workspace:
    """The files of one profile under a results folder, and the objects that its configuration describes."""

    def __init__(self, profile: str, results: Path | None = None) -> None:
        self.profile: Profile = load_profile(profile)
        if results is not None and not results.is_dir():
            problem = "is not a folder" if results.exists() else "the output folder does not exist"
            raise UserError(f"{results}: {problem}; create it, or choose another")
        self.root = (results or DEFAULT_RESULTS) / self.profile.name

    def data(self, split: str) -> Path:
        """Images and labels of one split (train, heldout)."""
        return self.root / "data" / f"{split}.npz"

    def reference(self, split: str) -> Path:
        """Reference features and statistics of one split."""
        return self.root / "reference" / f"{split}.npz"

    @property
    def floor(self) -> Path:
        """The record of the real-data floor."""
        return self.root / "reference" / "metrics-real-data.json"

    @property
    def extractor_report(self) -> Path:
        """The validated accuracy of the extractor."""
        return self.root / "extractor.json"

    def run(self, address: RunAddress) -> Path:
        """The folder of one run."""
        return self.root / address.folder

    @cached_property
    def clock(self) -> Clock:
        """The profile's clock."""
        return make_clock(**self.profile.clock.model_dump())

    def spec(self, shape: tuple[int, ...], num_classes: int) -> TransformerSpec:
        """The network for images of this shape (channels, size, size)."""
        channels, height, width = shape
        network = self.profile.network
        if height != width or height % network.patch:
            raise UserError(f"network.patch: {network.patch} does not divide the images of {height}x{width} pixels")
        return TransformerSpec(channels, height, **network.model_dump(), num_classes=num_classes)

    def method_config(self, method: str, variant: str) -> MethodConfig:
        """The profile's section of a method. Raises UserError where the profile does not name it."""
        get_method(method)
        for config in self.profile.methods:
            if (config.id, config.variant) == (method, variant):
                return config
        named = ", ".join(f"{config.id} ({config.variant})" for config in self.profile.methods)
        raise UserError(f"profile {self.profile.name!r} has no {method!r} with variant {variant!r}; it has: {named}")

    def make_method(self, address: RunAddress, spec: TransformerSpec) -> Method:
        """The method object of one run, its options validated."""
        method, (schedule, _) = get_method(address.method), self.training(address)
        return method(max(self.steps(address)), schedule.updates, self.clock, self.options(address), spec)

    def teacher(self, address: RunAddress) -> RunAddress:
        """The teacher of a run's backend and seed."""
        return RunAddress(address.backend, TEACHER, "default", TEACHER, address.seed)

    def parent(self, address: RunAddress) -> RunAddress:
        """The run whose result `CopyOf("parent")` copies: another student where the method chains them."""
        steps = self.method_config(address.method, address.variant).steps
        parent = get_method(address.method).parent(address.student, steps)
        return self.teacher(address) if parent is None else replace(address, student=parent)

    def checkpoint(self, address: RunAddress) -> Path:
        """The result of one run."""
        return self.run(address) / f"{get_method(address.method).result}.safetensors"

    def options(self, address: RunAddress) -> Any:
        """The method's own options for one run."""
        method = get_method(address.method)
        if address.method == TEACHER:
            keys = method.Options.model_fields
            return validate_options(method.Options, self.profile.teacher.model_dump(include=set(keys)), "teacher")
        config = self.method_config(address.method, address.variant).for_student(address.student)
        return validate_options(method.Options, config.options, f"options of {address.method} ({address.variant})")

    def steps(self, address: RunAddress) -> list[int]:
        """The step counts that a student is trained and sampled for. Raises UserError for an unknown student."""
        if address.method == TEACHER:
            return [1]
        students = get_method(address.method).students(self.method_config(address.method, address.variant).steps)
        if address.student not in students:
            raise UserError(f"{address.method} has no student {address.student!r}; it has: {', '.join(students)}")
        return students[address.student]

    def settings(self, address: RunAddress) -> list[Setting]:
        """Every way in which the DAG samples this run's result."""
        options = self.options(address)
        if address.method == TEACHER:
            samplers = self.profile.teacher.samplers
            guidance = self.profile.teacher.guidance
            return [Setting(family, k, guidance) for family, steps in samplers.items() for k in steps]
        family = get_method(address.method).family(options)
        return [Setting(family, k) for k in self.steps(address)]

    def training(self, address: RunAddress) -> tuple[Schedule, Adam]:
        """How one run learns."""
        profile = self.profile
        config: Any = profile.teacher
        if address.method != TEACHER:
            config = self.method_config(address.method, address.variant).for_student(address.student)
        optimiser: OptimiserConfig = config.optimiser
        schedule = Schedule(
            updates=config.updates,
            batch=config.batch,
            learning_rate=optimiser.learning_rate,
            warmup_updates=optimiser.warmup_updates,
            checkpoint_every=config.checkpoint_every,
            log_every=profile.log_every,
        )
        return schedule, Adam(optimiser.beta1, optimiser.beta2, optimiser.eps, optimiser.clip)

    def run_config(self, address: RunAddress) -> dict[str, Any]:
        """Everything in the profile that the weights of a run depend on; a student's includes its teacher's."""
        profile = self.profile
        shared = {
            "data": profile.data.model_dump(mode="json"),
            "network": profile.network.model_dump(mode="json"),
            "clock": profile.clock.model_dump(mode="json"),
            "teacher": profile.teacher.model_dump(
                mode="json", exclude={"samplers", "sampling_noise", "guidance", "checkpoint_every"}
            ),
            "seed": address.seed,
        }
        if address.method == TEACHER:
            return shared
        config = self.method_config(address.method, address.variant).for_student(address.student)
        own = config.model_dump(mode="json", exclude={"steps", "overrides", "checkpoint_every"})
        parent = self.parent(address)
        chain = {} if parent.method == TEACHER else {"parent": self.run_config(parent)["student"]}
        return {**shared, "student": {**own, "name": address.student, "steps": self.steps(address), **chain}}

    def record_digest(self, address: RunAddress | None) -> str:
        """A digest of all configuration that a run's record depends on; None: the real-data floor's."""
        profile = self.profile
        parts = {"evaluation": profile.evaluation.model_dump(mode="json"), "extractor": profile.extractor}
        if address is None:
            return digest({**parts, "data": profile.data.model_dump(mode="json")})
        sampling = {"sampling_noise": profile.teacher.sampling_noise} if address.method == TEACHER else {}
        settings = [setting.name for setting in self.settings(address)]
        return digest({**parts, **sampling, "settings": settings, "run": self.run_config(address)})

    def runs(self) -> Iterator[RunAddress]:
        """Every run of the profile, each teacher before its students."""
        for seed in self.profile.seeds:
            for backend in self.profile.backends:
                yield RunAddress(backend, TEACHER, "default", TEACHER, seed)
                for config in self.profile.methods:
                    for student in get_method(config.id).students(config.steps):
                        yield RunAddress(backend, config.id, config.variant, student, seed)
