"""Where a number comes from: the hash of the sources that made it, and a record of the software and the machine."""

import ast
import hashlib
import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import harness
from harness.errors import UserError

PROJECT_PACKAGES = ("harness", "baselines")
LIBRARIES = (
    *("numpy", "torch", "jax", "equinox", "optax"),
    *("torch-fidelity", "clean-fid", "torchvision", "pillow", "open_clip_torch", "transformers"),
)
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "PJRT_NPROC", "XLA_FLAGS")


def source_hash(*module_names: str) -> str:
    """12 hexadecimal digits that identify the code of these modules and of what they import; see `source_hashes`."""
    hashes = source_hashes(*module_names)
    return hashlib.sha256("".join(f"{name} {hashes[name]}\n" for name in sorted(hashes)).encode()).hexdigest()[:12]


def source_hashes(*module_names: str) -> dict[str, str]:
    """The hash of the code of each of these modules and of all that they import from the project, by module name.

    Comments, docstrings and formatting do not count; imports inside functions do, as do the packages around a module. A
    root outside the project (a plugin) brings modules of its own top-level package. Nothing is imported to find this
    out, so modules that are loaded by a computed name must be given as further roots. Values differ between minor
    versions of Python, whose syntax trees do. Raises UserError for a root that does not exist or cannot be parsed.
    """
    packages = {*PROJECT_PACKAGES, *(name.partition(".")[0] for name in module_names)}
    hashes: dict[str, str] = {}
    pending = list(module_names)
    while pending:
        name = pending.pop()
        if name in hashes or name.partition(".")[0] not in packages:
            continue
        pending.append(name.rpartition(".")[0])
        path = _find_source(name)
        if path is not None:
            hashes[name], imported = _read_source(name, path, path.read_bytes())
            pending += imported
        elif name in module_names:  # others may be attributes: `from module import name`
            raise UserError(f"{name}: there is no such Python module")
    return hashes


def _find_source(name: str) -> Path | None:
    top, *parts = name.split(".")
    spec = find_spec(top)  # of a top-level name: imports nothing
    if spec is None:
        return None
    if not parts:
        return Path(spec.origin) if spec.origin else None
    for folder in spec.submodule_search_locations or ():
        base = Path(folder, *parts)
        for candidate in (base / "__init__.py", base.with_name(base.name + ".py")):
            if candidate.is_file():
                return candidate
    return None


@cache
def _read_source(name: str, path: Path, source: bytes) -> tuple[str, tuple[str, ...]]:
    """The hash of a module's syntax tree, and the names of all that it may import (some are no modules)."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{path}: not valid Python: {error}") from None
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    imported: list[str] = []
    # one pass for both: ast.walk and ast.dump take three times as long
    tokens: list[str] = []
    pending: list[Any] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, list):
            tokens.append(f"[{len(node)}]")
            pending += node
            continue
        if not isinstance(node, ast.AST):
            tokens.append(repr(node))
            continue
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            imported += [base, *(f"{base}.{alias.name}" for alias in node.names)]
        elif isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
        tokens.append(type(node).__name__)
        pending += [getattr(node, field, None) for field in node._fields]
    return hashlib.sha256("\n".join(tokens).encode()).hexdigest(), tuple(imported)


def run_record() -> dict[str, Any]:
    """The software and the machine of this process, as JSON values; it names neither hosts nor users nor folders."""
    return {
        "fewstep": version("fewstep"),
        **_git_state(Path(harness.__file__).resolve().parents[1]),
        "versions": {"python": platform.python_version(), **_installed_versions()},
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ},
    }


def _installed_versions() -> dict[str, str]:
    """Versions from the package metadata: importing the libraries would take seconds."""
    found = {}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


def _git_state(repository: Path) -> dict[str, Any]:
    """The commit, and whether files differ from it (untracked ones included); None for both outside git."""
    unknown = {"git_commit": None, "git_dirty": None}
    # without optional locks, parallel jobs do not disturb each other or the user's git
    git = ["git", "--no-optional-locks", "-C", str(repository)]
    try:
        top, commit = _output([*git, "rev-parse", "--show-toplevel", "HEAD"]).splitlines()
        if Path(top).resolve() != repository:
            return unknown  # installed into a folder of some other repository
        return {"git_commit": commit, "git_dirty": bool(_output([*git, "status", "--porcelain"]))}
    except (OSError, ValueError, subprocess.SubprocessError):
        return unknown


def _output(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
