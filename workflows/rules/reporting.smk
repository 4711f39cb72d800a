# Tables, figures and the report.

RECORDS = [f"{ROOT}/reference/metrics-real-data.json", *records_of(RUNS)]
SELECTED = [record for run in EVALUATED for record in selected_records_of(run)]
ABLATION_RECORDS = [*RECORDS, *records_of(ABLATIONS)]


rule table:
    input:
        RECORDS,
        SELECTED,
    output:
        report(f"{ROOT}/tables/main.html", category="Tables", caption="../report/main.rst"),
        report(f"{ROOT}/tables/published.html", category="Tables", caption="../report/published.rst"),
        expand(f"{ROOT}/tables/{{name}}.{{kind}}", name=["main", "published"], kind=["csv", "md", "tex"]),
        expand(
            f"{ROOT}/tables/{{name}}.{{kind}}",
            name=["statistics", "comparisons"] + ["selection"] * bool(SELECTED),
            kind=["csv", "md"],
        ),
    log:
        f"{ROOT}/logs/table.log",
    params:
        profile=shlex.quote(PROFILE),
        source=source_hash("harness.verbs.table"),
        templates=template_digest(),
        published=published_digest(),
    shell:
        "fewstep table --profile {params.profile} > {log} 2>&1"


rule figures:
    input:
        RECORDS,
        SELECTED,
        f"{ROOT}/data/heldout.npz",
    output:
        directory(f"{ROOT}/figures"),
    log:
        f"{ROOT}/logs/figures.log",
    params:
        profile=shlex.quote(PROFILE),
        source=source_hash("harness.verbs.figures"),
    shell:
        "fewstep figures --profile {params.profile} > {log} 2>&1"


rule claims:
    input:
        RECORDS,
    output:
        expand(f"{ROOT}/tables/claims.{{kind}}", kind=["csv", "md"]),
    log:
        f"{ROOT}/logs/claims.log",
    params:
        profile=shlex.quote(PROFILE),
        source=source_hash(
            "harness.verbs.claims",
            "harness.moment_matching",
            "baselines.diff_instruct",
            *[f"harness.backends.{backend}" for backend in WORKSPACE.profile.backends],
        ),
    shell:
        "fewstep claims --profile {params.profile} > {log} 2>&1"


rule report:
    input:
        RECORDS,
        SELECTED,
        rules.figures.output,
        rules.extractor.output,
        CLIP_REPORT,
        rules.claims.output,
    output:
        report(f"{ROOT}/report.html", category="Report", caption="../report/report.rst"),
    log:
        f"{ROOT}/logs/report.log",
    params:
        profile=shlex.quote(PROFILE),
        source=source_hash("harness.verbs.report"),
        templates=template_digest(),
        published=published_digest(),
    shell:
        "fewstep report --profile {params.profile} > {log} 2>&1"


rule all_ablations:
    input:
        ABLATION_RECORDS,
    output:
        report(f"{ROOT}/ablations/main.html", category="Ablations", caption="../report/ablations.rst"),
        expand(f"{ROOT}/ablations/main.{{kind}}", kind=["csv", "md", "tex"]),
        directory(f"{ROOT}/ablations/figures"),
    log:
        f"{ROOT}/logs/ablations.log",
    params:
        profile=shlex.quote(PROFILE),
        source=source_hash("harness.verbs.ablations"),
        templates=template_digest(),
    shell:
        "fewstep ablations --profile {params.profile} > {log} 2>&1"


# No output: it is done whenever it is asked for, and the JUnit file must survive a regression.
rule check:
    input:
        records_of([run for run in RUNS if run.seed in WORKSPACE.profile.seeds]),
    log:
        f"{ROOT}/logs/check.log",
    params:
        profile=shlex.quote(PROFILE),
        junit=shlex.quote(f"{ROOT}/check.xml"),
    shell:
        "fewstep check --profile {params.profile} --junit {params.junit} > {log} 2>&1"
