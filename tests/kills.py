"""Work that is killed or signalled at random moments; prints what was seen as JSON.

Run by tests/training/test_kills.py: python kills.py WHAT SPEC.json.
"""

import importlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import get_args

from safetensors.torch import load_file

from forks import (
    ASKED,
    NOTES,
    PID,
    STEP,
    Work,
    alive,
    child,
    ended,
    half_written,
    hashed,
    once,
    resumed,
    spread,
    states,
    training,
    whole,
)
from maskdit.artifacts import atomic, publish
from maskdit.artifacts.step import STEPS
from maskdit.config.params import Params
from maskdit.runtime import environment, process_group
from maskdit.runtime.process_group import STOPPED
from maskdit.training import train
from maskdit.training.batches import Batch


def dying(work: Work, count: int) -> None:
    """Work that is killed, with all its ranks, when one has something to sync to the disk for the `count`-th time."""
    left, real = [count], atomic.sync

    def sync(path: Path) -> None:
        left[0] -= 1
        if not left[0]:
            os.killpg(0, signal.SIGKILL)
        real(path)

    atomic.sync = publish.sync = sync
    work()


def kill_training(spec: dict) -> dict:
    """Train once undisturbed, then again and again until so many kills and so many attempts that went on from a state.

    Each time it is done it begins anew, in a scratch folder of its own. Of several ranks, all are killed, or one.
    """
    folder, source, seen, hashes = Path(spec["folder"]), random.Random(spec.get("seed", 0)), Counter(), []
    work, last = training(spec)
    usual, world = 0.0, spec.get("world", 1)

    def enough() -> bool:
        return seen["kills"] >= spec["kills"] and seen["attempts that went on"] >= spec["resumed"]

    while len(hashes) < 2 or not enough():
        scratch, out, log, reached = folder / f"scratch-{len(hashes)}", folder / "out", folder / "said", 0
        shutil.rmtree(out, ignore_errors=True)
        os.environ["MASKDIT_SCRATCH"] = str(scratch)
        code: int | None = None
        while code != 0:
            calm, one, began = not usual or enough(), partial(work, out), time.monotonic()
            aimed = not calm and (source.random() < 0.3 or not seen["kills"])  # the first one before the first state
            NOTES[:] = 0
            one = partial(dying, one, source.randint(1, 60) if seen["kills"] else 1) if aimed else one
            pid = child(spread(one, world) if world > 1 else one, log)
            code = ended(pid, 600 if calm else source.uniform(0.02, 0.8) * usual)
            struck = True  # by its own hand
            if code is None:
                alone = world > 1 and bool(NOTES[PID + world - 1]) and source.random() < 0.5
                seen["kills of one rank"] += alone
                with suppress(ProcessLookupError):  # it is done
                    os.kill(int(NOTES[PID + source.randrange(world)]), signal.SIGKILL) if alone else os.killpg(pid, signal.SIGKILL)
                code = ended(pid, 20)
                struck = half_written(scratch) > 0
            deadline = time.monotonic() + 20
            while alive(pid) and time.monotonic() < deadline:  # ranks that are killed need a moment to end
                time.sleep(0.002)
            assert code in (0, -signal.SIGKILL, 128 + signal.SIGKILL, *[1] * (world > 1)), f"{code}: {log.read_text()}"
            begun = resumed(log)
            trained = f": {last} steps, " in log.read_text()  # not if it had only to publish
            if begun is not None or trained:
                seen["steps lost"] += max(0, reached - (begun or 0))
            seen["attempts that went on"] += begun is not None
            usual *= 0.9 if code == 0 else 1.1 if begun is None else 1.0  # the machine is slower or faster now
            reached = max([reached, *states(scratch)])
            if code == 0:
                break
            seen["kills"] += 1
            seen["kills before the first state"] += not reached
            seen["kills in a write"] += struck
            seen["unloadable states"] += sum(not whole(record) for record in scratch.glob("*/state-*.json"))
        usual = usual or time.monotonic() - began
        hashes.append(hashed(out, timed=True))
        seen["logs with a step twice or never"] += not once(out, last)
        seen["left"] += len([*folder.glob(".*/lock.lease")])  # without one, it was killed as it began
        seen["half written"] += half_written(scratch)
    return {**seen, "hashes": sorted(set(hashes)), "runs": len(hashes), "usual": usual}


class Asked(list):
    """Signals that ask to stop, which note the step in which they came."""

    def append(self, number: int) -> None:
        rank = int(os.environ.get("RANK", "0"))
        NOTES[ASKED + rank] = NOTES[STEP + rank]
        super().append(number)


def noting(work: Work) -> None:
    """Work whose ranks note each step that they begin."""
    real = process_group.Ranks.stop

    def stop(group: process_group.Ranks, step: int) -> bool:
        NOTES[STEP + group.rank] = step
        return real(group, step)

    process_group.Ranks.stop, process_group._signals = stop, Asked()
    work()


def signal_training(spec: dict) -> dict:
    """The same of signals, alternately SIGTERM and SIGUSR1, that stop a training by one process or two."""
    folder, source, seen, hashes = Path(spec["folder"]), random.Random(spec.get("seed", 0)), Counter(), []
    work, last = training(spec)
    world, latest, slowest, usual = spec.get("world", 1), 0, 0.0, 0.0
    while len(hashes) < 2 or seen["signals"] < spec["signals"]:
        scratch, out, log = folder / f"scratch-{len(hashes)}", folder / "out", folder / "said"
        shutil.rmtree(out, ignore_errors=True)
        os.environ["MASKDIT_SCRATCH"] = str(scratch)
        code: int | None = STOPPED
        while code != 0:
            NOTES[:], code = -1, None
            one = partial(noting, partial(work, out))
            pid = child(spread(one, world) if world > 1 else one, log)
            calm, number = not usual or seen["signals"] >= spec["signals"], (signal.SIGTERM, signal.SIGUSR1)[seen["signals"] % 2]
            while not calm and code is None and (NOTES[STEP : STEP + world] < 0).any():
                code = ended(pid, 0.002)
            time.sleep(source.uniform(0, 0.6) * usual)
            began = time.monotonic()
            if not calm and code is None:
                if spec.get("launcher"):
                    os.kill(pid, signal.SIGKILL)
                    NOTES[ASKED : ASKED + world] = NOTES[STEP : STEP + world]
                elif spec.get("group"):
                    os.killpg(pid, number)
                else:
                    with suppress(ProcessLookupError):  # it is done
                        os.kill(pid if world == 1 else int(NOTES[PID + source.randrange(world)]), number)
            code = ended(pid, 120) if code is None else code
            while code == -signal.SIGKILL and alive(pid) and time.monotonic() - began < 60:
                time.sleep(0.01)
            code = STOPPED if code == -signal.SIGKILL and spec.get("launcher") else code
            late = code in (-signal.SIGUSR1, 128 + signal.SIGUSR1, 128 + signal.SIGTERM)  # after the last step: it publishes
            assert code in (0, STOPPED) or late, f"{code}: {log.read_text()}"
            seen["orphans"] += alive(pid)
            seen["signals after the last step"] += late
            if code == STOPPED:
                seen["signals"] += 1
                slowest = max(slowest, time.monotonic() - began)
                latest = max(latest, max(states(scratch)) - min(int(step) for step in NOTES[ASKED : ASKED + world] if step >= 0))
        usual = usual or time.monotonic() - began
        hashes.append(hashed(out, timed=True))
        seen["logs with a step twice or never"] += not once(out, last)
    return {**seen, "hashes": sorted(set(hashes)), "runs": len(hashes), "steps until the state": latest, "seconds": slowest}


def change_world(spec: dict) -> dict:
    """Train in turns by other numbers of ranks, each stopped by a signal at a step, and once undisturbed by one process."""
    folder = Path(spec["folder"])
    work, last = training(spec)
    found, logs = [], []
    for name, turns in (("whole", [(1, None)]), ("turns", spec["turns"])):
        os.environ["MASKDIT_SCRATCH"] = str(folder / f"scratch-{name}")
        for world, until in turns:

            def stopping(out: Path = folder / name, until: int | None = until) -> None:
                real = process_group.Ranks.stop

                def stop(group: process_group.Ranks, step: int) -> bool:
                    if step == until and group.rank == group.world - 1:
                        os.kill(os.getpid(), signal.SIGUSR1)
                    return real(group, step)

                process_group.Ranks.stop = stop
                work(out)

            code = ended(child(spread(stopping, world) if world > 1 else stopping, folder / "said"), 300)
            assert code == (0 if until is None else STOPPED), f"{code}: {(folder / 'said').read_text()}"
            logs.append(resumed(folder / "said"))
        found.append({file.name: load_file(file) for file in sorted((folder / name).glob("*.safetensors"))})
    pairs = [(tensor, found[1][file][name]) for file, tensors in found[0].items() for name, tensor in tensors.items()]
    difference = max((left - right).abs().max().item() for left, right in pairs)
    return {"difference": difference, "resumed": logs[1:], "once": once(folder / "turns", last), "files": len(found[1])}


def leave_states(spec: dict) -> None:
    """Train by so many ranks until all are killed, after two states."""
    work, last = training(spec)
    scratch, log = Path(os.environ["MASKDIT_SCRATCH"]), Path(spec["folder"]) / "said"
    real = process_group.Ranks.stop

    def stop(group: process_group.Ranks, step: int) -> bool:
        if step == last - 3:
            time.sleep(60)
        return real(group, step)

    process_group.Ranks.stop = stop
    pid = child(spread(partial(work, Path(spec["folder"]) / "out"), spec["world"]), log)
    while not (states(scratch)[-1:] == [last - 4] and not half_written(scratch)):
        assert ended(pid, 0.05) is None, log.read_text()
    os.killpg(pid, signal.SIGKILL)
    ended(pid, 20)


def hang(spec: dict) -> list[dict]:
    """For each number of ranks: train until the last one hangs in a step, then again."""
    os.environ["MASKDIT_WATCHDOG_SECONDS"] = "1.5"
    work, real, found = training(spec)[0], train.batch_at, []

    def hanging(step: int, rank: int = 0, world: int = 1, **rest: object) -> Batch:
        if step == 9 and rank == world - 1:
            time.sleep(100)
        return real(step, rank=rank, world=world, **rest)

    for world in spec["worlds"]:
        folder = Path(spec["folder"]) / str(world)
        folder.mkdir()
        for name, hung in (("whole", False), ("cut", True), ("cut", False)):
            os.environ["MASKDIT_SCRATCH"] = str(folder / f"scratch-{name}")
            train.batch_at = hanging if hung else real
            one = partial(work, folder / name)
            code = ended(child(spread(one, world) if world > 1 else one, folder / "said"), 60)
            said = (folder / "said").read_text()
            assert code == (1 if hung else 0), said
            if hung:
                stacks = said
        same = hashed(folder / "whole", timed=True) == hashed(folder / "cut", timed=True)
        found.append({"stacks": stacks, "resumed": resumed(folder / "said"), "same": same})
    return found


def kill_shards(spec: dict) -> dict:
    """Repeat a step that works in shards until so many kills; its folder must come out as without."""
    verb, folder, source = spec["verb"], Path(spec["folder"]), random.Random(spec.get("seed", 0))
    entry = get_args(Params.model_fields[verb].annotation)[1].model_validate(spec["entry"])
    inputs = {name: Path(path) for name, path in spec["inputs"].items()}
    step = getattr(importlib.import_module(f"maskdit.{STEPS[verb]}"), verb)
    seen, hashes, usual = Counter(), [], 0.0

    def work(out: Path) -> None:
        with publish.publishing(out, f"{verb}/toy", {}, {}) as place:
            step(entry, **inputs, out=place)
        environment.tidy()

    while len(hashes) < 2 or seen["kills"] < spec["kills"]:
        made, log = folder / "made", folder / "said"
        out = made / "out"
        shutil.rmtree(made, ignore_errors=True)
        code: int | None = None
        while code != 0:
            calm, began = not usual or seen["kills"] >= spec["kills"], time.monotonic()
            seen["attempts that found shards"] += bool([*made.glob(f".{verb}-*/[!.]*")])
            pid = child(partial(work, out), log)
            code = ended(pid, 600 if calm else source.uniform(0.1, 0.9) * usual)
            if code is None:
                os.killpg(pid, signal.SIGKILL)
                code = ended(pid, 10)
                seen["kills"] += 1
            assert code in (0, -signal.SIGKILL), f"{code}: {log.read_text()}"
            seen["kills with shards made"] += code != 0 and bool([*made.glob(f".{verb}-*/[!.]*")])
        usual = usual or time.monotonic() - began
        hashes.append(hashed(out))
        seen["left"] += len([*made.iterdir()]) - 1
    return {**seen, "hashes": sorted(set(hashes)), "runs": len(hashes), "seconds": usual}


if __name__ == "__main__":
    what = {each.__name__: each for each in (kill_training, signal_training, change_world, leave_states, hang, kill_shards)}[
        sys.argv[1]
    ]
    print(json.dumps(what(json.loads(Path(sys.argv[2]).read_text()))))
