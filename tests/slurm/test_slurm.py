"""The demo's graph on a real Slurm: whatever happens to its jobs, it ends with the table of an undisturbed run. Run by make slurm-test."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

import cluster
from project import edit, environment, project

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(cluster.missing()), reason=cluster.missing() or "there is a cluster")]
SCORES = ["fd_mobilenet", "is_mobilenet", "precision_mobilenet", "recall_mobilenet"]


@pytest.fixture(scope="session", autouse=True)
def slurm(tmp_path_factory):
    """A cluster with four nodes, gone afterwards."""
    os.environ["MASKDIT_SLURM"] = str(tmp_path_factory.mktemp("slurm"))
    cluster.up()
    yield
    cluster.down()
    assert not cluster.pids()


def site(where, **changes):
    """The toy on this cluster: its profile, edited as a site would, with two nodes of two processes for a training."""
    made = project(where)
    (made / "slurm").symlink_to("profiles/slurm")
    profile = made / "profiles" / "slurm" / "config.yaml"
    edit(profile, "slurm-init-seconds-before-status-checks: 30", "slurm-init-seconds-before-status-checks: 7")
    text = profile.read_text()
    text = re.sub(r"(\n    nodes: )1", r"\g<1>2", text).replace("USR1@600", changes.get("warning", "USR1@30"))
    text = re.sub(r"runtime: 1440", f"runtime: {changes.get('runtime', 10)}", text)
    text = re.sub(r"(cpus_per_task|mem_mb): \d+", r"\1: 4", text).replace("mem_mb: 4", "mem_mb: 2000").replace("latency-wait: 60", "latency-wait: 5")
    profile.write_text(text)
    if "steps" in changes:
        edit(made / "params.yaml", "milestones: [2, 4]", f"milestones: [2, {changes['steps']}]")
    return made


def start(where, *targets):
    """Snakemake on this cluster, in the background."""
    known = {**environment(where), **{name: value for name, value in cluster.environment().items() if name.startswith(("SLURM", "MASKDIT"))}}
    known["PATH"] = f"{cluster.home() / 'bin'}:{environment(where)['PATH']}"
    known |= {"MASKDIT_RANKS": "2", "MASKDIT_STATE_SECONDS": "1"}
    words = [sys.executable, "-m", "snakemake", "--profile", "slurm", *targets]
    with (where / "said.log").open("w") as log:
        return subprocess.Popen(words, cwd=where, env=known, stdout=log, stderr=subprocess.STDOUT)


def ended(engine, where, seconds=400):
    """Wait for it; what it said must be a success."""
    code = engine.wait(seconds)
    said = (where / "said.log").read_text()
    logs = "".join(path.read_text() for path in (where / "logs").rglob("*.log"))
    assert code == 0, said[-3000:] + logs[-3000:]
    return said


def running(rule, seconds=120):
    """The job of a rule that runs."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for line in cluster.tool("squeue", "--noheader", "--states=RUNNING", "--format=%i|%k").splitlines():
            number, _, comment = line.partition("|")
            if f"rule_{rule}" in comment:
                return number
        time.sleep(0.5)
    raise AssertionError(f"no job of {rule} runs: {cluster.tool('squeue')}")


def past(where, step, key="demo-maskdit", seconds=120):
    """Wait until a training has passed a step."""
    deadline = time.monotonic() + seconds
    log = where / "logs" / "pretrain" / f"{key}.log"
    while time.monotonic() < deadline:
        found = re.findall(rf"{key} pretrain: (\d+)/", log.read_text()) if log.exists() else []
        if found and int(found[-1]) >= step:
            return
        time.sleep(0.5)
    raise AssertionError(f"{log}: not past {step}: {log.read_text() if log.exists() else 'absent'}")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The whole toy by the cluster, two nodes a training."""
    where = site(tmp_path_factory.mktemp("undisturbed"))
    said = ended(start(where, "results/table_demo.csv"), where, 900)
    assert "100%" in said or "steps (100%) done" in said
    return where


def test_the_graph_ends_with_the_table_of_one_machine(undisturbed, tmp_path):
    table = pd.read_csv(undisturbed / "results" / "table_demo.csv", index_col="eval")
    assert set(table.index) == {"demo-dit-plain", "demo-maskdit-guided", "real, held out"}
    assert table[SCORES].iloc[:2].notna().all(axis=None)
    log = (undisturbed / "logs" / "pretrain" / "demo-maskdit.log").read_text()
    assert "pretrain: 4/4" in log
