"""Diff-Instruct (Luo et al. 2023): one step, trained by the integral Kullback-Leibler divergence to the teacher."""

from pydantic import Field

from harness.distribution_matching import OneStep
from harness.method import Options, WeightName


class DiffInstructOptions(Options):
    """The weight over noise levels, which defines the divergence."""

    weight: WeightName = Field(
        "flat", description="w(s) by name; snr is the divergence between the distributions of z_s, averaged over s"
    )


class DiffInstruct(OneStep):
    """The gradient of Theorem 3.1: both distributions are noised alike, and x~ follows the difference of their scores.

    Levels are uniform on the whole clock, where the official code draws ln sigma ~ N(-1.2, 1.2^2).
    """

    id = "diff-instruct"
    Options = DiffInstructOptions
    levels = (0.0, 1.0)
