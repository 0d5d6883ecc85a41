"""Checkpoints: safetensors files whose header describes the weights."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from maskdit.artifacts.atomic import replacing
from maskdit.config.base import UserError
from maskdit.runtime.environment import maps_files

CHUNK = 2**24  # bytes that are hashed and written at a time
KINDS = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64", torch.uint8: "U8"}


def save(path: Path, tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> str:
    """Write tensors and a JSON-serialisable description atomically. Returns the file's sha256, which is computed on the way.

    The bytes are those of safetensors' own writer, whose output can only be hashed by reading it again.
    """
    ready = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    header: dict[str, Any] = {"__metadata__": {"maskdit": json.dumps(facts)}}
    names, size, total = sorted(ready, key=lambda name: (-ready[name].element_size(), name)), 0, hashlib.sha256()
    for name in names:
        place = [size, size := size + ready[name].nbytes]
        header[name] = {"dtype": KINDS[ready[name].dtype], "shape": list(ready[name].shape), "data_offsets": place}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path, size) as temporary, temporary.open("wb") as stream:
        contents: Iterator[Any] = (ready[name].reshape(-1).view(torch.uint8).numpy() for name in names)
        for data in (len(text).to_bytes(8, "little"), text, *contents):
            for start in range(0, len(data), CHUNK):
                piece = memoryview(data)[start : start + CHUNK]
                total.update(piece)
                stream.write(piece)
    return total.hexdigest()


def backend() -> str:
    """How safetensors reads files; see `maps_files`."""
    return "mmap" if maps_files() else "pread"


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt", backend=backend()) as file:
            yield file
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; rerun the training that makes it") from None
    except (SafetensorError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: damaged, or not a checkpoint of maskdit ({error}); rerun the training if it makes it") from None


def is_ours(path: Path) -> bool:
    """Whether a safetensors file is a checkpoint of this project. Raises UserError if it is damaged."""
    try:
        with safe_open(path, framework="pt", backend=backend()) as file:
            return "maskdit" in (file.metadata() or {})
    except SafetensorError as error:
        raise UserError(f"{path}: damaged or truncated ({error}); get it again, or rerun the step that makes it") from None


def facts(path: Path) -> dict[str, Any]:
    """The description alone. Raises UserError if the file is missing, damaged or not a checkpoint of this project."""
    with _opened(path) as file:
        found = json.loads((file.metadata() or {})["maskdit"])
        if not isinstance(found, dict):
            raise TypeError("its description is not a dictionary")
        return found


def load(path: Path, *only: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors on the CPU, all or those of these names, and their description. Raises UserError as `facts` does."""
    with _opened(path) as file:
        names = [name for name in file.keys() if not only or name in only]  # noqa: SIM118, not a dict
        return {name: file.get_tensor(name) for name in names}, facts(path)
