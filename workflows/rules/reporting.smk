# Tables, figures and the report.

RECORDS = [f"{ROOT}/reference/metrics-real-data.json"] + [
    f"{ROOT}/{folder}/metrics-{setting.name}.json" for folder, settings in SETTINGS.items() for setting in settings
]


rule table:
    input:
        RECORDS,
    output:
        report(f"{ROOT}/tables/main.html", category="Tables", caption="../report/main.rst"),
        expand(f"{ROOT}/tables/main.{{kind}}", kind=["csv", "md", "tex"]),
    log:
        f"{ROOT}/logs/table.log",
    params:
        profile=shlex.quote(PROFILE),
        source=source_hash("harness.verbs.table"),
        templates=template_digest(),
    shell:
        "fewstep table --profile {params.profile} > {log} 2>&1"


rule figures:
    input:
        RECORDS,
    output:
        directory(f"{ROOT}/figures"),
    log:
        f"{ROOT}/logs/figures.log",
    params:
        profile=shlex.quote(PROFILE),
        source=source_hash("harness.verbs.figures"),
    shell:
        "fewstep figures --profile {params.profile} > {log} 2>&1"


rule report:
    input:
        RECORDS,
        rules.figures.output,
        rules.extractor.output,
    output:
        report(f"{ROOT}/report.html", category="Report", caption="../report/report.rst"),
    log:
        f"{ROOT}/logs/report.log",
    params:
        profile=shlex.quote(PROFILE),
        source=source_hash("harness.verbs.report"),
        templates=template_digest(),
    shell:
        "fewstep report --profile {params.profile} > {log} 2>&1"
