"""DMD as it regresses by LPIPS, with a network of a few channels on 16x16 pixels."""

from functools import partial

import numpy as np
from pydantic import Field

from baselines.dmd import DMD, DMDOptions
from harness.method import Pretrained, Start
from harness.networks import lpips
from harness.noise import Noise

CHANNELS = 3, 4, 4, 5, 5
"""Of each block, in the place of 64 to 512."""


def weights() -> dict[str, np.ndarray]:
    """Random weights of this small network; the heads are positive, as the published ones are.

    Its biases decide whether a unit is active (the last of each layer is not), so that few are near a kink.
    """
    params, inputs = {}, 3
    for i, (block, outputs) in enumerate(zip(lpips.BLOCKS, CHANNELS, strict=True)):
        for layer in block:
            normal = Noise(layer).normal("weight", 0, 0, 1, (outputs, inputs, 3, 3))[0]
            params[f"features.{layer}.weight"] = normal * np.float32((9 * inputs) ** -0.5)
            params[f"features.{layer}.bias"] = np.append(np.full(outputs - 1, 3.0), -9.0)
            inputs = outputs
        params[f"lin{i}.model.1.weight"] = Noise(i).uniform("head", 0, 0, 1, (1, outputs, 1, 1))[0]
    return {name: value.astype(np.float32) for name, value in params.items()}


SMALL = Pretrained(files=list, read=lambda paths: weights(), apply=partial(lpips.distance, size=16))


class PerceptualDMDOptions(DMDOptions):
    """DMD's, LPIPS the default."""

    metric: str = Field("lpips")


class PerceptualDMD(DMD):
    """DMD with LPIPS."""

    id = "dmd-lpips"
    Options = PerceptualDMDOptions

    def networks(self) -> dict[str, Start]:
        """DMD's own, the metric's network small."""
        networks = super().networks()
        assert networks["lpips"] is lpips.LPIPS
        return networks | {"lpips": SMALL}
