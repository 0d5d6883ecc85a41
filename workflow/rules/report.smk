# Results: the files that people look at. Snakemake restores them if the job that updates them fails.


rule table:
    input:
        made_before("table"),
        stale=mark_of("table"),
    output:
        csv=report(update("results/table_{key}.csv"), caption="../report/table.rst", category="Tables"),
        md=update("results/table_{key}.md"),
        tex=update("results/table_{key}.tex"),
        scores=update(directory("results/scores/{key}")),
    log:
        "logs/table/{key}.log",
    shell:
        "maskdit table {wildcards.key}"


rule recon:
    input:
        made_before("recon"),
        stale=mark_of("recon"),
    output:
        csv=update("results/recon_{key}.csv"),
        md=update("results/recon_{key}.md"),
    log:
        "logs/recon/{key}.log",
    shell:
        "maskdit recon {wildcards.key}"


rule curves:
    input:
        made_before("curves"),
        stale=mark_of("curves"),
    output:
        csv=update("results/curves_{key}.csv"),
        png=report(update("results/curves_{key}.png"), caption="../report/curves.rst", category="Curves"),
        svg=update("results/curves_{key}.svg"),
        crossing=update("results/curves_{key}_crossing.csv"),
    log:
        "logs/curves/{key}.log",
    shell:
        "maskdit curves {wildcards.key}"


rule efficiency:
    input:
        made_before("efficiency"),
        stale=mark_of("efficiency"),
    output:
        csv=report(update("results/efficiency_{key}.csv"), caption="../report/efficiency.rst", category="Tables"),
        md=update("results/efficiency_{key}.md"),
        tex=update("results/efficiency_{key}.tex"),
    log:
        "logs/efficiency/{key}.log",
    shell:
        "maskdit efficiency {wildcards.key}"


rule sweep:
    input:
        made_before("sweep"),
        stale=mark_of("sweep"),
    output:
        csv=update("results/sweep_{key}.csv"),
        md=update("results/sweep_{key}.md"),
        tex=update("results/sweep_{key}.tex"),
        png=report(update("results/sweep_{key}.png"), caption="../report/sweep.rst", category="Curves"),
        svg=update("results/sweep_{key}.svg"),
    log:
        "logs/sweep/{key}.log",
    shell:
        "maskdit sweep {wildcards.key}"


rule grid:
    input:
        made_before("grid"),
        stale=mark_of("grid"),
    output:
        report(update("results/grid_{key}.png"), caption="../report/grid.rst", category="Samples"),
    log:
        "logs/grid/{key}.log",
    shell:
        "maskdit grid {wildcards.key}"


rule strip:
    input:
        made_before("strip"),
        stale=mark_of("strip"),
    output:
        report(update("results/strip_{key}.png"), caption="../report/strip.rst", category="Samples"),
    log:
        "logs/strip/{key}.log",
    shell:
        "maskdit strip {wildcards.key}"


rule bench:
    input:
        made_before("bench"),  # nothing, but a key that is unknown is refused
        stale=mark_of("bench"),
    output:
        csv=update("results/bench_{key}.csv"),
        md=update("results/bench_{key}.md"),
        png=update("results/bench_{key}.png"),
        svg=update("results/bench_{key}.svg"),
        waterfall=update("results/bench_{key}_waterfall.csv"),
        factorial=update("results/bench_{key}_factorial.csv"),
    log:
        "logs/bench/{key}.log",
    threads: SHARE
    shell:
        "maskdit bench {wildcards.key}"


rule claims:
    input:
        made_before("claims"),
        ancient(kept_before("claims")),
        stale=mark_of("claims"),
        against=against() or [],  # from the environment, which the command reads, too
    output:
        csv=report(update("results/{key}.csv"), caption="../report/claims.rst", category="Claims"),
        md=update("results/{key}.md"),
    log:
        "logs/claims/{key}.log",
    wildcard_constraints:
        key="|".join(params.claims),
    shell:
        "maskdit claims {wildcards.key}"


rule report:
    input:
        made_before("report"),
        ancient(kept_before("report")),
        stale=mark_of("report"),
    output:
        report(update("results/report_{key}.html"), caption="../report/report.rst", category="Reports"),
    log:
        "logs/report/{key}.log",
    shell:
        "maskdit report {wildcards.key}"
