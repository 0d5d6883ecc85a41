from snakemake.utils import min_version

min_version("9.0")


configfile: "params.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/parts.smk"


localrules:
    demo,


rule demo:
    default_target: True
    input:
        "results/table_demo.csv",
        "results/curves_demo.csv",
        "results/efficiency_demo.csv",
        [f"results/{key}.csv" for key, entry in config["claims"].items() if entry["study"] == "demo"],
        [f"results/grid_{key}.png" for key in config["grid"] if bench_of(key) == "demo"],
        "results/report_demo.html",
