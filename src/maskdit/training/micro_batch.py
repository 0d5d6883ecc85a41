"""How many images a rank takes at once: as given, or chosen from the memory that there is."""

from contextlib import suppress
from pathlib import Path
from threading import Event

import torch

from maskdit.artifacts.atomic import write_json
from maskdit.config.base import UserError
from maskdit.config.training import Training
from maskdit.methods.contract import Method
from maskdit.model.memory import Memory, step_memory
from maskdit.runtime.device import free_memory, half
from maskdit.runtime.process_group import Ranks
from maskdit.runtime.progress import say

SURE = 0.9  # of the estimate is certainly needed


def fitted(phase: str, config: Training, method: Method, weights: int, where: torch.device, ranks: Ranks, home: Path) -> Training:
    """The entry with a number in place of `micro_batch: auto`. Call it before the network is on its device.

    A number that was chosen is kept in the folder `home`, as another one would change the last digits. Raises UserError if what the
    step needs is more than the whole memory.
    """
    rounded, cpu, share = half(config.precision) != torch.float32, where.type == "cpu", config.batch // ranks.world
    memory = step_memory(config, rounded, cpu, weights, method.blocks(config), ranks.world)
    told = [answer.split() for answer in ranks.exchange("memory", "{} {}".format(*free_memory(where)), Event())]
    free, whole = (min(int(each[place]) for each in told) for place in (0, 1))
    if auto := config.micro_batch == "auto":
        size = int(ranks.from_first(lambda: chosen(home / "micro_batch", memory, share, free)))
    else:
        size = min(share, int(config.micro_batch or share))
    need = memory.of(size)
    room = f"{free / 1e9:.1f} of {whole / 1e9:.1f} GB are free"
    line = f"{phase}: {size} of {share} images at once need about {need / 1e9:.1f} GB; {room}"
    smaller = "set micro_batch: auto, or " if size > 1 and not auto else ""
    if SURE * need > whole:
        raise UserError(f"{line}; {smaller}set checkpointing: true, or use more or larger devices")
    if need > free:
        say(f"{line}: if it runs out of memory, {smaller}set checkpointing: true")
    elif auto:
        say(f"{line} (micro_batch: auto)")
    return config.model_copy(update={"micro_batch": size}) if auto else config


def chosen(path: Path, memory: Memory, share: int, free: int) -> int:
    """The number that a file holds, if it still divides the share and fits; else the largest that fits, which is put there."""
    with suppress(OSError, ValueError):
        size = int(path.read_text(encoding="utf-8"))
        if size > 0 and share % size == 0 and memory.of(size) <= free:
            return size
    size = memory.fitting(share, free)
    write_json(path, size)
    return size
