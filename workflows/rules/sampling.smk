# One job draws all images of a run. A rule for each way of sampling, because the file names are its outputs.

SAMPLED_ALIKE = {}
for folder, settings in SETTINGS.items():
    names = tuple(setting.name for setting in settings)
    SAMPLED_ALIKE.setdefault(names, set()).add(ADDRESSES[folder].name)


# Each group's part of a rule's name: its only setting, or its students.
GROUPS = {}
for names, runs in SAMPLED_ALIKE.items():
    students = "_".join(sorted({run.split("/")[-1] for run in runs}))
    group = (names[0] if len(names) == 1 else students).replace("-", "_").replace(".", "_")
    GROUPS[group if group not in GROUPS else f"{group}_{len(GROUPS)}"] = (names, runs)


def sampling_config(wildcards):
    """What the images of a run depend on beside its weights."""
    return [
        WORKSPACE.profile.evaluation.n_samples,
        WORKSPACE.profile.teacher.sampling_noise,
    ]


for group, (names, runs) in GROUPS.items():

    rule:
        name:
            f"sample_{group}"
        input:
            lambda wildcards: f"{ROOT}/{address_of(wildcards).folder}/{get_method(address_of(wildcards).method).result}.safetensors",
            f"{RUN}/train.json",
            TEXTS,
        output:
            [f"{RUN}/samples-{name}.npz" for name in names],
            f"{RUN}/sampling.json",
        log:
            f"{RUN}/sample.log",
        benchmark:
            f"{RUN}/sample.benchmark.tsv"
        wildcard_constraints:
            run="|".join(sorted(runs)),
        threads: 1
        params:
            profile=shlex.quote(PROFILE),
            source=lambda wildcards: source_hash("harness.verbs.sample", f"harness.backends.{wildcards.backend}"),
            config=sampling_config,
            run=lambda wildcards: run_options(wildcards),
        shell:
            "fewstep sample --profile {params.profile} {params.run} --threads {threads} > {log} 2>&1"
