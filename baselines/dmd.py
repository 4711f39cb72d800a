"""DMD (Yin et al. 2023): distribution matching with a weight of each sample's own, and regression on the teacher."""

import math
from typing import Literal

from pydantic import Field

from harness.diffusion import Array, squared_error
from harness.distribution_matching import OneStep
from harness.method import Batch, Networks, Ops, Options, Start, Turn, WeightName
from harness.networks.lpips import LPIPS


class DMDOptions(Options):
    """The weights of the two terms, and the metric of the second."""

    weight: WeightName = Field("dmd-adaptive", description="w(s) by name; dmd-adaptive is equation 8")
    regression_weight: float = Field(0.25, ge=0, description="weight of the regression on pairs")
    metric: Literal["l2", "lpips"] = Field("l2", description="of the regression: squared error in pixels, or LPIPS")


class DMD(OneStep):
    """Equation 7 plus a regression on pairs: noise, and what the teacher's deterministic sampler makes of it.

    Equation 9 measures its error by LPIPS, which needs the user's files; the default is in pixels (L2). Both terms are
    sums over pixels, where the paper's are means (LPIPS is one too): a common factor, which leaves `regression_weight`
    its meaning. Equation 8 itself is per pixel.
    """

    id = "dmd"
    Options = DMDOptions
    sources = {"data": 1, "pairs": 1}
    turns = {
        "auxiliary": Turn(("auxiliary",), forward=1, sources=("data",)),
        "student": Turn(("student",), forward=2, gradient=2, guided=1),
    }

    def networks(self) -> dict[str, Start]:
        """Those of distribution matching, and the metric's."""
        return super().networks() | ({"lpips": LPIPS} if self.options.metric == "lpips" else {})

    def loss(
        self, turn: str, nets: Networks, batch: Batch, draws: Batch, reduced: None, ops: Ops
    ) -> tuple[Array, dict[str, Array]]:
        """The loss of this turn; the student's has both terms."""
        loss, logs = super().loss(turn, nets, batch, draws, reduced, ops)
        if turn == "auxiliary":
            return loss, logs
        x, target = self.generate(nets, batch["pairs/noise"], batch["pairs/condition"]), batch["pairs/images"]
        if self.options.metric == "lpips":
            regression = math.prod(self.shape) * nets["lpips"](x, target, ops).mean()
        else:
            regression = squared_error(x, target).mean()
        return loss + self.options.regression_weight * regression, logs | {"regression": regression}
