"""The committed measurements on a GPU: complete, and as their page sums them up."""

import re
from pathlib import Path

import pandas as pd
import pytest

from harness.backends import BACKENDS
from tests.contract.probe import Probe
from tests.contract.test_methods import TURNS

FOLDER = Path(__file__).parents[2] / "results/reference/gpu"


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return pd.read_csv(FOLDER / "throughput.csv")


def test_every_update_of_every_method_was_measured_on_one_device(rows: pd.DataFrame) -> None:
    expected = {(backend, *turn) for backend in BACKENDS for turn in TURNS if turn[0] != Probe.id}
    assert {tuple(row) for row in rows[["backend", "method", "turn"]].to_numpy()} == expected
    assert len(rows) == len(expected)
    (device,) = set(rows["device"])
    assert device in (FOLDER / "README.md").read_text()


def test_the_page_says_what_an_update_costs(rows: pd.DataFrame) -> None:
    page = (FOLDER / "README.md").read_text()
    ((low, high),) = re.findall(r"On JAX an update costs ([\d.]+) to ([\d.]+) of its bare passes", page)
    ratios = rows.loc[rows["backend"] == "jax", "ratio"]
    assert (ratios.min(), ratios.max()) == (float(low), float(high))
    found = re.search(
        r"On PyTorch it costs ([\d.]+) to ([\d.]+), but for DMD's auxiliary \(([\d.]+); ([\d.]+) with the", page
    )
    assert found
    torch = rows[rows["backend"] == "torch"].set_index(["method", "turn"])["ratio"]
    slow = [torch.pop((method, "auxiliary")) for method in ("dmd", "dmd-lpips")]
    assert [torch.min(), torch.max(), *slow] == [float(number) for number in found.groups()]
