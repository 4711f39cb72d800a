"""Where everything that a profile generates lies, and what each run is made from."""

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.addresses import TEACHER, RunAddress, Setting
from harness.backends.base import Adam
from harness.config import MethodConfig, OptimiserConfig, PairsConfig, Profile, digest, load_profile, validate_options
from harness.diffusion import Clock, make_clock
from harness.errors import UserError
from harness.layout import Layout
from harness.method import CopyOf, Method, Pretrained
from harness.metrics.config import DuringConfig
from harness.networks.transformer import TransformerSpec
from harness.registry import get_method
from harness.samplers import nfe
from harness.training import Schedule

DEFAULT_RESULTS = Path("results/runs")
REFERENCES = Path("results/reference")


class Workspace(Layout):
    """The files of one profile under a results folder, and the objects that its configuration describes."""

    def __init__(self, profile: str, results: Path | None = None) -> None:
        self.profile: Profile = load_profile(profile)
        if results is not None and not results.is_dir():
            problem = "is not a folder" if results.exists() else "the output folder does not exist"
            raise UserError(f"{results}: {problem}; create it, or choose another")
        self.root = (results or DEFAULT_RESULTS) / self.profile.name

    @cached_property
    def clock(self) -> Clock:
        """The profile's clock."""
        return make_clock(**self.profile.clock.model_dump())

    def spec(self, shape: tuple[int, ...], num_classes: int, text_width: int = 0) -> TransformerSpec:
        """The network for images of this shape (channels, size, size), and captions of this width where there are."""
        channels, height, width = shape
        network = self.profile.network
        if height != width or height % network.patch:
            raise UserError(f"network.patch: {network.patch} does not divide the images of {height}x{width} pixels")
        return TransformerSpec(channels, height, **network.model_dump(), num_classes=num_classes, text_width=text_width)

    def method_config(self, address: RunAddress) -> MethodConfig:
        """The profile's section of a run's method. Raises UserError where the profile does not name it."""
        get_method(address.method)
        alike = [c for c in self.profile.variants if (c.id, c.variant) == (address.method, address.variant)]
        for config in alike:
            if address.guidance in config.guidance:
                return config
        where = f"profile {self.profile.name!r} has no {address.method!r} with variant {address.variant!r}"
        if alike:
            weights = ", ".join(f"{weight:g}" for config in alike for weight in config.guidance)
            raise UserError(f"{where} and guidance {address.guidance:g}; it has: {weights} (--guidance)")
        named = ", ".join(dict.fromkeys(f"{config.id} ({config.variant})" for config in self.profile.variants))
        raise UserError(f"{where}; it has: {named}")

    def make_method(self, address: RunAddress, spec: TransformerSpec) -> Method:
        """The method object of one run, its options validated."""
        schedule, _ = self.training(address)
        return self._method(address, schedule.updates, spec)

    def _method(self, address: RunAddress, updates: int, spec: TransformerSpec) -> Method:
        method_class, options = get_method(address.method), self.options(address)
        if not address.guidance:
            return method_class(max(self.steps(address)), updates, self.clock, options, spec)
        # a parent that is a student has been guided already
        parent = address.guidance if self.parent(address).method == TEACHER else 0.0
        guidance = {"teacher": address.guidance, "parent": parent}
        method = method_class(max(self.steps(address)), updates, self.clock, options, spec, guidance)
        trained = {name for turn in method.turns.values() for name in turn.trains}
        if not any(isinstance(s, CopyOf) and name not in trained for name, s in method.networks().items()):
            raise UserError(f"{address.method}: has no teacher to guide; set its guidance to [0.0]")
        return method

    def teacher(self, address: RunAddress) -> RunAddress:
        """The teacher of a run's backend and seed; a seed without a teacher of its own shares that of the first."""
        seeds = self.profile.seeds
        seed = address.seed if address.method == TEACHER or address.seed in seeds else seeds[0]
        return RunAddress(address.backend, TEACHER, "default", TEACHER, seed)

    def parent(self, address: RunAddress) -> RunAddress:
        """The run whose result `CopyOf("parent")` copies: another student where the method chains them."""
        config = self.method_config(address)
        student = get_method(address.method).parent(address.student, config.steps)
        if student is None:
            return self.teacher(address)
        seeds = self._seeds(config, address.backend, student)
        return replace(address, student=student, seed=address.seed if address.seed in seeds else seeds[0])

    def chain(self, address: RunAddress) -> list[RunAddress]:
        """A run and the students that it comes from, the last of which comes from the teacher."""
        chain = [address]
        while address.method != TEACHER and (address := self.parent(address)).method != TEACHER:
            chain.append(address)
        return chain

    def needs_pairs(self, address: RunAddress) -> bool:
        """Whether a run trains on pairs. Raises UserError where the profile says nothing of them."""
        needed = "pairs" in get_method(address.method).sources
        if needed:
            self.require_pairs()
        return needed

    def require_pairs(self) -> PairsConfig:
        """The profile's section on pairs. Raises UserError where there is none."""
        if self.profile.pairs is None:
            raise UserError(f"profile {self.profile.name!r}: the section pairs (count, steps) is missing; add it")
        return self.profile.pairs

    def require_pretrained(self, address: RunAddress) -> None:
        """Raise UserError where a file of published weights that a run wants is missing."""
        patch = self.profile.network.patch
        method = self.make_method(address, self.spec((1, patch, patch), 1))  # the files do not depend on the images
        for start in method.networks().values():
            if isinstance(start, Pretrained):
                start.files()

    def pairs_config(self, teacher: RunAddress, guidance: float) -> dict[str, Any]:
        """Everything in the profile that a teacher's pairs depend on."""
        guided = {"guidance": guidance} if guidance else {}
        return {**self.run_config(teacher), "pairs": self.require_pairs().model_dump(mode="json"), **guided}

    def pair_passes(self, address: RunAddress) -> int:
        """Network passes of an image that a run's pairs cost; 0 where it trains on none."""
        if address.method == TEACHER or not self.needs_pairs(address):
            return 0
        pairs = self.require_pairs()
        return pairs.count * nfe(pairs.steps, address.guidance)

    def options(self, address: RunAddress) -> Any:
        """The method's own options for one run."""
        method = get_method(address.method)
        if address.method == TEACHER:
            keys = method.Options.model_fields
            return validate_options(method.Options, self.profile.teacher.model_dump(include=set(keys)), "teacher")
        config = self.method_config(address).for_student(address.student)
        return validate_options(method.Options, config.options, f"options of {address.method} ({address.variant})")

    def steps(self, address: RunAddress) -> list[int]:
        """The step counts that a student is trained and sampled for. Raises UserError for an unknown student."""
        if address.method == TEACHER:
            return [1]
        students = get_method(address.method).students(self.method_config(address).steps)
        if address.student not in students:
            raise UserError(f"{address.method} has no student {address.student!r}; it has: {', '.join(students)}")
        return students[address.student]

    def settings(self, address: RunAddress) -> list[Setting]:
        """Every way in which the DAG samples this run's result."""
        options = self.options(address)
        if address.method == TEACHER:
            samplers, guidance = self.profile.teacher.samplers, self.profile.teacher.guidance
            settings = [Setting(family, k) for family, steps in samplers.items() for k in steps]
            if guidance is not None:
                guided = [Setting("ancestral", k, w) for w in guidance.weights for k in guidance.steps]
                settings += [setting for setting in guided if setting not in settings]
            return settings
        family = get_method(address.method).family(options)
        return [Setting(family, k) for k in self.steps(address)]

    def during(self, address: RunAddress) -> DuringConfig | None:
        """How this run is evaluated while it trains, if it is: a student of the profile's methods, no ablation."""
        during, (method, variant) = self.profile.evaluation.during, (address.method, address.variant)
        if during is None or (method, variant) not in [(config.id, config.variant) for config in self.profile.methods]:
            return None
        return during if during.methods is None or method in during.methods else None

    def training(self, address: RunAddress) -> tuple[Schedule, Adam]:
        """How one run learns."""
        profile = self.profile
        config: Any = profile.teacher
        if address.method != TEACHER:
            config = self.method_config(address).for_student(address.student)
        optimiser: OptimiserConfig = config.optimiser
        matched = profile.matched_passes is not None and address.method != TEACHER
        schedule = Schedule(
            updates=self._matched_updates(address, config.batch) if matched else config.updates,
            batch=config.batch,
            learning_rate=optimiser.learning_rate,
            warmup_updates=optimiser.warmup_updates,
            checkpoint_every=config.checkpoint_every,
            log_every=profile.log_every,
            snapshot_every=during.every if (during := self.during(address)) else None,
        )
        return schedule, Adam(optimiser.beta1, optimiser.beta2, optimiser.eps, optimiser.clip)

    def _matched_updates(self, address: RunAddress, batch: int) -> int:
        """The most updates of a student that the profile's matched passes pay for."""
        budget = (self.profile.matched_passes or 0) * len(self.steps(address)) - self.pair_passes(address)
        patch = self.profile.network.patch
        spec = self.spec((1, patch, patch), 1)  # the passes do not depend on the images
        method = self._method(address, 1, spec)
        updates, spent = 0, batch * method.passes(method.turn(0))
        while spent <= budget:
            updates += 1
            spent += batch * method.passes(method.turn(updates))
        if updates == 0:
            raise UserError(f"matched_passes: too few for one update of {address.method}; raise it")
        return updates

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
            "seed": self.teacher(address).seed,
        }
        if profile.text is not None:
            shared["text"] = profile.text.content
        if address.method == TEACHER:
            return shared
        config = self.method_config(address).for_student(address.student)
        elsewhere = {"steps", "guidance", "overrides", "checkpoint_every", "backends", "repeats"}
        own = config.model_dump(mode="json", exclude=elsewhere)
        own |= {"name": address.student, "steps": self.steps(address), "seed": address.seed}
        own |= {"updates": self.training(address)[0].updates}
        if address.guidance:
            own |= {"guidance": address.guidance}
        if self.needs_pairs(address):
            own |= {"pairs": self.require_pairs().model_dump(mode="json")}
        parent = self.parent(address)
        chain = {} if parent.method == TEACHER else {"parent": self.run_config(parent)["student"]}
        return {**shared, "student": {**own, **chain}}

    def record_digest(self, address: RunAddress | None) -> str:
        """A digest of all configuration that a run's record depends on; None: the real-data floor's."""
        profile = self.profile
        clip = profile.evaluation.clip
        evaluation = profile.evaluation.model_dump(mode="json", exclude={"during", "clip"})
        if clip is not None:
            evaluation["clip"] = clip.content
        parts = {"evaluation": evaluation, "extractor": profile.extractor.content}
        if profile.text is not None:
            parts["prompts"] = "captions"
        if profile.heldout is not None:
            parts["heldout"] = profile.heldout.model_dump(mode="json")
        if address is None:
            return digest({**parts, "data": profile.data.model_dump(mode="json")})
        sampling = {"sampling_noise": profile.teacher.sampling_noise} if address.method == TEACHER else {}
        settings = [setting.name for setting in self.settings(address)]
        return digest({**parts, **sampling, "settings": settings, "run": self.run_config(address)})

    def selection_digest(self, address: RunAddress) -> str:
        """A digest of all configuration that the record of the best of a run's evaluations depends on."""
        during = self.profile.evaluation.during
        evaluation = {"during": during and during.model_dump(mode="json", exclude={"methods"})}
        return digest({**evaluation, "record": self.record_digest(address)})

    def runs(self) -> list[RunAddress]:
        """Every run of the profile's methods, each teacher before its students."""
        teachers = [
            RunAddress(backend, TEACHER, "default", TEACHER, seed)
            for seed in self.profile.seeds
            for backend in self.profile.backends
        ]
        return teachers + self._students(self.profile.methods)

    def ablations(self) -> list[RunAddress]:
        """The runs of the profile's ablations."""
        return self._students(self.profile.ablations)

    def _students(self, configs: list[MethodConfig]) -> list[RunAddress]:
        runs = []
        for config in configs:
            students = get_method(config.id).students(config.steps)
            named = [*config.overrides, *(student for repeated in config.repeats.values() for student in repeated)]
            for student in named:
                if student not in students:
                    known = ", ".join(students)
                    raise UserError(
                        f"{config.id} ({config.variant}): overrides or repeats name the student {student!r}, but with "
                        f"steps {config.steps} it has: {known}"
                    )
            runs += [
                RunAddress(backend, config.id, config.variant, student, seed, guidance)
                for backend in config.backends or self.profile.backends
                for student in students
                for guidance in config.guidance
                for seed in self._seeds(config, backend, student)
            ]
        return runs

    def _seeds(self, config: MethodConfig, backend: str, student: str) -> list[int]:
        return [*self.profile.seeds, *config.repeats.get(backend, {}).get(student, [])]  # type: ignore[call-overload]
