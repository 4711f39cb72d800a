"""Progressive distillation (Salimans & Ho 2022): each student takes one DDIM step for every two of its parent's."""

from array_api_compat import array_namespace
from pydantic import Field

from harness.diffusion import Array, Level, ddim, diffuse, per_sample, squared_error, weight
from harness.errors import UserError
from harness.method import Batch, CopyOf, Draws, Method, Networks, Ops, Options, Start, Turn, WeightName
from harness.noise import Noise


class ProgressiveOptions(Options):
    """What the paper ablates."""

    weight: WeightName = Field("truncated-snr", description="weight of the squared error in x, by name")


class Progressive(Method):
    """Algorithm 2: the parent's two DDIM steps are the target of one. The teacher is the parent of the longest student.

    Each student is a run of its own, so that its optimiser and its learning rate start afresh, as in the paper.
    """

    id = "progressive"
    sampler = "ddim"
    Options = ProgressiveOptions
    turns = {"student": Turn(("student",), forward=2, guided=2)}

    @classmethod
    def students(cls, steps: list[int]) -> dict[str, list[int]]:
        """One for each step count; raises UserError where a step count but the largest has not its double above it."""
        for k in steps:
            if k != max(steps) and 2 * k not in steps:
                raise UserError(f"{cls.id}: steps {steps} lack {2 * k}, whose student is the parent of that of {k}")
        return super().students(steps)

    @classmethod
    def parent(cls, student: str, steps: list[int]) -> str | None:
        """The student of twice the steps; None (the teacher) for the largest step count."""
        double = 2 * int(student.removeprefix("k"))
        return f"k{double}" if double in steps else None

    def networks(self) -> dict[str, Start]:
        """The student starts from its parent."""
        return {"parent": CopyOf("parent"), "student": CopyOf("parent")}

    def draw(self, noise: Noise, step: int, start: int, count: int) -> Draws:
        """A step t -> s of the student's sampler, its middle m, and the noise of z_t."""
        i = (noise.uniform("progressive/i", step, start, count) * self.k).astype(int)
        times = {"t": i + 1, "m": i + 0.5, "s": i}
        eps = noise.normal("progressive/eps", step, start, count, self.shape)
        return {name: (value / self.k).astype("float32") for name, value in times.items()} | {"eps": eps}

    def loss(
        self, turn: str, nets: Networks, batch: Batch, draws: Batch, reduced: None, ops: Ops
    ) -> tuple[Array, dict[str, Array]]:
        """w(t) times the squared error in x; the target of the last step, which returns x_hat, is the parent's last."""
        condition, parent = batch["condition"], nets["parent"]
        t, m, s = (self.clock(draws[name]) for name in ("t", "m", "s"))
        z_t = diffuse(batch["images"], draws["eps"], t)
        x_t = parent(z_t, draws["t"], condition)
        x_m = parent(ddim(z_t, x_t, t, m), draws["m"], condition)
        last = per_sample(draws["s"] == 0, x_m)
        target = array_namespace(x_m).where(last, x_m, merged_prediction(x_t, x_m, t, m, s))
        x = nets["student"](z_t, draws["t"], condition)
        error = squared_error(x, target)
        w = weight(self.options.weight, t, batch["images"], target)
        return (w * error).mean(), {"squared_error": error.mean()}


def merged_prediction(x_t: Array, x_m: Array, t: Level, m: Level, s: Level) -> Array:
    """The x whose one DDIM step from t to s ends where two steps end: with x_t from t to m, with x_m from m to s.

    The paper's (z_s - (sigma_s / sigma_t) z_t) / (alpha_s - (sigma_s / sigma_t) alpha_t), for t > m >= s, as a weighted
    average of the two predictions, without its differences of nearly equal numbers; exactly x_t where m = s.
    """
    xp = array_namespace(t.logsnr)
    first = -xp.expm1((t.logsnr - m.logsnr) / 2) * xp.exp((m.logsnr - s.logsnr) / 2)
    second = -xp.expm1((m.logsnr - s.logsnr) / 2)
    return x_t + per_sample(second / (first + second), x_t) * (x_m - x_t)
