"""A hook of MkDocs for make docs-site: the README is the first page, and one page lists what the library exports."""

import ast
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]


def homes() -> dict[str, tuple[str, ...]]:
    """The modules that the library's names come from, without an import of the package."""
    tree = ast.parse((ROOT / "src" / "maskdit" / "__init__.py").read_text(encoding="utf-8"))
    [value] = [node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_HOMES"]
    return ast.literal_eval(value)


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages that are no files of docs/."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    readme = re.sub(r"\]\(docs/", "](", readme)
    readme = re.sub(r"\[([^\]]*)\]\((?!https?:)([A-Z]\w+(?:\.md)?)\)", r"\1", readme)  # files beside it, which the site has not
    names = "".join(f"::: maskdit.{home}.{name}\n\n" for home, those in homes().items() for name in those)
    for name, text in (("index.md", readme), ("api.md", f"# What the library exports\n\n{names}")):
        files.append(File.generated(config, name, content=text))
    return files
