"""What every step has spent, failed ones too: a line for each in logs/ledger.jsonl, to which lines are only ever appended."""

import ctypes
import json
import math
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

from maskdit.artifacts.provenance import device
from maskdit.runtime.variables import group, variable, visible_gpus, whole

LEDGER = Path("logs") / "ledger.jsonl"
NUMBERS = ("seconds", "device_seconds", "peak_memory", "peak_device_memory", "joules")
INSIDE = "MASKDIT_RECORDED"  # set for processes that a step starts: the step's own line counts them
WATTS = 500  # that no processor package exceeds
ZONES = Path("/sys/class/powercap")

Meters = dict[str, tuple[float, float]]  # joules on a counter, and where it starts again


def rows(path: Path = LEDGER) -> list[dict[str, Any]]:
    """The lines of a ledger, those of Slurm's jobs included, without those that were cut by a full disk or are damaged."""
    found = []
    files = [file for file in (path, *sorted(path.with_suffix("").glob("*.jsonl"))) if file.exists()]
    for line in chain.from_iterable(file.read_text(errors="replace", encoding="utf-8").splitlines() for file in files):
        with suppress(ValueError, TypeError, KeyError, AttributeError):
            row = json.loads(line)
            known = {name: float(row[name]) for name in NUMBERS if row.get(name) is not None}
            if all(map(math.isfinite, known.values())):
                found.append({**row, **known, "node": f"{row['verb']}/{row['key']}", "seconds": known["seconds"]})
    return found if len(files) < 2 else sorted(found, key=lambda row: str(row.get("end")))


def append(row: dict[str, Any], path: Path = LEDGER) -> None:
    """Add a line, in one write, so that processes do not mix theirs.

    Each Slurm job has a file of its own in the ledger's folder, because NFS loses lines that two nodes append at once.
    """
    if job := variable("SLURM_JOB_ID"):
        path = path.with_suffix("") / f"{job}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        size = os.fstat(handle).st_size
        cut = size and os.pread(handle, 1, size - 1) != b"\n"  # the line before, by a full disk or a kill
        os.write(handle, ("\n" * bool(cut) + json.dumps(row) + "\n").encode())
    finally:
        os.close(handle)


def attempt(verb: str, key: str) -> int:
    """Which attempt this is: one more than have failed since the last that did not."""
    exits = [row.get("exit") for row in rows() if (row["verb"], row["key"]) == (verb, key)]
    return 1 + next((place for place, code in enumerate(reversed(exits)) if code == 0), len(exits))


@contextmanager
def recorded(verb: str, key: str, code_of: Callable[[BaseException], int]) -> Iterator[dict[str, Any]]:
    """A line for what runs within, at its end or when an error or a signal ends it; what it adds to the dictionary is kept.

    `code_of` says with which code an error ends the command. A ledger that cannot be written stops nothing.
    """
    facts: dict[str, Any] = {"devices": held()}
    if INSIDE in os.environ:
        yield facts
        return
    began, clock, before, code = datetime.now(UTC), time.monotonic(), meters(), 0
    os.environ[INSIDE] = "1"
    try:
        yield facts
    except BaseException as error:
        code = code_of(error)
        raise
    finally:
        del os.environ[INSIDE]
        seconds = time.monotonic() - clock
        row = {
            "verb": verb,
            "key": key,
            "start": began.isoformat(timespec="seconds"),
            "end": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(seconds, 3),
            "device_seconds": round(seconds * facts["devices"], 3),
            "device": device(),
            "exit": code,
            "host": platform.node(),
            "slurm_job": variable("SLURM_JOB_ID"),
            **peaks(),
            "joules": taken(before, meters(), seconds),
            **facts,
        }
        if (group() or (0, 1))[0] == 0:
            try:
                append({**row, "attempt": attempt(verb, key)})
            except OSError as error:
                print(f"maskdit: {LEDGER}: {error.strerror}; this step is not in the ledger", file=sys.stderr)


def held() -> int:
    """The devices that nobody else can use meanwhile: one a process of the group, or all of a Slurm job."""
    on_node, nodes = (whole(name, 0) or 1 for name in ("SLURM_GPUS_ON_NODE", "SLURM_NNODES"))
    return max(on_node * nodes, (group() or (0, 1))[1])


def peaks() -> dict[str, int | None]:
    """Bytes that this process or one that it has started has held at once: resident, and on a GPU by this process."""
    resident = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    torch = sys.modules.get("torch")
    used = torch is not None and torch.cuda.is_initialized()
    return {"peak_memory": resident * 1024, "peak_device_memory": torch.cuda.max_memory_allocated() if used and torch else None}


def meters() -> Meters:
    """The counters of energy that can be read: NVML's of the GPUs in use, RAPL's of processor packages."""
    found: Meters = {}
    for zone in sorted(ZONES.glob("intel-rapl:?")):
        with suppress(OSError, ValueError):
            joules, most = (int((zone / name).read_text(encoding="utf-8")) / 1e6 for name in ("energy_uj", "max_energy_range_uj"))
            found[zone.name] = joules, most
    with suppress(OSError, AttributeError):
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        nvml.nvmlInit_v2()
        count, millijoules, handle = ctypes.c_uint(), ctypes.c_ulonglong(), ctypes.c_void_p()
        nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
        mine, uuid = visible_gpus(), ctypes.create_string_buffer(96)
        for place in range(count.value):
            nvml.nvmlDeviceGetHandleByIndex_v2(place, ctypes.byref(handle))
            failed = nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules))
            nvml.nvmlDeviceGetUUID(handle, uuid, 96)
            used = mine is None or any(word == str(place) or uuid.value.decode().startswith(word) for word in mine)
            if not failed and used:
                found[f"gpu {place}"] = millijoules.value / 1e3, float("inf")
    return found


def taken(before: Meters, after: Meters, seconds: float) -> float | None:
    """Joules between two readings; None without a counter, or if one may have gone round more than once."""
    if not before or before.keys() != after.keys() or any(seconds * WATTS > most for _, most in before.values()):
        return None
    return round(sum((after[name][0] - joules) % most for name, (joules, most) in before.items()), 1)
