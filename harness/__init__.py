"""fewstep: a benchmark and reproducibility harness for few-step diffusion distillation."""

__version__ = "0.1.0"
