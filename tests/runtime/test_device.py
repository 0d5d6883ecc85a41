"""precision: auto: what it becomes, where that is kept, and that what it was begun in it ends in."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from maskdit.artifacts.manifest import inputs_of, lineage
from maskdit.cli import main
from maskdit.config.base import UserError
from maskdit.config.load import load
from maskdit.model import checkpoint
from maskdit.reporting.records import demand_alike
from maskdit.runtime import device
from maskdit.runtime.device import native, settled
from maskdit.runtime.process_group import local_ranks
from project import environment

RELEASE = Path(__file__).parents[1] / "release" / "0.1.0"
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
PLAIN: dict[str, Any] = {"avx2": True, "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}


@pytest.mark.parametrize(
    ("capability", "precision"), [((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp16"), ((7, 0), "fp16"), ((6, 1), "fp32")]
)
def test_a_gpu_computes_in_what_its_tensor_cores_have(
    capability: tuple[int, int], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda where: capability)
    assert native(GPU) == precision


BF16 = PLAIN | {"avx512_bf16": True}


@pytest.mark.parametrize(
    ("known", "limit", "precision"),
    [
        (PLAIN, "", "fp32"),
        ({}, "", "fp32"),
        (BF16, "", "bf16"),
        (PLAIN | {"amx_bf16": True}, "", "bf16"),
        (BF16, "AVX2", "fp32"),
        (BF16, "avx512_core", "fp32"),
        (BF16, "AVX512_CORE_BF16", "bf16"),
        (BF16, "AVX512_CORE_AMX", "bf16"),
        (BF16, "AVX10_1_512", "bf16"),
        (BF16, "DEFAULT", "bf16"),
    ],
)
def test_a_cpu_computes_in_bf16_only_with_the_instructions_for_it(
    known: dict[str, Any], limit: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert native(CPU) == precision


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that says in what this machine is to compute without emulation."""
    monkeypatch.setattr(device, "PRECISION", None)

    def be(precision: str) -> None:
        monkeypatch.setattr(device, "native", lambda where: precision)

    return be


def test_what_is_written_out_is_obeyed_with_one_loud_line_where_it_is_emulated(
    fast: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    fast("fp32")
    assert settled("bf16", CPU) == "bf16"
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "precision bf16 is emulated on this device and several times slower than fp32" in said
    for mine, precision in (("bf16", "bf16"), ("fp32", "fp32"), ("bf16", "fp32")):
        fast(mine)
        assert settled(precision, CPU) == precision
    assert capsys.readouterr().err == ""


def test_who_comes_later_takes_what_the_first_has_settled(fast: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fast("fp32")
    assert settled("auto", CPU, tmp_path) == "fp32"
    fast("bf16")
    assert settled("auto", CPU, tmp_path) == "fp32"
    assert capsys.readouterr().err == "", "fp32 is slow nowhere"
    assert [path.name for path in tmp_path.iterdir()] == ["precision"]


def test_a_step_that_does_not_scale_its_loss_takes_no_fp16(fast: Any, tmp_path: Path) -> None:
    fast("fp16")
    assert settled("auto", GPU, scaled=False) == "fp32"
    assert settled("auto", GPU) == "fp16"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small study whose trainings and samples have precision: auto."""
    shutil.copytree(RELEASE / "made", tmp_path / "artifacts")
    shutil.copytree(RELEASE / "data", tmp_path / "data")
    shutil.rmtree(tmp_path / "artifacts" / "runs")
    milestones(tmp_path, "[10]")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def milestones(home: Path, steps: str) -> None:
    """Write params.yaml with a pretraining of so many steps."""
    text = (RELEASE / "params.yaml").read_text().replace("precision: fp32", "precision: auto")
    (home / "params.yaml").write_text(text.replace("milestones: [10, 20]", f"milestones: {steps}").replace("step: 20", "step: 10"))


RUN = "artifacts/runs/mini-maskdit/pretrain"


def pretrain() -> str:
    """Train, and tell the precision of the last milestone."""
    assert not main(["pretrain", "mini-maskdit", "--latents", "artifacts/latents/mini", "--out", RUN])
    return checkpoint.facts(sorted(Path(RUN).glob("ema-*"))[-1])["precision"]


@pytest.mark.parametrize(("begun", "then", "slow"), [("fp32", "bf16", False), ("bf16", "fp32", True)])
def test_a_recipe_goes_on_in_the_precision_in_which_it_was_begun(
    begun: str, then: str, slow: bool, fast: Any, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fast(begun)
    assert pretrain() == begun
    milestones(home, "[10, 20]")
    fast(then)
    capsys.readouterr()
    assert pretrain() == begun
    said = capsys.readouterr().err
    assert "resuming from step 10" in said
    assert ("in which this work started, is emulated on this device" in said) == slow


def test_the_manifest_tells_what_auto_became_and_auto_takes_it_as_current(fast: Any, home: Path) -> None:
    fast("bf16")
    pretrain()
    assert json.loads(Path(RUN, "manifest.json").read_text())["lineage"]["pretrain/mini-maskdit"]["config"]["precision"] == "bf16"
    fast("fp32")
    assert lineage(inputs_of(Path(RUN)), load())
    where = home / "params.yaml"
    where.write_text(re.sub(r"(pretrain:.*?)precision: auto", r"\1precision: fp32", where.read_text(), count=1, flags=re.S))
    with pytest.raises(UserError, match=r'made with precision "bf16", params\.yaml says "fp32"'):
        lineage(inputs_of(Path(RUN)), load())


def test_samples_are_drawn_in_one_precision_which_their_protocol_tells(fast: Any, home: Path) -> None:
    fast("fp32")
    pretrain()
    out = "artifacts/samples/mini-maskdit"
    words = ["sample", "mini-maskdit", "--run", RUN, "--vae", "artifacts/vae/mini", "--out", out]
    assert not main([*words, "--part", "1/2"])
    fast("bf16")
    assert not main(words)
    index = json.loads(Path(out, "index.json").read_text())
    assert index["protocol"]["precision"] == "fp32"
    assert index["checkpoint"]["arithmetic"]["threads"] == 1


def record(**facts: Any) -> dict[str, Any]:
    """A record of which only the training is told."""
    precision, threads, device = (facts.get(name) for name in ("precision", "threads", "device"))
    return {"checkpoint": {"precision": precision, "arithmetic": device and {"device": device, "threads": threads}}}


ALIKE = {"precision": "fp32", "threads": 2, "device": "cpu"}


@pytest.mark.parametrize("other", [{"precision": "bf16"}, {"threads": 1}, {"device": "NVIDIA H100"}])
def test_trainings_that_computed_otherwise_are_not_compared_in_silence(other: dict[str, Any]) -> None:
    [(what, value)] = other.items()
    with pytest.raises(UserError, match=f"^dit was trained with {what} {ALIKE[what]}, maskdit with {value}: train them alike"):
        demand_alike({"dit": record(**ALIKE), "maskdit": record(**ALIKE | other)})


def test_what_is_not_known_of_a_training_refuses_nothing() -> None:
    gpu = {"precision": "bf16", "device": "NVIDIA H100"}
    demand_alike(
        {"theirs": record(), "one": record(**gpu, threads=8), "two": record(**gpu, threads=1), "old": record(precision="bf16")}
    )


@pytest.fixture
def dev(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the devices of a machine whose GPUs PyTorch cannot use."""
    for name in ("MASKDIT_DEVICE", "CUDA_VISIBLE_DEVICES", "SLURM_GPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(device, "NODES", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)  # which torch says, too, when the driver is too old
    return tmp_path


def init() -> None:
    raise RuntimeError("The NVIDIA driver on your system is too old (found version 12020). Please update your GPU driver")


@pytest.mark.parametrize(
    ("sign", "variables"), [("nvidia0", {}), ("Slurm job 7", {"SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_ID": "7"})]
)
def test_a_gpu_that_torch_cannot_use_is_refused_in_a_line_with_the_reason(
    sign: str, variables: dict[str, str], dev: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "init", init)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if not variables:
        (dev / "nvidia0").touch()
    for asked in (device.device, local_ranks):
        line = rf"{sign}: PyTorch .* \(The NVIDIA driver on your system is too old \(found version 12020\)\); "
        with pytest.raises(UserError, match=line) as error:
            asked()
        assert "MASKDIT_DEVICE=cpu computes on the CPU" in str(error.value)


@pytest.mark.parametrize("variables", [{}, {"MASKDIT_DEVICE": "cpu"}, {"CUDA_VISIBLE_DEVICES": ""}, {"CUDA_VISIBLE_DEVICES": "-1"}])
def test_without_gpus_or_with_hidden_ones_the_cpu_computes(
    variables: dict[str, str], dev: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for name in ("nvidiactl", "nvidia-uvm", *(["nvidia0"] if variables else [])):
        (dev / name).touch()
    assert device.device() == CPU
    assert local_ranks() == 1


def test_the_tests_compute_on_the_cpu_whatever_gpus_this_machine_has(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert device.device() == CPU
    assert environment(tmp_path)["MASKDIT_DEVICE"] == "cpu", "of the engines and commands that tests start"


def test_the_cpu_can_be_asked_for_where_a_gpu_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASKDIT_DEVICE")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert local_ranks() == 8
    monkeypatch.setenv("MASKDIT_DEVICE", "cpu")
    assert local_ranks() == 1
    assert device.device() == CPU
    monkeypatch.setenv("MASKDIT_DEVICE", "gpu")
    with pytest.raises(UserError, match="MASKDIT_DEVICE: 'gpu' is not 'cpu'"):
        device.device()


WHEEL = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]


def test_a_process_without_a_gpu_of_its_own_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "gpus", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="LOCAL_RANK: 2, but PyTorch sees 2 GPUs here; start one process for each of them"):
        device.device()


@pytest.mark.parametrize(
    ("capability", "known", "runs"),
    [
        ((9, 0), WHEEL, True),
        ((8, 9), WHEEL, True),
        ((12, 1), WHEEL, True),
        ((13, 0), WHEEL, True),
        ((13, 0), WHEEL[:-1], False),
        ((7, 0), WHEEL, False),
        ((9, 0), ["sm_90a"], True),
        ((8, 0), ["sm_86"], False),
    ],
)
def test_a_gpu_for_which_the_wheel_has_no_kernels_is_refused(
    capability: tuple[int, int], known: list[str], runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda where: capability)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: known)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda where: "Tesla V100")
    if runs:
        device.demand_kernels(GPU)
        return
    with pytest.raises(UserError, match=r"cuda:0 \(Tesla V100, compute capability \d+\.0\): PyTorch .* has kernels for sm_"):
        device.demand_kernels(GPU)


@pytest.mark.parametrize(
    ("where", "tools", "variables", "line"),
    [
        (CPU, {"g++"}, {}, ""),
        (CPU, {"clang++"}, {}, ""),
        (CPU, {"gcc"}, {}, r"needs a compiler, and g\+\+ is not here; install the compiler and .*, or set compile: false"),
        (CPU, {"g++"}, {"CXX": "icpx -fast"}, r"needs a compiler, and CXX=icpx is not here"),
        (CPU, {"icpx"}, {"CXX": "icpx -fast"}, ""),
        (GPU, {"g++"}, {}, "needs a compiler, and gcc is not here"),
        (GPU, {"g++", "gcc"}, {}, ""),
        (GPU, {"g++", "gcc", "no headers"}, {}, r"needs /.*/Python\.h, which is not here; install"),
    ],
)
def test_what_the_compiler_needs_is_asked_before_the_first_step(
    where: torch.device, tools: set[str], variables: dict[str, str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CC", "CXX", "TORCHINDUCTOR_COMPILE_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(device.shutil, "which", lambda name: name if name in tools else None)
    monkeypatch.setattr(device.sysconfig, "get_path", lambda name: str(tmp_path))
    if "no headers" not in tools:
        (tmp_path / "Python.h").touch()
    if not line:
        device.prepare_compiler(where)
        assert device.os.environ["TORCHINDUCTOR_COMPILE_THREADS"] == "4"
        return
    with pytest.raises(UserError, match=line):
        device.prepare_compiler(where)
