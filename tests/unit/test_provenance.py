"""Source hashes see code and nothing else; run records tell the truth and no secrets."""

import getpass
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from harness import provenance
from harness.errors import UserError
from harness.provenance import run_record, source_hash, source_hashes

# every file raises when it is imported, so a hash that comes back was found without importing anything
PLUGIN = {
    "__init__": "VALUE = 1",
    "method": (
        "import json\nfrom plugin import plain\n"
        "def late():\n    from .relative import f\n    import plugin.package.deep, plugin.lonely.leaf\n    return f"
    ),
    "plain": "from plugin.attribute import NAME, OTHER\nfrom engine_stub.core import run",
    "relative": "if True:\n    from .package import inner",
    "attribute": "NAME = OTHER = 1",
    "package/__init__": "X = 1",
    "package/deep": "from ..upstairs import y",
    "package/inner": "A = 1",
    "upstairs": "y = 1",
    "lonely/__init__": "X = 1",
    "lonely/leaf": "X = 1",
    "outside": "Z = 1",
    "package/outside": "Z = 1",
}
CLOSURE = {name for name in PLUGIN if not name.endswith("outside")}


def _append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    for name, code in {
        **{f"plugin/{name}": code for name, code in PLUGIN.items()},
        "engine_stub/core": "run = 1",
    }.items():
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"raise RuntimeError('imported')\n{code}\n")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "plugin"


@pytest.mark.parametrize("name", sorted(PLUGIN))
def test_an_edit_counts_exactly_where_the_module_is_imported(plugin, name):
    before = source_hash("plugin.method")
    _append(plugin / f"{name}.py", "EDITED = 1\n")
    assert (source_hash("plugin.method") != before) == (name in CLOSURE)


def test_the_closure_crosses_into_the_project_but_not_into_other_packages(plugin, monkeypatch):
    assert not any(name.startswith("engine_stub") for name in source_hashes("plugin.method"))
    monkeypatch.setattr(provenance, "PROJECT_PACKAGES", ("engine_stub",))
    assert "engine_stub.core" in source_hashes("plugin.method")
    assert not any(name.startswith("plugin") for name in source_hashes("engine_stub.core"))


SOURCE = '''
def f(a, b=2):
    """What it does."""
    if a:
        b -= 1
        b += 2
    return {"a": a + b, "b": [a, 'text']}


class C:
    """A class."""
'''


@pytest.mark.parametrize(
    ("old", "new", "counts"),
    [
        ("What it does.", "What it really does.", False),
        ("A class.", "Another class.", False),
        ("    return", "    # why\n    return", False),
        ("\ndef f", '\n"""The module."""\n\ndef f', False),
        ("a, b=2", "a,\n    b = 2,\n", False),
        ("'text'", '"text"', False),
        ("a + b", "a - b", True),
        ("b=2", "b=3", True),
        ("b=2", "b=2.0", True),
        ("'text'", "'test'", True),
        ("[a, 'text']", "[a, ['text']]", True),
        ("[a, 'text']", "(a, 'text')", True),
        ("    return", "    'no docstring'\n    return", True),
        ("        b += 2", "    else:\n        b += 2", True),
    ],
)
def test_code_counts_and_its_dress_does_not(plugin, old, new, counts):
    path = plugin / "plain.py"
    path.write_text(SOURCE)
    before = source_hash("plugin.plain")
    assert old in SOURCE
    path.write_text(SOURCE.replace(old, new))
    assert (source_hash("plugin.plain") != before) == counts


def test_the_closure_holds_all_that_python_itself_imports():
    program = "import sys, harness.config; print(*(name for name in sys.modules if name.split('.')[0] == 'harness'))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert set(run.stdout.split()) == set(source_hashes("harness.config"))


def test_a_missing_or_broken_root_is_named(plugin):
    with pytest.raises(UserError, match=r"plugin\.nothing: there is no such Python module"):
        source_hash("plugin.nothing")
    with pytest.raises(UserError, match=r"nobody\.home: there is no such Python module"):
        source_hash("nobody.home")
    _append(plugin / "plain.py", "def (:\n")
    with pytest.raises(UserError, match=r"plain\.py: not valid Python: .*line 4"):
        source_hash("plugin.method")


def test_the_record_is_true(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    record = run_record()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["versions"]["numpy"] == np.__version__
    assert record["versions"]["python"] == sys.version.split()[0]
    assert record["cores"] == os.cpu_count()
    assert record["threads"]["OMP_NUM_THREADS"] == "3"
    assert "MKL_NUM_THREADS" not in record["threads"]
    assert record["cpu"]


def test_the_record_names_no_host_user_or_folder():
    text = json.dumps(run_record())
    for secret in (platform.node(), getpass.getuser(), str(Path.home()), os.getcwd()):
        assert f'"{secret}' not in text


def test_the_record_imports_no_library():
    program = "import sys, harness.provenance as p; p.run_record(); print({'torch', 'jax', 'numpy'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout == "set()\n"


def test_an_absent_library_is_left_out(monkeypatch):
    monkeypatch.setattr(provenance, "LIBRARIES", ("numpy", "no-such-library"))
    assert set(run_record()["versions"]) == {"python", "numpy"}


def test_git_state(tmp_path):
    def git(*arguments):
        identity = ("-c", "user.name=tester", "-c", "user.email=tester@localhost", "-c", "commit.gpgsign=false")
        command = ["git", "-C", tmp_path, *identity, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()

    state = provenance._git_state
    assert state(tmp_path) == {"git_commit": None, "git_dirty": None}
    git("init", "--quiet")
    (tmp_path / "inner").mkdir()
    (tmp_path / "file").write_text("1")
    assert state(tmp_path)["git_commit"] is None  # nothing committed yet
    git("add", "file")
    git("commit", "--quiet", "--message", "first")
    commit = git("log", "-1", "--format=%H")
    assert state(tmp_path) == {"git_commit": commit, "git_dirty": False}
    assert state(tmp_path / "inner")["git_commit"] is None  # a package inside somebody else's repository
    (tmp_path / "new").write_text("1")
    assert state(tmp_path) == {"git_commit": commit, "git_dirty": True}
