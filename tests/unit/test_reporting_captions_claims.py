"""Claims of text-to-image profiles: their rules, both ways, and no verdict from rows of different guidance."""

import numpy as np
import pytest
from scipy import stats

from harness.reporting.claims import CLIP_NOTE, NOTE, RULES, judge, note, write_claims
from harness.reporting.claims_captions import shared_guidance
from harness.reporting.claims_evidence import ALTERNATING, INSTANT, Evidence, values
from harness.reporting.records import Record, frame
from tests.unit.test_reporting_captions import captioned, real
from tests.unit.test_reporting_claims import THREE
from tests.unit.test_reporting_claims import evidence as classes

BACKENDS = ("torch", "jax")


def runs(method, fid=1.0, clip=80.0, steps=8, w=1.0, spread=(1.0,), backends=BACKENDS, **changes):
    """A record for each seed on the last backend, and for the first seed on the others; seeds also vary the score."""
    return [
        captioned(method, backend, steps, fid * factor, clip + factor - 1, w, seed=seed, **changes)
        for backend in backends
        for seed, factor in enumerate(spread if backend == backends[-1] else spread[:1])
    ]


def evidence(*groups):
    contents = [real(), *(content for group in groups for content in group)]
    return Evidence(frame([Record.model_validate(content) for content in contents]), {}, {}, {})


def found(claim, *groups):
    return RULES[claim][1](evidence(*groups))


def test_values_are_of_one_guidance():
    table = evidence(runs(ALTERNATING, 1.0), runs(ALTERNATING, 2.0, w=2.0), runs(ALTERNATING, 3.0, w=0.0)).table
    for w, fid in ((1.0, 1.0), (2.0, 2.0), (0.0, 3.0)):
        assert values(table, ALTERNATING, 8, log=False, guidance=w)["jax"].tolist() == [fid]
    assert values(table, ALTERNATING, 8, log=False)["jax"].tolist() == [3.0]


@pytest.mark.parametrize(
    ("clip", "se", "verdict"),
    [
        ((85.0, 85.0), 0.1, "holds"),
        ((75.0, 75.0), 0.1, "does not hold"),
        ((85.0, 75.0), 0.1, "undecided"),  # on every backend
        ((80.6, 80.6), 0.2, "undecided"),  # a difference's interval would decide, but the two overlap
        ((80.8, 80.8), 0.2, "holds"),
    ],
)
def test_c6_compares_clip_scores_over_images(clip, se, verdict):
    guided = [
        captioned(backend=backend, steps=32, clip=score, w=1.0, **{"is": 99.0})
        for backend, score in zip(BACKENDS, clip, strict=True)
    ]
    # the weight closest to 1 alone decides
    others = [content for w in (0.9, 4.0) for content in runs("teacher", clip=50.0, steps=32, w=w, **{"is": 99.0})]
    contents = [*runs("teacher", steps=32, w=0.0), *guided, *others]
    for content in contents:
        content["extra"]["clip_se"] = se
    finding = found("C6", contents)
    assert finding.verdict == verdict
    half = 2 * se * stats.t.ppf(0.975, 4999)
    gain = clip[0] - 80
    assert f"torch, 32 steps, w = 1 {gain:+.3f}" in finding.statistic
    assert f"{gain - half:+.3f} to {gain + half:+.3f} (torch, 32 steps, w = 1, 5,000 images)" in finding.interval


def test_c6_needs_both_scores_and_is_of_the_most_steps():
    plain = [*runs("teacher", clip=80.0, steps=32, w=0.0), *runs("teacher", clip=95.0, w=0.0)]
    guided = [*runs("teacher", clip=85.0, steps=32, **{"is": 99.0}), *runs("teacher", clip=80.0, **{"is": 99.0})]
    assert found("C6", plain, guided).verdict == "holds"
    worse = [*runs("teacher", clip=85.0, steps=32, **{"is": 1.0}), *runs("teacher", clip=80.0, **{"is": 1.0})]
    assert found("C6", plain, worse).verdict == "does not hold"
    unscored = [
        *runs("teacher", steps=32, w=0.0, **{"is": None}),
        *runs("teacher", clip=85.0, steps=32, **{"is": None}),
    ]
    finding = found("C6", unscored)
    assert (finding.verdict, "Inception score:" in finding.statistic) == ("holds", False)
    assert "Inception score was not measured" in finding.evidence
    assert found("C6", plain).verdict == "not tested"


def base(fid=1.0, clip=80.0):
    """The teacher with its most steps and w = 1, beside settings that it must not be mistaken for."""
    decoys = [
        *runs("teacher", 1e-3, 99.0, w=0.0, steps=64),
        *runs("teacher", 1e-3, 99.0),
        *runs("teacher", 9.0, 1.0, w=4.0, steps=32),
    ]
    return [*runs("teacher", fid, clip, steps=32), *decoys]


@pytest.mark.parametrize(
    ("ours", "instant", "spread", "verdict"),
    [
        ((0.5, 85.0), (0.8, 85.0), THREE, "holds"),  # instant is behind in FID
        ((0.5, 85.0), (0.5, 84.0), THREE, "holds"),  # or in the CLIP score
        ((2.0, 85.0), (3.0, 84.0), THREE, "does not hold"),
        ((0.5, 75.0), (0.8, 74.0), THREE, "does not hold"),
        ((0.5, 85.0), (0.3, 86.0), THREE, "does not hold"),  # instant is ahead in both
        ((0.5, 80.0), (0.8, 79.0), THREE, "undecided"),
        ((0.5, 85.0), (0.8, 84.0), (1.0,), "undecided"),
    ],
)
def test_c9_compares_with_the_base_model_at_equal_guidance(ours, instant, spread, verdict):
    students = [*runs(ALTERNATING, *ours, spread=spread), *runs(INSTANT, *instant, spread=spread)]
    finding = found("C9", base(), students, runs(INSTANT, 1e-3, 99.0, w=2.0, spread=spread))
    assert finding.verdict == verdict
    assert "32 steps for w = 1" in finding.evidence
    logs = np.log(ours[0] * np.array(spread))
    assert f"jax {np.exp(logs.mean()):.2f}; FID of instant over alternating, w = 1: torch" in finding.statistic
    assert f"CLIP score minus the base model's, w = 1: torch {ours[1] - 80 + spread[0] - 1:+.3f}" in finding.statistic
    if len(spread) > 1:
        ends = np.exp(stats.ttest_1samp(logs, 0).confidence_interval(0.95))
        assert f"{ends[0]:.2f} to {ends[1]:.2f} (jax, 3 seeds of one teacher)" in finding.interval


def test_c9_is_judged_at_the_guidance_of_both_algorithms():
    both = [*runs(ALTERNATING, 0.5, 85.0, spread=THREE), *runs(INSTANT, 0.8, 84.0, spread=THREE)]
    further = [*runs(ALTERNATING, 9.0, 1.0, w=4.0, spread=THREE), *runs(ALTERNATING, 1.0, w=0.0)]
    finding = found("C9", base(), both, further)
    assert finding.verdict == "holds"
    assert "without a part in the verdict: w = 0, 4." in finding.evidence
    assert "FID over the base model's, w = 4: torch" in finding.statistic
    worse = runs(ALTERNATING, 2.0, 75.0, spread=THREE)
    assert found("C9", base(), worse).verdict == "does not hold"  # whatever instant does


def test_c9_is_not_tested_without_what_it_compares():
    students = [*runs(ALTERNATING, 0.5, 85.0, spread=THREE), *runs(INSTANT, 0.8, 84.0, spread=THREE)]
    assert found("C9", students, runs("teacher", steps=32, w=0.0)).verdict == "not tested"
    assert found("C9", base(), runs(INSTANT)).verdict == "not tested"
    assert found("C9", base(), runs(ALTERNATING, 0.5, 85.0, spread=THREE)).verdict == "not tested"  # instant is a part
    assert RULES["C9"][1](classes(())).evidence == "Needs captioned images and CLIP scores: another profile's."


def test_the_weight_that_students_share():
    unguided = runs("consistency-training", w=0.0)
    both = [*runs(ALTERNATING), *runs(INSTANT)]
    assert shared_guidance(evidence(both, unguided, base()).table) == [1.0]
    assert shared_guidance(evidence(both, runs(INSTANT, w=2.0), runs(ALTERNATING, w=0.0)).table) == [1.0]
    assert shared_guidance(evidence(both, runs(INSTANT, w=2.0), runs(ALTERNATING, w=2.0)).table) == [1.0, 2.0]
    assert shared_guidance(evidence(runs(ALTERNATING), runs(INSTANT, w=2.0)).table) == []
    assert shared_guidance(evidence(unguided).table) == [0.0]
    assert shared_guidance(evidence(runs(ALTERNATING, w=9.0, variant="flat"), base()).table) == []


def fid_everywhere(method, fid, w=1.0):
    return [content for k in (1, 2, 4, 8) for content in runs(method, fid * 8 / k, steps=k, w=w, spread=THREE)]


def unlike(factor):
    """FIDs that would turn every verdict, of students and teachers of other guidance; w = 1 alone is shared."""
    students = [
        *fid_everywhere(ALTERNATING, 100 * factor, 2.0),
        *fid_everywhere(INSTANT, factor / 100, 3.0),
        *fid_everywhere("progressive", factor / 100, 4.0),
    ]
    return [*students, *runs("teacher", factor / 1e4, w=0.0, steps=64), *runs("teacher", factor / 1e4, w=2.0, steps=32)]


def test_verdicts_do_not_see_rows_of_other_guidance():
    own = [*base(4.0)[:2], *fid_everywhere(ALTERNATING, 1.0), *fid_everywhere(INSTANT, 1.5)]
    own += [*fid_everywhere("progressive", 2.0), *runs("teacher", 5.0)]
    own += runs(ALTERNATING, 1.0, variant="ddim", sampler="ddim", spread=THREE)
    alone, beside = judge(evidence(own)), judge(evidence(own, unlike(1.0)))
    for claim, other in zip(alone, beside, strict=True):
        if claim.id not in ("C6", "C9"):
            assert (claim.verdict, claim.statistic, claim.interval) == (other.verdict, other.statistic, other.interval)
    verdicts = {claim.id: claim.verdict for claim in beside}
    assert [verdicts[name] for name in ("C1", "C2", "C11")] == ["holds"] * 3
    assert beside[0].evidence.startswith("At guidance w = 1 alone, of students and teachers alike. ")
    assert "guided alike" in beside[0].evidence


def test_without_one_shared_weight_claims_at_equal_guidance_are_not_tested():
    students = [*fid_everywhere(ALTERNATING, 1.0), *fid_everywhere(INSTANT, 1.0, w=2.0)]
    claims = {claim.id: claim for claim in judge(evidence(base(), students))}
    for name in ("C1", "C2", "C3", "C4", "C5", "C11", "C12"):
        assert claims[name].verdict == "not tested"
        assert "do not share exactly one guidance weight (shared: none)" in claims[name].evidence
    claims = {
        claim.id: claim for claim in judge(evidence(runs("teacher", w=0.0, steps=32), fid_everywhere(ALTERNATING, 1.0)))
    }
    assert claims["C1"].verdict == "not tested"
    assert "Not everything that it compares was measured there." in claims["C1"].evidence


def test_claims_are_named_for_what_was_measured(tmp_path):
    with_clip, without = judge(evidence(base())), judge(classes(()))
    assert (with_clip[5].claim, note(with_clip)) == (
        "Guidance in the teacher raises Inception Score and CLIP score",
        CLIP_NOTE,
    )
    assert (without[5].claim, note(without)) == (RULES["C6"][0], NOTE)
    assert with_clip[0].claim.endswith("than its own many-step teacher, guided alike")
    assert without[0].claim == RULES["C1"][0]
    assert CLIP_NOTE != NOTE
    write_claims(with_clip, tmp_path)
    assert "over images (CLIP score)" in (tmp_path / "claims.md").read_text()
