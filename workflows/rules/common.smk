# The profile, its runs, and what each rule's parameters say of code and configuration.

import os
import shlex
import sys

from harness.config import digest
from harness.errors import UserError
from harness.provenance import source_hash
from harness.validation import suggest
from harness.verbs.train import source_modules
from harness.workspace import DEFAULT_RESULTS, TEACHER, RunAddress, Workspace

from harness.method import get_method

unknown = sorted(set(config) - {"profile"})
if unknown:
    sys.exit(f"error: unknown config key {unknown[0]!r}; {suggest(unknown[0], ['profile'])}")
try:
    PROFILE = str(config.get("profile", "digits"))
    WORKSPACE = Workspace(PROFILE)
    ADDRESSES = {str(address.folder): address for address in WORKSPACE.runs()}
    SETTINGS = {folder: WORKSPACE.settings(address) for folder, address in ADDRESSES.items()}
except UserError as error:
    sys.exit(f"error: {error}")

ROOT = str(WORKSPACE.root)
RUN = f"{ROOT}/{{backend}}/{{run}}/seed{{seed}}"
# The command of the environment that Snakemake itself runs in, whether or not it was activated.
shell.prefix(f"export PATH={shlex.quote(os.path.dirname(sys.executable))}:$PATH; ")


wildcard_constraints:
    backend="|".join(WORKSPACE.profile.backends),
    seed="[0-9]+",
    run="[^/]+/[^/]+/[^/]+",


def address_of(wildcards):
    """The run that a path belongs to."""
    return ADDRESSES[f"{wildcards.backend}/{wildcards.run}/seed{wildcards.seed}"]


def run_options(wildcards):
    """The command-line options that name a run."""
    run = address_of(wildcards)
    return f"--backend {run.backend} --method {run.method} --variant {run.variant} --student {run.student} --seed {run.seed}"


def training_source(wildcards):
    """A hash of the code that a training run depends on."""
    run = address_of(wildcards)
    return source_hash(*source_modules(run.backend, get_method(run.method)))


def training_config(wildcards):
    """A digest of the configuration that a training run depends on."""
    return digest(WORKSPACE.run_config(address_of(wildcards)))
