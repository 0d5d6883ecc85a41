"""What a command imports before it works: torch only where it computes, a network only where it is built."""

import re
import resource
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

from maskdit.artifacts.step import STEPS
from maskdit.config import yaml_subset
from maskdit.tools.study import inserted
from project import ROOT, SNAKEMAKE, project, run, says, twin

COUNTS = ["fetch", "evaluate", "grid", "strip", "table", "curves", "efficiency", "claims", "report"]  # without torch
WORDS = [
    "check",
    "show demo",
    "plan demo",
    "doctor artifacts/raw/demo",
    "doctor artifacts/raw/demo-features",
    "doctor artifacts/latents/demo",
    "doctor artifacts/reference/demo/reference.npz",
    "doctor artifacts/runs/demo-maskdit/pretrain/log.jsonl",
    "doctor artifacts/samples/demo-maskdit-guided",
    "doctor artifacts/features/demo-maskdit-guided",
    "study mine pictures --resolution 16",
]


@pytest.fixture(scope="module")
def commands(by_snakemake: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Every command of the toy study, by its verb."""
    said = says(twin(by_snakemake, tmp_path_factory.mktemp("commands")), *SNAKEMAKE, "--dry-run", "--forceall")
    found: dict[str, list[str]] = {}
    for line, verb in re.findall(r"^Shell command: (maskdit (\w+) .*)$", said, re.M):
        found.setdefault(verb, []).append(line)
    return found


@pytest.mark.pipeline
@pytest.mark.parametrize("verb", COUNTS)
def test_a_step_that_only_counts_never_imports_torch(
    verb: str, by_snakemake: Path, commands: dict[str, list[str]], without_torch: tuple[str, str], tmp_path: Path
) -> None:
    where = twin(by_snakemake, tmp_path)
    for command in commands[verb]:
        says(where, *without_torch, "MASKDIT_FORCE=1", *command.split())


def test_neither_does_a_table_of_reconstructions() -> None:
    assert "torch" not in imported(f"import maskdit.{STEPS['recon']}")


@pytest.mark.pipeline
def test_a_question_never_imports_torch(by_snakemake: Path, without_torch: tuple[str, str], tmp_path: Path) -> None:
    where = twin(by_snakemake, tmp_path)
    for number in range(300):
        picture = where / "pictures" / "ab"[number % 2] / f"{number}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.hardlink_to(where / "results" / "grid_demo-dit.png")
    for words in WORDS:
        said = run(where, *without_torch, "maskdit", *words.split())[1]  # the doctor may find a problem, and say so
        assert "torch was imported" not in said, words
        assert not re.search(r"^maskdit: |Traceback", said, re.M), f"{words}: {said}"


def imported(program: str) -> set[str]:
    """The packages and torch's own parts that a program has imported when it ends."""
    done = subprocess.run([sys.executable, "-c", f"{program}; import sys; print(*sys.modules)"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


HEAVY = {"diffusers", "pandas", "matplotlib.pyplot", "sklearn", "timm", "torch._dynamo", "torch_fidelity", "torchvision"}


@pytest.mark.parametrize("verb", ["features", "reference", "pretrain", "finetune"])
def test_a_step_imports_torch_and_no_package_beside_it_that_it_may_not_need(verb: str) -> None:
    found = imported(f"import maskdit.{STEPS[verb]}")
    assert "torch" in found
    assert not found & HEAVY


def test_one_feature_network_does_not_wait_for_another() -> None:
    program = "from maskdit.evaluation.extractors import MobileNet; from torchvision.models import mobilenet_v2"
    found = imported(f"{program}; MobileNet(mobilenet_v2(weights=None).state_dict())")
    assert not found & {"torch_fidelity", "timm", "diffusers"}


def test_steps_that_decode_pay_for_diffusers_and_for_nothing_that_it_does_not_bring() -> None:
    found = imported("import maskdit.sampling.sample, maskdit.latents.encode, maskdit.latents.vae")
    assert "diffusers" in found
    assert not found & {"matplotlib", "pandas", "sklearn", "timm", "torch_fidelity"}


def seconds(where: Path, *command: str) -> float:
    """Processor time of a command that must succeed, with all that it starts."""

    def used() -> float:
        spent = resource.getrusage(resource.RUSAGE_CHILDREN)
        return spent.ru_utime + spent.ru_stime

    before = used()
    says(where, *command)
    return used() - before


LIMITS = {"evaluate": 0.4, "fetch": 0.4, "features": 1.5, "reference": 1.5}  # times what torch's own import takes


@pytest.mark.slow
def test_a_step_s_imports_take_no_longer_than_promised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    programs = {verb: f"import maskdit.{STEPS[verb]}" for verb in (*LIMITS, "sample")}
    programs |= {"torch": "import torch", "diffusers": "import torch; from diffusers import AutoencoderKL"}
    rounds = [{name: seconds(tmp_path, sys.executable, "-c", line) for name, line in programs.items()} for _ in range(4)][1:]
    ratios = {verb: median(each[verb] / each["torch"] for each in rounds) for verb in LIMITS}
    beside = median(each["sample"] / each["diffusers"] for each in rounds)
    with capsys.disabled():
        print(f"\ntimes import torch: {ratios}; sample, times import diffusers: {beside:.2f}")
    assert all(ratios[verb] <= limit for verb, limit in LIMITS.items())
    assert beside <= 1.15  # its own files, NumPy and safetensors come on top


@pytest.mark.slow
def test_a_command_ends_sooner_than_a_program_that_only_imports_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = "import sys, torch, maskdit.sampling.sample"
    ours = f"from maskdit.cli import main; {bare}; sys.argv = ['maskdit', '--help']; main()"
    ratio = median(seconds(tmp_path, sys.executable, "-c", ours) / seconds(tmp_path, sys.executable, "-c", bare) for _ in range(3))
    with capsys.disabled():
        print(f"\nwith its end, times the imports: {ratio:.2f}")
    assert ratio < 1


def larger(where: Path, more: int) -> Path:
    """The project with the params.yaml that is shipped and so many more evaluations of in256, of three jobs each."""
    project(where, ROOT / "params.yaml")
    text = (where / "params.yaml").read_text()
    tree = yaml_subset.read(text)
    if more:
        text = inserted(text, "sample", {f"in256-more-{number:04d}": tree["sample"]["in256-cosine"] for number in range(more)})
    (where / "params.yaml").write_text(text)
    return where


@pytest.mark.slow
@pytest.mark.parametrize("more", [310, 1310], ids=["1,000 jobs", "4,000 jobs"])
def test_a_plan_takes_at_most_8_ms_a_job_beyond_its_start(more: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dry = ("snakemake", "--dry-run", "--quiet", "rules", "--")
    start = seconds(larger(tmp_path / "one", 0), *dry, ".scratch/made/fetch/in256")
    where = larger(tmp_path / "many", more)
    whole = seconds(where, *dry, "results/table_in256.csv")
    jobs = int(re.findall(r"^total +(\d+)$", says(where, *dry, "results/table_in256.csv"), re.M)[0])
    with capsys.disabled():
        print(f"\n{jobs} jobs: {whole:.1f} s, start {start:.1f} s: {1000 * (whole - start) / jobs:.1f} ms a job")
    assert jobs > 3 * more
    assert whole - start <= 0.008 * jobs


@pytest.mark.slow
def test_dvc_plans_the_studies_about_as_quickly_as_as_many_bare_stages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours, bare = larger(tmp_path / "ours", 0), larger(tmp_path / "bare", 0)
    stages = says(ours, "dvc", "stage", "list", "--name-only").split()
    (bare / "dvc.yaml").write_text(
        yaml_subset.write({"stages": {f"s{at}": {"cmd": "true", "outs": [f"o{at}"]} for at in range(len(stages))}})
    )
    plan = ("dvc", "repro", "--dry", "--force")
    ratio = median(seconds(ours, *plan) / seconds(bare, *plan) for _ in range(3))
    with capsys.disabled():
        print(f"\ndvc: {len(stages)} stages, {ratio:.2f} times bare ones")
    assert ratio <= 1.3
