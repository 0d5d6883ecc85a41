rule sample:
    input:
        run=lambda wildcards: "artifacts/runs/{run}/{phase}".format(**config["sample"][wildcards.key]),
        vae=lambda wildcards: f"artifacts/vae/{params.sample[wildcards.key].vae}",
    output:
        directory("artifacts/samples/{key}"),
    log:
        "logs/sample/{key}.log",
    benchmark:
        "logs/benchmarks/sample/{key}.tsv"
    params:
        lookup(dpath="sample/{key}", within=config),
    message:
        "Sample {wildcards.key}"
    shell:
        "maskdit sample {wildcards.key} --run {input.run} --vae {input.vae} --out {output} 2>&1 | tee {log}"


rule features:
    input:
        samples="artifacts/samples/{key}",
    output:
        directory("artifacts/features/{key}"),
    log:
        "logs/features/{key}.log",
    benchmark:
        "logs/benchmarks/features/{key}.tsv"
    params:
        lookup(dpath="features/{key}", within=config),
    message:
        "Extract the features of {wildcards.key}"
    shell:
        "maskdit features {wildcards.key} --samples {input.samples} --out {output} 2>&1 | tee {log}"


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
    params:
        lookup(dpath="evaluate/{key}", within=config),
    message:
        "Evaluate {wildcards.key}"
    shell:
        "maskdit evaluate {wildcards.key} --features {input.features} --reference {input.reference} --out {output} 2>&1 | tee {log}"
