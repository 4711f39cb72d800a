"""Multistep consistency distillation (Heek et al. 2024): consistency within each of k equal segments of the clock."""

from pydantic import Field, model_validator

from baselines.consistency import Distillation, DistillationOptions, Hop, require_growth


class MultistepConsistencyOptions(DistillationOptions):
    """Those of consistency distillation, and a grid that becomes finer."""

    hop: Hop = Field("addim", description="the teacher's solver from t to m")
    final_intervals: int = Field(64, ge=1, description="as `intervals`, at the last update")

    _growing = model_validator(mode="after")(require_growth)


class MultistepConsistency(Distillation):
    """f leads from any time of a segment to its end, where the sampler's next step begins.

    With one segment and the same hop on a constant grid this is consistency distillation, the sampler apart.
    """

    id = "multistep-consistency"
    sampler = "ddim"
    Options = MultistepConsistencyOptions

    @classmethod
    def students(cls, steps: list[int]) -> dict[str, list[int]]:
        """One for each step count."""
        return {f"k{k}": [k] for k in steps}

    @property
    def segments(self) -> int:
        """One for each step of the sampler."""
        return self.k

    def intervals(self, step: int) -> int:
        """Geometric from `intervals` to `final_intervals` over the run, of which each segment has its share."""
        first, last = self.options.intervals, self.options.final_intervals
        done = step / max(1, self.updates - 1)
        return max(1, round(first ** (1 - done) * last**done / self.segments))
