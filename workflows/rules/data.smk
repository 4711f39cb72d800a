# Images, the feature extractor, and reference statistics.


rule data:
    output:
        expand(f"{ROOT}/data/{{split}}.npz", split=["train", "heldout"]),
    log:
        f"{ROOT}/logs/data.log",
    params:
        profile=shlex.quote(PROFILE),
        source=source_hash("harness.verbs.data", LOADERS[WORKSPACE.profile.data.name]),
        config=WORKSPACE.profile.data.model_dump(mode="json"),
    shell:
        "fewstep data --profile {params.profile} > {log} 2>&1"


rule extractor:
    input:
        rules.data.output,
    output:
        f"{ROOT}/extractor.json",
    log:
        f"{ROOT}/logs/extractor.log",
    params:
        profile=shlex.quote(PROFILE),
        source=source_hash("harness.verbs.extractor", EXTRACTOR),
    shell:
        "fewstep extractor --profile {params.profile} > {log} 2>&1"


rule retrain_extractor:
    input:
        rules.data.output,
    output:
        f"{ROOT}/extractor/retrained.safetensors",
    log:
        f"{ROOT}/logs/retrain_extractor.log",
    params:
        profile=shlex.quote(PROFILE),
        source=source_hash("harness.verbs.extractor", EXTRACTOR),
    shell:
        "fewstep extractor --profile {params.profile} --retrain {output} > {log} 2>&1"


rule reference:
    input:
        rules.data.output,
    output:
        expand(f"{ROOT}/reference/{{split}}.npz", split=["train", "heldout"]),
        f"{ROOT}/reference/metrics-real-data.json",
    log:
        f"{ROOT}/logs/reference.log",
    params:
        profile=shlex.quote(PROFILE),
        source=source_hash("harness.verbs.reference", EXTRACTOR),
        config=WORKSPACE.record_digest(None),
    shell:
        "fewstep reference --profile {params.profile} > {log} 2>&1"
