"""DMD (Yin et al. 2023): distribution matching with a weight of each sample's own, and regression on the teacher."""

from pydantic import Field

from harness.diffusion import Array, squared_error
from harness.distribution_matching import OneStep
from harness.method import Batch, Networks, Ops, Options, Turn, WeightName


class DMDOptions(Options):
    """The weights of the two terms."""

    weight: WeightName = Field("dmd-adaptive", description="w(s) by name; dmd-adaptive is equation 8")
    regression_weight: float = Field(0.25, ge=0, description="weight of the regression on pairs")


class DMD(OneStep):
    """Equation 7 plus a squared error on pairs: noise, and what the teacher's deterministic sampler makes of it.

    Equation 9 measures that error by LPIPS; here it is in pixels (L2). Both terms are sums over pixels, where the
    paper's are means: a common factor, which leaves `regression_weight` its meaning. Equation 8 itself is per pixel.
    """

    id = "dmd"
    Options = DMDOptions
    sources = {"data": 1, "pairs": 1}
    turns = {"auxiliary": Turn(("auxiliary",), forward=1), "student": Turn(("student",), forward=2, gradient=2)}

    def loss(
        self, turn: str, nets: Networks, batch: Batch, draws: Batch, reduced: None, ops: Ops
    ) -> tuple[Array, dict[str, Array]]:
        """The loss of this turn; the student's has both terms."""
        loss, logs = super().loss(turn, nets, batch, draws, reduced, ops)
        if turn == "auxiliary":
            return loss, logs
        x = self.generate(nets, batch["pairs/noise"], batch["pairs/labels"])
        regression = squared_error(x, batch["pairs/images"]).mean()
        return loss + self.options.regression_weight * regression, logs | {"regression": regression}
