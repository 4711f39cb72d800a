"""`fewstep evaluate`: score every sample set of a run."""

import json
from pathlib import Path
from typing import Any

from harness.addresses import TEACHER, RunAddress, Setting
from harness.checkpoint import load_checkpoint
from harness.datasets.archive import load_arrays
from harness.errors import UserError
from harness.files import write_atomic
from harness.metrics.captions import SCORES as CAPTION_SCORES
from harness.metrics.evaluate import metric_identity
from harness.provenance import run_record
from harness.samplers import nfe
from harness.verbs.judge import Judge
from harness.workspace import Workspace

METRICS = ("fid", "is", "kid", "precision", "recall")
CONVENTION = "final"
"""The last weights of training are evaluated, once; no checkpoint is selected by a metric."""


def run(
    workspace: Workspace, backend: str, method: str, variant: str, student: str, seed: int, guidance: float = 0.0
) -> None:
    """Write metrics-<setting>.json beside each samples-<setting>.npz of the run."""
    address = RunAddress(backend, method, variant, student, seed, guidance)
    folder = workspace.run(address)
    training, sampling = _read_json(folder / "train.json"), _read_json(folder / "sampling.json")
    _, manifest = load_checkpoint(workspace.checkpoint(address))
    if sampling["checkpoint"] != manifest["digest"]:
        raise UserError(f"{folder}: the samples are of other weights than its checkpoint's; sample this run again")
    provenance = {"config": workspace.record_digest(address), "checkpoint": manifest["digest"]}
    provenance |= {"training": {**training["provenance"], "origins": training["origins"]}}
    provenance |= {"sampling": sampling["provenance"]}
    if method == TEACHER:
        provenance["sampling_noise"] = workspace.profile.teacher.sampling_noise
    judge = Judge(workspace)
    if sampling.get("prompts") != judge.prompts_digest:
        raise UserError(f"{folder}: the samples are of other captions than the held-out images'; sample this run again")
    for setting in workspace.settings(address):
        images, labels = load_arrays(folder / f"samples-{setting.name}.npz", "images", "labels")
        scores = judge.scores(images, labels, fid_parts=workspace.profile.evaluation.fid_parts)
        row = describe(workspace, address, setting, training["params"], sampling["images_per_second"][setting.name])
        path = folder / f"metrics-{setting.name}.json"
        write_record(path, workspace, row, scores, judge, provenance)
        print(f"{backend} {address.name} {setting.name}: FID {scores['fid']:.3f}")


def describe(
    workspace: Workspace, address: RunAddress, setting: Setting, params: int, images_per_second: float
) -> dict[str, Any]:
    """What a row says of a run and of a way to sample it, beside the scores."""
    row = {"backend": address.backend, "method": address.method, "variant": address.variant, "seed": address.seed}
    row |= {"sampler": setting.sampler, "steps": setting.steps, "guidance": address.guidance or setting.guidance}
    row |= {"nfe": nfe(setting.steps, setting.guidance), "params": params, **training_cost(workspace, address)}
    return row | {"images_per_second": images_per_second}


def training_cost(workspace: Workspace, address: RunAddress) -> dict[str, float]:
    """What a run's result took beside the teacher: itself, the students that it comes from, and the teacher's pairs."""
    runs = [_read_json(workspace.run(run) / "train.json") for run in workspace.chain(address)]
    cost = {key: sum(run[key] for run in runs) for key in ("updates", "train_passes", "train_seconds")}
    cost["train_passes"] += workspace.pair_passes(address)
    return cost | {"peak_memory_mb": max(run["peak_memory_mb"] for run in runs)}


def write_record(
    path: Path,
    workspace: Workspace,
    row: dict[str, Any],
    scores: dict[str, Any],
    judge: Judge,
    provenance: dict[str, Any],
) -> None:
    """Write one record: the row of main.csv, further measurements, identity, and provenance with this process's.

    The row may name its convention and its n_samples; those of the profile's evaluation of last weights are understood.
    """
    n: int = row.get("n_samples", workspace.profile.evaluation.n_samples)
    identity, identity_digest = metric_identity(judge.extractor, judge.reference, n, judge.policy, judge.extra_identity)
    measured = METRICS if judge.captions is None else (*METRICS, *CAPTION_SCORES)
    row = {"convention": CONVENTION, "n_samples": n} | row | {metric: scores[metric] for metric in measured}
    row |= {"profile": workspace.profile.name, "identity": identity_digest}
    record = {
        "row": row,
        "extra": {key: value for key, value in scores.items() if key not in measured},
        "identity": identity,
        "provenance": {**provenance, "evaluation": run_record()},
    }
    write_atomic(path, json.dumps(record, indent=1) + "\n")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: not there; train and sample this run first") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: damaged ({error}); delete the run's folder and run it again") from None
    return content
