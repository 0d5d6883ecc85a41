rule sample:
    input:
        run=lambda wildcards: "artifacts/runs/{run}/{phase}".format(**entries["sample"][wildcards.key]),
        vae=lambda wildcards: f"artifacts/vae/{params.sample[wildcards.key].vae}",
        parts=parts_of("sample"),
    output:
        directory("artifacts/samples/{key}"),
    log:
        "logs/sample/{key}.log",
    benchmark:
        "logs/benchmarks/sample/{key}.tsv"
    threads: SHARE
    params:
        entry_of("sample"),
    shell:
        "maskdit sample {wildcards.key} --run {input.run} --vae {input.vae} --out {output} 2>&1 | tee {log}"


rule features:
    input:
        samples="artifacts/samples/{key}",
        extractor=lambda wildcards: f"artifacts/raw/{params.features[wildcards.key].extractor}",
        parts=parts_of("features"),
    output:
        directory("artifacts/features/{key}"),
    log:
        "logs/features/{key}.log",
    benchmark:
        "logs/benchmarks/features/{key}.tsv"
    threads: SHARE
    params:
        entry_of("features"),
    shell:
        "maskdit features {wildcards.key} --samples {input.samples} --extractor {input.extractor} --out {output} 2>&1 | tee {log}"


rule evaluate:
    input:
        features="artifacts/features/{key}",
        reference=lambda wildcards: f"artifacts/reference/{params.evaluate[wildcards.key].dataset}",
    output:
        "results/metrics/{bench}/{key}.json",
    log:
        "logs/evaluate/{bench}/{key}.log",
    benchmark:
        "logs/benchmarks/evaluate/{bench}/{key}.tsv"
    threads: SHARE
    params:
        entry_of("evaluate"),
    shell:
        "maskdit evaluate {wildcards.key} --features {input.features} --reference {input.reference} --out {output} 2>&1 | tee {log}"


rule reconstruct:
    input:
        images=lambda wildcards: f"artifacts/raw/{params.reconstruct[wildcards.key].dataset}",
        vae=lambda wildcards: f"artifacts/vae/{params.reconstruct[wildcards.key].vae}",
        extractor=lambda wildcards: f"artifacts/raw/{params.reconstruct[wildcards.key].extractor}",
    output:
        "results/reconstructions/{bench}/{key}.json",
    log:
        "logs/reconstruct/{bench}/{key}.log",
    benchmark:
        "logs/benchmarks/reconstruct/{bench}/{key}.tsv"
    threads: SHARE
    params:
        entry_of("reconstruct"),
    shell:
        "maskdit reconstruct {wildcards.key} --images {input.images} --vae {input.vae} --extractor {input.extractor} --out {output} 2>&1 | tee {log}"


rule calibrate:
    input:
        images=lambda wildcards: f"artifacts/raw/{params.calibrate[wildcards.key].dataset}",
        reference=lambda wildcards: f"artifacts/reference/{params.calibrate[wildcards.key].reference}",
        extractor=lambda wildcards: f"artifacts/raw/{params.calibrate[wildcards.key].extractor}",
    output:
        "results/calibrate_{key}.csv",
    log:
        "logs/calibrate/{key}.log",
    threads: SHARE
    params:
        entry_of("calibrate"),
    shell:
        "maskdit calibrate {wildcards.key} --images {input.images} --reference {input.reference} --extractor {input.extractor} --out {output} 2>&1 | tee {log}"
