rule sample:
    input:
        made_before("sample"),
        parts=parts_of("sample"),
    output:
        touch(".scratch/made/sample/{key}"),
    log:
        "logs/sample/{key}.log",
    benchmark:
        "logs/benchmarks/sample/{key}.tsv"
    threads: SHARE
    shell:
        "maskdit sample {wildcards.key}"


rule features:
    input:
        made_before("features"),
        parts=parts_of("features"),
    output:
        touch(".scratch/made/features/{key}"),
    log:
        "logs/features/{key}.log",
    benchmark:
        "logs/benchmarks/features/{key}.tsv"
    threads: SHARE
    shell:
        "maskdit features {wildcards.key}"


rule evaluate:
    input:
        made_before("evaluate"),
    output:
        touch(".scratch/made/evaluate/{key}"),
    log:
        "logs/evaluate/{key}.log",
    benchmark:
        "logs/benchmarks/evaluate/{key}.tsv"
    threads: SHARE
    shell:
        "maskdit evaluate {wildcards.key}"


rule rescore:
    input:
        made_before("rescore"),
    output:
        touch(".scratch/made/rescore/{key}"),
    log:
        "logs/rescore/{key}.log",
    benchmark:
        "logs/benchmarks/rescore/{key}.tsv"
    threads: SHARE
    shell:
        "maskdit rescore {wildcards.key}"


rule reconstruct:
    input:
        made_before("reconstruct"),
    output:
        touch(".scratch/made/reconstruct/{key}"),
    log:
        "logs/reconstruct/{key}.log",
    benchmark:
        "logs/benchmarks/reconstruct/{key}.tsv"
    threads: SHARE
    shell:
        "maskdit reconstruct {wildcards.key}"


rule calibrate:
    input:
        made_before("calibrate"),
        stale=mark_of("calibrate"),
    output:
        update("results/calibrate_{key}.csv"),
    log:
        "logs/calibrate/{key}.log",
    threads: SHARE
    shell:
        "maskdit calibrate {wildcards.key}"
