rule pretrain:
    input:
        made_before("pretrain"),
    output:
        touch(".scratch/made/pretrain/{key}"),
    log:
        "logs/pretrain/{key}.log",
    benchmark:
        "logs/benchmarks/pretrain/{key}.tsv"
    priority: 1  # trainings take longest, so they start before any sampling
    container:
        IMAGE_OF_TRAINING
    threads: SHARE
    shell:
        "maskdit pretrain {wildcards.key}"


rule finetune:
    input:
        made_before("finetune"),
    output:
        touch(".scratch/made/finetune/{key}"),
    log:
        "logs/finetune/{key}.log",
    benchmark:
        "logs/benchmarks/finetune/{key}.tsv"
    priority: 1
    container:
        IMAGE_OF_TRAINING
    threads: SHARE
    shell:
        "maskdit finetune {wildcards.key}"


rule released:
    input:
        made_before("released"),
    output:
        touch(".scratch/made/released/{key}"),
    log:
        "logs/released/{key}.log",
    benchmark:
        "logs/benchmarks/released/{key}.tsv"
    shell:
        "maskdit released {wildcards.key}"
