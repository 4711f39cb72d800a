# Teachers and students. What a killed run needs to go on lies undeclared in its resume/ folder.


rule teacher:
    input:
        f"{ROOT}/data/train.npz",
        TEXTS,
    output:
        f"{RUN}/teacher.safetensors",
        f"{RUN}/second_moments.safetensors",
        f"{RUN}/train.json",
        f"{RUN}/train.jsonl",
    log:
        f"{RUN}/train.log",
    benchmark:
        f"{RUN}/train.benchmark.tsv"
    wildcard_constraints:
        run=f"{TEACHER}/default/{TEACHER}",
    priority: 10
    threads: 1
    params:
        profile=shlex.quote(PROFILE),
        source=training_source,
        config=training_config,
    shell:
        "fewstep teacher --profile {params.profile} --backend {wildcards.backend} --seed {wildcards.seed}"
        " --threads {threads} > {log} 2>&1"


rule pairs:
    input:
        f"{ROOT}/data/train.npz",
        f"{RUN}/teacher.safetensors",
        TEXTS,
    output:
        f"{RUN}/pairs{{guided}}.safetensors",
    log:
        f"{RUN}/pairs{{guided}}.log",
    wildcard_constraints:
        run=f"{TEACHER}/default/{TEACHER}",
        guided="(-w[^/]+)?",
    threads: 1
    params:
        profile=shlex.quote(PROFILE),
        source=lambda wildcards: source_hash("harness.verbs.pairs", f"harness.backends.{wildcards.backend}"),
        config=lambda wildcards: digest(
            WORKSPACE.pairs_config(address_of(wildcards), GUIDANCE_OF_PAIRS[wildcards.guided])
        ),
        guidance=lambda wildcards: GUIDANCE_OF_PAIRS[wildcards.guided],
    shell:
        "fewstep pairs --profile {params.profile} --backend {wildcards.backend} --seed {wildcards.seed}"
        " --guidance {params.guidance} --threads {threads} > {log} 2>&1"


# Students, and those that keep states on the way, which are evaluated as well: an output has to be declared.
KEEPING = {run.name for run in EVALUATED}
STUDENTS = {
    "distill": ({run.name for run in ADDRESSES.values() if run.method != TEACHER} - KEEPING, []),
    "distill_keeping_snapshots": (KEEPING, [directory(f"{RUN}/{SNAPSHOTS}")]),
}


for stage, (runs, snapshots) in STUDENTS.items():
    if not runs:
        continue

    rule:
        name:
            stage
        input:
            f"{ROOT}/data/train.npz",
            TEXTS,
            origins,
        output:
            f"{RUN}/student.safetensors",
            f"{RUN}/train.json",
            f"{RUN}/train.jsonl",
            snapshots,
        log:
            f"{RUN}/train.log",
        benchmark:
            f"{RUN}/train.benchmark.tsv"
        wildcard_constraints:
            run="|".join(sorted(runs)),
        priority: 5
        threads: 1
        params:
            profile=shlex.quote(PROFILE),
            source=training_source,
            config=training_config,
            snapshot_every=lambda wildcards: WORKSPACE.training(address_of(wildcards))[0].snapshot_every,
            run=lambda wildcards: run_options(wildcards),
        shell:
            "fewstep distill --profile {params.profile} {params.run} --threads {threads} > {log} 2>&1"
