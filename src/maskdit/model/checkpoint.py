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


def save(path: Path, tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> None:
    """Write tensors and a JSON-serialisable description atomically."""
    ready = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    with replacing(path, sum(tensor.nbytes for tensor in ready.values())) as temporary:
        save_file(ready, temporary, {"maskdit": json.dumps(facts)})


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; rerun the training that makes it") from None
    except (SafetensorError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: damaged, or not a checkpoint of maskdit ({error}); rerun the training if it makes it") from None


def is_ours(path: Path) -> bool:
    """Whether a safetensors file is a checkpoint of this project. Raises UserError if it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
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


def load(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors on the CPU and their description. Raises UserError as `facts` does."""
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, facts(path)  # noqa: SIM118, not a dict
