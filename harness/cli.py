"""The command `fewstep`: one verb for each node of the workflow; heavy imports happen inside the verbs."""

import importlib
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.cli_options import (
    BackendName,
    BackendOption,
    Guidance,
    MethodOption,
    Profile,
    ReferenceFolder,
    Results,
    Seed,
    Student,
    Threads,
    Variant,
    on_command_line,
    refuse,
)
from harness.errors import USERS_ERRORS, UserError

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "PJRT_NPROC")
app = typer.Typer(
    name="fewstep",
    help="Few-step diffusion distillation: train, distil, sample, measure, compare. "
    "`snakemake --cores all` runs every verb in order; each can also be run by hand.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _run(verb: str, profile: str, results: Path | None, threads: int = 1, **arguments: Any) -> None:
    """Run one verb with a bounded number of threads, which must be set before NumPy, PyTorch and JAX are imported."""
    _set_threads(threads)
    if threads == 1:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()
    from harness.workspace import Workspace

    importlib.import_module(f"harness.verbs.{verb}").run(Workspace(profile, results), **arguments)


def _set_threads(threads: int) -> None:
    os.environ.update({name: str(threads) for name in THREAD_VARIABLES})


@app.command()
def data(profile: Profile = "digits", results: Results = None) -> None:
    """Write the images that everything else reads. Example: fewstep data --profile digits"""
    _run("data", profile, results)


@app.command()
def extractor(
    context: typer.Context,
    profile: Profile = "digits",
    results: Results = None,
    retrain: Annotated[Path | None, typer.Option(help="train new weights into this file")] = None,
    clip: Annotated[bool, typer.Option("--clip", help="the CLIP of the profile's CLIP score, in its place")] = False,
    download: Annotated[str | None, typer.Option(help="fetch the published weights of this extractor")] = None,
) -> None:
    """Validate the feature extractor, or retrain it. Example: fewstep extractor --retrain new.safetensors"""
    if download is not None:
        refuse(context, ("profile", "results", "retrain", "clip"), "with --download")
        importlib.import_module("harness.verbs.extractor").download(download)
    else:
        _run("extractor", profile, results, retrain=retrain, clip=clip)


@app.command()
def text(profile: Profile = "shapes", results: Results = None, threads: Threads = 1) -> None:
    """Compute the features of captions that networks are conditioned on. Example: fewstep text --profile shapes"""
    _run("text", profile, results, threads)


@app.command()
def reference(profile: Profile = "digits", results: Results = None) -> None:
    """Compute reference statistics and the real-data floor. Example: fewstep reference --profile digits"""
    _run("reference", profile, results)


@app.command()
def teacher(
    backend: BackendOption,
    profile: Profile = "digits",
    seed: Seed = 0,
    results: Results = None,
    threads: Threads = 1,
) -> None:
    """Train the teacher, or go on training it. Example: fewstep teacher --backend torch"""
    _run("teacher", profile, results, threads, backend=backend.value, seed=seed)


@app.command()
def pairs(
    backend: BackendOption,
    profile: Profile = "digits",
    seed: Seed = 0,
    guidance: Guidance = 0.0,
    results: Results = None,
    threads: Threads = 1,
) -> None:
    """Draw the teacher's pairs of noise and image, which DMD regresses on. Example: fewstep pairs --backend torch"""
    _run("pairs", profile, results, threads, backend=backend.value, seed=seed, guidance=guidance)


@app.command()
def distill(
    backend: BackendOption,
    method: MethodOption,
    student: Student,
    variant: Variant = "default",
    profile: Profile = "digits",
    seed: Seed = 0,
    guidance: Guidance = 0.0,
    results: Results = None,
    threads: Threads = 1,
) -> None:
    """Train one student, or go on training it.

    Example: fewstep distill --backend jax --method moment-matching/alternating --student k4
    """
    _run(
        "distill", profile, results, threads,
        backend=backend.value, method=method, variant=variant, student=student, seed=seed, guidance=guidance,
    )  # fmt: skip


@app.command()
def sample(
    context: typer.Context,
    backend: Annotated[BackendName | None, typer.Option(help="the framework")] = None,
    method: MethodOption = "teacher",
    student: Student = "teacher",
    variant: Variant = "default",
    profile: Profile = "digits",
    seed: Seed = 0,
    guidance: Guidance = 0.0,
    results: Results = None,
    threads: Threads = 1,
    prompt: Annotated[str | None, typer.Option(help="a caption: draw one image of it")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="sampling steps of that image")] = None,
    out: Annotated[Path | None, typer.Option(help="the PNG file of that image")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="its network's file, in place of a run")] = None,
    text_weights: Annotated[Path | None, typer.Option(help="the folder of its text encoder's weights")] = None,
) -> None:
    """Draw the images of a trained run at all of its step counts, or one image of a caption.

    One image: fewstep sample --prompt "a red circle on black" --steps 4 --out a.png, of the 4-step student of the
    profile shapes, unless you name another run or a --checkpoint. Example: fewstep sample --backend torch
    """
    if prompt is not None:
        if steps is None or out is None:
            raise UserError("sample --prompt: say how many --steps, and which file to write (--out)")
        chosen = {name: value for name, value in context.params.items() if on_command_line(context, name)}
        _set_threads(threads)
        importlib.import_module("harness.verbs.sample_prompt").run(prompt, steps, out, chosen)
        return
    refuse(context, ("steps", "out", "checkpoint", "text_weights"), "without --prompt")
    if backend is None:
        raise UserError("sample: name the --backend of the run, or a --prompt")
    _run(
        "sample", profile, results, threads,
        backend=backend.value, method=method, variant=variant, student=student, seed=seed, guidance=guidance,
    )  # fmt: skip


@app.command()
def evaluate(
    context: typer.Context,
    backend: Annotated[BackendName | None, typer.Option(help="the framework of a run")] = None,
    method: MethodOption = "teacher",
    student: Student = "teacher",
    variant: Variant = "default",
    profile: Profile = "digits",
    seed: Seed = 0,
    guidance: Guidance = 0.0,
    results: Results = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads [default: 1; --images: as set]")] = None,
    during: Annotated[bool, typer.Option("--during", help="the states kept during training; report the best")] = False,
    images: Annotated[Path | None, typer.Option(help="images of your own: a folder, or an .npz file")] = None,
    reference: Annotated[Path | None, typer.Option(help="real images alike, or a saved reference (.npz)")] = None,
    extractor: Annotated[str | None, typer.Option(help="the extractor for them, e.g. inception-v3-compat")] = None,
    weights: Annotated[str | None, typer.Option(help="its weights [default: the file in your cache]")] = None,
    sha256: Annotated[str | None, typer.Option(help="hash of weights other than the published ones")] = None,
    captions: Annotated[Path | None, typer.Option(help="one a line, or JSON by image name: the CLIP score")] = None,
    out: Annotated[Path | None, typer.Option(help="also write the record of your images to this JSON file")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print that record in place of the table")] = False,
) -> None:
    """Score the images of a run, or images of your own: FID, IS, KID, precision, recall.

    Your own: fewstep evaluate --images samples --reference real --extractor inception-v3-compat, without a profile.

    Example: fewstep evaluate --backend torch
    """
    if (backend is None) == (images is None):
        raise UserError("evaluate: name either a run (--backend, ...) or images of your own (--images, ...)")
    if images is not None:
        refuse(
            context,
            ("during", "method", "student", "variant", "profile", "seed", "guidance", "results"),
            "with --images",
        )
        if threads is not None:
            _set_threads(threads)
        importlib.import_module("harness.verbs.evaluate_images").run(
            images, reference, {"name": extractor, "weights": weights, "sha256": sha256}, captions, out, as_json
        )
        return
    assert backend is not None
    refuse(context, ("reference", "extractor", "weights", "sha256", "captions", "out", "as_json"), "without --images")
    _run(
        "during" if during else "evaluate", profile, results, threads or 1,
        backend=backend.value, method=method, variant=variant, student=student, seed=seed, guidance=guidance,
    )  # fmt: skip


@app.command()
def table(profile: Profile = "digits", results: Results = None) -> None:
    """Write main.csv and its renderings. Example: fewstep table --profile digits"""
    _run("table", profile, results)


@app.command()
def figures(profile: Profile = "digits", results: Results = None) -> None:
    """Draw every figure. Example: fewstep figures --profile digits"""
    _run("figures", profile, results)


@app.command()
def claims(profile: Profile = "digits", results: Results = None) -> None:
    """Judge the paper's claims by the records. Example: fewstep claims --profile digits"""
    _run("claims", profile, results)


@app.command()
def report(profile: Profile = "digits", results: Results = None) -> None:
    """Write the self-contained report. Example: fewstep report --profile digits"""
    _run("report", profile, results)


@app.command()
def ablations(profile: Profile = "digits", results: Results = None) -> None:
    """Write tables and figures of the profile's ablations. Example: fewstep ablations --profile digits"""
    _run("ablations", profile, results)


@app.command()
def check(
    profile: Profile = "digits",
    results: Results = None,
    against: ReferenceFolder = None,
    junit: Annotated[Path | None, typer.Option(help="also write the verdicts to this JUnit XML file")] = None,
    json: Annotated[bool, typer.Option("--json", help="print JSON, with every row")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="print every row, not only those that moved")] = False,
) -> None:
    """Compare a run with an accepted reference; status 1: a regression. Example: fewstep check --profile gate"""
    _run("check", profile, results, against=against, junit=junit, as_json=json, verbose=verbose)


@app.command()
def accept(
    reason: Annotated[str, typer.Option(help="why these numbers are to be the reference")],
    profile: Profile = "digits",
    results: Results = None,
    out: ReferenceFolder = None,
) -> None:
    """Make a complete run the reference of later ones. Example: fewstep accept --reason first"""
    _run("accept", profile, results, reason=reason, out=out)


@app.command()
def bench(
    profile: Profile = "digits",
    out: Annotated[Path | None, typer.Option(help="also write the measurements to this JSON file")] = None,
) -> None:
    """Measure what an update costs beside a hand-written loop, and JAX beside PyTorch. Example: fewstep bench"""
    _run("bench", profile, None, out=out)


def main() -> None:
    """Run the command line; a mistake of the user's is one line on stderr and exit status 2."""
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in USERS_ERRORS:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{USERS_ERRORS[error.errno]}, or choose another --results", file=sys.stderr)
        sys.exit(2)
