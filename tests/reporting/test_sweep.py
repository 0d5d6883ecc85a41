"""Sweeps: the best values of each arm, chosen on samples that are not reported."""

import copy
import csv
from pathlib import Path

import pytest

from maskdit.artifacts.atomic import write_json
from maskdit.config import yaml_subset
from maskdit.config.base import UserError
from maskdit.config.load import load, validate
from maskdit.config.reporting import Reported, Sweep, Table
from maskdit.config.schema import text as schema
from maskdit.reporting.sweep import sweep
from maskdit.reporting.table import table
from project import TOY, with_sweep

PROTOCOL = {"images": 400, "labels": "balanced", "sampler": "EDM Heun", "nfe": 19}

SINGLE = "Each point has one seed"


def record(
    folder: Path,
    name: str,
    fd: float,
    guidance: float = 1.0,
    model: str = "DiT",
    lr: float = 1e-3,
    seed: int = 0,
    width: float | None = None,
    step: int = 8,
    metric: str = "fd_mobilenet",
    **protocol: object,
) -> None:
    """A record of a sample of a run that is named by its model, rate and seed."""
    training = {"seed": seed, "lr": lr, "milestones": [step], "decoder": model}
    sample = {"run": f"{model}-{lr}-{seed}", "step": "final", "ema_width": width, "guidance": guidance, "seed": 1}
    lineage = {f"pretrain/{model}": {"config": training, "digest": f"{model}-{lr}-{seed}"}}
    lineage |= {f"sample/{name}": {"config": sample, "digest": name}}
    checkpoint = {"model": model, "phase": "pretrain", "step": step}
    tree = {"metrics": {metric: fd}, "protocol": PROTOCOL | {"guidance": guidance} | protocol, "checkpoint": checkpoint}
    folder.mkdir(exist_ok=True)
    write_json(folder / f"{name}.json", {**tree, "real": {"heldout": None}, "manifest": {"lineage": lineage}})


def swept(folder: Path, arms: dict[str, str], axis: str = "guidance", **reports: Reported) -> dict[str, dict[str, str]]:
    """The rows of the sheet, by evaluation."""
    config = Sweep(title="T", axis=axis, evals=tuple(arms), arms=arms, reports=reports)
    sweep(config, metrics=folder, out=folder / "s.csv")
    return {row["eval"]: row for row in csv.DictReader((folder / "s.csv").read_text().splitlines())}


def reported(guidance: float = 1.0, ema_width: float | None = None, lr: float = 1e-3, arm: str = "dit") -> Reported:
    return Reported(arm=arm, lr=lr, guidance=guidance, ema_width=ema_width)


def test_each_arm_has_its_own_optimum(tmp_path: Path) -> None:
    for at, (fd, masked) in enumerate([(5.0, 9.0), (3.0, 8.0), (4.0, 6.0), (6.0, 7.0)]):
        record(tmp_path, f"dit-{at}", fd, guidance=1 + at / 2)
        record(tmp_path, f"maskdit-{at}", masked, guidance=1 + at / 2, model="MaskDiT")
    rows = swept(tmp_path, {f"{arm}-{at}": arm for arm in ("dit", "maskdit") for at in range(4)})
    assert {name: row["verdict"] for name, row in rows.items() if row["verdict"]} == {"dit-1": "optimum", "maskdit-2": "optimum"}
    assert {path.name for path in tmp_path.glob("s.*")} == {"s.csv", "s.md", "s.tex", "s.png", "s.svg"}
    assert "| dit | dit-1 | DiT | 0.001 | 1.5 |" in (text := (tmp_path / "s.md").read_text())
    assert SINGLE in text


@pytest.mark.parametrize(
    ("best", "told"),
    [(0, "optimum"), (1, "optimum"), (2, "optimum, at the edge of guidance; sweep further")],
    ids=["there is no guidance below 1", "inside", "the greatest"],
)
def test_an_optimum_at_the_edge_of_the_range_says_so(tmp_path: Path, best: int, told: str) -> None:
    for at in range(3):
        record(tmp_path, f"a-{at}", 1.0 + (at != best), guidance=1.0 + at)
    assert swept(tmp_path, {f"a-{at}": "dit" for at in range(3)})[f"a-{best}"]["verdict"] == told


def test_the_ema_width_is_chosen_together_with_the_guidance(tmp_path: Path) -> None:
    for name, fd, guidance, width in [
        ("a", 5, 1, None),
        ("b", 4, 2, None),
        ("c", 4.5, 3, None),
        ("d", 6, 1, 0.05),
        ("e", 3, 2, 0.1),
    ]:
        record(tmp_path, name, fd, guidance=guidance, width=width)
    record(tmp_path, "f", 5, guidance=3, width=0.15)
    arms = dict.fromkeys("abcdef", "dit")
    rows = swept(tmp_path, arms, good=reported(2.0, 0.1), other=reported(2.0))
    assert rows["e"]["verdict"] == "optimum"
    assert rows["good"]["verdict"] == "reported: at the optimum"
    assert rows["other"]["verdict"] == "reported: the sweep's optimum is guidance 2, EMA width 0.1; write it there"


def test_the_run_s_own_average_can_be_the_best(tmp_path: Path) -> None:
    record(tmp_path, "a", 3, guidance=1.0)
    record(tmp_path, "b", 4, guidance=1.0, width=0.1)
    rows = swept(tmp_path, {"a": "dit", "b": "dit"}, row=reported(1.0, 0.1))
    assert rows["row"]["verdict"] == "reported: the sweep's optimum is guidance 1, own EMA; write it there"


def test_seeds_of_one_point_count_as_their_mean(tmp_path: Path) -> None:
    for name, fd, guidance, seed in [
        ("a", 1, 1, 0),
        ("b", 9, 1, 1),
        ("c", 4, 2, 0),
        ("d", 4, 2, 1),
        ("e", 6, 3, 0),
        ("f", 6, 3, 1),
    ]:
        record(tmp_path, name, fd, guidance=guidance, seed=seed)
    rows = swept(tmp_path, dict.fromkeys("abcdef", "dit"))
    assert rows["c d"]["verdict"] == "optimum", "the luckiest seed is not the best point"
    assert (rows["a b"]["fd_mobilenet"], rows["a b"]["seeds"]) == ("5", "2")
    assert SINGLE not in (tmp_path / "s.md").read_text()


def test_a_rate_is_chosen_for_each_arm_on_a_logarithmic_axis(tmp_path: Path) -> None:
    for name, fd, lr in [("a", 5, 1e-3), ("b", 4, 2e-3), ("c", 6, 4e-3)]:
        record(tmp_path, name, fd, lr=lr)
    rows = swept(tmp_path, dict.fromkeys("abc", "dit"), "lr", good=reported(2.0, lr=2e-3), bad=reported(lr=1e-3))
    assert rows["b"]["verdict"] == "optimum"
    assert rows["good"]["verdict"] == "reported: at the optimum", "its guidance was not swept"
    assert rows["bad"]["verdict"] == "reported: the sweep's optimum is learning rate 0.002; write it there"


def test_an_arm_with_points_that_are_not_run_decides_nothing(tmp_path: Path) -> None:
    record(tmp_path, "a", 5)
    rows = swept(tmp_path, {"a": "dit", "b": "dit"}, row=reported(1.0))
    assert rows["a"]["verdict"] == "optimum, so far: some points are not run"
    assert rows["b"]["model"] == "not run"
    assert rows["row"]["verdict"] == "reported: undecided, points of dit are not run"
    with pytest.raises(UserError, match="no point of the sweep has been run"):
        swept(tmp_path / "none", {"a": "dit"})


@pytest.mark.parametrize(
    ("other", "line"),
    [
        ({"step": 9}, r"dit have \[8, 9\] steps"),
        ({"nfe": 9}, "has nfe 9, a has 19"),
        ({"metric": "is"}, "have no Fréchet distance"),
    ],
)
def test_points_that_cannot_be_compared_are_refused(tmp_path: Path, other: dict, line: str) -> None:
    record(tmp_path, "b", 5, **other)
    record(tmp_path, "a", 4, **{"metric": other.get("metric", "fd_mobilenet")})
    with pytest.raises(UserError, match=line):
        swept(tmp_path, {"a": "dit", "b": "dit"})


@pytest.fixture
def tree(tmp_path: Path) -> dict:
    """The toy with a sweep."""
    file = tmp_path / "params.yaml"
    file.write_text(TOY.read_text())
    with_sweep(file)
    return copy.deepcopy(yaml_subset.read_file(file))


def test_expansion_finds_the_arms_and_the_rows_that_were_chosen(tree: dict) -> None:
    params = validate(tree)
    entry = params.sweep["demo-sweep"]
    assert entry.arms == {"demo-sweep-10": "demo-maskdit", "demo-sweep-20": "demo-maskdit"}
    assert entry.reports == {"demo-maskdit-best": Reported(arm="demo-maskdit", lr=2e-3, guidance=3.0, ema_width=None)}
    assert params.table["demo"].chosen == {"demo-maskdit-best": ("demo-sweep",)}
    assert "demo-maskdit-best" in params.table["demo"].evals
    assert params.curves["demo"].evals == ("demo-maskdit-guided",), "a row that was chosen is a row of tables only"
    assert params.table["demo"].model_dump(mode="json").keys() - load(TOY).table["demo"].model_dump(mode="json").keys() == {
        "chosen"
    }
    assert params.upstream("sweep", "demo-sweep") == {"evaluate/demo-sweep-10", "evaluate/demo-sweep-20"}
    assert "Reported" not in schema()


def test_a_seed_of_the_same_training_is_of_the_same_arm_and_another_rate_only_in_a_sweep_of_rates(tree: dict) -> None:
    tree["pretrain"]["demo-seed1"] = {**tree["pretrain"]["demo-dit"], "seed": 1, "milestones": [2]}
    tree["pretrain"]["demo-slow"] = {**tree["pretrain"]["demo-dit"], "lr": 1e-3, "milestones": [2]}
    first = {**tree["sample"]["demo-sweep-10"], "phase": "pretrain", "step": 2}
    for run in ("demo-dit", "demo-seed1", "demo-slow"):
        tree["sample"][f"demo-sweep-{run}"] = {**first, "run": run}
    tree["pretrain"]["demo-dit"]["milestones"] = [2]
    tree["sweep"]["demo-sweep"]["select"] = [{"phase": "pretrain"}, {"run": "demo-maskdit"}]
    arms = validate(tree).sweep["demo-sweep"].arms
    assert [arms[f"demo-sweep-{run}"] for run in ("demo-dit", "demo-seed1", "demo-slow")] == ["demo-dit", "demo-dit", "demo-slow"]
    tree["sweep"]["demo-sweep"]["axis"] = "lr"
    arms = validate(tree).sweep["demo-sweep"].arms
    assert {arms[f"demo-sweep-{run}"] for run in ("demo-dit", "demo-seed1", "demo-slow")} == {"demo-dit"}


MISTAKES = [
    (("sample", "demo-sweep-10", "seed"), 0, "sample.demo-sweep-10.seed: 0 is that of demo-maskdit-best, whose values"),
    (("sample", "demo-sweep-20", "images"), 16, "sample.demo-sweep-20.images: 16 is that of demo-maskdit-best, whose values"),
    (("sample", "demo-sweep-20", "solver_steps"), 3, "sweep.demo-sweep.select: the samples must have the same solver_steps"),
    (
        ("sample", "demo-maskdit-best", "phase"),
        "pretrain",
        "best_of: no point of demo-sweep is of the same training, phase and step",
    ),
    (("sample", "demo-dit-plain", "best_of"), "demo-swep", "best_of: sweep has no entry 'demo-swep'; did you mean 'demo-sweep'?"),
    (("sample", "demo-sweep-20", "best_of"), "demo-sweep", "sample.demo-sweep-20.best_of: a point of a sweep is not reported"),
    (("sweep", "demo-sweep", "axis"), "steps", "sweep.demo-sweep.axis: Input should be 'guidance' or 'lr'"),
    (("sweep", "demo-sweep", "select"), [{"step": 4}], "sweep.demo-sweep.select: matches no sample of the study demo-sweep"),
    (("table", "demo-sweep"), {"title": "T"}, "sweep.demo-sweep: table has an entry 'demo-sweep', too; a sweep needs a study"),
    (("report", "demo", "sweeps"), ["demo-swep"], "report.demo.sweeps: sweep has no entry 'demo-swep'; did you mean"),
]


@pytest.mark.parametrize(("place", "value", "line"), MISTAKES, ids=[".".join(place) for place, *_ in MISTAKES])
def test_a_sweep_never_reports_the_samples_that_it_chose_by(tree: dict, place: tuple[str, ...], value: object, line: str) -> None:
    here = tree
    for part in place[:-1]:
        here[part] = here = dict(here[part])
    here[place[-1]] = value
    with pytest.raises(UserError) as refusal:
        validate(tree)
    assert line in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_table_names_the_rows_that_a_sweep_chose(tmp_path: Path) -> None:
    record(tmp_path, "a", 5.0)
    tree = {"parameters": 9, "images": 8, "seconds": 1.0, "flops": 1e12}
    file = tmp_path / "a.json"
    known = yaml_subset.read(file.read_text())
    known["checkpoint"] |= tree
    write_json(file, known)
    table(Table(title="T", evals=("a",), chosen={"a": ("demo-sweep",)}), metrics=tmp_path, out=tmp_path / "t.csv")
    assert "\nBest of the sweep demo-sweep, which chose on other samples: a.\n" in (tmp_path / "t.md").read_text()
