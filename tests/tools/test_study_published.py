"""A study that finetunes published weights on a folder of images: its entries, and all of it at toy size."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from maskdit.artifacts.atomic import read_json, write_json
from maskdit.artifacts.freshness import Freshness
from maskdit.cli import main
from maskdit.config import yaml_subset
from maskdit.config.graph import nodes_of
from maskdit.config.load import load, validate
from maskdit.model import checkpoint
from maskdit.model.transformer import MaskDiT
from maskdit.runtime import device
from maskdit.training import train
from maskdit.weights import names
from maskdit.weights.importing import SCALE
from project import ROOT, TOY, edit
from small import make_vae

KEY = "in256-theirs-open"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Handwritten digits as a folder: twenty each of three classes."""
    root, found = tmp_path_factory.mktemp("digits"), load_digits()
    for number in (3, 5, 8):
        (root / f"digit {number}").mkdir()
        for place, pixels in enumerate(found.images[found.target == number][:20]):
            Image.fromarray((pixels * 15.9).astype("uint8")).save(root / f"digit {number}" / f"{place}.png")
    return root


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the params.yaml that is shipped."""
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_whole_study_is_less_than_60_lines_and_trains_nothing_but_the_finetuning(home, digits, capsys):
    before = (home / "params.yaml").read_text().splitlines()
    assert main(["study", "mine", str(digits), "--from", KEY]) == 0
    said = capsys.readouterr().out
    assert f"it starts from released.{KEY}, https://" in said
    after = (home / "params.yaml").read_text().splitlines()
    assert 20 < len(after) - len(before) < 60
    assert main(["check"]) == 0
    params = load()
    mine = {node for node in nodes_of(params, "mine") if node.split("/")[1].startswith("mine")}
    assert {node.split("/")[0] for node in mine} & {"vae", "pretrain"} == set()
    assert params.upstream("finetune", "mine") == {"encode/mine", f"released/{KEY}"}
    assert params.encode["mine"].vae == params.sample["mine-guided"].vae == params.released[KEY].vae
    assert params.fetch["mine"].resolution == 256
    assert main(["plan", "mine", "--device", "h100"]) == 0
    assert main(["status", "mine"]) == 0
    assert "finetune/mine: missing" in capsys.readouterr().out


def test_its_numbers_follow_the_folder_and_the_options(home, digits, capsys):
    assert main(["study", "mine", str(digits), "--from", KEY]) == 0
    assert main(["study", "yours", str(digits), "--from", KEY, "--steps", "80", "--batch", "4", "--samples", "12"]) == 0
    params, said = load(), capsys.readouterr().out
    mine, yours = params.finetune["mine"], params.finetune["yours"]
    assert (mine.milestones, mine.batch, mine.warmup) == ((120, 250, 500), 32, 25)
    assert (yours.milestones, yours.batch) == ((20, 40, 80), 4)
    assert [key for key in params.sample if key.startswith("mine")] == ["mine-0120", "mine-0250", "mine-plain", "mine-guided"]
    assert params.claims["yours-claims"].claims["longer"].evidence.over == ("yours-0020",)
    assert "batch 4, 80 steps, 12 samples of each evaluation" in said


def test_an_arm_that_is_trained_from_nothing_is_added_as_the_docs_say(home, digits):
    assert main(["study", "mine", str(digits), "--from", KEY]) == 0
    tree = yaml_subset.read_file(home / "params.yaml")
    numbers = {name: value for name, value in tree["finetune"]["mine"].items() if name not in ("run", "phase")}
    sizes = {half: tree["pretrain"]["in256-maskdit"][half] for half in ("encoder", "decoder")}
    tree["pretrain"]["mine-nothing"] = numbers | sizes
    tree["sample"]["mine-nothing-plain"] = tree["sample"]["mine-plain"] | {"run": "mine-nothing", "phase": "pretrain"}
    params = validate(tree)
    ours, nothing = params.finetune["mine"].recipe(), params.pretrain["mine-nothing"].recipe()
    assert {name for name in ours.keys() | nothing.keys() if ours.get(name) != nothing.get(name)} == {"run", "phase", *sizes}
    assert "mine-nothing-plain" in params.curves["mine"].evals


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("in256-theirs",), "params.yaml: released has no entry 'in256-theirs'; did you mean 'in"),
        ((KEY, "--resolution", "32"), f"--resolution 32: released.{KEY} is for images of 256 pixels; leave the option out"),
    ],
)
def test_weights_that_do_not_fit_are_refused_in_one_line(words, line, home, digits, capsys):
    before = (home / "params.yaml").read_text()
    assert main(["study", "mine", str(digits), "--from", *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"maskdit: {line}")
    assert said.count("\n") == 1
    assert (home / "params.yaml").read_text() == before


THEIRS = """  demo-autoencoder: {{source: autoencoder, url: {vae}, sha256: null}}

vae:
  demo-theirs: {{source: download, dataset: demo-autoencoder, factor: 2, latent_channels: 2}}
"""
WEIGHTS = """released:
  demo-theirs:
    {{url: {file}, sha256: null, format: upstream, vae: demo-theirs, dataset: demo, step: 9, heads: [2, 2]}}
"""


@pytest.mark.pipeline
def test_a_folder_and_a_file_of_weights_become_a_report(home, digits, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "gemm_rate", lambda *_: 1e12)
    vae = make_vae(tmp_path / "theirs")
    write_json(vae / "config.json", {**read_json(vae / "config.json"), "scaling_factor": SCALE})
    torch.manual_seed(0)
    sizes = {"encoder": {"patch": 2, "depth": 1, "width": 16, "heads": 2}, "decoder": {"depth": 1, "width": 8, "heads": 2}}
    torch.save({"ema": names.wrapped(MaskDiT(side=8, channels=2, classes=10, **sizes).state_dict())}, tmp_path / "theirs.pt")
    (home / "params.yaml").write_text(TOY.read_text())
    edit(home / "params.yaml", "\nvae:\n", THEIRS.format(vae=vae.as_uri()))
    edit(home / "params.yaml", "released: {}\n", WEIGHTS.format(file=(tmp_path / "theirs.pt").as_uri()))
    assert main(["study", "mine", str(digits), "--from", "demo-theirs", "--steps", "12", "--batch", "8", "--samples", "12"]) == 0
    params = load()
    fresh = Freshness(params)
    left = set(nodes_of(params, "mine"))
    while left:
        for node in sorted(node for node in left if not fresh.edges[node] & left):
            monkeypatch.setattr(device, "PRECISION", None)  # as in a process of its own
            assert main(node.split("/")) == 0, node
            left.remove(node)
    assert not Freshness(params).unmade & set(nodes_of(params, "mine"))
    table = pd.read_csv(home / "results" / "table_mine.csv", index_col="eval")
    assert list(table.index) == ["mine-0003", "mine-0006", "mine-plain", "mine-guided", "real, held out"]
    assert table["steps"].iloc[:4].tolist() == [3, 6, 12, 12]
    facts = checkpoint.facts(home / "artifacts" / "runs" / "mine" / "finetune" / "ema-0000012.safetensors")
    assert facts["space"]["classes"] == ["digit 3", "digit 5", "digit 8"]
    report = (home / "results" / "report_mine.html").read_text()
    assert "released/demo-theirs" in report
    assert "Does masking pay off" not in report
    words = ["--format", "diffusers", "--vae", "artifacts/vae/demo-theirs", "--out", "hub"]
    assert main(["export", "artifacts/runs/mine/finetune", *words]) == 0
    card = (home / "hub" / "README.md").read_text()
    assert "| training steps | 12 |" in card
    assert "| made from | theirs.pt" in card
