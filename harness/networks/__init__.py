"""The networks: the denoiser, one file per framework, its sizes and initial weights, shared by both; and LPIPS."""
