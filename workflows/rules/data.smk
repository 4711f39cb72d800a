# Images, the feature extractor, and reference statistics.


rule data:
    output:
        expand(f"{ROOT}/data/{{split}}.npz", split=["train", "heldout"]),
    log:
        f"{ROOT}/logs/data.log",
    params:
        profile=shlex.quote(PROFILE),
        source=source_hash("harness.verbs.data", *(LOADERS[data.name] for data in DATA_SETS)),
        config=[data.model_dump(mode="json") for data in DATA_SETS],
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
        source=source_hash("harness.verbs.extractor", *JUDGES),
        config=WORKSPACE.profile.extractor.content,
    shell:
        "fewstep extractor --profile {params.profile} > {log} 2>&1"


if WORKSPACE.profile.evaluation.clip is not None:

    rule clip:
        input:
            rules.data.output,
        output:
            f"{ROOT}/clip.json",
        log:
            f"{ROOT}/logs/clip.log",
        params:
            profile=shlex.quote(PROFILE),
            source=source_hash("harness.verbs.extractor", *JUDGES),
            config=WORKSPACE.profile.evaluation.clip.content,
        shell:
            "fewstep extractor --clip --profile {params.profile} > {log} 2>&1"

    rule retrain_clip:
        input:
            rules.data.output,
        output:
            f"{ROOT}/extractor/retrained-clip.safetensors",
        log:
            f"{ROOT}/logs/retrain_clip.log",
        params:
            profile=shlex.quote(PROFILE),
            source=source_hash("harness.verbs.extractor", *JUDGES),
        shell:
            "fewstep extractor --clip --profile {params.profile} --retrain {output} > {log} 2>&1"


rule retrain_extractor:
    input:
        rules.data.output,
    output:
        f"{ROOT}/extractor/retrained.safetensors",
    log:
        f"{ROOT}/logs/retrain_extractor.log",
    params:
        profile=shlex.quote(PROFILE),
        source=source_hash("harness.verbs.extractor", *JUDGES),
    shell:
        "fewstep extractor --profile {params.profile} --retrain {output} > {log} 2>&1"


if TEXTS:

    rule text:
        input:
            rules.data.output,
        output:
            TEXTS,
        log:
            f"{ROOT}/logs/text.log",
        threads: 1
        params:
            profile=shlex.quote(PROFILE),
            source=source_hash("harness.verbs.text", text_encoders.module_of(WORKSPACE.profile.text)),
            config=WORKSPACE.profile.text.model_dump(mode="json"),
        shell:
            "fewstep text --profile {params.profile} --threads {threads} > {log} 2>&1"


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
        source=source_hash("harness.verbs.reference", *JUDGES),
        config=WORKSPACE.record_digest(None),
    shell:
        "fewstep reference --profile {params.profile} > {log} 2>&1"
