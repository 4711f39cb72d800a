"""The paper's claims (Salimans et al. 2024), each with what this profile's runs say of it."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pandas as pd

from harness.errors import UserError
from harness.files import write_atomic
from harness.reporting.claims_captions import at_shared_guidance, beats_its_base_model, guidance_raises_scores
from harness.reporting.claims_evidence import Evidence, Finding
from harness.reporting.claims_process import (
    coincides_with_diff_instruct,
    cost_trades_against_quality,
    instant_loss_decays,
    samplers_weigh_differently,
)
from harness.reporting.claims_quality import (
    beats_its_rivals,
    better_than_teacher,
    close_then_better,
    conditional_is_more_diverse,
    improves_with_steps,
    works_with_ddim,
)
from harness.reporting.intervals import CONFIDENCE
from harness.reporting.records import text_to_image
from harness.reporting.tables import escape_markdown

RULES: dict[str, tuple[str, Callable[[Evidence], Finding]]] = {
    "C1": (
        "The 8-step student has a better FID than its own many-step teacher, without guidance",
        at_shared_guidance(better_than_teacher),
    ),
    "C2": ("FID improves with the number of student steps, 1 to 2 to 4 to 8", at_shared_guidance(improves_with_steps)),
    "C3": (
        "Alternating and instant are close at 8 steps; alternating is better below 8",
        at_shared_guidance(close_then_better),
    ),
    "C4": (
        "At 8 steps moment matching beats progressive and consistency distillation; at 1 step others are better",
        at_shared_guidance(beats_its_rivals),
    ),
    "C5": (
        "z_s drawn given x~ and z_t gives far more diverse samples than z_s drawn given x~ alone",
        at_shared_guidance(conditional_is_more_diverse),
    ),
    "C6": (
        "Guidance in the teacher raises Inception Score (CLIP score needs captions)",
        guidance_raises_scores,
    ),
    "C7": ("The instant loss rises briefly, then decays exponentially", instant_loss_decays),
    "C8": (
        "Ancestral and DDIM sampling weight the network's predictions differently in the sample",
        samplers_weigh_differently,
    ),
    "C9": (
        "Text-to-image: the alternating 8-step student beats its base model in FID and CLIP score; instant does "
        "somewhat less well",
        beats_its_base_model,
    ),
    "C10": (
        "With k = 1 and z_1 pure noise, Algorithm 2 coincides with Diff-Instruct (variational score distillation)",
        coincides_with_diff_instruct,
    ),
    "C11": ("Distillation also works with deterministic DDIM transitions", at_shared_guidance(works_with_ddim)),
    "C12": (
        "Alternating and instant trade cost against quality and stability",
        at_shared_guidance(cost_trades_against_quality),
    ),
}
GUIDED = {"C1": "The 8-step student has a better FID than its own many-step teacher, guided alike"}
"""What claims are called of text-to-image profiles, whose rows have a guidance weight."""
WITH_CLIP = {"C6": "Guidance in the teacher raises Inception Score and CLIP score"}
"""What claims are called where images were scored against captions."""
NOTE = (
    f"Intervals are {CONFIDENCE:.0%} t-intervals over training seeds, of the logarithm where the statistic is a ratio: "
    "Welch's between two methods, one-sample against a teacher; C6's are over splits of the images. Images are never "
    "resampled. With fewer than three seeds a comparison of methods at 8 steps stays undecided. Claims are not "
    "corrected for their number, nor methods paired by seed; the table of comparisons pairs them and applies Holm's "
    "correction, so that verdicts there are stricter. Reporting convention: final."
)


@dataclass(frozen=True)
class Claim:
    """One line of claims.csv, in its column order."""

    id: str
    claim: str
    evidence: str
    statistic: str
    interval: str
    verdict: str


CLIP_NOTE = NOTE.replace(
    "C6's are over splits of the images",
    "C6's are over splits of the images (Inception score) or over images (CLIP score)",
)
COLUMNS = [field.name for field in fields(Claim)]


def judge(evidence: Evidence) -> list[Claim]:
    """Every claim with its verdict. Raises UserError where the records' numbers may not be compared."""
    trained = evidence.table[evidence.table["method"] != "real-data"]
    for column in ("profile", "identity", "convention"):
        if trained[column].nunique() > 1:
            raise UserError(f"claims compare records of one {column}; these have several: evaluate all of them alike")
    called = GUIDED if text_to_image(trained).any() else {}
    if trained["clip"].notna().any():
        called = called | WITH_CLIP
    claims = []
    for name, (claim, rule) in RULES.items():
        found = rule(evidence)
        claim = called.get(name, claim)
        claims.append(Claim(name, claim, found.evidence, found.statistic, found.interval, found.verdict.value))
    return claims


def note(claims: Sequence[Claim]) -> str:
    """How to read the intervals of these claims."""
    return CLIP_NOTE if any(claim.claim == WITH_CLIP.get(claim.id) for claim in claims) else NOTE


def write_claims(claims: Sequence[Claim], folder: Path) -> None:
    """Write claims.csv and claims.md into an existing folder."""
    table = pd.DataFrame([asdict(claim) for claim in claims], columns=COLUMNS)
    write_atomic(folder / "claims.csv", table.to_csv(index=False, lineterminator="\n"))
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    for claim in claims:
        cells = {**asdict(claim), "verdict": f"**{claim.verdict}**"}
        cells |= {name: escape_markdown(text) for name, text in cells.items() if name != "verdict"}
        lines.append("| " + " | ".join(cells.values()) + " |")
    write_atomic(folder / "claims.md", "\n".join([*lines, "", f"*{escape_markdown(note(claims))}*", ""]))


def read_claims(path: Path) -> list[Claim]:
    """The lines of claims.csv. Raises UserError if it is missing or garbled."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except OSError:
        raise UserError(f"{path}: not there; write it with fewstep claims") from None
    except ValueError:
        table = pd.DataFrame()
    if list(table.columns) != COLUMNS:
        raise UserError(f"{path}: garbled; write it again with fewstep claims")
    return [Claim(*row) for row in table.itertuples(index=False, name=None)]
