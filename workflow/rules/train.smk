rule pretrain:
    input:
        latents=lambda wildcards: f"artifacts/latents/{params.pretrain[wildcards.key].dataset}",
    output:
        directory("artifacts/runs/{key}/pretrain"),
    log:
        "logs/pretrain/{key}.log",
    benchmark:
        "logs/benchmarks/pretrain/{key}.tsv"
    priority: 1  # the longest way to the end: before any sampling
    params:
        lookup(dpath="pretrain/{key}", within=config),
    message:
        "Pretrain {wildcards.key}"
    shell:
        "maskdit pretrain {wildcards.key} --latents {input.latents} --out {output} 2>&1 | tee {log}"


rule finetune:
    input:
        latents=lambda wildcards: f"artifacts/latents/{params.finetune[wildcards.key].dataset}",
        pretrained="artifacts/runs/{key}/pretrain",
    output:
        directory("artifacts/runs/{key}/finetune"),
    log:
        "logs/finetune/{key}.log",
    benchmark:
        "logs/benchmarks/finetune/{key}.tsv"
    priority: 1
    params:
        lookup(dpath="finetune/{key}", within=config),
    message:
        "Finetune {wildcards.key}"
    shell:
        "maskdit finetune {wildcards.key} --latents {input.latents} --pretrained {input.pretrained} --out {output} 2>&1 | tee {log}"
