"""Our scores beside float64 NumPy, torch-fidelity and clean-fid, within the tolerances of results/README.md."""
