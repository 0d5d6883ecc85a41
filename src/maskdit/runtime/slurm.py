"""Slurm, as a training meets it: a job starts one task on each of its nodes, and goes back into the queue before its time is up."""

import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from maskdit.config.base import UserError
from maskdit.runtime.environment import scratch
from maskdit.runtime.process_group import STOPPED
from maskdit.runtime.progress import say

NOTE = "MASKDIT_STOPPED"  # in the environment of a job's tasks: the file by which they say that they were asked to stop
FORM = "--format=%A|%Z|%k"  # of squeue: number, folder, and the comment in which the plugin says rule and key
PORTS = (20000, 20000)  # the first, and how many: a job's is a function of its number


@dataclass(frozen=True)
class Place:
    """Of a task among the nodes of a job, and where the first of them is."""

    node: int = 0
    nodes: int = 1
    address: str = "127.0.0.1"
    port: int = 0


def asked(*words: str) -> str:
    """What a command of Slurm prints, stripped; raises UserError with what it complains of."""
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{words[0]}: {' '.join(done.stderr.split())}")
    return done.stdout.strip()


def job() -> str | None:
    """The number of the job whose script this process is of, None outside Slurm and in what srun has started."""
    return None if "SLURM_PROCID" in os.environ else os.environ.get("SLURM_JOB_ID")


def place() -> Place:
    """Of this process, a task that srun has started; alone outside Slurm."""
    nodes = int(os.environ.get("SLURM_STEP_NUM_NODES", "1"))
    if nodes == 1:
        return Place()
    first = asked("scontrol", "show", "hostnames", os.environ["SLURM_STEP_NODELIST"]).split()[0]
    found = re.search(r"NodeAddr=(\S+)", asked("scontrol", "--oneliner", "show", "node", first))
    port = PORTS[0] + int(os.environ["SLURM_JOB_ID"]) % PORTS[1]
    return Place(int(os.environ["SLURM_NODEID"]), nodes, found[1] if found else first, port)


def twins(number: str, own: str) -> list[str]:
    """Older jobs of this user in whose line of squeue the rest is `own`, too."""
    lines = [line.partition("|") for line in asked("squeue", "--me", "--noheader", FORM).splitlines()]
    return [other for other, _, rest in lines if rest == own and int(other) < int(number)]


def stopped() -> int:
    """The exit code of a training that was asked to stop: in a job 0, beside a note, or srun would take the first for a failure."""
    if NOTE not in os.environ:
        return STOPPED
    Path(os.environ[NOTE]).touch()
    return 0


def supersede(verb: str, key: str) -> None:
    """Cancel older jobs of the step that this job runs: a Snakemake that was killed leaves them, and a new one submits another.

    A cancelled training keeps its state. Returns when they are gone.
    """
    number = os.environ.get("SLURM_JOB_ID", "")
    if not number.isdigit() or "SLURM_ARRAY_JOB_ID" in os.environ or not shutil.which("squeue"):
        return  # the tasks of an array share one comment
    own = asked("squeue", "--noheader", f"--jobs={number}", FORM).partition("|")[2]
    comment = own.partition("|")[2]
    named = comment.startswith((f"rule_{verb}_wildcards_", f"rule_{verb}_part_wildcards_")) and key in comment.split("_")
    cancelled: set[str] = set()
    while named and (older := twins(number, own)):
        for other in set(older) - cancelled:  # once: of one that is ending scancel would complain
            say(f"job {other} is of the same step and older than {number}: cancelled")
            subprocess.run(["scancel", other])
            cancelled.add(other)
        time.sleep(1)


@dataclass(frozen=True)
class Granted:
    """What a job has."""

    number: str
    nodes: int
    cores: int  # on all nodes
    gres: str  # the GPUs of each node, as Slurm writes them; '' if there are none

    @property
    def devices(self) -> int:
        """GPUs on all nodes; without any the nodes themselves."""
        return self.nodes * int(self.gres.rpartition(":")[2] or 1)


def granted(number: str) -> Granted:
    """What Slurm says that a job has."""
    nodes, cores, things = asked("squeue", "--noheader", f"--jobs={number}", "--format=%D|%C|%b").split("|")
    gpus = re.search(r"gpu(:[\w.-]+)?:\d+", things)
    return Granted(number, int(nodes), int(cores), gpus[0] if gpus else "")


def over_nodes(job: Granted, command: list[str]) -> int:
    """Run a command once on each node of a job, with all of its GPUs and cores; the exit code.

    Tasks that were warned (SIGUSR1, by --signal) keep their state and end; then the job goes back into the queue, with its number.
    One that was cancelled or preempted (SIGTERM comes here, too) does not: what happens next is for Slurm to decide.
    """
    told: list[int] = []
    before = {each: signal.signal(each, lambda came, _: told.append(came)) for each in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        words = [
            f"--nodes={job.nodes}",
            f"--ntasks={job.nodes}",
            "--ntasks-per-node=1",
            f"--cpus-per-task={job.cores // job.nodes}",
        ]
        words += [f"--gres={job.gres}"] if job.gres else []
        note = scratch("stopped") / job.number
        note.unlink(missing_ok=True)
        done = subprocess.run(["srun", *words, "--kill-on-bad-exit=1", *command], env={**os.environ, NOTE: str(note)})
        if not note.exists():
            return done.returncode
        note.unlink()
        if signal.SIGTERM not in told:
            say(f"job {job.number} goes back into the queue")
            asked("scontrol", "requeue", job.number)
            deadline = time.monotonic() + 600
            while signal.SIGTERM not in told and time.monotonic() < deadline:  # Slurm ends this run of it
                time.sleep(1)
        return STOPPED
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
