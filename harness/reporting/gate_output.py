"""What the regression gate found: as text, as JSON values, and as the JUnit XML that CI systems read."""

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import Any

import numpy as np

from harness.reporting.gate import ERROR_RATE, GateReference, Judgement, MeasuredRow

SHOWN = {"fid": "FID", "is": "IS", "kid": "KID", "precision": "precision", "recall": "recall"}


def regressions(judgements: Sequence[Judgement]) -> list[Judgement]:
    """Those that fail the gate."""
    return [judgement for judgement in judgements if judgement.verdict == "regression"]


def scores(rows: Sequence[MeasuredRow]) -> dict[str, float]:
    """Means over seeds, of FID the geometric one; extractors without logits have no Inception score."""
    values = [row.model_dump(by_alias=True, exclude_none=True) for row in rows]
    means = {name: float(np.mean([value[name] for value in values])) for name in SHOWN if name in values[0]}
    return means | {"fid": float(np.exp(np.mean([np.log(row.fid) for row in rows])))}


def describe(judgement: Judgement) -> str:
    """The change of a row's FID against its limit, and of its other scores, in one line."""
    before, after = scores(judgement.reference), scores(judgement.run)
    others = ", ".join(f"{SHOWN[key]} {before[key]:.3g} -> {after[key]:.3g}" for key in before if key != "fid")
    return (
        f"FID {before['fid']:.4g} -> {after['fid']:.4g}, {_percent(judgement.shift)} "
        f"(limit {_percent(judgement.limit)}{_paired(judgement)}); {others}"
    )


def _percent(shift: float) -> str:
    return f"{100 * np.expm1(shift):+.1f}%"


def _paired(judgement: Judgement) -> str:
    shift = judgement.paired_shift
    return "" if shift is None else f"; on the same seeds {100 * np.expm1(shift):+.2g}%"


def text(judgements: Sequence[Judgement], reference: GateReference, *, verbose: bool) -> str:
    """The rows that moved beyond their limits, or all; then the sum of it in one line."""
    accepted = reference.history[-1]
    shown = [judgement for judgement in judgements if verbose or judgement.verdict != "ok"]
    lines = [f"{judgement.verdict:11s}  {judgement.label}: {describe(judgement)}" for judgement in shown]
    most = max(judgements, key=lambda judgement: judgement.shift - judgement.limit)
    failed = len(regressions(judgements))
    verdict = f"{failed} of {len(judgements)} rows regressed" if failed else f"ok: {len(judgements)} rows"
    against = f"the reference of {accepted.date} ({len(accepted.seeds)} seeds: {accepted.reason})"
    nearest = f"nearest to its limit: {most.label}, {_percent(most.shift)} of {_percent(most.limit)}"
    return "\n".join([*lines, f"{verdict}, against {against}; {nearest}"])


def as_json(judgements: Sequence[Judgement]) -> dict[str, Any]:
    """Everything that was compared; shifts and limits are of the natural logarithm of FID."""
    rows = [
        {
            "row": judgement.label,
            "verdict": judgement.verdict,
            "shift": judgement.shift,
            "limit": judgement.limit,
            "shift_on_the_same_seeds": judgement.paired_shift,
            "seeds": len(judgement.run),
            "reference_seeds": len(judgement.reference),
            "run": scores(judgement.run),
            "reference": scores(judgement.reference),
        }
        for judgement in judgements
    ]
    return {"regressions": len(regressions(judgements)), "error_rate": ERROR_RATE, "rows": rows}


def junit(judgements: Sequence[Judgement], profile: str) -> bytes:
    """One test case a row, in the elements and attributes that pytest writes too."""
    root = ET.Element("testsuites", name="fewstep check")
    counts = {"tests": len(judgements), "failures": len(regressions(judgements)), "errors": 0, "skipped": 0, "time": 0}
    suite = ET.SubElement(root, "testsuite", {"name": profile} | {name: str(count) for name, count in counts.items()})
    for judgement in judgements:
        case = ET.SubElement(suite, "testcase", classname=f"fewstep.check.{profile}", name=judgement.label, time="0")
        if judgement.verdict == "regression":
            message = f"FID {_percent(judgement.shift)}, limit {_percent(judgement.limit)}"
            ET.SubElement(case, "failure", message=message).text = describe(judgement)
        else:
            ET.SubElement(case, "system-out").text = describe(judgement)
    return ET.tostring(root, encoding="utf-8", xml_declaration=True)
