"""How something was made: the code, the numbers and the machine behind it, and the mark of that in what people read."""

import hashlib
import os
import platform
import struct
import subprocess
import sys
import zlib
from functools import cache
from html import escape
from importlib.metadata import version
from pathlib import Path

from maskdit.config.base import UserError
from maskdit.runtime.variables import flag, variable

LOCK = Path("requirements.lock")
CODE = ("src", str(LOCK))  # whose changes since the commit make it dirty: params.yaml and dvc.lock are recorded otherwise
VERSIONS = ("maskdit", "torch", "numpy", "diffusers")
HEAD = 33  # bytes of a PNG's signature and its first chunk
COMMENTS = {".md": "\n<!-- {} -->\n", ".tex": "% {}\n"}


def git(*arguments: str) -> str:
    """What git says, stripped; '' where there is no repository."""
    try:
        return subprocess.run(
            ["git", *arguments], capture_output=True, encoding="utf-8", errors="replace", check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


@cache
def processor() -> str:
    """The processor in words."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def device() -> str:
    """The GPU that torch sees, in words; cpu where there is none, or where the step needs none."""
    torch = sys.modules.get("torch")
    used = torch is not None and torch.cuda.is_available() and not variable("MASKDIT_DEVICE")
    return torch.cuda.get_device_name() if used and torch else "cpu"


def made_by() -> dict[str, str]:
    """Commit, lock, hardware and versions, for a manifest: nothing that identifies a person or a machine.

    Nor anything that changes by chance, for the same step gives the same bytes: what was spent is in the ledger.
    """
    commit = git("rev-parse", "HEAD")
    dirty = "+changes" if git("status", "--porcelain", "--untracked-files=no", "--", *CODE) else ""
    return {
        "commit": commit + dirty if commit else "unknown",
        "lock": hashlib.sha256(LOCK.read_bytes()).hexdigest() if LOCK.exists() else "none",
        "machine": platform.machine(),
        "processor": processor(),
        "cpus": str(os.cpu_count()),
        "device": device(),
        "deterministic": str(int(flag("MASKDIT_DETERMINISTIC"))),
        "python": platform.python_version(),
        **{name: version(name) for name in VERSIONS},
    }


def mark(node: str, config: str) -> str:
    """How a node was made, in a line; `config` is the hash of its numbers and those of all before it."""
    made = made_by()
    return f"maskdit {node}: commit {made['commit']}, config {config}, lock {made['lock']}"


def stamp(file: Path, text: str, suffix: str | None = None) -> None:
    """Write a line into a picture's metadata, or into Markdown or TeX as a comment; other files stay as they are.

    suffix: of the name that a temporary file will get.
    """
    suffix = file.suffix if suffix is None else suffix
    if suffix == ".png":
        data = file.read_bytes()
        body = b"tEXt" + b"Comment\0" + text.encode("latin-1", "replace")
        chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
        file.write_bytes(data[:HEAD] + chunk + data[HEAD:])
    elif suffix == ".svg":
        head, end, tail = file.read_text(encoding="utf-8").rpartition("</svg>")
        file.write_text(f"{head}<metadata>{escape(text)}</metadata>\n{end}{tail}", encoding="utf-8")
    elif suffix in COMMENTS:
        with file.open("a", encoding="utf-8") as stream:
            stream.write(COMMENTS[suffix].format(text))


def demand_own_picture(file: Path, verb: str) -> None:
    """Raise UserError if there is a file that is not a picture of this verb, by the line in its metadata."""
    if not file.exists():
        return
    with file.open("rb") as stream:
        head = stream.read(HEAD + 100)[HEAD:]
    if f"tEXtComment\0maskdit {verb}/".encode() not in head:
        raise UserError(f"{file}: exists and is not a picture of maskdit {verb}; move it away, or name another file")
