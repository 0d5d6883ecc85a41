"""Environment variables. An empty one counts as unset, and one that cannot be read is refused by name."""

import os
from contextlib import suppress
from importlib.util import find_spec

from maskdit.config.base import UserError

LARGEST = 2**31
MOST = 1024  # threads or processes on a machine
LOGGERS = ("tensorboard", "wandb", "dvclive")  # libraries that can also have a training's log


def variable(name: str) -> str | None:
    """The value of an environment variable; None if it is unset or empty."""
    return os.environ.get(name, "").strip() or None


def bf16_allowed() -> bool:
    """Whether oneDNN, which multiplies a CPU's matrices, may use its instructions for bf16: ONEDNN_MAX_CPU_ISA can forbid them."""
    limit = (variable("ONEDNN_MAX_CPU_ISA") or "ALL").upper()
    return limit in ("ALL", "DEFAULT") or limit.startswith("AVX10") or any(word in limit for word in ("BF16", "FP16", "AMX"))


def flag(name: str) -> bool:
    """Whether a variable is 1. Raises UserError if it is neither 0 nor 1."""
    if (text := variable(name)) in (None, "0", "1"):
        return text == "1"
    raise UserError(f"{name}: '{text}' is neither 0 nor 1; set one of them, or unset it")


def seconds(name: str, otherwise: float) -> float:
    """A duration. Raises UserError if it is not a number from 0 to 1e9."""
    text = variable(name) or str(otherwise)
    with suppress(ValueError):
        if 0 <= float(text) <= 1e9:
            return float(text)
    raise UserError(f"{name}: '{text}' is not a number of seconds; correct it or unset it")


def whole(name: str, least: int = 1, most: int = LARGEST) -> int | None:
    """A whole number; None if the variable is unset. Raises UserError if it is another text, or out of bounds."""
    if (text := variable(name)) is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 20 and least <= int(text) <= most):
        raise UserError(f"{name}: '{text}' is not a whole number from {least} to {most}; correct it or unset it")
    return int(text)


def loggers() -> list[str]:
    """The libraries that MASKDIT_LOG names; MASKDIT_TENSORBOARD, which sets its folder, names TensorBoard, too.

    Raises UserError for a name that is not known, and for a library that is not installed.
    """
    names = [name for name in map(str.strip, (variable("MASKDIT_LOG") or "").split(",")) if name]
    if strange := [name for name in names if name not in LOGGERS]:
        raise UserError(f"MASKDIT_LOG: '{strange[0]}' is none of {', '.join(LOGGERS)}; correct it or unset it")
    folder = variable("MASKDIT_TENSORBOARD") is not None
    found = [name for name in LOGGERS if name in names or (folder and name == "tensorboard")]
    if missing := [name for name in found if not installed(name)]:
        told = "MASKDIT_LOG" if missing[0] in names else "MASKDIT_TENSORBOARD"
        raise UserError(f"{told}: {missing[0]} is not installed; run pip install {missing[0]}, or unset the variable")
    return found


def installed(name: str) -> bool:
    """Whether a package can be imported. A mere folder of its name, as wandb and dvclive make here, is none."""
    try:
        spec = find_spec(name)
    except ValueError:  # imported without a specification
        return False
    return spec is not None and spec.origin is not None


def threads() -> int:
    """CPU threads of this process: MASKDIT_THREADS, else OMP_NUM_THREADS (set by Snakemake), else half of the cores.

    The workflow's rules also ask for half of the cores: another number of threads would change the last digits of the results.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return whole("MASKDIT_THREADS", most=MOST) or whole("OMP_NUM_THREADS", most=MOST) or max(1, cores // 2)


def visible_gpus() -> list[str] | None:
    """The numbers and UUIDs in CUDA_VISIBLE_DEVICES, none if it hides all GPUs, as an empty one does; None if it is not set."""
    if "CUDA_VISIBLE_DEVICES" not in os.environ:
        return None
    words = (word.strip() for word in os.environ["CUDA_VISIBLE_DEVICES"].split(","))
    return [word for word in words if word not in ("", "-1")]


def group() -> tuple[int, int] | None:
    """The rank of this process in its group and the group's size, by RANK and WORLD_SIZE; None if it is alone.

    Raises UserError if only one of the two is set, or if they do not fit together.
    """
    size = whole("WORLD_SIZE")
    if "RANK" not in os.environ and size in (None, 1):
        return None
    rank = whole("RANK", 0)
    if rank is None or size is None or rank >= size:
        told = " and ".join(f"{name} is {os.environ.get(name, 'not set') or 'empty'}" for name in ("RANK", "WORLD_SIZE"))
        raise UserError(f"{told}; set both, RANK below WORLD_SIZE, or unset both")
    return (rank, size) if size > 1 else None
