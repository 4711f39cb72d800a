"""The command line: fast to start, an example for every verb, and one line for every mistake."""

import errno
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from harness import cli
from harness.errors import UserError

FEWSTEP = Path(sys.executable).with_name("fewstep")
VERBS = sorted(typer.main.get_command(cli.app).commands)
HEAVY = {"torch", "jax", "numpy", "pandas", "matplotlib", "sklearn", "scipy", "safetensors"}


def invoke(*arguments: str) -> str:
    """The output of a command that must succeed, with its lines joined."""
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def test_help_comes_within_half_a_second() -> None:
    """Of the processor, which other work on the machine does not lengthen as it does the clock's."""
    began = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([FEWSTEP, "--help"], check=True, capture_output=True, timeout=60)
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert 0 < (ended.ru_utime + ended.ru_stime) - (began.ru_utime + began.ru_stime) <= 0.5


def test_help_imports_nothing_heavy() -> None:
    program = "import sys\nfrom harness.cli import app\ntry:\n    app(['--help'])\nfinally:\n    print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)
    imported = set(run.stdout.splitlines()[-1].split())
    assert "harness.cli" in imported
    assert not imported & HEAVY


def test_help_lists_every_verb() -> None:
    text = invoke("--help")
    assert len(VERBS) >= 10
    assert all(f" {verb} " in text for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_an_example_that_parses(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = invoke(verb, "--help")
    assert f"Example: fewstep {verb}" in text
    arguments = text.partition("Example: fewstep ")[2].partition(" Options:")[0].split()
    called = []
    monkeypatch.setattr(cli, "_run", lambda *positional, **named: called.append((positional, named)))
    invoke(*arguments)
    # the profile that has a reference to check against, and one that has captions to encode
    profile = {"check": "gate", "text": "shapes"}.get(verb, "digits")
    assert called[0][0][:2] == (verb, profile)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_module(verb: str) -> None:
    assert (Path(cli.__file__).parent / "verbs" / f"{verb}.py").is_file()


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_is_explained(verb: str) -> None:
    for parameter in typer.main.get_command(cli.app).commands[verb].params:
        assert parameter.help, parameter.name


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_are_bounded_before_anything_is_imported(threads: int) -> None:
    """The libraries read these variables once, when they are imported."""
    program = f"""
import os, sys
from harness import cli
class Watch:
    def find_spec(name, *_):
        if name == "numpy":
            print(sorted({{os.environ.get(name) for name in cli.THREAD_VARIABLES}}), os.environ["XLA_FLAGS"])
class Verb:
    def run(workspace, **arguments):
        pass
sys.meta_path.insert(0, Watch)
sys.modules["harness.verbs.teacher"] = Verb
cli._run("teacher", "smoke", None, {threads})
"""
    environment = {"PATH": "/usr/bin:/bin", "XLA_FLAGS": "--xla_cpu_enable_fast_math=false"}
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60, env=environment)
    single = " --xla_cpu_multi_thread_eigen=false" if threads == 1 else ""
    assert run.stdout == f"['{threads}'] --xla_cpu_enable_fast_math=false{single}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["teach"], "No such command 'teach'. Did you mean 'teacher'"),
        (["teacher"], "Missing option '--backend'"),
        (["teacher", "--backend", "touch"], "'touch' is not one of 'torch', 'jax'"),
        (["teacher", "--backend", "torch", "--sed", "1"], "No such option: --sed"),
        (["teacher", "--backend", "torch", "--seed", "-1"], "Invalid value for '--seed'"),
        (["teacher", "--backend", "torch", "--seed", "one"], "Invalid value for '--seed'"),
        (["sample", "--backend", "torch", "--threads", "0"], "Invalid value for '--threads'"),
        (["distill", "--backend", "torch", "--student", "k4"], "Missing option '--method'"),
        (["data", "extra"], "Got unexpected extra argument"),
    ],
    ids=" ".join,
)
def test_wrong_usage_says_what_is_wrong_and_where_help_is(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert "--help' for help" in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "evaluate --backend torch --captions c.txt",
            "evaluate: --captions has no effect without --images; leave it out",
        ),
        ("evaluate --backend torch --json", "evaluate: --json has no effect without --images; leave it out"),
        ("evaluate --images a --during", "evaluate: --during has no effect with --images; leave it out"),
        ("evaluate --images a --seed 0", "evaluate: --seed has no effect with --images; leave it out"),
        ("extractor --download X --retrain F", "extractor: --retrain has no effect with --download; leave it out"),
    ],
)
def test_options_of_the_other_mode_are_refused(arguments: str, message: str) -> None:
    result = CliRunner().invoke(cli.app, arguments.split())
    assert isinstance(result.exception, UserError)
    assert str(result.exception) == message


def test_own_images_leave_the_thread_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    set_: list[int] = []
    monkeypatch.setattr(cli, "_set_threads", set_.append)
    monkeypatch.setattr("harness.verbs.evaluate_images.run", lambda *_: None)
    invoke("evaluate", "--images", "a")
    assert set_ == []
    invoke("evaluate", "--images", "a", "--threads", "3")
    assert set_ == [3]


def test_without_a_verb_the_help_is_shown() -> None:
    result = CliRunner().invoke(cli.app, [])
    assert "Commands:" in result.output


def test_a_user_error_is_one_line_and_exit_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def mistaken() -> None:
        raise UserError("the key is wrong; write another")

    monkeypatch.setattr(cli, "app", mistaken)
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "error: the key is wrong; write another\n")


def test_a_full_disk_is_one_line_whatever_was_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cli, "app", full)
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert capsys.readouterr().err == "error: no space left on the device; free some, or choose another --results\n"


def test_a_folder_that_cannot_be_written_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused() -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "results/runs")

    monkeypatch.setattr(cli, "app", refused)
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    expected = "error: results/runs: permission denied; change the permissions, or choose another --results\n"
    assert capsys.readouterr().err == expected


def test_a_defect_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    for defect in (KeyError("ours"), ProcessLookupError(errno.ESRCH, "No such process")):

        def defective(defect: Exception = defect) -> None:
            raise defect

        monkeypatch.setattr(cli, "app", defective)
        with pytest.raises(type(defect)):
            cli.main()
