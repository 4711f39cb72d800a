"""Where everything lies, and what each run is made from: the addresses, and what a run's configuration holds."""

from pathlib import Path
from typing import Any

import pytest

from harness.addresses import TEACHER, RunAddress, Setting
from harness.errors import UserError
from harness.workspace import Workspace
from tests.profiles import CONTENT, MATCHING, write_profile

METHODS = [
    {
        **CONTENT["methods"][0],
        "steps": [4, 1],
        "overrides": {"k1": {"updates": 8, "optimiser": {"clip": 2.0}, "options": {"weight": "flat"}}},
    },
    {**CONTENT["methods"][0], "variant": "ddim", "options": {"transition": "ddim"}},
]


def open_workspace(folder: Path, changes: dict[str, Any] | None = None) -> Workspace:
    """A workspace of two seeds, two backends and three students, whose results lie in `folder`."""
    changes = {"seeds": [0, 3], "methods": METHODS, **(changes or {})}
    return Workspace(write_profile(folder / "mine.yaml", changes), folder)


TEACHER_RUN = RunAddress("torch", TEACHER, "default", TEACHER, 3)
K4, K1 = (RunAddress("torch", MATCHING, "default", student, 3) for student in ("k4", "k1"))
DDIM = RunAddress("jax", MATCHING, "ddim", "k2", 0)


def test_every_run_has_its_folder_below_the_profile(tmp_path: Path) -> None:
    workspace = open_workspace(tmp_path)
    assert workspace.run(TEACHER_RUN) == tmp_path / "mine/torch/teacher/default/teacher/seed3"
    assert workspace.run(DDIM) == tmp_path / "mine/jax/moment-matching-alternating/ddim/k2/seed0"
    assert workspace.checkpoint(workspace.teacher(K4)) == workspace.run(TEACHER_RUN) / "teacher.safetensors"
    assert workspace.data("train") == tmp_path / "mine/data/train.npz"


def test_runs_are_all_of_the_profile_and_teachers_come_first(tmp_path: Path) -> None:
    runs = list(open_workspace(tmp_path).runs())
    assert len(runs) == len(set(runs)) == 2 * 2 * (1 + 2 + 1), "seeds, backends, and teacher, k4, k1, ddim's k2"
    assert len({run.folder for run in runs}) == len(runs)
    for position, run in enumerate(runs):
        assert RunAddress(run.backend, TEACHER, "default", TEACHER, run.seed) in runs[: position + 1]


def test_settings_are_the_samplers_and_steps_of_each_run(tmp_path: Path) -> None:
    workspace = open_workspace(tmp_path)
    assert [setting.name for setting in workspace.settings(TEACHER_RUN)] == ["ancestral-k1", "ancestral-k4", "ddim-k2"]
    assert workspace.settings(K4) == [Setting("ancestral", 4)]
    assert workspace.settings(DDIM) == [Setting("ddim", 2)], "a student samples with the transition it learned"
    assert Setting("ddim", 8, 1.5).name == "ddim-w1.5-k8"


def test_overrides_reach_schedule_optimiser_and_options(tmp_path: Path) -> None:
    workspace = open_workspace(tmp_path)
    (plain, adam), (overridden, other) = workspace.training(K4), workspace.training(K1)
    assert (plain.updates, adam.clip, workspace.options(K4).weight) == (6, 1.0, "edm")
    assert (overridden.updates, other.clip, workspace.options(K1).weight) == (8, 2.0, "flat")
    assert workspace.training(TEACHER_RUN)[1].beta1 == 0.9
    teacher = workspace.options(TEACHER_RUN)
    assert (teacher.weight, teacher.label_dropout, teacher.ema_decay) == ("flat", 0.25, 0.5)


def test_a_method_knows_its_own_step_count(tmp_path: Path) -> None:
    workspace = open_workspace(tmp_path)
    assert [workspace.make_method(run, workspace.spec((1, 4, 4), 3)).k for run in (K4, K1, DDIM)] == [4, 1, 2]
    assert workspace.clock is workspace.make_method(K4, workspace.spec((1, 4, 4), 3)).clock


@pytest.mark.parametrize(
    ("key", "value", "changed"),
    [
        ("network.width", 32, {TEACHER_RUN, K4, K1, DDIM}),
        ("clock.sigma_max", 50.0, {TEACHER_RUN, K4, K1, DDIM}),
        ("teacher.updates", 7, {TEACHER_RUN, K4, K1, DDIM}),
        ("methods.0.batch", 5, {K4, K1}),
        ("methods.0.options", {"times": "discrete"}, {K4, K1}),
        ("methods.0.overrides", {"k1": {"updates": 8}}, {K1}),
        ("methods.1.options", {"transition": "posterior"}, {DDIM}),
        ("teacher.samplers", {"ddim": [4]}, set()),
        ("teacher.sampling_noise", 0.5, set()),
        ("teacher.checkpoint_every", 3, set()),
        ("methods.0.checkpoint_every", 3, set()),
        ("methods.0.steps", [1, 4, 8], set()),
        ("evaluation.n_samples", 30, set()),
        ("evaluation.during", {"every": 2, "n_samples": 10}, set()),
        ("extractor", "another", set()),
        ("log_every", 1, set()),
        ("seeds", [0, 3, 4], set()),
    ],
)
def test_a_run_depends_on_what_changes_its_weights_and_on_nothing_else(
    tmp_path: Path, key: str, value: Any, changed: set[RunAddress]
) -> None:
    before, after = open_workspace(tmp_path), open_workspace(tmp_path, {key: value})
    runs = {TEACHER_RUN, K4, K1, DDIM}
    assert {run for run in runs if before.run_config(run) != after.run_config(run)} == changed


def test_students_of_the_named_methods_are_evaluated_during_training(tmp_path: Path) -> None:
    changes = {"evaluation.during": {"every": 4, "n_samples": 10}, "methods": [METHODS[0]], "ablations": [METHODS[1]]}
    workspace, plain = open_workspace(tmp_path, changes), open_workspace(tmp_path)
    assert [run for run in (TEACHER_RUN, K4, K1, DDIM) if workspace.during(run)] == [K4, K1], "no teacher, no ablation"
    snapshots = {run: workspace.training(run)[0].snapshots for run in (TEACHER_RUN, K4, K1, DDIM)}
    assert snapshots == {TEACHER_RUN: [], K4: [4], K1: [4], DDIM: []}, "of 6 and 8 updates, the last not among them"
    assert plain.training(K4)[0].snapshots == []
    assert workspace.record_digest(K4) == open_workspace(tmp_path, {"methods": [METHODS[0]]}).record_digest(K4)
    assert workspace.selection_digest(K4) != workspace.selection_digest(K1)
    other = {"every": 4, "n_samples": 11, "methods": ["moment-matching/alternating"]}
    assert open_workspace(tmp_path, changes | {"evaluation.during": other}).selection_digest(
        K4
    ) != workspace.selection_digest(K4)


def test_the_seed_is_part_of_the_configuration(tmp_path: Path) -> None:
    workspace = open_workspace(tmp_path)
    other = RunAddress("torch", TEACHER, "default", TEACHER, 0)
    assert workspace.run_config(TEACHER_RUN) != workspace.run_config(other)


def test_a_repeated_seed_shares_the_first_teacher(tmp_path: Path) -> None:
    repeated = [{**METHODS[0], "repeats": {"jax": {"k4": [7]}}, "overrides": {}}]
    workspace = open_workspace(tmp_path, {"methods": repeated, "ablations": [METHODS[1]]})
    seeds = {(run.backend, run.student, run.seed) for run in workspace.runs() if run.method == MATCHING}
    assert seeds == {(b, k, seed) for b in ("torch", "jax") for k in ("k4", "k1") for seed in (0, 3)} | {
        ("jax", "k4", 7)
    }
    again, first = (RunAddress("jax", MATCHING, "default", "k4", seed) for seed in (7, 0))
    assert workspace.teacher(again) == workspace.teacher(first) == RunAddress("jax", TEACHER, "default", TEACHER, 0)
    configs = [workspace.run_config(run) for run in (again, first)]
    assert configs[0] != configs[1]
    assert configs[0]["seed"] == configs[1]["seed"] == 0, "the teacher's"
    assert workspace.ablations() == [
        RunAddress(backend, MATCHING, "ddim", "k2", seed) for backend in ("torch", "jax") for seed in (0, 3)
    ]


def test_a_chain_is_followed_to_the_teacher_and_within_its_seed_where_that_was_trained(tmp_path: Path) -> None:
    chained = {**CONTENT["methods"][0], "id": "progressive", "steps": [4, 2, 1], "repeats": {"jax": {"k2": [7]}}}
    workspace = open_workspace(tmp_path, {"methods": [chained]})
    k4, k2, k1 = (RunAddress("jax", "progressive", "default", student, 3) for student in ("k4", "k2", "k1"))
    assert workspace.chain(k1) == [k1, k2, k4]
    assert workspace.chain(TEACHER_RUN) == [TEACHER_RUN]
    again, first = (RunAddress("jax", "progressive", "default", k, seed) for k, seed in (("k2", 7), ("k4", 0)))
    assert workspace.chain(again) == [again, first], "k4 was not trained with seed 7"


def test_guided_samples_are_further_settings_of_the_teacher(tmp_path: Path) -> None:
    workspace = open_workspace(tmp_path, {"teacher.guidance": {"weights": [0.0, 1.5], "steps": [4]}})
    settings = workspace.settings(TEACHER_RUN)
    assert [setting.name for setting in settings] == ["ancestral-k1", "ancestral-k4", "ddim-k2", "ancestral-w1.5-k4"]


def test_matched_compute_gives_every_method_the_same_network_passes(tmp_path: Path) -> None:
    pairs = {"count": 10, "steps": 4}
    methods = [METHODS[0], {**METHODS[0], "id": "moment-matching/instant", "overrides": {}}, dmd_config()]
    workspace = open_workspace(tmp_path, {"methods": methods, "matched_passes": 400, "pairs": pairs})
    spec = workspace.spec((1, 4, 4), 3)
    for run in workspace.runs():
        if run.method == TEACHER:
            assert workspace.training(run)[0].updates == CONTENT["teacher"]["updates"]
            continue
        method, updates = workspace.make_method(run, spec), workspace.training(run)[0].updates
        batch = workspace.training(run)[0].batch
        passes = [batch * method.passes(method.turn(step)) for step in range(updates + 1)]
        assert sum(passes[:-1]) <= 400 - workspace.pair_passes(run) < sum(passes)
        assert workspace.run_config(run)["student"]["updates"] == method.updates == updates
    assert workspace.pair_passes(RunAddress("jax", "dmd", "default", "k1", 0)) == 40
    with pytest.raises(UserError, match="matched_passes: too few for one update of moment-matching/alternating"):
        open_workspace(tmp_path, {"methods": methods, "matched_passes": 19}).training(K4)


def dmd_config() -> dict[str, Any]:
    return {key: value for key, value in METHODS[0].items() if key != "overrides"} | {"id": "dmd", "steps": [1]}


def test_a_method_that_wants_pairs_needs_their_section(tmp_path: Path) -> None:
    workspace = open_workspace(tmp_path, {"methods": [dmd_config()]})
    with pytest.raises(UserError, match=r"profile 'mine': the section pairs \(count, steps\) is missing; add it"):
        workspace.run_config(RunAddress("torch", "dmd", "default", "k1", 0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": "progressive", "steps": [8, 2]}, r"progressive: steps \[8, 2\] lack 4, whose student is the parent"),
        ({"id": "diff-instruct", "steps": [2]}, r"diff-instruct: steps \[2\] are not \[1\].*; set steps to \[1\]"),
        ({"overrides": {"k8": {"updates": 3}}}, r"overrides or repeats name the student 'k8', but .* it has: k2"),
        ({"repeats": {"jax": {"all": [5]}}}, r"overrides or repeats name the student 'all', but .* it has: k2"),
        ({"id": "dmd2", "options": {"auxiliary_updates": 0}}, r"auxiliary_updates is 0, but should be greater"),
        ({"id": "dmd2", "options": {"levels": "al"}}, r"levels is 'al'; did you mean 'all'"),
        (
            {"id": "multistep-consistency", "options": {"final_intervals": 3}},
            r"final_intervals 3 is below intervals",
        ),
        (
            {"id": "consistency-distillation", "options": {"hop": "euler"}},
            r"hop is 'euler'; .*known: ddim, heun",
        ),
        (
            {"id": "moment-matching/instant", "options": {"times": "all"}},
            r"times is 'all'; known: continuous",
        ),
    ],
)
def test_what_a_method_cannot_do_is_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    workspace = open_workspace(tmp_path, {"methods": [{**CONTENT["methods"][0], **changes}]})
    with pytest.raises(UserError, match=message) as error:
        _ = [workspace.settings(run) for run in workspace.runs()]
    assert "\n" not in str(error.value)


def address(method: str = MATCHING, variant: str = "default", student: str = "k4") -> RunAddress:
    return RunAddress("torch", method, variant, student, 0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (address(method="moment-matching/alternatng"), "did you mean 'moment-matching/alternating'.*teacher"),
        (address(variant="dim"), "has no 'moment-matching/alternating' with variant 'dim'; it has: .* .ddim."),
        (address(student="k3"), "moment-matching/alternating has no student 'k3'; it has: k4, k1"),
    ],
)  # fmt: skip
def test_an_unknown_run_is_one_line_with_the_known_ones(tmp_path: Path, wrong: RunAddress, message: str) -> None:
    workspace = open_workspace(tmp_path)
    for ask in (workspace.settings, lambda run: workspace.make_method(run, workspace.spec((1, 4, 4), 3))):
        with pytest.raises(UserError, match=message) as error:
            ask(wrong)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weigth": "edm"}, "unknown key weigth; did you mean 'weight'"),
        ({"weight": "emd"}, "unknown weight 'emd'; choose one of flat, snr"),
        ({"transition": "dim"}, "transition is 'dim'; did you mean 'ddim'"),
    ],
)
def test_wrong_options_of_a_method_name_the_key(tmp_path: Path, options: dict[str, str], message: str) -> None:
    workspace = open_workspace(tmp_path, {"methods.0.options": options})
    with pytest.raises(UserError, match=f"options of {MATCHING} .default.: .*{message}"):
        workspace.options(K4)


def test_the_teacher_is_no_student() -> None:
    for variant, student in [("default", "k4"), ("ddim", TEACHER)]:
        with pytest.raises(UserError, match=rf"the teacher has no student '{student}' \({variant}\); name a --method"):
            address(TEACHER, variant, student)


def test_a_patch_that_does_not_fit_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"network.patch: 2 does not divide the images of 5x5 pixels"):
        open_workspace(tmp_path).spec((1, 5, 5), 10)


def test_a_missing_output_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path / 'missing'}: the output folder does not exist"):
        Workspace("smoke", tmp_path / "missing")
