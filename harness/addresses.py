"""What names a run, and a way to sample its result, in paths, tables and on the command line."""

from dataclasses import dataclass
from pathlib import Path

from harness.errors import UserError

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
