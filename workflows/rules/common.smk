# The profile, its runs, and what each rule's parameters say of code and configuration.

import os
import shlex
import sys
from pathlib import Path

import harness.reporting
from harness import text_encoders
from harness.addresses import TEACHER, guidance_suffix
from harness.config import digest
from harness.datasets import LOADERS
from harness.errors import UserError
from harness.registry import get_method
from harness.metrics.extractors import module_of, require_available, require_clip
from harness.provenance import source_hash
from harness.reporting.published import PUBLISHED, load_tables, tables_for
from harness.training import SECOND_MOMENTS, SNAPSHOTS
from harness.validation import suggest
from harness.verbs.train import source_modules
from harness.workspace import Workspace

unknown = sorted(set(config) - {"profile"})
if unknown:
    sys.exit(f"error: unknown config key {unknown[0]!r}; {suggest(unknown[0], ['profile'])}")
try:
    PROFILE = str(config.get("profile", "digits"))
    WORKSPACE = Workspace(PROFILE)
    tables_for(WORKSPACE.profile, load_tables())  # a wrong table is told now, not after the last run
    require_available(WORKSPACE.profile.extractor)
    JUDGES = [module_of(WORKSPACE.profile.extractor)]
    if WORKSPACE.profile.text is not None:
        text_encoders.require_available(WORKSPACE.profile.text)
    if WORKSPACE.profile.evaluation.clip is not None:
        require_clip(WORKSPACE.profile.evaluation.clip)
        require_available(WORKSPACE.profile.evaluation.clip)
        JUDGES.append(module_of(WORKSPACE.profile.evaluation.clip))
    RUNS, ABLATIONS = WORKSPACE.runs(), WORKSPACE.ablations()
    ADDRESSES = {str(address.folder): address for address in RUNS + ABLATIONS}
    SETTINGS = {folder: WORKSPACE.settings(address) for folder, address in ADDRESSES.items()}
    EVALUATED = [run for run in RUNS if WORKSPACE.during(run)]
    GUIDANCE_OF_PAIRS = {guidance_suffix(run.guidance): run.guidance for run in ADDRESSES.values()}
    PAIRS_FOR = {folder for folder, run in ADDRESSES.items() if run.method != TEACHER and WORKSPACE.needs_pairs(run)}
    for run in RUNS + ABLATIONS:
        WORKSPACE.require_pretrained(run)
except UserError as error:
    sys.exit(f"error: {error}")

ROOT = str(WORKSPACE.root)
DATA_SETS = [data for data in (WORKSPACE.profile.data, WORKSPACE.profile.heldout) if data is not None]
CLIP_REPORT = [] if WORKSPACE.profile.evaluation.clip is None else [str(WORKSPACE.clip_report)]
# What networks are conditioned on and images are drawn for, where that is text.
TEXTS = [] if WORKSPACE.profile.text is None else [str(WORKSPACE.text(split)) for split in ("train", "heldout")]
RUN = f"{ROOT}/{{backend}}/{{run}}/seed{{seed}}"
# Runs that differ in seed or step count alone share JAX's compilations, which take seconds.
JAX_CACHE = os.environ.get("JAX_COMPILATION_CACHE_DIR", os.path.abspath(f"{ROOT}/jax-cache"))
# The command of the environment that Snakemake itself runs in, whether or not it was activated.
shell.prefix(
    f"export PATH={shlex.quote(os.path.dirname(sys.executable))}:$PATH"
    f" JAX_COMPILATION_CACHE_DIR={shlex.quote(JAX_CACHE)}; "
)


wildcard_constraints:
    backend="|".join(WORKSPACE.profile.backends),
    seed="[0-9]+",
    run="[^/]+/[^/]+/[^/]+",


def address_of(wildcards):
    """The run that a path belongs to."""
    return ADDRESSES[f"{wildcards.backend}/{wildcards.run}/seed{wildcards.seed}"]


def records_of(runs):
    """The records of all settings of these runs."""
    return [f"{ROOT}/{run.folder}/metrics-{setting.name}.json" for run in runs for setting in SETTINGS[str(run.folder)]]


def selected_records_of(run):
    """The records of the best of a run's evaluations during training."""
    return [str(WORKSPACE.selected(run, setting)) for setting in SETTINGS[str(run.folder)]]


def run_options(wildcards):
    """The command-line options that name a run."""
    run = address_of(wildcards)
    named = f"--backend {run.backend} --method {run.method} --variant {run.variant} --student {run.student} --seed {run.seed}"
    return f"{named} --guidance {run.guidance:g}" if run.guidance else named


def origins(wildcards):
    """The files of other runs that a student is trained from."""
    run = address_of(wildcards)
    teacher = WORKSPACE.teacher(run)
    files = [WORKSPACE.checkpoint(teacher), WORKSPACE.run(teacher) / SECOND_MOMENTS]
    if WORKSPACE.parent(run) != teacher:
        files.append(WORKSPACE.checkpoint(WORKSPACE.parent(run)))
    if str(run.folder) in PAIRS_FOR:
        files.append(WORKSPACE.pairs(teacher, run.guidance))
    return [str(path) for path in files]


def training_summaries(wildcards):
    """What a run and the students that it comes from say of their training."""
    return [f"{ROOT}/{run.folder}/train.json" for run in WORKSPACE.chain(address_of(wildcards))]


def template_digest():
    """A digest of the templates and styles that tables and report are rendered with."""
    folder = Path(harness.reporting.__file__).parent
    return digest({path.name: path.read_text() for path in [*folder.glob("*.jinja"), *folder.glob("*.css")]})


def published_digest():
    """A digest of the published numbers that stand beside or below the results."""
    return digest({path.name: path.read_text() for path in [*PUBLISHED.glob("*.csv"), *PUBLISHED.glob("*.yaml")]})


def training_source(wildcards):
    """A hash of the code that a training run depends on."""
    run = address_of(wildcards)
    return source_hash(*source_modules(run.backend, get_method(run.method)))


def training_config(wildcards):
    """A digest of the configuration that a training run depends on."""
    return digest(WORKSPACE.run_config(address_of(wildcards)))
