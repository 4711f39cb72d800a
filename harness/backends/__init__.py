"""The frameworks behind one contract; a backend is imported only when it is asked for."""

import importlib
import importlib.util

from harness.backends.base import Backend
from harness.errors import UserError

BACKENDS = {"torch": "TorchBackend", "jax": "JaxBackend"}


def get_backend(name: str) -> Backend:
    """The backend of this name ("torch" or "jax"). Raises UserError if it is unknown or not installed."""
    if name not in BACKENDS:
        raise UserError(f"unknown backend {name!r}; choose one of {', '.join(BACKENDS)}")
    needed = {"torch": ["torch"], "jax": ["jax", "equinox", "optax"]}[name]
    missing = [package for package in needed if importlib.util.find_spec(package) is None]
    if missing:
        raise UserError(f"backend {name!r} needs {', '.join(missing)}; install it with: pip install 'fewstep[{name}]'")
    module = importlib.import_module(f"harness.backends.{name}")
    backend: Backend = getattr(module, BACKENDS[name])()
    return backend
