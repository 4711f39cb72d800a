"""Distribution matching distillation: what Diff-Instruct, DMD and DMD2 share.

The student's x~ is noised anew, z_s ~ q(z_s | x~), and moves along g_theta(z_s) - g_phi(z_s): the difference between
the score of the teacher and that of the student's own samples. The auxiliary g_phi learns the latter by denoising them.
Losses are summed over pixels and averaged over the batch, where official code takes means over pixels.
"""

from typing import ClassVar

from array_api_compat import array_namespace

from harness.conditions import Condition
from harness.diffusion import Array, diffuse, squared_error, weight
from harness.errors import UserError
from harness.method import Batch, CopyOf, Draws, Method, Networks, Ops, Start, Turn
from harness.moment_matching import matching_loss
from harness.noise import Noise


class DistributionMatching(Method):
    """The networks, and the losses of x~ once it is noised and denoised again.

    The options of a subclass name the `weight` of the student's gradient. The family re-noises, as training does.
    """

    sampler = "renoise"
    levels: ClassVar[tuple[float, float]] = (0.02, 0.98)
    """The range of s on the clock (Yin et al. 2023, section 3.2)."""

    def networks(self) -> dict[str, Start]:
        """All three networks start from the teacher."""
        return {"teacher": CopyOf(), "student": CopyOf(), "auxiliary": CopyOf()}

    def denoising_loss(self, x: Array, g_phi: Array, s: Array) -> Array:
        """The auxiliary's: the squared error of g_phi(z_s) in x~, both (batch, ...), with EDM's weight."""
        return (weight("edm", self.clock(s), x, g_phi) * squared_error(x, g_phi)).mean()

    def distribution_loss(
        self, nets: Networks, x: Array, z_s: Array, g_phi: Array, s: Array, condition: Condition, ops: Ops
    ) -> tuple[Array, Array]:
        """The student's, whose gradient in x~ (batch, ...) is w(s) (g_phi - g_theta); and the mean of their distance.

        No gradient passes through z_s.
        """
        g_theta = ops.stop_gradient(nets["teacher"](ops.stop_gradient(z_s), s, condition))
        g_phi = ops.stop_gradient(g_phi)
        w = weight(self.options.weight, self.clock(s), ops.stop_gradient(x), g_theta)
        return matching_loss(w, x, g_theta, g_phi, ops), squared_error(g_phi, g_theta).mean()


class OneStep(DistributionMatching):
    """A student of one step, x~ = g_eta(eps, 1), and its auxiliary, in alternate updates.

    The draws have the names of Algorithm 2's. With k = 1 and alpha_1 = 0 its z_t is eps_t and its q(z_s | z_t, x~) is
    q(z_s | x~), so that the student's gradient is the same.
    """

    turns = {"auxiliary": Turn(("auxiliary",), forward=1), "student": Turn(("student",), forward=2, guided=1)}

    @classmethod
    def students(cls, steps: list[int]) -> dict[str, list[int]]:
        """The student of one step; raises UserError where other step counts are asked for."""
        if steps != [1]:
            raise UserError(f"{cls.id}: steps {steps} are not [1], and this is a one-step method; set steps to [1]")
        return super().students(steps)

    def turn(self, step: int) -> str:
        """The auxiliary on even updates, the student on odd ones."""
        return "auxiliary" if step % 2 == 0 else "student"

    def draw(self, noise: Noise, step: int, start: int, count: int) -> Draws:
        """The level s, the student's input, and the noise of z_s."""
        low, high = self.levels
        u = noise.uniform("distribution-matching/s", step, start, count)
        return {
            "s": (low + (high - low) * u).astype("float32"),
            "eps_t": noise.normal("distribution-matching/eps_t", step, start, count, self.shape),
            "eps_s": noise.normal("distribution-matching/eps_s", step, start, count, self.shape),
        }

    def generate(self, nets: Networks, eps: Array, condition: Condition) -> Array:
        """x~ (batch, ...) from noise like it."""
        return nets["student"](eps, array_namespace(eps).ones_like(eps[:, 0, 0, 0]), condition)

    def loss(
        self, turn: str, nets: Networks, batch: Batch, draws: Batch, reduced: None, ops: Ops
    ) -> tuple[Array, dict[str, Array]]:
        """The loss of this turn; the student's x~ is a constant of the auxiliary's, z_s of both."""
        condition, s = batch["condition"], draws["s"]
        x = self.generate(nets, draws["eps_t"], condition)
        x_constant = ops.stop_gradient(x)
        z_s = diffuse(x_constant, draws["eps_s"], self.clock(s))
        g_phi = nets["auxiliary"](z_s, s, condition)
        if turn == "auxiliary":
            return self.denoising_loss(x_constant, g_phi, s), {}
        loss, gap = self.distribution_loss(nets, x, z_s, g_phi, s, condition, ops)
        return loss, {"moment_gap": gap}
