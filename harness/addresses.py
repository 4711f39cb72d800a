"""What names a run, and a way to sample its result, in paths, tables and on the command line."""

from dataclasses import dataclass
from pathlib import Path

from harness.errors import UserError

TEACHER = "teacher"


@dataclass(frozen=True)
class RunAddress:
    """Which run: its folder is <backend>/<method>/<variant>/<student>/seed<seed>, the method's slash as a dash.

    Where a student is distilled from the guided teacher, its name in paths has the weight too: k8-w1.
    """

    backend: str
    method: str
    variant: str
    student: str
    seed: int
    guidance: float = 0.0

    def __post_init__(self) -> None:
        if self.method == TEACHER and (self.variant, self.student) != ("default", TEACHER):
            raise UserError(f"the teacher has no student {self.student!r} ({self.variant}); name a --method as well")
        if self.method == TEACHER and self.guidance:
            raise UserError("the teacher is trained without guidance; name a --method as well, or leave out --guidance")

    @property
    def name(self) -> str:
        """What is trained, whatever the backend and the seed: the middle of the folder's path."""
        return f"{self.method.replace('/', '-')}/{self.variant}/{self.student}{guidance_suffix(self.guidance)}"

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
        return f"{self.sampler}{guidance_suffix(self.guidance)}-k{self.steps}"


def guidance_suffix(guidance: float) -> str:
    """What a guidance weight adds to a name; nothing for none."""
    return "" if guidance == 0 else f"-w{guidance:g}"
