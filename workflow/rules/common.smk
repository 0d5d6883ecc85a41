from pathlib import Path

from snakemake.exceptions import WorkflowError

from maskdit.cli import against
from maskdit.config.base import UserError
from maskdit.artifacts.manifest import inputs_of, lineage

# The commands read params.yaml themselves, so another configuration would change the graph but not the jobs.
if config != tree:
    raise WorkflowError("params.yaml is the only configuration; edit it instead of using --config or --configfile")


wildcard_constraints:
    key=r"[a-z0-9]+(-[a-z0-9]+)*",
    bench="|".join(params.table),


SHARE = max(1, (workflow.cores or 1) // 2)  # threads of a compute step, so that two trainings can run side by side


def entry_of(verb):
    """An entry of params.yaml as the parameters of a step, so that a change in it reruns the step."""

    def entry(wildcards):
        try:
            params.entry(verb, wildcards.key)
        except UserError as error:
            raise WorkflowError(str(error))
        return entries[verb][wildcards.key]

    return entry


def metrics_of(wildcards):
    """All evaluations of a benchmark, which its table and curves read."""
    return [f"results/metrics/{wildcards.key}/{key}.json" for key, entry in params.evaluate.items() if entry.bench == wildcards.key]


def reconstructions_of(wildcards):
    """All reconstructions of a benchmark."""
    made = params.reconstruct.items()
    return [f"results/reconstructions/{wildcards.key}/{key}.json" for key, entry in made if entry.bench == wildcards.key]


def evidence_of(wildcards):
    """The evaluations and the curves of a ledger's own study."""
    study = params.claims[wildcards.key].study
    made = [f"results/metrics/{study}/{key}.json" for key, entry in params.evaluate.items() if entry.bench == study]
    return [*made, f"results/curves_{study}_crossing.csv"]


def evidence_beside():
    """Existing results of other studies that ledgers use. A change in them reruns the ledgers; missing ones are not made."""
    results, own = Path("results"), {ledger.study for ledger in params.claims.values()}
    names = {name for ledger in params.claims.values() for name in ledger.evals}
    records = [path for path in results.glob("*/*/*.json") if path.stem in names and path.parent.name not in own]
    crossings = [path for path in results.glob("curves_*_crossing.csv") if path.stem.split("_")[1] not in own]
    return [f"{path} {path.stat().st_mtime_ns}" for path in sorted([*records, *crossings, *results.glob("bench_*.csv")])]


def current(name):
    """Whether an evaluation exists and was made with the current params.yaml."""
    try:
        return bool(lineage(inputs_of(Path(f"results/metrics/{params.evaluate[name].bench}/{name}.json")), params))
    except UserError:
        return False


def drawable(evals, *folders):
    """Whether a picture can be drawn without regenerating samples that were deleted after their evaluation."""
    needed = [*(f"artifacts/samples/{name}" for name in evals), *folders]
    return all(Path(path).exists() for path in needed) or not all(map(current, evals))


def pictures_of(wildcards):
    """The pictures to draw for a report. The report shows an older version of the others, or a note that they are missing."""
    grids = {name: params.grid[name] for name in params.report[wildcards.key].grids}
    pictures = [
        f"results/grid_{name}.png" for name, grid in grids.items() if drawable([grid.sample], f"artifacts/raw/{grid.dataset}")
    ]
    return pictures + [f"results/strip_{wildcards.key}.png"] * drawable(params.strip[wildcards.key].evals)


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
