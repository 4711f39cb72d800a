"""A method that uses all of the contract, so that the kit tests the engine even where no method needs a part of it yet.

Its student follows the teacher's own parameter gradient, in the manner of Algorithm 3 of Salimans et al. 2024.
"""

from collections.abc import Callable
from functools import partial

from array_api_compat import array_namespace

from harness.conditions import each
from harness.diffusion import Array, diffuse, squared_error
from harness.method import (
    Average,
    Batch,
    CopyOf,
    Draws,
    Fresh,
    Head,
    Method,
    Networks,
    Ops,
    Preconditioner,
    Start,
    Turn,
)
from harness.noise import Noise


def score(params: dict[str, Array], x: Array) -> Array:
    """A head: one number (batch,) for each x (batch, n)."""
    hidden = array_namespace(x).tanh(x @ params["weight"].T + params["bias"])
    return (hidden * params["scale"]).sum(-1)


class Probe(Method):
    """Two examples for each sample, every kind of network, a reduced gradient, two networks in one turn."""

    id = "probe"
    sampler = "ddim"
    result = "average"
    second_moments_of = "student"
    turns = {
        "together": Turn(("student", "head"), gradient=2, input_gradient=1, jvp=1, guided=1),
        "auxiliary": Turn(("auxiliary",), forward=1),
    }
    sources = {"data": 2}

    def networks(self) -> dict[str, Start]:
        """One of every kind; the average follows the student alone."""
        return {
            "average": Average("student", lambda step: 0.5 + 0.1 * step),
            "teacher": CopyOf(),
            "student": CopyOf("parent"),
            "auxiliary": Fresh(),
            "head": Head({"weight": (8, self.spec.width), "bias": (8,), "scale": (8,)}, score),
            "preconditioner": Preconditioner(),
        }

    def turn(self, step: int) -> str:
        """Two updates of the auxiliary for one of the others."""
        return "together" if step % 3 == 0 else "auxiliary"

    def draw(self, noise: Noise, step: int, start: int, count: int) -> Draws:
        """Times, and noise for both examples."""
        return {
            "t": noise.uniform("probe/t", step, start, count),
            "eps": noise.normal("probe/eps", step, start, count, (2, *self.shape)),
        }

    def error(self, net: Callable[..., Array], x: Array, batch: Batch, draws: Batch) -> Array:
        """The mean squared error of a network on x (batch, ...) noised."""
        z = diffuse(x, draws["eps"][:, 1], self.clock(draws["t"]))
        return squared_error(x, net(z, draws["t"], each(lambda c: c[:, 1], batch["condition"]))).mean()

    def reduce(self, turn: str, nets: Networks, batch: Batch, draws: Batch, ops: Ops) -> dict[str, Array]:
        """The preconditioned gradient of the teacher's error on the second examples."""
        if turn != "together":
            return {}
        teacher, x = nets["teacher"], batch["images"][:, 1]

        def error(params: dict[str, Array]) -> Array:
            return self.error(partial(teacher.straight_through, params, ops=ops), x, batch, draws)

        grads = ops.grad(error, teacher.params)
        return {name: grad * nets["preconditioner"][name] for name, grad in grads.items()}

    def loss(
        self, turn: str, nets: Networks, batch: Batch, draws: Batch, reduced: dict[str, Array], ops: Ops
    ) -> tuple[Array, dict[str, Array]]:
        """The teacher's error on the student's samples, along the reduced gradient; a distance for the auxiliary."""
        t, condition, teacher = draws["t"], each(lambda c: c[:, 0], batch["condition"]), nets["teacher"]
        z = diffuse(batch["images"][:, 0], draws["eps"][:, 0], self.clock(t))
        if turn == "auxiliary":
            target = nets["average"](z, t, condition)
            distance = squared_error(nets["auxiliary"](z, t, condition), target).mean()
            return distance, {"distance": distance}
        x = nets["student"](z, t, condition)
        error, slope = ops.jvp(lambda params: self.error(teacher.at(params), x, batch, draws), teacher.params, reduced)
        constant = nets["student"].constant(ops)
        _, features = constant(x, t, condition, features=True)
        scores = nets["head"](features[-1].mean(1))
        return slope + 0.1 * error + scores.mean() + (ops.stop_gradient(x) * x).mean(), {"slope": slope}
