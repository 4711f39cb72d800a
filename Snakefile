# From data to tables: `snakemake --cores all` (profile digits), or with `--config profile=NAME`.

from snakemake.utils import min_version

min_version("9.20")


# The Python that requirements.lock is for. Jobs run in the environment of the snakemake that was called.
container: "docker://python:3.11"


report: "workflows/report/workflow.rst"


include: "workflows/rules/common.smk"
include: "workflows/rules/data.smk"
include: "workflows/rules/training.smk"
include: "workflows/rules/sampling.smk"
include: "workflows/rules/metrics.smk"
include: "workflows/rules/reporting.smk"


localrules:
    all,


rule all:
    default_target: True
    input:
        rules.table.output,
        rules.claims.output,
        rules.figures.output,
        rules.report.output,
        rules.extractor.output,
