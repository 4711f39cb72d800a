"""The guidance figure: FID against CLIP score, a curve over the guidance weights, and what lies far from it."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from harness.reporting.caption_figures import guidance_figure
from harness.reporting.style import use_style
from tests.unit.test_reporting_captions import captioned, loaded, real
from tests.unit.test_reporting_tables import record

STUDENT = "moment-matching/alternating"


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """The canvases that would be saved."""
    canvases = []
    keep = lambda canvas, folder, name: canvases.append(canvas) or tmp_path / f"{name}.png"  # noqa: E731
    monkeypatch.setattr("harness.reporting.caption_figures.save", keep)
    use_style()
    yield canvases
    plt.close("all")


def points(bars):
    """Places and ends of the bars of one series."""
    line, _, (segments,) = bars.lines
    ends = [segment[:, 0].tolist() for segment in segments.get_segments()]
    return line.get_xydata().tolist(), ends


def test_guidance_is_fid_against_clip_score_with_intervals_over_images(tmp_path, drawn):
    contents = [captioned(steps=32, fid=fid, clip=80 + 2 * w, w=w) for w, fid in ((2.0, 3.0), (0.0, 5.0), (0.5, 2.0))]
    contents += [captioned(fid=9.0), captioned(fid=8.0, sampler="ddim"), captioned("dmd2", w=1.0, fid=3.0, steps=4)]
    contents += [captioned("dmd2", w=1.0, fid=fid, clip=79 + fid, seed=int(fid)) for fid in (2.0, 3.0)]
    contents += [captioned(STUDENT, backend="jax", steps=k, w=w, fid=k / 2 + w) for k in (4, 8) for w in (0.0, 1.0)]
    assert set(guidance_figure(loaded(tmp_path, *contents, real()), tmp_path)) == {"guidance"}
    torch, jax = drawn[0].axes
    series = {bars.get_label(): points(bars) for bars in torch.containers}
    half = 1.96 * 0.1
    places, ends = series["Teacher, ancestral, 32 steps"]
    assert places == [[80.0, 5.0], [81.0, 2.0], [84.0, 3.0]]
    np.testing.assert_allclose(ends, [[x - half, x + half] for x in (80, 81, 84)])
    places, ends = series["DMD2, 8 steps"]  # one weight: a point, the mean over seeds
    assert places == [[81.5, 2.5]]
    np.testing.assert_allclose(ends, [[81.5 - half / 2**0.5, 81.5 + half / 2**0.5]])
    assert set(series) == {"Teacher, ancestral, 32 steps", "DMD2, 8 steps"}
    marks = {tuple(line.get_xydata()[0]): line.get_marker() for line in torch.lines if len(line.get_xydata()) == 1}
    legend = {handle.get_label(): handle.get_marker() for handle in drawn[0].legends[0].legend_handles[-4:]}
    assert len(set(legend.values())) == 4
    assert marks[80.0, 5.0] == legend["w = 0"]
    assert marks[81.0, 2.0] == legend["w = 0.5"]
    assert marks[81.5, 2.5] == legend["w = 1"]
    assert marks[84.0, 3.0] == legend["w = 2"]
    assert {bars.get_label(): points(bars)[0] for bars in jax.containers} == {
        f"Moment matching, alternating, {k} steps": [[80.0, k / 2], [80.0, k / 2 + 1]] for k in (4, 8)
    }
    assert torch.get_xlabel().splitlines()[0] == "CLIP score-5k (higher is better)"


def test_what_lies_far_from_the_guidance_curves_is_named_with_its_numbers(tmp_path, drawn):
    contents = [captioned(steps=32, fid=fid, clip=80 + 2 * w, w=w) for w, fid in ((2.0, 3.0), (0.0, 5.0), (0.5, 2.0))]
    contents += [captioned("dmd2", w=1.0, fid=60.0), captioned("progressive", w=1.0, fid=3.0, clip=70.0, steps=4)]
    guidance_figure(loaded(tmp_path, *contents, real()), tmp_path)
    [ax] = drawn[0].axes
    assert [bars.get_label() for bars in ax.containers] == ["Teacher, 32 steps"]
    assert ax.get_xlabel().splitlines()[1:] == [
        "real data: CLIP score 94.0, FID 0.02",
        "DMD2, 8 steps, w = 1: CLIP score 80.0, FID 60.00",
        "Progressive, 4 steps, w = 1: CLIP score 70.0, FID 3.00",
    ]
    left, right = ax.get_xlim()
    assert 79 < left < right < 85


def test_seeds_of_a_student_are_one_point_near_the_curves_or_far_from_them(tmp_path, drawn):
    contents = [captioned(steps=32, fid=fid, clip=80 + 2 * w, w=w) for w, fid in ((2.0, 3.0), (0.0, 5.0), (0.5, 2.0))]
    # up to 7.9 is near
    contents += [captioned("dmd2", w=1.0, fid=fid, seed=i) for i, fid in enumerate((7.0, 7.5, 8.5))]
    contents += [captioned("progressive", w=1.0, fid=-0.1)]
    guidance_figure(loaded(tmp_path, *contents, real()), tmp_path)
    [ax] = drawn[0].axes
    series = {bars.get_label(): points(bars)[0] for bars in ax.containers}
    assert series["DMD2, 8 steps"] == [[80.0, pytest.approx(23 / 3)]]
    assert not any("DMD2" in line for line in ax.get_xlabel().splitlines())
    assert ax.get_xlabel().splitlines()[-1] == "Progressive, 8 steps, w = 1: CLIP score 80.0, FID -0.10"


def test_every_method_is_in_the_guidance_figure_and_in_its_legend(tmp_path, drawn):
    contents = [captioned(steps=32, fid=fid, clip=80 + 2 * w, w=w) for w, fid in ((2.0, 3.0), (0.0, 5.0), (0.5, 2.0))]
    contents += [captioned(STUDENT, steps=8, w=0.5, fid=3.0), captioned(STUDENT, steps=4, w=1.0, fid=4.0)]  # no curve
    contents += [captioned("dmd2", steps=k, w=w, fid=3.0 + w) for k in (8, 4) for w in (0.5, 1.0)]
    contents += [captioned("dmd2", backend="jax", steps=4, w=w, fid=3.0 + w) for w in (0.5, 1.0)]
    guidance_figure(loaded(tmp_path, *contents, real()), tmp_path)
    torch, jax = drawn[0].axes
    series = {bars.get_label(): points(bars)[0] for bars in torch.containers}
    assert series["Moment matching, alternating, 8 steps"] == [[80.0, 3.0]]
    named = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert {"DMD2, 8 steps", "DMD2, 4 steps", "Moment matching, alternating, 8 steps"} <= set(named)
    assert len(named) == len(set(named))
    four = [next(bars for bars in ax.containers if bars.get_label() == "DMD2, 4 steps") for ax in (torch, jax)]
    assert len({bars.lines[0].get_color() for bars in four}) == 1, "one tint for one method and step count"


def test_without_guidance_or_scores_there_is_no_guidance_figure(tmp_path):
    assert guidance_figure(loaded(tmp_path / "a", captioned(), captioned(STUDENT)), tmp_path) == {}
    assert guidance_figure(loaded(tmp_path / "b", record(), record(guidance=1.0)), tmp_path) == {}
