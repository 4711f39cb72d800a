# One job scores all images of a run.

for names, runs in SAMPLED_ALIKE.items():

    rule:
        name:
            f"evaluate_{'teacher' if len(names) > 1 else names[0].replace('-', '_')}"
        input:
            [f"{RUN}/samples-{name}.npz" for name in names],
            f"{RUN}/sampling.json",
            f"{RUN}/train.json",
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
            source=source_hash("harness.verbs.evaluate", "harness.metrics.digits_cnn"),
            run=lambda wildcards: run_options(wildcards),
        shell:
            "fewstep evaluate --profile {params.profile} {params.run} --threads {threads} > {log} 2>&1"
