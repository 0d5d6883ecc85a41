from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.utils import min_version

from maskdit.config.base import UserError
from maskdit.config.yaml_subset import read_file
from maskdit.config.load import validate

min_version("9.0")

try:
    tree = read_file(Path("params.yaml"))  # read as the commands do, with the same error messages
    params = validate(tree)
except UserError as error:
    raise WorkflowError(str(error))


configfile: "params.yaml"


include: "workflow/rules/common.smk"


container: IMAGE


include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/parts.smk"


# Rules of a second: under Slurm they run beside Snakemake, where a job of their own would take longer to start.
localrules:
    all,
    fashion,
    table,
    recon,
    curves,
    efficiency,
    sweep,
    claims,
    report,
    grid,
    strip,


rule all:
    default_target: True
    input:
        [f"results/report_{study}.html" for study in list(params.report)[:1]],  # which needs all other results of the study


rule fashion:
    input:
        "results/report_fashion.html",
