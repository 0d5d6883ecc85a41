"""The toy on a real Slurm: whatever happens to its jobs, it ends with the table of an undisturbed run. By make slurm-test."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from safetensors.numpy import load_file

sys.path.insert(0, str(Path(__file__).parents[1]))

import cluster

from project import edit, environment, project, twin

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(cluster.missing()), reason=cluster.missing() or "there is a cluster")]
KEY, STEPS, LONG = "demo-maskdit", 4000, 400  # so many that no event comes too late, also on a fast machine
TABLE = "results/table_demo.csv"
SCORES = ["fd_mobilenet", "is_mobilenet", "precision_mobilenet", "recall_mobilenet"]
MADE = (
    "artifacts/runs/demo-maskdit",
    "artifacts/samples/demo-maskdit-guided",
    "artifacts/features/demo-maskdit-guided",
    ".scratch",
    "results",
    "logs",
)


@pytest.fixture(scope="session", autouse=True)
def slurm(tmp_path_factory):
    """A cluster with four nodes; nothing of it runs afterwards."""
    os.environ["MASKDIT_SLURM"] = str(tmp_path_factory.mktemp("slurm"))
    cluster.up()
    yield
    cluster.down()
    assert not cluster.left()


def site(where, runtime=10, warning=60, steps=STEPS, **sizes):
    """The toy on this cluster: its profile edited as a site would, two nodes a training; MaskDiT's takes some time."""
    made = project(where)
    (made / "slurm").symlink_to("profiles/slurm")
    profile = made / "profiles" / "slurm" / "config.yaml"
    text = re.sub(r"nodes: \d+", "nodes: 2", profile.read_text())
    text = re.sub(r"runtime: 1440\n    mpi", f"runtime: {runtime}\n    mpi", text).replace("USR1@600", f"USR1@{warning}")
    text = (
        re.sub(r"(set-scatter:) .*", r"\1 [sample=2]", text)
        .replace("latency-wait: 60", "latency-wait: 10")
        .replace("16000", "8000")
    )
    text = text.replace("slurm_partition: \"'gpu'\"", "slurm_partition: \"'cpu'\"").replace(
        "jobs: 100", f"jobs: {cluster.LIMIT // 2}"
    )
    profile.write_text(text.replace("status-checks: 30", "status-checks: 5"))
    lines = "".join(f"    {name}: {value}\n" for name, value in {"milestones": f"[2, {steps}]", **sizes}.items())
    edit(
        made / "params.yaml",
        "    <<: *demo-pretrain\n    mask_ratio: 0.5\n",
        f"    <<: *demo-pretrain\n{lines}    mask_ratio: 0.5\n",
    )
    return made


def start(where, *words, ranks=1):
    """Snakemake on this cluster, in the background, as the command line of the README."""
    theirs = {name: value for name, value in cluster.environment().items() if name in ("MASKDIT_SLURM", "SLURM_CONF")}
    path = f"{cluster.home() / 'bin'}:{environment(where)['PATH']}"
    ours = {"PATH": path, "MASKDIT_RANKS": str(ranks), "MASKDIT_STATE_SECONDS": "1", "MASKDIT_DEVICE": "cpu"}
    with (where / "said.log").open("a") as log:
        command = ["snakemake", "--profile", "slurm", *words]
        return subprocess.Popen(
            command, cwd=where, env={**environment(where), **theirs, **ours}, stdout=log, stderr=subprocess.STDOUT
        )


def ended(engine, where, seconds=900):
    """Wait for it; what it said must be a success."""
    code = engine.wait(seconds)
    said = (where / "said.log").read_text()
    assert code == 0, said[-3000:] + "".join(path.read_text()[-2000:] for path in (where / "logs").rglob("*.log"))
    return said


def until(what, ask, seconds=90):
    """The first answer that is not empty."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := ask():
            return answer
        time.sleep(0.3)
    raise AssertionError(f"{what}: not within {seconds} s\n{cluster.tool('squeue')}\n{cluster.tool('sinfo')}")


def job(where, rule="pretrain"):
    """The number of the job of a rule that runs in a folder, '' if none does."""
    lines = cluster.tool("squeue", "--noheader", "--states=RUNNING", "--format=%A|%Z|%k").splitlines()
    return next((line.split("|")[0] for line in lines if line.split("|")[1] == str(where) and f"|rule_{rule}_" in line), "")


def kept(where):
    """The step of the newest state of the pretraining in a folder, -1 if there is none."""
    records = sorted((where / ".scratch").glob("pretrain-*/state-*.json"))
    return json.loads(records[-1].read_text())["step"] if records else -1


def further(where):
    """Wait until a job has trained on from the state that is there; its number."""
    number = until("a job that trains", lambda: job(where))
    before = kept(where)
    until(f"a state after step {before} by job {number}", lambda: kept(where) > before and job(where) == number)
    return number


def weights(where):
    """The bytes of a training's tensors by file and name."""
    files = sorted((where / "artifacts" / "runs" / KEY / "pretrain").glob("*.safetensors"))
    return {(file.name, name): tensor.tobytes() for file in files for name, tensor in load_file(file).items()}


def logged(where):
    """The steps of a training's log."""
    text = (where / "artifacts" / "runs" / KEY / "pretrain" / "log.jsonl").read_text()
    return [json.loads(line)["step"] for line in text.splitlines()]


@pytest.fixture(scope="module")
def limited(tmp_path_factory):
    """A training that is longer than its jobs may be, in the background of all other tests."""
    where = site(
        tmp_path_factory.mktemp("limited"),
        runtime=2,
        warning=45,
        steps=LONG,
        batch=64,
        encoder="{patch: 2, depth: 8, width: 192, heads: 4}",
    )
    engine = start(where, f".scratch/made/pretrain/{KEY}", ranks=2)
    yield where, engine
    engine.kill()
    engine.wait()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, limited):
    """The whole graph, two nodes a training."""
    where = site(tmp_path_factory.mktemp("undisturbed"))
    ended(start(where, TABLE), where)
    return where


def test_the_graph_ends_with_a_table_and_has_nothing_left_to_do(undisturbed):
    table = pd.read_csv(undisturbed / TABLE, index_col="eval")
    assert table.loc[["demo-dit-plain", "demo-maskdit-guided"], SCORES].notna().all(axis=None)
    assert "Nothing to be done" in ended(start(undisturbed, TABLE), undisturbed)


def test_a_laptop_has_nothing_to_do_after_the_cluster(undisturbed):
    done = subprocess.run(["snakemake", "-n", TABLE], cwd=undisturbed, env=environment(undisturbed), capture_output=True, text=True)
    assert "Nothing to be done" in done.stdout + done.stderr


def test_a_duplicate_job_of_a_finished_step_ends_well_and_changes_nothing(undisturbed):
    def state():
        places = [path for path in (undisturbed / "artifacts" / "runs" / KEY).rglob("*") if path.is_file()]
        return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in places}

    before = state()
    words = ["sbatch", "--wait", "--partition=cpu", f"--chdir={undisturbed}", "--output=duplicate.log"]
    words.append(f"--wrap=srun maskdit pretrain {KEY}")
    done = subprocess.run(words, env={**environment(undisturbed), **cluster.environment()}, capture_output=True, text=True)
    said = (undisturbed / "duplicate.log").read_text()
    assert done.returncode == 0, done.stderr + said
    assert "is current" in said
    assert state() == before


def test_two_nodes_train_as_one(undisturbed):
    records = [json.loads(path.read_text()) for path in (undisturbed / ".scratch").glob("pretrain-*/state-*.json")]
    assert (2, STEPS) in {(record["world"], record["step"]) for record in records}


def test_a_step_s_shares_are_jobs_of_their_own(undisturbed):
    logs = undisturbed / ".snakemake" / "slurm_logs"
    assert len(list(logs.glob("rule_sample_part/demo-maskdit-guided_*/*.log"))) == 2


def requeue(where, number):
    """An administrator sends the job back into the queue."""
    cluster.tool("scontrol", "requeue", number)
    until("the end of its run", lambda: job(where) != number)


def warn(where, number):
    """The warning of --signal: to the steps of the job, not to its script."""
    cluster.tool("scancel", "--signal=USR1", number)
    until("the end of its run", lambda: job(where) != number)


def cancel(where, number):
    """A finger slips."""
    cluster.tool("scancel", number)
    until("its end", lambda: job(where) != number)


def preempt(where, number):
    """Somebody with more right needs all nodes for ten seconds."""
    words = ["sbatch", "--parsable", "--partition=urgent", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=sleep 10"]
    urgent = cluster.tool(*words).strip()
    until("preemption", lambda: job(where) != number)
    until("the urgent job", lambda: "JobState=COMPLETED" in cluster.tool("scontrol", "show", "job", urgent))


def preempt_for_good(where, number):
    """The same on a partition whose jobs are not requeued but cancelled, without a time of grace."""
    cluster.tool("scontrol", "update", "PartitionName=gpu", "PreemptMode=CANCEL", "GraceTime=0")
    try:
        preempt(where, number)
    finally:
        cluster.tool("scontrol", "update", "PartitionName=gpu", "PreemptMode=REQUEUE", "GraceTime=20")


def lose_node(where, number):
    """One of the nodes breaks down, and is mended."""
    name = cluster.tool("squeue", "--noheader", f"--jobs={number}", "--format=%B")
    cluster.kill_node(name)
    until("the job's end", lambda: job(where) != number)
    cluster.start_node(name)


def restart(where, number):
    """Slurm's controller is away for a while; jobs run on."""
    cluster.kill_controller()
    time.sleep(3)
    cluster.start_controller()


def warn_while_away(where, number):
    """The warning comes while the controller is away, which the job has to ask to put it back into the queue."""
    cluster.kill_controller()
    for process in cluster.tasks(number):
        process.send_signal(signal.SIGUSR1)
    time.sleep(12)
    cluster.start_controller()
    until("the end of its run", lambda: job(where) != number)


EVENTS = (requeue, warn, cancel, preempt, preempt_for_good, lose_node, restart, warn_while_away)


def test_whatever_happens_to_its_jobs_the_table_is_that_of_an_undisturbed_run(undisturbed, limited, tmp_path):
    limited[1].wait(900)  # its jobs would be preempted, too, and cancelled for good
    where = twin(undisturbed, tmp_path / "site")
    for made in MADE:
        shutil.rmtree(where / made, ignore_errors=True)
    engine = start(where, TABLE)
    for event in EVENTS:
        number = further(where)
        before = kept(where)
        event(where, number)
        assert kept(where) >= before, f"{event.__name__} lost steps"
    # and the engine itself is killed: its job runs on, until the job of the next engine takes its place
    number = further(where)
    cluster.tool("scontrol", "update", f"JobId={number}", "Comment=of the site")  # which is then no sign of the job's step
    engine.kill()
    engine.wait()
    subprocess.run(["snakemake", "--unlock"], cwd=where, env=environment(where), check=True)
    ended(start(where, TABLE), where)
    told = "".join(path.read_text() for path in sorted((where / ".snakemake" / "slurm_logs" / "rule_pretrain" / KEY).glob("*.log")))
    assert told.count("resuming from step") >= len(EVENTS)
    assert "goes back into the queue" in told, "the warning"
    assert f"cancelling job {number}, an older job of this step" in told, "the job that the killed engine left behind"
    assert weights(where) == weights(undisturbed)
    assert logged(where) == logged(undisturbed)
    pd.testing.assert_frame_equal(*(pd.read_csv(each / TABLE)[["eval", *SCORES]] for each in (where, undisturbed)))


def sbatch(where, *words, **more):
    """What sbatch says in a folder, in an environment like that of Snakemake's jobs."""
    variables = {**environment(where), **cluster.environment(), "MASKDIT_STATE_SECONDS": "1", **more}
    done = subprocess.run(["sbatch", "--parsable", *words], cwd=where, env=variables, capture_output=True, text=True)
    return (done.stdout + done.stderr).strip()


def test_a_partition_of_gpus_may_refuse_jobs_without_one_because_these_have_another(undisturbed):
    assert "the partition gpu is for jobs with a GPU" in sbatch(undisturbed, "--wrap=true")
    partitions = (undisturbed / "said.log").read_text()
    assert "slurm_partition=cpu" in partitions
    assert "slurm_partition=gpu" in partitions


def test_what_a_limit_of_submitted_jobs_refuses_is_made_by_the_same_command_later(undisturbed, tmp_path):
    where = twin(undisturbed, tmp_path / "site")
    lost = [where / "artifacts" / "features" / name for name in ("demo-dit-plain", "demo-maskdit-guided")]
    for folder in lost:
        shutil.rmtree(folder)
    stamps = [f".scratch/made/features/{folder.name}" for folder in lost]
    held, said = [], ""
    while "Job violates accounting/QOS policy (job submit limit" not in said:  # another test may have a job, too
        said = sbatch(where, "--hold", "--partition=cpu", "--output=/dev/null", "--wrap=true")
        held += [said] if said.isdigit() else []
        time.sleep(1.1)  # the controller counts jobs once a second, without the newest one
        assert len(held) <= cluster.LIMIT + 1
    engine = start(where, *stamps, "--keep-going")
    assert engine.wait(120), "there is no room for its jobs"
    assert "Job violates accounting/QOS policy (job submit limit" in (where / "said.log").read_text()
    cluster.tool("scancel", held.pop(), held.pop())
    time.sleep(1.1)
    ended(start(where, *stamps, "--jobs=1"), where)
    assert all(folder.exists() for folder in lost)
    cluster.tool("scancel", *held)


WITHOUT_LOCKS = "#include <errno.h>\nint flock(int file, int how) { errno = ENOSYS; return -1; }\n"  # as Lustre without flock


def elsewhere(where, node, library):
    """A training in a job on a node, which is a machine of its own to it: another host, other processes, and no flock."""
    alone = "unshare --uts --pid --fork --kill-child --mount-proc"
    command = f"hostname {node}-alone; LD_PRELOAD={library} exec maskdit pretrain {KEY}"
    words = ["--partition=cpu", f"--nodelist={node}", "--ntasks=1", f"--output={node}.%j.log", "--open-mode=append"]
    return sbatch(where, *words, f"--wrap=srun {alone} sh -c '{command}'", MASKDIT_RANKS="2")


def state(number):
    """The state of a job."""
    return re.search(r"JobState=(\S+)", cluster.tool("scontrol", "show", "job", number))[1]


def signalled(number, what):
    """Signal everything that a job's task runs."""
    for task in cluster.tasks(number):
        for process in [task, *task.children(recursive=True)]:
            process.send_signal(what)


def test_without_flock_the_lease_alone_keeps_two_nodes_apart_and_takes_over_from_one_that_is_gone(undisturbed, tmp_path):
    where = twin(undisturbed, tmp_path / "site")
    for made in ("artifacts/runs/demo-maskdit", ".scratch", "logs"):
        shutil.rmtree(where / made)
    source, library = where / "without.c", where / "without.so"
    source.write_text(WITHOUT_LOCKS)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    first = elsewhere(where, "n1", library)
    until("a state", lambda: kept(where) > 0)
    second = elsewhere(where, "n2", library)
    until("its end", lambda: state(second) == "FAILED", 40)
    refusal = (where / f"n2.{second}.log").read_text()
    assert re.search(rf"another process is training this recipe \(process \d+ on n1-alone, Slurm job {first}\)", refusal)
    signalled(first, signal.SIGSTOP)  # the node is frozen, and its lease grows old
    frozen = kept(where)
    third = elsewhere(where, "n3", library)
    until("a state of the third", lambda: kept(where) > frozen, 150)
    signalled(first, signal.SIGCONT)
    until("the first one's end", lambda: state(first) == "FAILED", 60)
    until("the third one's end", lambda: state(third) == "COMPLETED", 200)
    taken = (where / f"n1.{first}.log").read_text()
    assert f"on n3-alone, Slurm job {third} has taken over this training" in taken
    assert f"resuming from step {frozen}" in (where / f"n3.{third}.log").read_text()
    assert weights(where) == weights(undisturbed)
    assert logged(where) == logged(undisturbed)


def test_a_job_script_of_one_s_own_trains_on_all_of_its_nodes(undisturbed, tmp_path):
    where = twin(undisturbed, tmp_path / "site")
    for made in ("artifacts/runs/demo-maskdit", ".scratch", "logs"):
        shutil.rmtree(where / made)
    script = where / "train.sh"
    script.write_text(f"#!/bin/bash\n#SBATCH --nodes=2 --gpus-per-node=1 --output=own.log\nmaskdit pretrain {KEY}\n")
    ours = {"MASKDIT_RANKS": "1", "MASKDIT_DEVICE": "cpu"}
    done = subprocess.run(
        ["sbatch", "--wait", str(script)],
        cwd=where,
        env={**environment(where), **cluster.environment(), **ours},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr + (where / "own.log").read_text()
    records = [json.loads(path.read_text()) for path in (where / ".scratch").glob("pretrain-*/state-*.json")]
    assert {record["world"] for record in records} == {2}
    assert weights(where) == weights(undisturbed)


def test_a_training_longer_than_its_job_goes_on_under_the_same_number(limited):
    where, engine = limited
    ended(engine, where, 600)
    logs = list((where / ".snakemake" / "slurm_logs").glob("rule_pretrain/*/*.log"))
    text = "".join(path.read_text() for path in logs)
    assert len(logs) == 1
    assert "goes back into the queue" in text
    assert logged(where)[-1] == LONG
    assert {json.loads(path.read_text())["world"] for path in (where / ".scratch").glob("pretrain-*/state-*.json")} == {4}
    assert len(set(logged(where))) == len(logged(where))
