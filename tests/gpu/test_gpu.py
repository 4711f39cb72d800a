"""CPU and GPU agree, and what an update costs on the GPU; then, on any machine, what those two are made of."""

import csv
import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from harness.backends import BACKENDS
from harness.verbs import bench
from tests.contract.probe import Probe
from tests.contract.test_methods import METHODS, TINY, TURNS
from tests.gpu import measure

ROOT = Path(__file__).parents[2]
FULL_PRECISION = {"NVIDIA_TF32_OVERRIDE": "0", "JAX_DEFAULT_MATMUL_PRECISION": "highest"}
TOLERANCE = 1e-4
"""Relative. The GPU's exp, tanh and sin, and its order of summation, are its own; TF32 would differ by some 1e-3."""


def require_gpu(backend: str) -> None:
    """Skip the test where the backend has no GPU to use."""
    if not torch.cuda.is_available():
        pytest.skip("PyTorch finds no CUDA GPU")
    if backend == "jax" and not entry_points(group="jax_plugins"):
        pytest.skip("JAX is installed without its CUDA plugin")


def compute(what: str, backend: str, gpu: bool, out: Path, variables: dict[str, str] | None = None) -> None:
    """Run `measure` in a process that uses the GPU or sees none."""
    command = [sys.executable, "-m", "tests.gpu.measure", what, backend, str(out)]
    subprocess.run(command, cwd=ROOT, check=True, env=measure.environment(backend, gpu) | (variables or {}))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_gpu_gives_the_loss_and_gradients_of_the_cpu(backend: str, tmp_path: Path) -> None:
    require_gpu(backend)
    arrays = {}
    for gpu in (False, True):
        compute("gradients", backend, gpu, tmp_path / "gradients.npz", FULL_PRECISION)
        with np.load(tmp_path / "gradients.npz") as file:
            arrays[gpu] = dict(file)
    assert arrays[False].pop("device") == "cpu"
    assert arrays[True].pop("device") != "cpu"
    found = measure.differences(arrays[False], arrays[True])
    assert {name.split("/loss")[0] for name in found if name.endswith("/loss")} == {" ".join(turn) for turn in TURNS}
    worst = max(found, key=lambda name: found[name])
    print(f"{backend}: the largest relative difference is {found[worst]:.1e}, of {worst}")
    assert found[worst] <= TOLERANCE, worst


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_throughput_of_every_update(backend: str, tmp_path: Path) -> None:
    require_gpu(backend)
    compute("throughput", backend, True, tmp_path / "rows.json")
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert {(row["method"], row["turn"]) for row in rows} == {turn for turn in TURNS if turn[0] != Probe.id}
    assert all(row["device"] != "cpu" for row in rows)
    if measure.TABLE in os.environ:
        measure.write_table(Path(os.environ[measure.TABLE]), rows)


def test_one_wrong_gradient_is_seen() -> None:
    expected = measure.gradients("torch", [(Probe.id, "together"), ("teacher", "denoise")])
    assert {name.rsplit("/", 1)[0] for name in expected} == {
        *(f"probe together{network}" for network in ("", "/student", "/head")),
        *(f"teacher denoise{network}" for network in ("", "/model")),
    }
    assert set(measure.differences(expected, expected).values()) == {0.0}
    for name, array in expected.items():
        found = measure.differences(expected, {**expected, name: array * (1 + 1e-3)})
        assert max(found, key=lambda key: found[key]) == name
        assert found[name] == pytest.approx(1e-3, rel=0.1) or found[name] < 1e-3  # of those that nearly vanish


def test_a_process_without_the_gpu_uses_the_cpu() -> None:
    variables = measure.environment("torch", gpu=False)
    assert (variables["CUDA_VISIBLE_DEVICES"], variables["JAX_PLATFORMS"]) == ("", "cpu")
    variables = measure.environment("jax", gpu=True)
    assert variables["JAX_PLATFORMS"] == "cuda"
    assert not variables.keys() & {"PJRT_NPROC", "XLA_FLAGS"}, "one thread compiles for minutes"


def test_the_table_keeps_the_other_backends_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "BLOCK", 1)
    for name in ("REPEATS", "WARM_UP"):
        monkeypatch.setattr(bench, name, 1)
    methods = {name: METHODS[name] for name in (Probe.id, "teacher")}
    data, table = measure.load_images(None, TINY), tmp_path / "table.csv"
    rows = list(measure.throughput("torch", methods, TINY, 4, data))
    measure.write_table(table, [{**row, "backend": "jax"} for row in rows])
    measure.write_table(table, [{**row, "milliseconds": -1} for row in rows])
    measure.write_table(table, rows)
    with table.open() as file:
        written = list(csv.DictReader(file))
    assert [(row["backend"], row["method"], row["turn"]) for row in written] == [
        (backend, *turn)
        for backend in ("jax", "torch")
        for turn in (("probe", "together"), ("probe", "auxiliary"), ("teacher", "denoise"))
    ]
    for row in written:
        assert (row["images"], row["batch"], row["params"]) == ("random 4x4", "4", str(TINY.n_parameters))
        ratio = float(row["milliseconds"]) / float(row["bare_milliseconds"])
        assert float(row["ratio"]) == pytest.approx(ratio, rel=0.05)
        assert float(row["images_per_second"]) == pytest.approx(4e3 / float(row["milliseconds"]), abs=1)


def test_images_of_class_folders(tmp_path: Path) -> None:
    for value, name in enumerate(("cat", "dog")):
        (tmp_path / name).mkdir()
        for number in range(10):
            Image.new("RGB", (32, 32), (value, 100, 200)).save(tmp_path / name / f"{number}.png")
    data = measure.load_images(str(tmp_path), measure.DIT_S_4)
    assert data.name == tmp_path.name
    assert sorted(data.labels) == [0, 1]
    colours = np.array([[0, 100, 200], [1, 100, 200]], np.uint8)[data.labels]
    np.testing.assert_array_equal(data.images, np.broadcast_to(colours[:, :, None, None], (2, 3, 32, 32)))
