"""`fewstep evaluate --during`: the best of a run's evaluations while it trained, beside the last."""

from harness.addresses import RunAddress
from harness.checkpoint import load_checkpoint, require_config
from harness.datasets import ImageSet
from harness.errors import UserError
from harness.networks.transformer import TransformerSpec
from harness.prompts import Captions, prompts
from harness.training import snapshot
from harness.verbs.evaluate import describe, write_record
from harness.verbs.judge import Judge
from harness.verbs.sample import draw
from harness.workspace import Workspace


def run(
    workspace: Workspace, backend: str, method: str, variant: str, student: str, seed: int, guidance: float = 0.0
) -> None:
    """Write selected-<setting>.json for each setting of the run: scores of the weights whose FID was the lowest.

    Every evaluation has the same noise and labels. The record also holds the FID after each number of updates, that of
    the last weights, and that of the selected ones on fresh noise, which selection cannot have favoured.
    """
    address = RunAddress(backend, method, variant, student, seed, guidance)
    during = workspace.during(address)
    if during is None:
        raise UserError(
            f"profile {workspace.profile.name!r} has no evaluation during the training of {method} ({variant}); "
            "add evaluation.during (every, n_samples) to it"
        )
    schedule, _ = workspace.training(address)
    paths = {update: snapshot(workspace.run(address), update) for update in schedule.snapshots}
    paths[schedule.updates] = workspace.checkpoint(address)
    judge = Judge(workspace)
    given = prompts(workspace, ImageSet.load(workspace.data("train")).num_classes)
    for setting in workspace.settings(address):
        fids: dict[int, float] = {}
        for update, path in paths.items():
            weights, manifest = load_checkpoint(path)
            require_config(path, manifest, workspace.run_config(address))
            spec = TransformerSpec(**manifest["network"])
            if isinstance(given.conditions, Captions):
                given.conditions.require(manifest.get("text_encoder"), path)
            images, rate = draw(workspace, address, setting, spec, weights, given, during.n_samples, "during")
            fids[update] = judge.fid(images)
            if (best := min(fids, key=fids.__getitem__)) == update:
                selected, selected_images, selected_digest = weights, images, manifest["digest"]
        scores = judge.scores(selected_images, given.labels[given.rows(0, during.n_samples)])
        fresh, _ = draw(workspace, address, setting, spec, selected, given, during.n_samples, "during/fresh")
        scores |= {"fid_by_update": fids, "best_update": best}
        scores |= {"fid_last": fids[schedule.updates], "fid_fresh": judge.fid(fresh)}
        row = describe(workspace, address, setting, spec.n_parameters, round(rate, 1))
        row |= {"convention": f"best of {len(fids)} evaluations", "n_samples": during.n_samples}
        provenance = {"config": workspace.selection_digest(address), "checkpoint": selected_digest}
        write_record(workspace.selected(address, setting), workspace, row, scores, judge, provenance)
        print(f"{backend} {method} {setting.name}: best FID {fids[best]:.3f} at update {best} of {schedule.updates}")
