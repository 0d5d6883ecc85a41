rule fetch:
    output:
        directory("artifacts/raw/{key}"),
    log:
        "logs/fetch/{key}.log",
    benchmark:
        "logs/benchmarks/fetch/{key}.tsv"
    params:
        entry_of("fetch"),
    shell:
        "maskdit fetch {wildcards.key} --out {output} 2>&1 | tee {log}"


rule vae:
    input:
        images=lambda wildcards: f"artifacts/raw/{params.vae[wildcards.key].dataset}",
    output:
        directory("artifacts/vae/{key}"),
    log:
        "logs/vae/{key}.log",
    benchmark:
        "logs/benchmarks/vae/{key}.tsv"
    threads: SHARE
    params:
        entry_of("vae"),
    shell:
        "maskdit vae {wildcards.key} --images {input.images} --out {output} 2>&1 | tee {log}"


rule encode:
    input:
        images=lambda wildcards: f"artifacts/raw/{params.encode[wildcards.key].dataset}",
        vae=lambda wildcards: f"artifacts/vae/{params.encode[wildcards.key].vae}",
        parts=parts_of("encode"),
    output:
        directory("artifacts/latents/{key}"),
    log:
        "logs/encode/{key}.log",
    benchmark:
        "logs/benchmarks/encode/{key}.tsv"
    threads: SHARE
    params:
        entry_of("encode"),
    shell:
        "maskdit encode {wildcards.key} --images {input.images} --vae {input.vae} --out {output} 2>&1 | tee {log}"


rule reference:
    input:
        images=lambda wildcards: f"artifacts/raw/{params.reference[wildcards.key].dataset}",
        extractor=lambda wildcards: f"artifacts/raw/{params.reference[wildcards.key].extractor}",
        parts=parts_of("reference"),
    output:
        directory("artifacts/reference/{key}"),
    log:
        "logs/reference/{key}.log",
    benchmark:
        "logs/benchmarks/reference/{key}.tsv"
    threads: SHARE
    params:
        entry_of("reference"),
    shell:
        "maskdit reference {wildcards.key} --images {input.images} --extractor {input.extractor} --out {output} 2>&1 | tee {log}"
