rule fetch:
    input:
        made_before("fetch"),  # nothing, but a key that is unknown is refused
    output:
        touch(".scratch/made/fetch/{key}"),
    log:
        "logs/fetch/{key}.log",
    benchmark:
        "logs/benchmarks/fetch/{key}.tsv"
    shell:
        "maskdit fetch {wildcards.key}"


rule vae:
    input:
        made_before("vae"),
    output:
        touch(".scratch/made/vae/{key}"),
    log:
        "logs/vae/{key}.log",
    benchmark:
        "logs/benchmarks/vae/{key}.tsv"
    threads: SHARE
    shell:
        "maskdit vae {wildcards.key}"


rule encode:
    input:
        made_before("encode"),
        parts=parts_of("encode"),
    output:
        touch(".scratch/made/encode/{key}"),
    log:
        "logs/encode/{key}.log",
    benchmark:
        "logs/benchmarks/encode/{key}.tsv"
    threads: SHARE
    shell:
        "maskdit encode {wildcards.key}"


rule reference:
    input:
        made_before("reference"),
        parts=parts_of("reference"),
    output:
        touch(".scratch/made/reference/{key}"),
    log:
        "logs/reference/{key}.log",
    benchmark:
        "logs/benchmarks/reference/{key}.tsv"
    threads: SHARE
    shell:
        "maskdit reference {wildcards.key}"
