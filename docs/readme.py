"""What the README shows of results/: `make docs STUDY=demo` copies it into docs/ and rewrites the README's marked blocks."""

import re
import sys
from pathlib import Path

import pandas as pd

from maskdit.config import UserError
from maskdit.files import replacing
from maskdit.params import load
from maskdit.typeset import markdown

RESULTS, DOCS, README = Path("results"), Path("docs"), Path("README.md")
COPIED = ("curves_{study}.png", "curves_demo.png", "table_demo.md", "bench_cpu.png", "bench_cpu.md")
COLUMNS = {"claim": "id", "says": "claim", "paper": "paper", "ours": "ours", "verdict": "verdict"}


def found(name: str) -> Path:
    """A file of the results; raises UserError if it is not there."""
    path = RESULTS / name
    if not path.exists():
        raise UserError(f"{path}: no such file; make it first, with snakemake {path}")
    return path


def opening(study: str) -> str:
    """The curves of a study, and each claim with its verdict."""
    params = load()
    claims = pd.read_csv(found(f"{params.entry('report', study).ledger}.csv"), dtype=str)[[*COLUMNS]].rename(columns=COLUMNS)
    picture = f"![{params.entry('curves', study).title}](docs/curves_{study}.png)"
    return f"{picture}\n\n{markdown(claims)}"


def replaced(text: str, name: str, contents: str) -> str:
    """The text with other contents in the block between <!-- name --> and <!-- /name -->; raises UserError if there is none."""
    block = re.compile(rf"(<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.S)
    if not block.search(text):
        raise UserError(f"{README}: has no block <!-- {name} --> … <!-- /{name} -->; insert it where it is to be")
    return block.sub(lambda begun: begun[1] + contents, text)


def refresh(study: str) -> None:
    """Nothing is written if a file or a block is missing."""
    names = dict.fromkeys(name.format(study=study) for name in COPIED)
    files = {name: found(name).read_bytes() for name in names}
    text = README.read_text()
    blocks = {"opening": opening(study), "table": files["table_demo.md"].decode(), "bench": files["bench_cpu.md"].decode()}
    for name, contents in blocks.items():
        text = replaced(text, name, contents)
    for path, data in {**{DOCS / name: data for name, data in files.items()}, README: text.encode()}.items():
        with replacing(path) as temporary:
            temporary.write_bytes(data)


if __name__ == "__main__":
    try:
        refresh(sys.argv[1])
    except UserError as error:
        print(f"readme: {error}", file=sys.stderr)
        sys.exit(2)
