"""Draw docs/rooms.svg: the folders of the package from the top down, their files, and which folders below each one imports."""

import ast
import sys
import tomllib
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "maskdit"
STYLE = (
    "rect{fill:#f4f6f8;stroke:#9aa7b4}text{font:12px sans-serif;fill:#1c2733}"
    ".room{font-weight:bold}.uses{fill:#7a4a00;font-size:11px}"
)
WIDE, NAME, LINE, GAP = 1180, 110, 16, 6  # pixels


def rooms() -> list[str]:
    """The folders and the file of the command line, from the top down, as the import contract has them."""
    [contract] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    return contract["layers"]


def sources(room: str) -> list[Path]:
    """The files of a room."""
    folder = PACKAGE / room
    return (
        sorted(path for path in folder.rglob("*.py") if path.name != "__init__.py") if folder.is_dir() else [PACKAGE / f"{room}.py"]
    )


def imported(room: str) -> set[str]:
    """The other rooms that a room imports."""
    nodes = [
        node
        for path in sources(room)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom)
    ]
    return {node.module.split(".")[1] for node in nodes if (node.module or "").startswith("maskdit.")} - {room}


def wrapped(words: list[str], width: int) -> list[str]:
    """Words in lines of at most so many letters."""
    lines = [""]
    for word in words:
        if len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] += f"{word} · "
    return lines


def drawing() -> str:
    """The picture."""
    parts, y = [], 4
    for room in rooms():
        below = [other for other in rooms() if other in imported(room)]
        files = wrapped([path.stem for path in sources(room)] if (PACKAGE / room).is_dir() else ["words to a step"], 92)
        uses = wrapped(below or ["-"], 52)
        high = max(len(files), len(uses)) * LINE + 10
        parts.append(f'<rect x="4" y="{y}" width="{WIDE - 8}" height="{high}" rx="5"/>')
        parts.append(f'<text class="room" x="14" y="{y + 17}">{escape(room)}</text>')
        for column, lines, kind in ((NAME + 14, files, "file"), (WIDE - 370, uses, "uses")):
            for place, line in enumerate(lines):
                parts.append(f'<text class="{kind}" x="{column}" y="{y + 17 + place * LINE}">{escape(line.rstrip(" ·"))}</text>')
        y += high + GAP
    label = "Folders of the package from the top down: name, files, and the folders below that each one imports"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{label}" width="{WIDE}" height="{y}">'
    return f"{head}<style>{STYLE}</style>{''.join(parts)}</svg>\n"


if __name__ == "__main__":
    Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "docs" / "rooms.svg").write_text(drawing(), encoding="utf-8")
