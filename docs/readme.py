"""What README and docs/ show of results/: `make docs` copies it into docs/ and rewrites their marked blocks.

The strip of samples and the benchmark cannot be made from records. If results/ lacks them, docs/ keeps what it has.
"""

import re
import sys
from itertools import chain
from pathlib import Path

import pandas as pd

from maskdit.artifacts.atomic import replacing
from maskdit.config.base import UserError
from maskdit.config.load import load
from maskdit.config.params import Params
from maskdit.reporting.table_formats import markdown

RESULTS, DOCS, README = Path("results"), Path("docs"), Path("README.md")
CLAIMS, PERFORMANCE = DOCS / "claims.md", DOCS / "performance.md"
BENCH = ("bench_cpu.md", "bench_cpu.png")
SHOWN = (
    "curves_{}.png",
    "curves_{}.csv",
    "curves_{}_crossing.csv",
    "strip_{}.png",
    "table_{}.csv",
    "table_{}.md",
    "efficiency_{}.md",
)
COLUMNS = {"claim": "id", "says": "claim", "paper": "paper", "ours": "ours", "tolerance": "noise", "verdict": "verdict"}


def found(name: str, kept: Path | None = None) -> Path:
    """A file of the results, or else the one that docs/ has kept of it; raises UserError if there is neither."""
    path = RESULTS / name
    if path.exists():
        return path
    if kept and kept.exists():
        return kept
    raise UserError(f"{path}: no such file; make it first, with snakemake {path}")


def evidence(params: Params, study: str) -> list[str]:
    """The names of all that is kept of a study: what is shown, what that says in numbers, and the records with their manifests."""
    shown = params.entry("report", study)
    apart = {f"{study}-ablation": [f"table_{study}-ablation.md"]}  # study -> its sheets, which exist if it has been run
    apart |= {sweep: [f"sweep_{sweep}.{suffix}" for suffix in ("md", "csv", "png")] for sweep in shown.sweeps}
    run = {bench: sheets for bench, sheets in apart.items() if (RESULTS / sheets[0]).exists()}
    records = [f"metrics/{bench}/{name}.json" for bench in (study, *run) for name in params.of(bench)]
    return [*(name.format(study) for name in SHOWN), f"{shown.ledger}.csv", *chain.from_iterable(run.values()), *records]


def opening(params: Params, study: str) -> str:
    """The curves of a study, and what they say of the time to the baseline's last two milestones."""
    crossings = pd.read_csv(found(f"curves_{study}_crossing.csv"), dtype=str)
    last = crossings[crossings["axis"] == "device_hours"].groupby("model", sort=False).tail(2)
    told = "".join(f"- {line}\n" for line in last["reads"])
    judged = pd.read_csv(found(f"{params.entry('report', study).ledger}.csv"), dtype=str)
    page = "[docs/claims.md](docs/claims.md)"
    for row in judged[judged["from"].fillna("").str.contains(f"curves_{study}_")].itertuples():
        if row.verdict == "UNTESTABLE HERE":
            told += f"- This study cannot test the claim '{row.says}': {row.direction}. {page} has the control.\n"
        else:
            told += f"- The claim '{row.says}', at this size: {row.verdict}, {row.ours}. {page} explains the verdict.\n"
    return f"![{params.entry('curves', study).title}](docs/{study}/curves_{study}.png)\n\n{told}"


def claims(params: Params, study: str) -> str:
    """Each claim with its verdict."""
    rows = pd.read_csv(found(f"{params.entry('report', study).ledger}.csv"), dtype=str)[[*COLUMNS]]
    return markdown(rows.rename(columns=COLUMNS))


def replaced(path: Path, text: str, name: str, contents: str) -> str:
    """The text with other contents in the block between <!-- name --> and <!-- /name -->; raises UserError if there is none."""
    block = re.compile(rf"(<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.S)
    if not block.search(text):
        raise UserError(f"{path}: has no block <!-- {name} --> … <!-- /{name} -->; insert it where it is to be")
    return block.sub(lambda begun: begun[1] + contents, text)


def refresh(study: str) -> None:
    """Nothing is written if a file or a block is missing."""
    params = load()
    names = evidence(params, study)
    places = {name: DOCS / study / name for name in names} | {name: DOCS / name for name in BENCH}
    lasting = {f"strip_{study}.png", *BENCH}
    sources = {name: found(name, place if name in lasting else None) for name, place in places.items()}
    files = {places[name]: source.read_bytes() for name, source in sources.items()}
    blocks = [(README, "opening", opening(params, study)), (CLAIMS, "claims", claims(params, study))]
    for path, block, name in (
        (CLAIMS, "table", f"table_{study}.md"),
        (CLAIMS, "ablation", f"table_{study}-ablation.md"),
        (PERFORMANCE, "bench", BENCH[0]),
    ):
        blocks += [(path, block, sources[name].read_text(encoding="utf-8"))] if name in sources else []
    texts = {path: path.read_text(encoding="utf-8") for path, _, _ in blocks}
    for path, block, contents in blocks:
        texts[path] = replaced(path, texts[path], block, contents)
    files |= {path: text.encode() for path, text in texts.items()}
    for path, data in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(data)


if __name__ == "__main__":
    try:
        refresh(sys.argv[1])
    except UserError as error:
        print(f"readme: {error}", file=sys.stderr)
        sys.exit(2)
