import os
import sys
from itertools import pairwise

from maskdit.artifacts.freshness import Freshness
from maskdit.artifacts.stamps import STALE, set_stamps, waits_for
from maskdit.cli import against
from maskdit.config.errors import fault
from maskdit.config.paths import demand_known
from maskdit.runtime.environment import image
from snakemake.settings.types import DeploymentMethod

# The commands read params.yaml themselves, so another configuration would change the graph but not the jobs.
if config != tree:
    raise WorkflowError("params.yaml is the only configuration; edit it instead of using --config or --configfile")


os.environ.update(MASKDIT_BARS="0")  # several steps share this terminal

# With --sdm apptainer each command runs in this image, but for trainings in a Slurm job: those start srun, which starts the image.
IMAGE = image()
IMAGE_OF_TRAINING = None if os.environ.get("SLURM_JOB_ID") else IMAGE
if DeploymentMethod.APPTAINER in workflow.deployment_settings.deployment_method:
    os.environ.update(MASKDIT_CONTAINER=IMAGE)
    if "://" not in IMAGE and not os.path.exists(IMAGE):
        raise WorkflowError(f"{IMAGE}: no such image; run apptainer build {IMAGE} containers/maskdit.def")


wildcard_constraints:
    key=r"[a-z0-9]+(-[a-z0-9]+)*",


SHARE = max(1, (workflow.cores or 1) // 2)  # threads of a compute step, so that two trainings can run side by side

# The manifests of the artifacts decide what is current, not the times of files: see maskdit.artifacts.freshness.
NO_TARGETS = {"--report", "--cleanup-metadata", "--cm"}  # options whose values are files, but no targets
fresh = Freshness(params) if workflow.is_main_process else None
if fresh:
    try:
        demand_known(params, (word for option, word in pairwise(sys.argv) if option not in NO_TARGETS))
        set_stamps(fresh)
        for line in fresh.moved_sources():
            print(line, file=sys.stderr)
    except UserError as error:
        raise WorkflowError(str(error))
    except OSError as error:
        raise WorkflowError(f"{error.filename}: {fault(error)}")


def before(verb, place):
    """The files that a job waits for; its command finds its inputs itself."""

    def files(wildcards):
        try:
            return waits_for(params, f"{verb}/{wildcards.key}", fresh)[place]
        except UserError as error:
            raise WorkflowError(str(error))

    return files


def made_before(verb):
    """Files whose update reruns the job."""
    return before(verb, 0)


def kept_before(verb):
    """Files that a current result shows, whose times do not matter."""
    return before(verb, 1)


def mark_of(verb):
    """The mark of a stale result, which is newer than the result."""

    def mark(wildcards):
        path = STALE / verb / wildcards.key
        return [path] if path.exists() else []

    return mark


# Steps that can be split into several jobs. A profile sets their number, for example set-scatter: [sample=16, encode=8].
scattergather:
    encode=1,
    reference=1,
    sample=1,
    features=1,


def parts_of(verb):
    """The marker files of a step's parts; none if the step is a single job."""

    def marks(wildcards):
        made = getattr(gather, verb)(f".scratch/parts/{verb}/{wildcards.key}/{{scatteritem}}")
        return made if len(made) > 1 else []

    return marks


def part_of(wildcards):
    """The part in the form of --part: 3/16 for 3-of-16."""
    return wildcards.scatteritem.replace("-of-", "/")
