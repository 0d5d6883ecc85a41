import os

from maskdit.artifacts.freshness import Freshness
from maskdit.artifacts.stamps import STALE, set_stamps, waits_for
from maskdit.cli import against

# The commands read params.yaml themselves: another configuration would change the graph and not the jobs.
if config != tree:
    raise WorkflowError("params.yaml is the only configuration: edit it, --config and --configfile are refused")


os.environ["MASKDIT_BARS"] = "0"  # several steps share this terminal


wildcard_constraints:
    key=r"[a-z0-9]+(-[a-z0-9]+)*",


SHARE = max(1, (workflow.cores or 1) // 2)  # threads of a step that computes: two trainings side by side

# What is current is judged by the artifacts' manifests, not by the times of files: see maskdit.artifacts.freshness.
fresh = Freshness(params) if workflow.is_main_process else None
if fresh:
    try:
        set_stamps(fresh)
    except OSError as error:
        raise WorkflowError(f"{error.filename}: {error.strerror}; Snakemake plans by the files in there")


def before(verb, place):
    """What a job waits for; its command finds its inputs by itself."""

    def files(wildcards):
        try:
            return waits_for(params, f"{verb}/{wildcards.key}", fresh)[place]
        except UserError as error:
            raise WorkflowError(str(error))

    return files


def made_before(verb):
    """What makes a job run again when it is made again."""
    return before(verb, 0)


def kept_before(verb):
    """What a result shows that is as current as the result, whatever the times of the two."""
    return before(verb, 1)


def mark_of(verb):
    """The mark of a result that is stale, without which Snakemake would take it for made."""

    def mark(wildcards):
        path = STALE / verb / wildcards.key
        return [path] if path.exists() else []

    return mark


# Steps that can be cut into jobs of their own, and into how many: a profile says set-scatter: [sample=16, encode=8].
scattergather:
    encode=1,
    reference=1,
    sample=1,
    features=1,


def parts_of(verb):
    """The marks that the parts of a step leave; none where it is one job."""

    def marks(wildcards):
        made = getattr(gather, verb)(f".scratch/parts/{verb}/{wildcards.key}/{{scatteritem}}")
        return made if len(made) > 1 else []

    return marks


def part_of(wildcards):
    """3-of-16 as the command line wants it."""
    return wildcards.scatteritem.replace("-of-", "/")
