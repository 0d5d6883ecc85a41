"""A Slurm cluster on this machine for the tests: python cluster.py up|down|status|kill NODE|wake NODE.

It needs root, Debian's slurm-wlm and munge. Four nodes of one host, each with eight GPUs that do not exist (links to /dev/null), a
partition that refuses jobs without a GPU, one for these, and one that preempts both. A user may submit LIMIT jobs. Everything lies
in the folder MASKDIT_SLURM and listens on the loopback only. Its bin/ goes first in PATH: the tools find their configuration by it.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

NODES = ("n1", "n2", "n3", "n4")
TOOLS = ("srun", "sbatch", "squeue", "scontrol", "scancel", "sinfo")
CONFIGURATION = """\
ClusterName=toy
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort=16817
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={home}/munge.socket,cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool.%n
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd.%n.pid
SlurmctldLogFile={home}/slurmctld.log
SlurmdLogFile={home}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmdTimeout=10
KillWait=10
OverTimeLimit=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
SlurmdParameters=config_overrides
JobSubmitPlugins=lua
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName=n[1-4] NodeHostname={host} NodeAddr=127.0.0.1 Port=[17001-17004] CPUs=32 RealMemory=65536 Gres=gpu:h100:8 State=UNKNOWN
PartitionName=gpu Nodes=ALL Default=YES MaxTime=1440 PriorityTier=1 PreemptMode=REQUEUE GraceTime=20 State=UP
PartitionName=cpu Nodes=ALL MaxTime=1440 PriorityTier=1 PreemptMode=REQUEUE GraceTime=20 State=UP
PartitionName=urgent Nodes=ALL MaxTime=1440 PriorityTier=10 PreemptMode=OFF State=UP
"""
LIMIT = 8  # jobs of a user that wait or run, as by MaxSubmitJobs, which needs accounting
REFUSALS = f"""\
function slurm_job_submit(job, partitions, user)
    if (job.partition or "gpu") == "gpu" and not string.find(job.tres_per_node or "", "gpu") then
        slurm.log_user("the partition gpu is for jobs with a GPU")
        return slurm.ERROR
    end
    local count = 0
    for _, other in pairs(slurm.jobs) do
        if other.user_id == user and other.job_state % 256 < 2 then
            count = count + 1
        end
    end
    return count < {LIMIT} and slurm.SUCCESS or 2050 -- ESLURM_ACCOUNTING_POLICY
end

function slurm_job_modify(job, record, partitions, user)
    return slurm.SUCCESS
end

return slurm.SUCCESS
"""


def home() -> Path:
    """Where everything of the cluster lies."""
    return Path(os.environ["MASKDIT_SLURM"]).resolve()


def missing() -> str:
    """Why no cluster can be started here, '' if one can."""
    if os.geteuid():
        return "needs root"
    lacking = [name for name in ("munged", "slurmctld", "slurmd", "srun") if not shutil.which(name, path="/usr/sbin:/usr/bin")]
    return f"needs Debian's slurm-wlm and munge: no {lacking[0]} here" if lacking else ""


def environment() -> dict[str, str]:
    """With the tools of the cluster first in PATH."""
    return {
        **os.environ,
        "MASKDIT_SLURM": str(home()),
        "PATH": f"{home() / 'bin'}:{os.environ['PATH']}:/usr/sbin",
        "SLURM_CONF": str(home() / "slurm.conf"),
    }


def tool(*words: str) -> str:
    """What a tool of the cluster prints."""
    return subprocess.run(words, capture_output=True, text=True, env=environment()).stdout.strip()


def daemon(*words: str) -> None:
    """Start a daemon, which leaves the terminal by itself."""
    subprocess.run(words, check=True, env=environment(), stdout=subprocess.DEVNULL)


def pids() -> list[int]:
    """The daemons that run."""
    found = []
    for file in sorted(home().glob("*.pid")):
        try:
            number = int(file.read_text())
            os.kill(number, 0)
            found.append(number)
        except (ValueError, ProcessLookupError):
            continue
    return found


def start_node(name: str) -> None:
    """One node's daemon."""
    daemon("slurmd", "-N", name)


def of_node(name: str) -> list[psutil.Process]:
    """What a node's jobs run: tasks, and the daemons above them."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("SLURMD_NODENAME") == name and process.environ().get("MASKDIT_SLURM") == str(home()):
                above = process.parent()
                found += [process] + ([above] if above and above.name() == "slurmstepd" else [])
    return found


def kill_node(name: str) -> None:
    """A node is gone: its daemon, and everything that runs on it."""
    node = psutil.Process(int((home() / f"slurmd.{name}.pid").read_text()))
    for process in [node, *of_node(name)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def kill_controller() -> None:
    """The controller is gone."""
    psutil.Process(int((home() / "slurmctld.pid").read_text())).kill()


def start_controller() -> None:
    """The controller is back."""
    daemon("slurmctld")


def tasks(job: str) -> list[psutil.Process]:
    """The processes that srun started on the nodes of a job."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            theirs = process.environ()
            parent = process.parent()
            if theirs.get("SLURM_JOB_ID") == job and "SLURM_STEP_ID" in theirs and parent and parent.name() == "slurmstepd":
                found.append(process)
    return found


def ours(process: psutil.Process) -> bool:
    """Whether a process belongs to this cluster: a daemon, a step's, or what a job runs."""
    with contextlib.suppress(psutil.Error):
        if process.name().startswith(("slurm", "munged")):
            return process.cwd() == str(home()) or process.environ().get("MASKDIT_SLURM") == str(home())
        return process.environ().get("MASKDIT_SLURM") == str(home()) and "SLURM_JOB_ID" in process.environ()
    return False


def left() -> list[psutil.Process]:
    """Processes that belong to this cluster."""
    return [process for process in psutil.process_iter() if ours(process)]


def up() -> None:
    """Start what does not run; waits until all nodes are idle."""
    reason = missing()
    if reason:
        sys.exit(f"cluster: {reason}")
    if pids():
        down()
    where = home()
    for folder in ("bin", "dev", "state", *(f"spool.{name}" for name in NODES)):
        (where / folder).mkdir(parents=True, exist_ok=True)
    (where / "slurm.conf").write_text(CONFIGURATION.format(host=socket.gethostname(), home=where))
    (where / "job_submit.lua").write_text(REFUSALS)
    (where / "gres.conf").write_text(f"Name=gpu Type=h100 File={where}/dev/nvidia[0-7]\n")
    for number in range(8):
        link = where / "dev" / f"nvidia{number}"
        if not link.is_symlink():
            link.symlink_to("/dev/null")
    for name in TOOLS:
        wrapper = where / "bin" / name
        wrapper.write_text(f'#!/bin/sh\nSLURM_CONF={where}/slurm.conf exec {shutil.which(name, path="/usr/bin")} "$@"\n')
        wrapper.chmod(0o755)
    key = where / "munge.key"
    if not key.exists():
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
    names = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munged.pid", "log-file": "munged.log"}
    names["seed-file"] = "seed"
    daemon("munged", "--force", "--num-threads=2", *(f"--{option}={where / file}" for option, file in names.items()))
    daemon("slurmctld")
    for name in NODES:
        start_node(name)
    deadline = time.monotonic() + 30
    while tool("sinfo", "--noheader", "--format=%D %t", "--partition=gpu") != "4 idle":
        if time.monotonic() > deadline:
            sys.exit(f"cluster: not up after 30 s: {tool('sinfo')}; see {where}/slurmctld.log")
        time.sleep(0.2)


def down() -> None:
    """Cancel all jobs, stop every daemon, and kill what is still there."""
    tool("scancel", "--user=root")
    deadline = time.monotonic() + 20
    while pids() and tool("squeue", "--noheader") and time.monotonic() < deadline:
        time.sleep(0.2)
    for number in pids():
        os.kill(number, signal.SIGTERM)
    psutil.wait_procs(left(), timeout=10)
    for process in left():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left(), timeout=5)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["up"]:
            up()
        case ["down"]:
            down()
        case ["status"]:
            print(tool("sinfo"), tool("squeue"), sep="\n")
        case ["kill", name]:
            kill_node(name)
        case ["wake", name]:
            start_node(name)
        case _:
            sys.exit(__doc__)
