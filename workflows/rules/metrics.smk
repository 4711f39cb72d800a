# One job scores all images of a run, and one all states that it kept while it trained.


for group, (names, runs) in GROUPS.items():

    rule:
        name:
            f"evaluate_{group}"
        input:
            [f"{RUN}/samples-{name}.npz" for name in names],
            f"{RUN}/sampling.json",
            training_summaries,
            rules.reference.output,
        output:
            [f"{RUN}/metrics-{name}.json" for name in names],
        log:
            f"{RUN}/evaluate.log",
        benchmark:
            f"{RUN}/evaluate.benchmark.tsv"
        wildcard_constraints:
            run="|".join(sorted(runs)),
        threads: 1
        params:
            profile=shlex.quote(PROFILE),
            source=source_hash("harness.verbs.evaluate", *JUDGES),
            config=lambda wildcards: WORKSPACE.record_digest(address_of(wildcards)),
            run=lambda wildcards: run_options(wildcards),
        shell:
            "fewstep evaluate --profile {params.profile} {params.run} --threads {threads} > {log} 2>&1"


for group, (names, runs) in GROUPS.items():
    if not runs & KEEPING:
        continue

    rule:
        name:
            f"select_{group}"
        input:
            f"{RUN}/student.safetensors",
            f"{RUN}/{SNAPSHOTS}",
            training_summaries,
            rules.reference.output,
            TEXTS,
        output:
            [f"{RUN}/selected-{name}.json" for name in names],
        log:
            f"{RUN}/select.log",
        benchmark:
            f"{RUN}/select.benchmark.tsv"
        wildcard_constraints:
            run="|".join(sorted(runs & KEEPING)),
        threads: 1
        params:
            profile=shlex.quote(PROFILE),
            source=lambda wildcards: source_hash(
                "harness.verbs.during", *JUDGES, f"harness.backends.{wildcards.backend}"
            ),
            config=lambda wildcards: WORKSPACE.selection_digest(address_of(wildcards)),
            run=lambda wildcards: run_options(wildcards),
        shell:
            "fewstep evaluate --during --profile {params.profile} {params.run} --threads {threads} > {log} 2>&1"
