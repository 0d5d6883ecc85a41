"""Slurm support: a training job starts one task per node and is requeued before its time limit."""

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
from maskdit.runtime.lock import owner_of, runs, sign
from maskdit.runtime.process_group import STOPPED, handling
from maskdit.runtime.progress import say
from maskdit.runtime.variables import variable, whole

NOTE = "MASKDIT_STOPPED"  # environment variable of a job's tasks: the file that they create when they stop on request
IMAGE = "MASKDIT_CONTAINER"  # environment variable: the container image in which srun starts a training's tasks
FIRST = "MASKDIT_FIRST"  # environment variable of tasks in a container, where Slurm cannot be asked: the first node's address
FORM = "--format=%A|%Z|%k"  # for squeue: job number, folder, and the comment in which Snakemake's plugin puts rule and key
PORTS = (20000, 12000)  # the first port and their number, below those that systems give out; a job's port depends on its number
SPECIAL = 0xFFFFFFF0  # from here on, step numbers mean batch scripts and interactive shells
PATIENCE, PAUSE = 600.0, 5.0  # seconds for which a controller that does not answer is asked again, and between two questions
AWAY = (
    "Unable to contact",
    "Unexpected message",
    "timed out",
    "Connection refused",
    "Connection reset",
    "connection failure",
    "Zero Bytes",
    "Transport",
)


@dataclass(frozen=True)
class Place:
    """A task's node among the nodes of a job, and the address and port of the first node."""

    node: int = 0
    nodes: int = 1
    address: str = "127.0.0.1"
    port: int = 0


def asked(*words: str) -> str:
    """Output of a Slurm command, stripped. A controller that does not answer is asked again for ten minutes.

    Raises UserError with the command's error message if it fails, and if there is no such command, as in a container.
    """
    if not shutil.which(words[0]):
        raise UserError(f"{words[0]} is not here; if this is a container, run the command outside of it, with {IMAGE}=IMAGE")
    began, told = time.monotonic(), False
    while (done := subprocess.run(words, capture_output=True, encoding="utf-8", errors="replace")).returncode:
        line = " ".join(done.stderr.split())
        if not any(sign in line for sign in AWAY) or time.monotonic() - began > PATIENCE:
            raise UserError(f"{words[0]}: {line}")
        if not told:
            say(f"Slurm does not answer ({line}); asking again for {PATIENCE / 60:.0f} minutes")
            told = True
        time.sleep(PAUSE)
    return done.stdout.strip()


def is_task() -> bool:
    """Whether srun started this process as a task. Job scripts and interactive shells have SLURM_PROCID, too, but no such step."""
    step = whole("SLURM_STEP_ID", 0, 2**32)
    return step is not None and step < SPECIAL


def job() -> str | None:
    """The number of the job whose script or shell runs this process.

    None outside Slurm, in tasks of srun, and where Slurm's commands are missing, as in many containers.
    """
    number = whole("SLURM_JOB_ID", 0)
    return None if number is None or is_task() or not shutil.which("squeue") else str(number)


def demand_all(processes: int) -> None:
    """Raise UserError if a training that Slurm's commands have not started would not use all GPUs of its job, or start twice."""
    number, every = variable("SLURM_JOB_ID"), whole("SLURM_JOB_NUM_NODES") or 1
    if variable("MASKDIT_DEVICE"):
        return
    if not is_task():
        if number and every > 1:
            line = f"job {number} has {every} nodes, but squeue and srun are not here to start the training on them"
            raise UserError(f"{line}; run it where they are, or unset SLURM_JOB_ID to train on this machine alone")
        return
    tasks, nodes = (whole(f"SLURM_STEP_NUM_{what}") or 1 for what in ("TASKS", "NODES"))
    if tasks > nodes:
        raise UserError(
            f"job {number}: srun starts {tasks} tasks on {nodes} nodes, and each would train with all GPUs of its node; "
            "set --ntasks-per-node=1"
        )
    gpus = (whole("SLURM_GPUS_ON_NODE", 0) or 0) * max(every, nodes)
    if processes < gpus and not variable("MASKDIT_RANKS"):
        raise UserError(
            f"job {number} has {gpus} GPUs, and this training would use {processes} of them: run the command in the job's script "
            "without srun, which then starts it on all nodes, or set MASKDIT_RANKS to the number of processes per node"
        )


def place() -> Place:
    """The place of this process as a task of srun; a single node outside Slurm."""
    nodes = whole("SLURM_STEP_NUM_NODES") or 1
    if nodes == 1:
        return Place()
    listed, node = variable("SLURM_STEP_NODELIST"), whole("SLURM_NODEID", 0)
    if listed is None or node is None:
        raise UserError("SLURM_STEP_NUM_NODES: is set, but SLURM_STEP_NODELIST or SLURM_NODEID is not; unset it outside Slurm")
    address = variable(FIRST) or address_of(first_of(listed))
    port = PORTS[0] + (whole("SLURM_JOB_ID", 0) or 0) % PORTS[1]
    return Place(node, nodes, address, port)


def first_of(nodes: str) -> str:
    """The first node of a list in Slurm's notation."""
    return asked("scontrol", "show", "hostnames", nodes).split()[0]


def address_of(node: str) -> str:
    """The address of a node."""
    found = re.search(r"NodeAddr=(\S+)", asked("scontrol", "--oneliner", "show", "node", node))
    return found[1] if found else node


def older(number: str, own: str, signed: str | None) -> set[str]:
    """Older jobs of this user that have the folder and comment `own` in squeue's output, or the number `signed`."""
    rows = [line.partition("|") for line in asked("squeue", "--me", "--noheader", FORM).splitlines()]
    return {other for other, _, rest in rows if (rest == own or other == signed) and int(other) < int(number)}


def stopped() -> int:
    """The exit code of a training that stopped on request. In a job it is 0, with a note, because srun would report a failure."""
    if not (note := variable(NOTE)):
        return STOPPED
    Path(note).touch()
    return 0


def supersede(verb: str, key: str, part: tuple[int, int] | None) -> None:
    """Cancel older jobs of this job's step, which a killed Snakemake leaves running, and wait until they have ended.

    They are known by the sign that the step runs, and by the comment of Snakemake's plugin, which some sites replace.
    """
    number = str(whole("SLURM_JOB_ID", 0) or "")
    if not number or variable("SLURM_ARRAY_JOB_ID") or not shutil.which("squeue"):
        return  # the tasks of an array share a comment
    mark = sign(verb, key, part)
    signed = owner_of(mark).get("sole_job") if runs(mark) else None
    try:
        own = asked("squeue", "--noheader", f"--jobs={number}", FORM).partition("|")[2]
        comment = own.partition("|")[2]
        named = comment.startswith((f"rule_{verb}_wildcards_", f"rule_{verb}_part_wildcards_")) and key in comment.split("_")
        cancelled: set[str] = set()
        while others := older(number, own if named else "", signed):
            for other in others - cancelled:  # only once, because scancel reports an error for a job that is ending
                say(f"cancelling job {other}, an older job of this step")
                subprocess.run(["scancel", other])
            cancelled |= others
            time.sleep(1)
    except UserError as error:
        say(f"{error}; whether an older job of this step still runs is not known")


@dataclass(frozen=True)
class Granted:
    """The resources of a job."""

    number: str
    names: str  # of its nodes, in Slurm's notation
    nodes: int
    cores: int  # on all nodes
    gres: str  # the GPUs of each node in Slurm's notation; '' if there are none

    @property
    def devices(self) -> int:
        """Number of GPUs on all nodes, or of nodes if they have no GPUs."""
        return self.nodes * int(self.gres.rpartition(":")[2] or 1)


def granted(number: str) -> Granted:
    """Ask Slurm for the resources of a job."""
    alone = "unset SLURM_JOB_ID to train on this machine alone"
    try:
        told = asked("squeue", "--noheader", f"--jobs={number}", "--format=%N|%D|%C|%b")
    except UserError as error:
        raise UserError(f"{error}; {alone}") from None
    if told.count("|") != 3:
        raise UserError(f"squeue: knows no job {number} that runs; {alone}")
    names, nodes, cores, things = told.split("|")
    gpus = re.search(r"gpu(:[\w.-]+)?:\d+", things)
    return Granted(number, names, int(nodes), int(cores), gpus[0] if gpus else "")


def contained(job: Granted, command: list[str]) -> tuple[list[str], dict[str, str]]:
    """A command of this Python, and what to add to its environment, in the container image MASKDIT_CONTAINER if that is set."""
    image = variable(IMAGE)
    if not image:
        return command, {}
    tool = next(filter(shutil.which, ("apptainer", "singularity")), None)
    if not tool:
        raise UserError(
            f"{IMAGE}: {image} needs apptainer or singularity, which are not on this node; unset it, or load their module"
        )
    words = [tool, "exec", *(["--nv"] if job.gres else []), "--home", str(Path.cwd()), image, "python3", *command[1:]]
    return words, {FIRST: address_of(first_of(job.names))} if job.nodes > 1 else {}


def preempted(number: str) -> bool:
    """Whether Slurm ends a job because another one has more right to its nodes."""
    found = re.search(r"PreemptTime=(\S+)", asked("scontrol", "show", "job", number))
    return found is not None and found[1][0].isdigit()


def over_nodes(job: Granted, command: list[str]) -> int:
    """Run a command once on each node of a job, with all of its GPUs and cores. Returns the exit code.

    After a warning (SIGUSR1, by --signal) or preemption the tasks save their state and end, and the job is requeued.
    A cancelled job also receives SIGTERM here and is not requeued.
    """
    started, more = contained(job, command)
    received: list[int] = []
    with handling(lambda number, _: received.append(number), signal.SIGTERM, signal.SIGUSR1):
        words = [
            f"--nodes={job.nodes}",
            f"--ntasks={job.nodes}",
            "--ntasks-per-node=1",
            f"--cpus-per-task={job.cores // job.nodes}",
        ]
        words += [f"--gres={job.gres}"] if job.gres else []
        note = scratch("stopped") / job.number
        note.unlink(missing_ok=True)
        done = subprocess.run(["srun", *words, "--kill-on-bad-exit=1", *started], env={**os.environ, **more, NOTE: str(note)})
        if not note.exists():
            return done.returncode
        note.unlink()
        if signal.SIGTERM not in received or preempted(job.number):
            say(f"job {job.number} goes back into the queue")
            asked("scontrol", "requeue", job.number)
            deadline = time.monotonic() + 600
            while signal.SIGTERM not in received and time.monotonic() < deadline:  # until Slurm ends this run of the job
                time.sleep(1)
        return STOPPED
