"""Score identity distillation (SiD, Zhou et al. 2024, Algorithm 1): an example of a method in a package of its own."""

import numpy as np
from pydantic import Field

from harness.diffusion import Array, diffuse, inner, squared_error, weight
from harness.errors import UserError
from harness.method import Batch, CopyOf, Draws, Method, Networks, Ops, Options, Start, Turn
from harness.noise import Noise


class ScoreIdentityOptions(Options):
    """The paper's choice, by default."""

    alpha: float = Field(1.2, ge=0, description="how much of ||g_theta - g_phi||^2 is taken off the student's loss")


class ScoreIdentity(Method):
    """One-step student; unlike in Diff-Instruct, the gradient also flows through the denoisers of z_s, into x~."""

    id = "score-identity"
    sampler = "ancestral"
    Options = ScoreIdentityOptions
    turns = {"auxiliary": Turn(("auxiliary",), forward=1), "student": Turn(("student",), input_gradient=2, guided=1)}

    @classmethod
    def students(cls, steps: list[int]) -> dict[str, list[int]]:
        """One student, of one step."""
        if steps != [1]:
            raise UserError(f"{cls.id} has one-step students alone: give it steps: [1] in the profile")
        return super().students(steps)

    def networks(self) -> dict[str, Start]:
        """All three networks start from the teacher."""
        return {"teacher": CopyOf(), "student": CopyOf(), "auxiliary": CopyOf()}

    def turn(self, step: int) -> str:
        """The auxiliary on even updates, the student on odd ones."""
        return "auxiliary" if step % 2 == 0 else "student"

    def draw(self, noise: Noise, step: int, start: int, count: int) -> Draws:
        """The student's input, pure noise at t = 1, and what x~ is noised with, to s < 0.8; images are not used."""
        z, eps = (noise.normal(f"score-identity/{name}", step, start, count, self.shape) for name in ("z", "eps"))
        s = 0.8 * noise.uniform("score-identity/s", step, start, count)
        return {"z": z, "t": np.ones_like(s), "eps": eps, "s": s}

    def loss(
        self, turn: str, nets: Networks, batch: Batch, draws: Batch, reduced: None, ops: Ops
    ) -> tuple[Array, dict[str, Array]]:
        """w (g_theta - g_phi)^T [(g_theta - x~) - alpha (g_theta - g_phi)] of z_s ~ q(z_s | x~); g_phi fits x~."""
        condition, s, level = batch["condition"], draws["s"], self.clock(draws["s"])
        x = nets["student"](draws["z"], draws["t"], condition)
        z_s = diffuse(x, draws["eps"], level)
        g_phi = nets["auxiliary"](z_s, s, condition)
        if turn == "auxiliary":
            return (weight("edm", level, x, g_phi) * squared_error(x, g_phi)).mean(), {}
        g_theta = nets["teacher"](z_s, s, condition)
        gap = g_theta - g_phi
        w = weight("dmd-adaptive", level, ops.stop_gradient(x), ops.stop_gradient(g_theta))
        return (w * inner(gap, g_theta - x - self.options.alpha * gap)).mean(), {"gap": inner(gap, gap).mean()}
