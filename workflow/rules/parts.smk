# Parts of a step as separate jobs: each makes its shards and publishes nothing; the step itself then collects all shards.


rule encode_part:
    input:
        images=lambda wildcards: f"artifacts/raw/{params.encode[wildcards.key].dataset}",
        vae=lambda wildcards: f"artifacts/vae/{params.encode[wildcards.key].vae}",
    output:
        temp(touch(".scratch/parts/encode/{key}/{scatteritem}")),
    log:
        "logs/encode/{key}/{scatteritem}.log",
    threads: SHARE
    params:
        entry_of("encode"),
        part=part_of,
    shell:
        "maskdit encode {wildcards.key} --images {input.images} --vae {input.vae} --out artifacts/latents/{wildcards.key} --part {params.part} 2>&1 | tee {log}"


rule reference_part:
    input:
        images=lambda wildcards: f"artifacts/raw/{params.reference[wildcards.key].dataset}",
        extractor=lambda wildcards: f"artifacts/raw/{params.reference[wildcards.key].extractor}",
    output:
        temp(touch(".scratch/parts/reference/{key}/{scatteritem}")),
    log:
        "logs/reference/{key}/{scatteritem}.log",
    threads: SHARE
    params:
        entry_of("reference"),
        part=part_of,
    shell:
        "maskdit reference {wildcards.key} --images {input.images} --extractor {input.extractor} --out artifacts/reference/{wildcards.key} --part {params.part} 2>&1 | tee {log}"


rule sample_part:
    input:
        run=lambda wildcards: "artifacts/runs/{run}/{phase}".format(**entries["sample"][wildcards.key]),
        vae=lambda wildcards: f"artifacts/vae/{params.sample[wildcards.key].vae}",
    output:
        temp(touch(".scratch/parts/sample/{key}/{scatteritem}")),
    log:
        "logs/sample/{key}/{scatteritem}.log",
    threads: SHARE
    params:
        entry_of("sample"),
        part=part_of,
    shell:
        "maskdit sample {wildcards.key} --run {input.run} --vae {input.vae} --out artifacts/samples/{wildcards.key} --part {params.part} 2>&1 | tee {log}"


rule features_part:
    input:
        samples="artifacts/samples/{key}",
        extractor=lambda wildcards: f"artifacts/raw/{params.features[wildcards.key].extractor}",
    output:
        temp(touch(".scratch/parts/features/{key}/{scatteritem}")),
    log:
        "logs/features/{key}/{scatteritem}.log",
    threads: SHARE
    params:
        entry_of("features"),
        part=part_of,
    shell:
        "maskdit features {wildcards.key} --samples {input.samples} --extractor {input.extractor} --out artifacts/features/{wildcards.key} --part {params.part} 2>&1 | tee {log}"
