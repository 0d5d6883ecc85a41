"""Both engines on the demo's graph, with real images at toy size: what runs, what is refused, what a failure leaves."""

import csv
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from project import (
    GUIDED,
    REFINED,
    ROOT,
    SNAKEMAKE,
    STAGES,
    edit,
    environment,
    metrics,
    nodes,
    plan,
    project,
    run,
    says,
    twin,
    with_sweep,
)

pytestmark = pytest.mark.pipeline


def leftovers(where: Path) -> list[Path]:
    """Half-written things: what a step has not yet published has a dot before its name."""
    hidden = [path for folder in ("artifacts", "results") for path in (where / folder).rglob(".*")]
    return [path for path in hidden if path.name != ".snakemake_timestamp"]


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """The project from nothing."""
    return project(tmp_path / "fresh")


@pytest.fixture(scope="module")
def by_dvc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project after `dvc repro`, from nothing."""
    where = project(tmp_path_factory.mktemp("dvc"))
    says(where, "dvc", "repro", *STAGES[:2])
    return where


def test_a_second_snakemake_has_nothing_to_do(by_snakemake: Path, tmp_path: Path) -> None:
    where = twin(by_snakemake, tmp_path)
    assert "Nothing to be done" in says(where, *SNAKEMAKE)
    assert leftovers(where) == []


def test_a_milestone_before_the_last_one_makes_no_sample_and_no_finetuning_again(by_snakemake: Path, tmp_path: Path) -> None:
    where = twin(by_snakemake, tmp_path)
    edit(where / "params.yaml", "milestones: [2, 4]", "milestones: [2, 3, 4]")
    edit(where / "params.yaml", "  demo-maskdit-guided:\n", "  demo-dit-3: {<<: *demo-sample, step: 3}\n  demo-maskdit-guided:\n")
    before = {path: path.read_bytes() for path in (where / "artifacts" / "runs").rglob("*.safetensors")}
    said = says(where, *SNAKEMAKE)
    ran = {name for name in nodes(said) if name.split("@")[0] in ("pretrain", "finetune", "sample", "features", "evaluate")}
    assert ran == {"pretrain@demo-dit", "sample@demo-dit-3", "features@demo-dit-3", "evaluate@demo-dit-3"}
    assert "milestone 3 was not kept; training once more up to step 3, the others stay" in said
    assert all(path.read_bytes() == content for path, content in before.items())
    assert "demo: everything is made" in says(where, "maskdit", "status", "demo")


def test_each_step_is_in_the_ledger_and_the_report_tells_how_each_artifact_was_made(by_snakemake: Path) -> None:
    lines = [json.loads(line) for line in (by_snakemake / "logs" / "ledger.jsonl").read_text().splitlines()]
    assert {line["exit"] for line in lines} == {0}
    ran = {f"{line['verb']}/{line['key']}" for line in lines}
    page = (by_snakemake / "results" / "report_demo.html").read_text()
    told = dict(re.findall(r'<th scope="row">(\w+/[\w-]+)</th><td>([^<]*)</td>', page))
    assert told == dict.fromkeys(ran, "made")
    assert "Everything in this study was run." in page


def test_a_sweep_is_sampled_judged_and_shown_beside_the_row_that_it_chose(by_snakemake: Path, tmp_path: Path) -> None:
    where = twin(by_snakemake, tmp_path)
    with_sweep(where / "params.yaml")
    results = where / "results"
    points = {f"{verb}@demo-sweep-{at}" for verb in ("sample", "features", "evaluate") for at in (10, 20)}
    assert nodes(says(where, *SNAKEMAKE, "results/sweep_demo-sweep.csv")) == {*points, "sweep@demo-sweep"}
    rows = list(csv.DictReader((results / "sweep_demo-sweep.csv").read_text().splitlines()))
    assert [row["eval"] for row in rows] == ["demo-sweep-10", "demo-sweep-20", "demo-maskdit-best"]
    row = {f"{verb}@demo-maskdit-best" for verb in ("sample", "features", "evaluate")}
    assert nodes(says(where, *SNAKEMAKE)) == {*row, "table@demo", "claims@claims", "report@demo"}
    told = "Best of the sweep demo-sweep, which chose on other samples: demo-maskdit-best."
    assert told in (results / "table_demo.md").read_text()
    assert 'data-file="sweep_demo-sweep.csv"' in (results / "report_demo.html").read_text()
    assert "Nothing to be done" in says(where, *SNAKEMAKE, "results/report_demo.html", "results/sweep_demo-sweep.csv")
    assert "demo-sweep: everything is made" in says(where, "maskdit", "status", "demo-sweep")


def test_weights_of_others_are_sampled_and_scored_in_the_same_graph(by_snakemake: Path, tmp_path: Path) -> None:
    where, file = twin(by_snakemake, tmp_path), tmp_path / "theirs.pt"
    says(where, "maskdit", "export", "artifacts/runs/demo-maskdit/finetune", "--format", "upstream", "--out", str(file))
    sha = hashlib.sha256(file.read_bytes()).hexdigest()
    fields = f"url: {file.as_uri()}, sha256: {sha}, format: upstream, vae: demo, dataset: demo, step: 7, heads: [2, 2]"
    edit(where / "params.yaml", "released: {}", f"released:\n  demo-theirs: {{{fields}}}")
    edit(where / "params.yaml", "run: demo-maskdit\n    phase: finetune", "run: demo-theirs\n    phase: released")
    assert nodes(says(where, *SNAKEMAKE)) == {"released@demo-theirs"} | REFINED
    rows = {row["eval"]: row for row in csv.DictReader((where / "results" / "table_demo.csv").read_text().splitlines())}
    assert [rows[GUIDED][name] for name in ("model", "phase", "steps", "train_seconds")] == ["MaskDiT", "released", "7", ""]
    assert rows[GUIDED]["fd_mobilenet"] != ""


def test_a_stale_artifact_is_refused_in_a_copy_without_history(by_snakemake: Path, fresh: Path) -> None:
    twin(by_snakemake / "artifacts", fresh / "artifacts")
    edit(fresh / "params.yaml", "lr: 2.0e-3\n    betas", "lr: 4.0e-3\n    betas")
    paths = ("--run", "artifacts/runs/demo-maskdit/finetune", "--vae", "artifacts/vae/demo", "--out", "artifacts/samples/new")
    code, said = run(fresh, "maskdit", "sample", GUIDED, *paths)
    assert (code, said.count("\n")) == (2, 1)
    assert "pretrain/demo-maskdit was made with lr 0.002, params.yaml says 0.004" in said
    assert not (fresh / "artifacts" / "samples" / "new").exists()
    assert not list((fresh / "artifacts" / "samples").glob(".*"))


@pytest.mark.parametrize("option", [("--config", "seed=1"), ("--configfile", "other.yaml")], ids=lambda option: option[0])
def test_snakemake_takes_no_other_configuration(option: tuple[str, str], fresh: Path) -> None:
    (fresh / "other.yaml").write_text("seed: 1\n")
    code, said = run(fresh, *SNAKEMAKE, "--dry-run", *option)
    assert code
    assert "params.yaml is the only configuration" in said
    assert nodes(said) == set()


def test_a_target_that_does_not_exist_is_answered_in_one_line(fresh: Path) -> None:
    code, said = run(fresh, *SNAKEMAKE, "--dry-run", "results/report_odd.html")
    assert code
    assert "params.yaml: report has no entry 'odd'; known: demo" in said
    assert "Traceback" not in said
    assert "Exception" not in said


MISTAKES = {
    "a misspelt key": (
        "mask_ratio: 0.5",
        "maskratio: 0.5",
        "pretrain.demo-maskdit.maskratio: unknown key; did you mean 'mask_ratio'?",
    ),
    "a word for a number": ("solver_steps: 2", "solver_steps: two", "sample.demo-dit-plain.solver_steps: "),
    "a number that YAML 1.1 reads as text": ("lr: 1.0e-3", "lr: 1e-3", "YAML 1.1 and 1.2 read 1e-3 differently"),
    "a step that is no milestone": ("step: 2", "step: 3", "sample.demo-dit-plain.step: 3 is not a milestone of pretrain.demo-dit"),
    "a mask without a decoder": (
        "mask_ratio: 0.0\n    mae",
        "mask_ratio: 0.5\n    mae",
        "needs a decoder, and the network has none (decoder: null)",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_params_yaml_stops_snakemake_before_any_job(mistake: str, fresh: Path) -> None:
    old, new, message = MISTAKES[mistake]
    edit(fresh / "params.yaml", old, new)
    code, said = run(fresh, *SNAKEMAKE, "--dry-run")
    assert code
    assert [line for line in said.splitlines() if line.startswith("params.yaml: ") and message in line]
    assert "Job stats" not in said


@pytest.mark.parametrize("command", ["snakemake --dry-run", "maskdit --help", "maskdit sample --help"])
def test_no_plan_and_no_help_waits_for_torch(command: str, fresh: Path) -> None:
    script, *words = command.split()
    said = says(fresh, sys.executable, "-X", "importtime", str(Path(sys.executable).parent / script), *words)
    imported = set(re.findall(r"^import time:.*\| +(\w+)$", said, re.M))
    assert "argparse" in imported
    assert not imported & {"torch", "diffusers", "sklearn", "matplotlib"}


def test_a_step_that_fails_shows_its_log_and_leaves_nothing_half_written(fresh: Path) -> None:
    edit(fresh / "params.yaml", "images: 96", "images: 97")
    code, said = run(fresh, *SNAKEMAKE)
    assert code
    assert (
        "params.yaml declares images: 97 in fetch.demo; set images: 96" in said.split("Error in rule fetch")[1]
    )  # with its log, not before
    assert not (fresh / "artifacts" / "raw" / "demo").exists()
    assert leftovers(fresh) == []


def test_two_ranks_train_what_one_does_and_publish_it_once(by_snakemake: Path, tmp_path: Path) -> None:
    where = twin(by_snakemake, tmp_path)
    folder, before = where / "artifacts" / "runs" / "demo-maskdit" / "pretrain", where / "before"
    folder.rename(before)
    shutil.rmtree(where / ".scratch")
    words = ["maskdit", "pretrain", "demo-maskdit", "--latents", "artifacts/latents/demo", "--out", str(folder.relative_to(where))]
    said = says(where, "env", "MASKDIT_RANKS=2", *words)
    assert said.count("4/4") == 1, "one rank speaks"
    final = json.loads((folder / "index.json").read_text())["final"]
    one, two = load_file(before / final), load_file(folder / final)
    assert all((one[name] - two[name]).abs().max() < 1e-2 for name in one), "bf16 products, four steps of Adam"
    manifests = [json.loads((each / "manifest.json").read_text()) for each in (before, folder)]
    assert manifests[0]["lineage"]["encode/demo"] == manifests[1]["lineage"]["encode/demo"]
    code, said = run(where, "env", "MASKDIT_RANKS=3", "MASKDIT_FORCE=1", "MASKDIT_SCRATCH=other", *words)
    assert code == 2
    assert "pretrain.batch: 8 cannot be shared by 3 ranks" in said
    assert "Traceback" not in said


def test_a_group_of_one_publishes_and_a_process_of_several_that_no_step_has_started_is_refused(
    by_snakemake: Path, tmp_path: Path
) -> None:
    where = twin(by_snakemake, tmp_path)
    edit(where / "params.yaml", "    batch: 32\n    mirror: true", "    batch: 16\n    mirror: true")
    code, said = run(where, "env", "RANK=0", "WORLD_SIZE=2", "maskdit", "encode", "demo")
    assert code == 2
    assert said == (
        "maskdit: encode/demo: RANK=0 and WORLD_SIZE=2 make this one process of several; unset them: "
        "the step starts its own processes\n"
    )
    says(where, "env", "RANK=0", "WORLD_SIZE=1", "maskdit", "encode", "demo")
    manifest = json.loads((where / "artifacts" / "latents" / "demo" / "manifest.json").read_text())
    assert manifest["lineage"]["encode/demo"]["config"]["batch"] == 16


@pytest.mark.parametrize("engine", ["snakemake", ""])
def test_torchrun_starts_a_training_but_not_that_of_an_engine(engine: str, by_snakemake: Path, tmp_path: Path) -> None:
    where = twin(by_snakemake, tmp_path)
    group = {**environment(where), "RANK": "1", "WORLD_SIZE": "2"}
    command = ["maskdit", "pretrain", "demo-dit"]
    if engine:  # its name is among the first words of a process
        command = ["bash", "-c", '"$@"; exit $?', "snakemake", *command]
    done = subprocess.run(command, cwd=where, env=group, capture_output=True, text=True)
    assert done.returncode == 2
    assert ("make this one process of several" if engine else "start the group with torchrun") in done.stderr


def test_a_killed_step_is_not_taken_for_finished(tmp_path: Path) -> None:
    where = project(tmp_path, ROOT / "params.yaml")  # more images than the toy, so that there is time to kill
    command = [*SNAKEMAKE, ".scratch/made/fetch/demo"]
    with subprocess.Popen(command, cwd=where, env=environment(where), stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as engine:
        while not leftovers(where):
            assert engine.poll() is None
            time.sleep(0.05)
        jobs = psutil.Process(engine.pid).children(recursive=True)
        next(job for job in jobs if "/maskdit fetch" in " ".join(job.cmdline()[:3])).kill()
        said = engine.communicate()[0].decode()
    assert engine.returncode
    assert "Error in rule fetch" in said
    assert not (where / "artifacts" / "raw" / "demo").exists()
    assert plan(where, ".scratch/made/fetch/demo") == {"fetch@demo"}


def test_ctrl_c_keeps_the_state_and_what_was_published_and_says_so_last(by_snakemake: Path, tmp_path: Path) -> None:
    where = twin(by_snakemake, tmp_path)
    edit(where / "params.yaml", "milestones: [2, 4]", "milestones: [2, 4, 600000]")
    log = where / "logs" / "pretrain" / "demo-maskdit.log"
    log.unlink()
    with subprocess.Popen(
        SNAKEMAKE, cwd=where, env=environment(where), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    ) as engine:
        while not (log.exists() and "resuming from step 4" in log.read_text()):
            assert engine.poll() is None
            time.sleep(0.1)
        time.sleep(1)
        os.killpg(engine.pid, signal.SIGINT)
        engine.communicate()
    assert engine.returncode
    assert re.search(r"stopped before step \d+ and saved its state; run the command again to resume$", log.read_text().strip())
    assert (where / "artifacts" / "runs" / "demo-maskdit" / "pretrain" / "ema-0000004.safetensors").exists()
    told = json.loads(says(where, "maskdit", "status", "demo", "--json"))["nodes"]
    assert told["pretrain/demo-maskdit"]["state"] == "stopped"
    assert told["sample/demo-dit-plain"]["state"] == "current"


@pytest.mark.parametrize("ending", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_a_training_ends_with_its_snakemake_and_keeps_its_state_and_a_second_trainer_is_refused(
    ending: signal.Signals, by_snakemake: Path, tmp_path: Path
) -> None:
    where = twin(by_snakemake, tmp_path)
    edit(where / "params.yaml", "milestones: [2, 4]", "milestones: [2, 4, 600000]")
    log = where / "logs" / "pretrain" / "demo-maskdit.log"
    log.unlink()
    command = [*SNAKEMAKE, ".scratch/made/pretrain/demo-maskdit"]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # which a shell turns off for what it starts in the background
    with subprocess.Popen(command, cwd=where, env=environment(where), stderr=subprocess.DEVNULL, preexec_fn=heard) as engine:
        while not (log.exists() and "resuming from step 4" in log.read_text()):
            assert engine.poll() is None
            time.sleep(0.1)
        jobs = psutil.Process(engine.pid).children(recursive=True)
        code, said = run(where, "maskdit", "pretrain", "demo-maskdit")
        assert code == 2
        assert re.search(r"another process is training this recipe \(process \d+ on [^)]*\); wait for it or stop it$", said.strip())
        engine.send_signal(ending)
        while ending == signal.SIGINT and engine.poll() is None:  # Snakemake waits for its job; a second one makes it end alone
            time.sleep(1)
            engine.send_signal(ending)
    psutil.wait_procs(jobs, timeout=60)
    assert not any(job.is_running() for job in jobs)
    assert "the engine that started this step has gone" in log.read_text()
    assert re.search(r"stopped before step \d+ and saved its state; run the command again to resume", log.read_text())
    reached = max(json.loads(path.read_text())["step"] for path in (where / ".scratch").glob("pretrain-*/state-*.json"))
    assert reached > 4
    assert f"stopped before step {reached + 1} " in log.read_text()
    assert (where / "artifacts" / "runs" / "demo-maskdit" / "pretrain" / "ema-0000004.safetensors").exists()


def test_dvc_from_nothing_gives_the_numbers_that_snakemake_gave(by_snakemake: Path, by_dvc: Path) -> None:
    assert metrics(by_dvc) == metrics(by_snakemake) != {}
