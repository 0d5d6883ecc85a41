rule pretrain:
    input:
        latents=lambda wildcards: f"artifacts/latents/{params.pretrain[wildcards.key].dataset}",
    output:
        directory("artifacts/runs/{key}/pretrain"),
    log:
        "logs/pretrain/{key}.log",
    benchmark:
        "logs/benchmarks/pretrain/{key}.tsv"
    priority: 1  # trainings take longest, so they start before any sampling
    threads: SHARE
    params:
        entry_of("pretrain"),
    shell:
        "maskdit pretrain {wildcards.key} --latents {input.latents} --out {output} 2>&1 | tee -a {log}"


rule finetune:
    input:
        latents=lambda wildcards: f"artifacts/latents/{params.finetune[wildcards.key].dataset}",
        pretrained=lambda wildcards: f"artifacts/runs/{params.finetune[wildcards.key].run}/pretrain",
    output:
        directory("artifacts/runs/{key}/finetune"),
    log:
        "logs/finetune/{key}.log",
    benchmark:
        "logs/benchmarks/finetune/{key}.tsv"
    priority: 1
    threads: SHARE
    params:
        entry_of("finetune"),
    shell:
        "maskdit finetune {wildcards.key} --latents {input.latents} --pretrained {input.pretrained} --out {output} 2>&1 | tee -a {log}"


rule released:
    input:
        vae=lambda wildcards: f"artifacts/vae/{params.released[wildcards.key].vae}",
    output:
        directory("artifacts/runs/{key}/released"),
    log:
        "logs/released/{key}.log",
    benchmark:
        "logs/benchmarks/released/{key}.tsv"
    params:
        entry_of("released"),
    shell:
        "maskdit released {wildcards.key} --vae {input.vae} --out {output} 2>&1 | tee {log}"
