"""Checkpoints: safetensors files whose header describes the weights."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from maskdit.artifacts.atomic import replacing
from maskdit.config.base import UserError
from maskdit.runtime.environment import maps_files


def save(path: Path, tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> None:
    """Write tensors and a JSON-serialisable description atomically."""
    ready = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    with replacing(path, sum(tensor.nbytes for tensor in ready.values())) as temporary:
        save_file(ready, temporary, {"maskdit": json.dumps(facts)})


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
        raise UserError(f"{path}: not a checkpoint of maskdit ({error}); delete it and rerun the training that makes it") from None


def facts(path: Path) -> dict[str, Any]:
    """The description alone. Raises UserError if the file is missing, damaged or not a checkpoint of this project."""
    with _opened(path) as file:
        found = json.loads((file.metadata() or {})["maskdit"])
        if not isinstance(found, dict):
            raise TypeError("its description is not a dictionary")
        return found


def load(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors on the CPU and their description. Raises UserError as `facts` does."""
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, facts(path)  # noqa: SIM118, not a dict
