"""A profile with a published extractor: its report, its reference, and records without an Inception score."""

import json
from pathlib import Path

import pytest

from harness.datasets import ImageSet
from harness.errors import UserError
from harness.reporting.records import load_records
from harness.reporting.report import _accuracy
from harness.reporting.tables import layout, main_table, markdown
from harness.verbs import extractor as verb
from harness.verbs import reference
from harness.workspace import Workspace
from tests.conftest import SPEC, random_batch
from tests.pretrained import configured
from tests.profiles import write_profile


@pytest.fixture
def workspace(tmp_path: Path, dinov2_folder: Path) -> Workspace:
    """4x4 images of both splits, measured by a small DINOv2, which has no logits."""
    section = configured("dinov2-vit-l-14", dinov2_folder / "model.safetensors").model_dump()
    workspace = Workspace(write_profile(tmp_path / "mine.yaml", {"extractor": section}), tmp_path)
    workspace.data("train").parent.mkdir(parents=True)
    for seed, split in enumerate(("train", "heldout")):
        batch = random_batch(SPEC, 24, seed)
        made = ImageSet("tiny", split, batch["images"], batch["condition"], SPEC.num_classes)
        made.save(workspace.data(split))
    return workspace


def test_the_report_of_a_published_extractor_is_its_hash(workspace: Workspace) -> None:
    verb.run(workspace, None)
    written = json.loads(workspace.extractor_report.read_text())
    assert written == {"sha256": workspace.profile.extractor.sha256, "resize": "clean-bicubic-224, grey as RGB"}
    assert _accuracy(workspace.extractor_report) == []


def test_only_committed_extractors_are_retrained(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'dinov2-vit-l-14' has published weights"):
        verb.run(workspace, tmp_path / "new.safetensors")


def test_a_record_without_logits_has_no_inception_score_and_the_table_no_column(workspace: Workspace) -> None:
    reference.run(workspace)
    records = load_records([workspace.floor])
    assert records[0].row.inception_score is records[0].extra.is_std is None
    assert records[0].row.fid > 0
    assert records[0].identity["extractor_weights"] == workspace.profile.extractor.sha256
    assert main_table(records)["is"].isna().all()
    text = markdown(layout(records))
    assert "FD-20" in text
    assert "| IS-" not in text
