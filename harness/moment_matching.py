"""Moment matching distillation (Salimans et al. 2024): Algorithms 2 and 3, with the options that the paper ablates."""

from typing import Literal

from pydantic import Field

from harness.conditions import each
from harness.diffusion import Array, ddim, diffuse, inner, per_sample, posterior, squared_error, weight
from harness.method import (
    Batch,
    CopyOf,
    Denoiser,
    Draws,
    Method,
    Networks,
    Ops,
    Options,
    Preconditioner,
    Start,
    Turn,
    WeightName,
)
from harness.noise import Noise


class MomentMatchingOptions(Options):
    """What the paper ablates."""

    weight: WeightName = Field("edm", description="w(s), by name")
    transition: Literal["posterior", "unconditional", "ddim"] = Field(
        "posterior", description="z_s ~ q(z_s | z_t, x~), z_s ~ q(z_s | x~), or the deterministic DDIM transition"
    )
    times: Literal["continuous", "discrete"] = Field(
        "continuous", description="t = min(s + U[0, 1/k], 1) for s ~ U[0, 1], or t in {1/k .. 1} and s ~ U[t - 1/k, t]"
    )


class MomentMatching(Method):
    """What both algorithms share: the draws, and the way from data to x~ and z_s."""

    Options = MomentMatchingOptions

    @classmethod
    def family(cls, options: MomentMatchingOptions) -> str:
        """Students of the deterministic transition sample with it as well."""
        return "ddim" if options.transition == "ddim" else cls.sampler

    def draw(self, noise: Noise, step: int, start: int, count: int) -> Draws:
        """Times s < t, and the noise of both z_t and z_s."""
        u, v = (noise.uniform(f"moment-matching/{name}", step, start, count) for name in ("s", "delta"))
        if self.options.times == "continuous":
            s, t = u, (u + v / self.k).clip(max=1)
        else:
            t = (1 + (u * self.k).astype(int)).astype("float32") / self.k
            s = t - v / self.k
        return {
            "s": s.astype("float32"),
            "t": t.astype("float32"),
            "eps_t": noise.normal("moment-matching/eps_t", step, start, count, self.shape),
            "eps_s": noise.normal("moment-matching/eps_s", step, start, count, self.shape),
        }

    def noised_data(self, batch: Batch, draws: Batch) -> Array:
        """z_t ~ q(z_t | x)."""
        return diffuse(batch["images"], draws["eps_t"], self.clock(draws["t"]))

    def transition(self, z_t: Array, x: Array, draws: Batch) -> Array:
        """z_s from z_t and the student's x~."""
        t, s = self.clock(draws["t"]), self.clock(draws["s"])
        if self.options.transition == "unconditional":
            return diffuse(x, draws["eps_s"], s)
        if self.options.transition == "ddim":
            return ddim(z_t, x, t, s)
        mean, variance = posterior(z_t, x, t, s)
        return mean + per_sample(variance, x) ** 0.5 * draws["eps_s"]


def matching_loss(w: Array, x: Array, g_theta: Array, g_phi: Array, ops: Ops) -> Array:
    """E w(s) x~^T sg[g_phi(z_s) - g_theta(z_s)], whose gradient moves x~ along g_theta - g_phi.

    Shapes: w (batch,), the others (batch, ...). The value has no sign and no lower bound: it is no measure of progress.
    """
    return (w * inner(x, ops.stop_gradient(g_phi - g_theta))).mean()


class AlternatingMomentMatching(MomentMatching):
    """Algorithm 2: the auxiliary g_phi learns E[x~ | z_s] on even updates, the student matches moments on odd ones."""

    id = "moment-matching/alternating"
    sampler = "ancestral"
    turns = {
        "auxiliary": Turn(("auxiliary",), forward=2, guided=1),
        "student": Turn(("student",), forward=2, guided=1),
    }

    def networks(self) -> dict[str, Start]:
        """All three networks start from the teacher."""
        return {"teacher": CopyOf(), "student": CopyOf(), "auxiliary": CopyOf()}

    def turn(self, step: int) -> str:
        """The auxiliary on even updates, the student on odd ones."""
        return "auxiliary" if step % 2 == 0 else "student"

    def loss(
        self, turn: str, nets: Networks, batch: Batch, draws: Batch, reduced: None, ops: Ops
    ) -> tuple[Array, dict[str, Array]]:
        """The loss of this turn; x~ and z_s are constants of the auxiliary's, z_s and the bracket of the student's."""
        condition, s, t = batch["condition"], draws["s"], draws["t"]
        z_t = self.noised_data(batch, draws)
        x = nets["student"](z_t, t, condition)
        x_constant = ops.stop_gradient(x)
        z_s = self.transition(z_t, x_constant, draws)
        g_theta = ops.stop_gradient(nets["teacher"](z_s, s, condition))
        g_phi = nets["auxiliary"](z_s, s, condition)
        w = weight(self.options.weight, self.clock(s), x_constant, g_theta)
        gap = {"moment_gap": (squared_error(g_phi, g_theta)).mean()}
        if turn == "auxiliary":
            return (w * (squared_error(x_constant, g_phi) + squared_error(g_theta, g_phi))).mean(), gap
        return matching_loss(w, x, g_theta, g_phi, ops), gap


class InstantMomentMatching(MomentMatching):
    """Algorithm 3: moments are matched in the teacher's parameter space, so that no auxiliary is trained.

    Of two independent batches, A gives nu = Lambda grad_theta E w(s) ||x~ - g_theta(z_s)||^2, a preconditioned step of
    the teacher towards the student's samples, and B moves the student against it. The paper prints x~^T J nu; the sign
    here is that of theta - nu, whose denoiser is g_theta - J nu to first order. The loss is then the unbiased two-batch
    estimate of equation 9, which falls to zero, and its gradient is half of that equation's. A guided teacher has the
    gradients of the unmodified one (straight-through).
    """

    id = "moment-matching/instant"
    sampler = "ancestral"
    turns = {"student": Turn(("student",), forward=1, gradient=2, jvp=1, guided=2)}
    sources = {"data": 2}

    def networks(self) -> dict[str, Start]:
        """The student starts from the teacher; Lambda is Adam's preconditioner of the teacher's training."""
        return {"teacher": CopyOf(), "student": CopyOf(), "preconditioner": Preconditioner()}

    def draw(self, noise: Noise, step: int, start: int, count: int) -> Draws:
        """As Algorithm 2's, for both batches: (count, 2, ...)."""
        draws = super().draw(noise, step, 2 * start, 2 * count)
        return {name: array.reshape(count, 2, *array.shape[1:]) for name, array in draws.items()}

    def _half(self, student: Denoiser, batch: Batch, draws: Batch, half: int, ops: Ops) -> tuple[Array, ...]:
        """x~, z_s, s and conditions of batch A (0) or B (1)."""
        draws = {name: array[:, half] for name, array in draws.items()}
        batch = {name: each(lambda array: array[:, half], value) for name, value in batch.items()}
        z_t = self.noised_data(batch, draws)
        x = student(z_t, draws["t"], batch["condition"])
        return x, self.transition(z_t, ops.stop_gradient(x), draws), draws["s"], batch["condition"]

    def _weight(self, s: Array, x: Array, g_theta: Array, ops: Ops) -> Array:
        return weight(self.options.weight, self.clock(s), ops.stop_gradient(x), ops.stop_gradient(g_theta))

    def reduce(self, turn: str, nets: Networks, batch: Batch, draws: Batch, ops: Ops) -> dict[str, Array]:
        """nu, from batch A."""
        teacher = nets["teacher"]
        x, z_s, s, condition = self._half(nets["student"].constant(ops), batch, draws, 0, ops)

        def error(params: dict[str, Array]) -> Array:
            g_theta = teacher.straight_through(params, z_s, s, condition, ops)
            return (self._weight(s, x, g_theta, ops) * squared_error(x, g_theta)).mean()

        return {name: grad * nets["preconditioner"][name] for name, grad in ops.grad(error, teacher.params).items()}

    def loss(
        self, turn: str, nets: Networks, batch: Batch, draws: Batch, reduced: dict[str, Array], ops: Ops
    ) -> tuple[Array, dict[str, Array]]:
        """Equation 9, estimated: E_B w(s) (sg[g_theta(z_s)] - x~)^T sg[J_theta(z_s) nu], nu being `reduced`."""
        teacher = nets["teacher"]
        x, z_s, s, condition = self._half(nets["student"], batch, draws, 1, ops)
        plain, slope = ops.jvp(lambda params: teacher.at(params)(z_s, s, condition), teacher.params, reduced)
        g_theta = teacher.guided(plain, z_s, s, condition)
        w = self._weight(s, x, g_theta, ops)
        return matching_loss(w, x - ops.stop_gradient(g_theta), slope, 0, ops), {}
