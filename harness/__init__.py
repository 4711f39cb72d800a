"""fewstep: a benchmark and reproducibility harness for few-step diffusion distillation."""
