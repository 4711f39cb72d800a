"""The guidance of the teacher that is distilled, as a dimension of the workflow: addresses, chains, pairs, costs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.addresses import TEACHER, RunAddress
from harness.datasets import ImageSet
from harness.datasets.shapes import HELD_OUT, draw
from harness.errors import UserError
from harness.verbs import data
from harness.workspace import Workspace
from tests.profiles import CONTENT, LENGTH, MATCHING, OPTIMISER, write_profile


def method(method_id: str, steps: list[int], guidance: list[float], **more: Any) -> dict[str, Any]:
    return {"id": method_id, "steps": steps, "guidance": guidance, **LENGTH, "optimiser": OPTIMISER, **more}


def open_workspace(folder: Path, *methods: dict[str, Any], **changes: Any) -> Workspace:
    return Workspace(write_profile(folder / "mine.yaml", {"methods": list(methods), **changes}), folder)


def student(method_id: str, name: str, guidance: float = 0.0) -> RunAddress:
    return RunAddress("torch", method_id, "default", name, 0, guidance)


def test_every_weight_has_a_student_of_its_own(tmp_path: Path) -> None:
    workspace = open_workspace(tmp_path, method(MATCHING, [2, 1], [0.0, 0.5]))
    runs = [run for run in workspace.runs() if run.method == MATCHING and run.backend == "torch"]
    assert [(run.student, run.guidance) for run in runs] == [("k2", 0.0), ("k2", 0.5), ("k1", 0.0), ("k1", 0.5)]
    assert len({workspace.run(run) for run in runs}) == 4
    assert workspace.run(runs[0]).parent.name == "k2", "as it was called before there was guidance"
    assert workspace.run(runs[1]).parent.name == "k2-w0.5"
    configs = [workspace.run_config(run) for run in runs[:2]]
    assert configs[0] != configs[1]
    assert workspace.record_digest(runs[0]) != workspace.record_digest(runs[1])
    assert [workspace.teacher(run).guidance for run in runs] == [0.0] * 4, "one teacher serves them all"


def test_two_sections_of_one_method_may_have_different_weights(tmp_path: Path) -> None:
    sections = method(MATCHING, [2, 1], [1.0]), method(MATCHING, [2], [2.0], updates=12)
    workspace = open_workspace(tmp_path, *sections)
    assert workspace.training(student(MATCHING, "k2", 1.0))[0].updates == 6
    assert workspace.training(student(MATCHING, "k2", 2.0))[0].updates == 12
    with pytest.raises(UserError, match=r"no 'moment-matching/alternating'.* guidance 3; it has: 1, 2 \(--guidance\)"):
        workspace.method_config(student(MATCHING, "k2", 3.0))
    with pytest.raises(UserError, match="occur twice"):
        open_workspace(tmp_path, method(MATCHING, [2], [1.0]), method(MATCHING, [1], [2.0, 1.0]))


def test_a_chain_is_guided_at_its_first_student_alone(tmp_path: Path) -> None:
    workspace = open_workspace(tmp_path, method("progressive", [2, 1], [1.5]))
    spec = workspace.spec((1, 8, 8), 10)
    first, second = (student("progressive", name, 1.5) for name in ("k2", "k1"))
    assert workspace.parent(second) == first, "the chain of the same weight"
    assert workspace.make_method(first, spec).guidance["parent"] == 1.5
    assert workspace.make_method(second, spec).guidance["parent"] == 0.0, "its parent has the guidance in it"


def test_a_method_without_a_teacher_cannot_be_guided(tmp_path: Path) -> None:
    workspace = open_workspace(tmp_path, method("consistency-training", [1], [1.0]))
    with pytest.raises(UserError, match="consistency-training: has no teacher to guide"):
        workspace.make_method(student("consistency-training", "all", 1.0), workspace.spec((1, 8, 8), 10))


def test_the_teacher_is_trained_without_guidance() -> None:
    with pytest.raises(UserError, match="the teacher is trained without guidance"):
        RunAddress("torch", TEACHER, "default", TEACHER, 0, 1.0)


def test_guided_pairs_are_others_and_cost_twice(tmp_path: Path) -> None:
    workspace = open_workspace(tmp_path, method("dmd", [1], [0.0, 1.0]), pairs={"count": 10, "steps": 4})
    plain, guided = student("dmd", "k1"), student("dmd", "k1", 1.0)
    teacher = workspace.teacher(plain)
    assert workspace.pairs(teacher, 0.0).name == "pairs.safetensors"
    assert workspace.pairs(teacher, 1.0).name == "pairs-w1.safetensors"
    assert workspace.pairs_config(teacher, 0.0) != workspace.pairs_config(teacher, 1.0)
    assert (workspace.pair_passes(plain), workspace.pair_passes(guided)) == (40, 80)


def test_matched_passes_count_the_guided_calls(tmp_path: Path) -> None:
    workspace = open_workspace(tmp_path, method(MATCHING, [2], [0.0, 1.0]), matched_passes=4 * 5 * 60)
    plain, guided = (workspace.training(student(MATCHING, "k2", w))[0].updates for w in (0.0, 1.0))
    assert (plain, guided) == (60, 50), "five passes of an image for each update without guidance, six with it"


def test_text_needs_captions_and_zero_shot_needs_text(tmp_path: Path) -> None:
    plain = CONTENT["methods"][0]
    for changes, message in (
        ({"text": {"encoder": "shapes-clip"}}, "text: the data set 'digits' has no captions"),
        ({"heldout": {"name": "shapes"}}, "heldout: .* add the section text"),
    ):
        with pytest.raises(UserError, match=message):
            open_workspace(tmp_path, plain, **changes)


def test_another_data_set_takes_the_place_of_the_held_out_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"name": "captioned-folder", "path": "images", "size": 16}
    changes = {"data": files, "heldout": {"name": "shapes"}, "text": {"encoder": "shapes-clip"}}
    workspace = open_workspace(tmp_path, CONTENT["methods"][0], **changes)

    def load(name: str, split: str, **options: Any) -> ImageSet:
        images = draw(f"{name}-{split}", 4, HELD_OUT)
        return replace(images, name=name, split=split)

    monkeypatch.setattr(data, "load_dataset", load)
    data.run(workspace)
    read = [ImageSet.load(workspace.data(split)) for split in ("train", "heldout")]
    assert [(images.name, images.split) for images in read] == [("captioned-folder", "train"), ("shapes", "all")]
    alone = open_workspace(tmp_path, CONTENT["methods"][0], **{key: changes[key] for key in ("data", "text")})
    teacher = RunAddress("torch", TEACHER, "default", TEACHER, 0)
    assert alone.run_config(teacher) == workspace.run_config(teacher), "it is not trained on"
    assert alone.record_digest(teacher) != workspace.record_digest(teacher)
