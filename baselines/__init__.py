"""One file per baseline: each module here may define registered methods (see harness.method)."""
