"""`fewstep claims`: what the profile's runs say of the paper's claims."""

from harness.reporting.claims import judge, write_claims
from harness.reporting.claims_evidence import ALTERNATING, Evidence
from harness.reporting.claims_gradient import gradient_distance
from harness.reporting.implied_weighting import sampler_distance
from harness.reporting.records import frame, load_records
from harness.reporting.training_curves import instant_curves
from harness.verbs.table import records
from harness.workspace import Workspace


def run(workspace: Workspace) -> None:
    """Write tables/claims.csv and claims.md from the profile's records and the training logs beside them."""
    loaded = load_records(records(workspace))
    steps = sorted({record.row.steps for record in loaded if record.row.method == ALTERNATING and record.row.steps > 1})
    evidence = Evidence(
        table=frame(loaded),
        instant={name: (x, y) for name, (_, x, y) in instant_curves(loaded).items()},
        implied={k: sampler_distance(workspace.clock, k, "v") for k in steps},
        gradients={name: gradient_distance(name) for name in workspace.profile.backends},
    )
    folder = workspace.root / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    claims = judge(evidence)
    write_claims(claims, folder)
    print(f"{folder / 'claims.csv'}: {', '.join(f'{claim.id} {claim.verdict}' for claim in claims)}")
