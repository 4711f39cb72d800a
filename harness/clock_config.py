"""The section `clock` of a profile, one model for each clock of harness.diffusion."""

from typing import Literal

from pydantic import Field, model_validator

from harness.validation import StrictModel


class CosineClockConfig(StrictModel):
    """The cosine log-SNR schedule, shifted, or interpolated between two shifts."""

    name: Literal["cosine"] = "cosine"
    logsnr_min: float = Field(-10.0, description="log-SNR at t = 1, before the shift")
    logsnr_max: float = Field(10.0, description="log-SNR at t = 0, before the shift")
    shift: float = Field(0.0, description="added to the log-SNR")
    shift_high: float | None = Field(
        None, description="shift at t = 0 where it is interpolated linearly to `shift` at t = 1"
    )

    @model_validator(mode="after")
    def _ordered(self) -> "CosineClockConfig":
        if self.logsnr_min >= self.logsnr_max:
            raise ValueError(f"logsnr_min {self.logsnr_min} is not below logsnr_max {self.logsnr_max}")
        return self


class KarrasClockConfig(StrictModel):
    """EDM's test-time noise schedule as a clock (Karras et al. 2022, equation 5)."""

    name: Literal["karras"] = "karras"
    sigma_min: float = Field(0.002, gt=0, description="sigma / alpha at t = 0")
    sigma_max: float = Field(80.0, gt=0, description="sigma / alpha at t = 1")
    rho: float = Field(7.0, gt=0, description="exponent; larger values spend more steps at low noise")
    shift: float = Field(0.0, description="added to the log-SNR")

    @model_validator(mode="after")
    def _ordered(self) -> "KarrasClockConfig":
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min {self.sigma_min} is not below sigma_max {self.sigma_max}")
        return self
