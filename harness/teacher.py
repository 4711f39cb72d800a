"""Training a teacher: a conditional denoiser fitted by weighted least squares; the result is an average of it."""

from pydantic import Field

from harness.conditions import hidden
from harness.diffusion import Array, diffuse, squared_error, weight
from harness.method import Average, Batch, Draws, Fresh, Method, Networks, Ops, Options, Start, Turn, WeightName
from harness.noise import Noise


class TeacherOptions(Options):
    """What the denoising loss may vary."""

    weight: WeightName = Field("snr+1", description="weight of the squared error in x, by name")
    label_dropout: float = Field(0.1, ge=0, le=1, description="share of conditions hidden, which trains g_u")
    ema_decay: float = Field(0.999, ge=0, lt=1, description="decay of the averaged weights, per update")


class Teacher(Method):
    """E w(t) ||x - g(z_t)||^2 with t uniform on the clock; the result is the exponential moving average of g."""

    id = "teacher"
    sampler = "ancestral"
    Options = TeacherOptions
    turns = {"denoise": Turn(("model",))}
    result = "teacher"
    second_moments_of = "model"

    def networks(self) -> dict[str, Start]:
        """The trained model and its average; early updates average over a shorter window."""
        decay = self.options.ema_decay
        return {"model": Fresh(), "teacher": Average("model", lambda step: min(decay, (1 + step) / (10 + step)))}

    def draw(self, noise: Noise, step: int, start: int, count: int) -> Draws:
        """Times, noise, and which conditions are hidden."""
        return {
            "t": noise.uniform("teacher/t", step, start, count),
            "eps": noise.normal("teacher/eps", step, start, count, self.shape),
            "hide": noise.uniform("teacher/hide", step, start, count) < self.options.label_dropout,
        }

    def loss(
        self, turn: str, nets: Networks, batch: Batch, draws: Batch, reduced: None, ops: Ops
    ) -> tuple[Array, dict[str, Array]]:
        """The weighted squared error in x, summed over pixels and averaged over the batch."""
        x, t, hide = batch["images"], draws["t"], draws["hide"]
        condition = hidden(batch["condition"], hide, self.num_classes)
        level = self.clock(t)
        x_hat = nets["model"](diffuse(x, draws["eps"], level), t, condition)
        error = squared_error(x, x_hat)
        return (weight(self.options.weight, level, x, x_hat) * error).mean(), {"squared_error": error.mean()}
