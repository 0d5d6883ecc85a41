# Parts of a step as separate jobs: each makes its shards and publishes nothing; the step itself then collects all shards.


rule encode_part:
    input:
        made_before("encode"),
    output:
        temp(touch(".scratch/parts/encode/{key}/{scatteritem}")),
    log:
        "logs/encode/{key}/{scatteritem}.log",
    threads: SHARE
    params:
        part=part_of,
    shell:
        "maskdit encode {wildcards.key} --part {params.part}"


rule reference_part:
    input:
        made_before("reference"),
    output:
        temp(touch(".scratch/parts/reference/{key}/{scatteritem}")),
    log:
        "logs/reference/{key}/{scatteritem}.log",
    threads: SHARE
    params:
        part=part_of,
    shell:
        "maskdit reference {wildcards.key} --part {params.part}"


rule sample_part:
    input:
        made_before("sample"),
    output:
        temp(touch(".scratch/parts/sample/{key}/{scatteritem}")),
    log:
        "logs/sample/{key}/{scatteritem}.log",
    threads: SHARE
    params:
        part=part_of,
    shell:
        "maskdit sample {wildcards.key} --part {params.part}"


rule features_part:
    input:
        made_before("features"),
    output:
        temp(touch(".scratch/parts/features/{key}/{scatteritem}")),
    log:
        "logs/features/{key}/{scatteritem}.log",
    threads: SHARE
    params:
        part=part_of,
    shell:
        "maskdit features {wildcards.key} --part {params.part}"
