"""Steps in forked child processes, so that torch is imported once, and what they leave.

To import this makes a training write a state each second step.
"""

import hashlib
import json
import math
import mmap
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch._dynamo  # noqa: F401, or each child imports it with its first optimiser
from safetensors import SafetensorError
from safetensors.torch import load_file

from maskdit.artifacts import atomic, provenance, publish
from maskdit.config.base import UserError
from maskdit.config.training import Finetune, Pretrain
from maskdit.runtime import process_group as group
from maskdit.runtime import progress
from maskdit.runtime.process_group import STOPPED, Stopped, free_port
from maskdit.training import train
from maskdit.training.recovery import files_of

Work = Callable[[], None]

train.LOG_STEPS = 2
train.Recovery.due = lambda self: True
train.gemm_rate = lambda *_: 1e12  # a second at each start, before the first step
provenance.git = lambda *_: ""

NOTES = np.frombuffer(mmap.mmap(-1, 4096), np.int64)  # shared with the children
STEP, ASKED, PID = 0, 4, 8  # places in it, of four ranks each: begun, begun when a signal came, process


def exit_code(work: Work) -> int:
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # as in the command
    try:
        work()
    except Stopped:
        return STOPPED
    except SystemExit as end:
        return end.code
    except UserError as error:
        print(f"maskdit: {error}", file=sys.stderr)
        return 2
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def child(work: Work, log: Path) -> int:
    """Its process id; it leads a group of its own and says what it says to a file."""
    if pid := os.fork():
        return pid
    os.setsid()
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    os._exit(exit_code(work))


def ended(pid: int, seconds: float) -> int | None:
    """Exit code of a child, -N by signal N; None if it runs on after so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    return None


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def spread(work: Work, world: int) -> Work:
    """The work by so many ranks of one group, as `launch` starts them. If one fails, the others have three seconds to end."""

    def leader() -> None:
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)  # they go to the ranks
        os.environ |= {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        ranks = []
        for rank in range(world):
            ranks.append(os.fork())
            if not ranks[-1]:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                group.PARENT = os.getppid()
                os._exit(exit_code(work))
            NOTES[PID + rank] = ranks[-1]
        code, deadline = 0, math.inf
        while ranks:
            done, status = os.waitpid(-1, os.WNOHANG)
            if not done:
                time.sleep(0.002)
            else:
                ranks.remove(done)
                code = code or os.waitstatus_to_exitcode(status)
                if code not in (0, STOPPED) and deadline == math.inf:
                    deadline = time.monotonic() + 3
            if time.monotonic() > deadline:
                for rank in ranks:
                    os.kill(rank, signal.SIGKILL)
        os._exit(128 - code if code < 0 else code)

    return leader


def digest(path: Path) -> str:
    """Of the tensors of a checkpoint, of anything else its bytes."""
    if path.suffix != ".safetensors":
        return atomic.sha256(path)
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for _, tensor in sorted(load_file(path).items()))).hexdigest()


def hashed(folder: Path, timed: bool = False) -> str:
    """Of a folder; `timed`: only its checkpoints, as other files hold seconds."""
    found = sorted(path for path in folder.rglob("*.safetensors" if timed else "*") if path.is_file())
    return atomic.digest([(str(path.relative_to(folder)), digest(path)) for path in found])


def training(spec: dict) -> tuple[Callable[[Path], None], int]:
    """What trains into a folder and publishes it as the command does, and its last step."""
    phase = "finetune" if "finetune" in spec else "pretrain"
    entry = (Finetune if phase == "finetune" else Pretrain).model_validate(spec[phase])
    inputs = {"latents": Path(spec["latents"])} | ({"pretrained": Path(spec["run"])} if "run" in spec else {})

    def work(out: Path) -> None:
        with publish.publishing(out, f"{phase}/toy", {}, {}) if progress.first_rank() else nullcontext(out) as place:
            getattr(train, phase)(entry, **inputs, out=place)

    return work, entry.milestones[-1]


def states(scratch: Path) -> list[int]:
    return sorted(int(path.stem.split("-")[1]) for path in scratch.glob("*/state-*.json"))


def whole(record: Path) -> bool:
    try:
        return all(load_file(path) and atomic.sha256(path) == sha for path, sha in files_of(record).items())
    except (OSError, UserError, SafetensorError):
        return False


def half_written(scratch: Path) -> int:
    """How many temporary files there are, and files of states without a record."""
    records = tuple(record.stem for record in scratch.glob("*/state-*.json"))
    return len([*scratch.glob("*/.*")]) + sum(not path.name.startswith(records) for path in scratch.glob("*/state-*.safetensors"))


def resumed(log: Path) -> int | None:
    """The step that a training said it goes on from; None if it did not come so far."""
    said = [line.rsplit(" ", 1)[1] for line in log.read_text().splitlines() if "resuming from step" in line]
    return int(said[0]) if said else None


def once(out: Path, last: int) -> bool:
    """Whether the log has each of its steps once."""
    rows = [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]
    return rows == list(range(train.LOG_STEPS, last + 1, train.LOG_STEPS))
