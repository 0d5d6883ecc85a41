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
    fashion,


rule demo:
    default_target: True
    input:
        "results/report_demo.html",  # which is made from all else that there is of the study


rule fashion:
    input:
        "results/report_fashion.html",
        "results/table_fashion-ablation.csv",
