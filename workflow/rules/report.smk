rule table:
    input:
        metrics_of,
    output:
        csv=report("results/table_{key}.csv", caption="../report/table.rst", category="Tables"),
        md="results/table_{key}.md",
        tex="results/table_{key}.tex",
        scores=directory("results/scores/{key}"),
    log:
        "logs/table/{key}.log",
    params:
        entry_of("table"),
    shell:
        "maskdit table {wildcards.key} --metrics results/metrics/{wildcards.key} --out {output.csv} 2>&1 | tee {log}"


rule recon:
    input:
        reconstructions_of,
    output:
        csv="results/recon_{key}.csv",
        md="results/recon_{key}.md",
    log:
        "logs/recon/{key}.log",
    params:
        entry_of("recon"),
    shell:
        "maskdit recon {wildcards.key} --metrics results/reconstructions/{wildcards.key} --out {output.csv} 2>&1 | tee {log}"


rule curves:
    input:
        metrics_of,
    output:
        csv="results/curves_{key}.csv",
        png=report("results/curves_{key}.png", caption="../report/curves.rst", category="Curves"),
        svg="results/curves_{key}.svg",
        crossing="results/curves_{key}_crossing.csv",
    log:
        "logs/curves/{key}.log",
    params:
        entry_of("curves"),
    shell:
        "maskdit curves {wildcards.key} --metrics results/metrics/{wildcards.key} --out {output.csv} 2>&1 | tee {log}"


rule efficiency:
    input:
        metrics_of,
    output:
        csv=report("results/efficiency_{key}.csv", caption="../report/efficiency.rst", category="Tables"),
        md="results/efficiency_{key}.md",
        tex="results/efficiency_{key}.tex",
    log:
        "logs/efficiency/{key}.log",
    params:
        entry_of("efficiency"),
    shell:
        "maskdit efficiency {wildcards.key} --metrics results/metrics/{wildcards.key} --out {output.csv} 2>&1 | tee {log}"


rule grid:
    input:
        images=lambda wildcards: f"artifacts/raw/{params.grid[wildcards.key].dataset}",
        samples=lambda wildcards: f"artifacts/samples/{params.grid[wildcards.key].sample}",
    output:
        report("results/grid_{key}.png", caption="../report/grid.rst", category="Samples"),
    log:
        "logs/grid/{key}.log",
    params:
        entry_of("grid"),
    shell:
        "maskdit grid {wildcards.key} --images {input.images} --samples {input.samples} --out {output} 2>&1 | tee {log}"


rule strip:
    input:
        metrics_of,  # made after the samples
    output:
        report("results/strip_{key}.png", caption="../report/strip.rst", category="Samples"),
    log:
        "logs/strip/{key}.log",
    params:
        entry_of("strip"),
    shell:
        "maskdit strip {wildcards.key} --results results --out {output} 2>&1 | tee {log}"


rule bench:
    output:
        csv="results/bench_{key}.csv",
        md="results/bench_{key}.md",
        png="results/bench_{key}.png",
        svg="results/bench_{key}.svg",
        waterfall="results/bench_{key}_waterfall.csv",
        factorial="results/bench_{key}_factorial.csv",
    log:
        "logs/bench/{key}.log",
    threads: SHARE
    params:
        entry_of("bench"),
    shell:
        "maskdit bench {wildcards.key} --out {output.csv} 2>&1 | tee {log}"


rule claims:
    input:
        evidence_of,
        against=against() or [],  # from the environment, which the command reads, too
    output:
        csv=report("results/{key}.csv", caption="../report/claims.rst", category="Claims"),
        md="results/{key}.md",
    log:
        "logs/claims/{key}.log",
    wildcard_constraints:
        key="|".join(params.claims),
    params:
        entry_of("claims"),
        *evidence_beside(),
    shell:
        "maskdit claims {wildcards.key} --results results --out {output.csv} 2>&1 | tee {log}"


rule report:
    input:
        metrics_of,
        table="results/table_{key}.csv",
        curves="results/curves_{key}.csv",
        crossing="results/curves_{key}_crossing.csv",
        efficiency="results/efficiency_{key}.csv",
        ledger=lambda wildcards: f"results/{params.report[wildcards.key].ledger}.csv",
        pictures=pictures_of,
    output:
        report("results/report_{key}.html", caption="../report/report.rst", category="Reports"),
    log:
        "logs/report/{key}.log",
    params:
        entry_of("report"),
    shell:
        "maskdit report {wildcards.key} --results results --out {output} 2>&1 | tee {log}"
