"""What is left of a study and what it costs, before it is run."""

import copy
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import project
from hashes import TREE, changed, made, params_of, run, study  # noqa: F401, fixtures
from maskdit.artifacts.freshness import Freshness
from maskdit.config import yaml_subset
from maskdit.config.base import UserError
from maskdit.config.load import load
from maskdit.config.params import Params
from maskdit.config.paths import output
from maskdit.latents.autoencoder import build
from maskdit.model.flops import forward
from maskdit.runtime.device import native
from maskdit.tools.cost import DECODER, ENCODER, MFU, Costs, Site, copies, has_bf16
from maskdit.tools.plan import Plan, affordable, device_of, duration, plan, size
from maskdit.tools.status import states
from maskdit.training import train
from maskdit.training.recovery import Recovery
from project import ROOT
from small import latents, masked, pretrained  # noqa: F401, a fixture

PARAMS = load(ROOT / "params.yaml")
A100 = Site("a100", MFU, 8, 24.0)
ENDS = ("dit-1600", "maskdit-3200", "tread-2240")  # the last points of the curves of docs/fashion
CPU = Site("cpu", MFU, 1, 0.0, bf16=True)  # as the CPU of docs/fashion


def planned(params: Params, bench: str) -> Plan:
    return Plan(params, bench, Freshness(params))


def said(params: Params, capsys: pytest.CaptureFixture[str], bench: str = "demo", **others: object) -> list[str]:
    """The lines that `maskdit plan` prints."""
    capsys.readouterr()
    words = {"device": None, "mfu": MFU, "devices": None, "limit": 24.0, "budget": None}
    plan(params, bench, **{**words, **others})
    return capsys.readouterr().out.splitlines()


def test_a_forward_pass_costs_what_the_papers_say():
    dit, maskdit = (28, 1152, 1152, None), (28, 1152, 512, 8)
    for (depth, width, inner, decoder), kept, gmacs in ((dit, 256, 118.64), (maskdit, 256, 125.8), (maskdit, 128, 65.5)):
        assert forward(256, kept, 16, width, [kept] * depth, inner, 16, decoder) / 2e9 == pytest.approx(gmacs, rel=2e-3)


def test_an_autoencoder_costs_what_torch_counts():
    entry = PARAMS.vae["demo"]
    vae, images = build(entry), torch.zeros(1, 3, 32, 32)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        vae.decode(vae.encode(images).latent_dist.mode())
    assert Costs(PARAMS).scale("demo") * (ENCODER + DECODER) * 32**2 == pytest.approx(counter.get_total_flops(), rel=0.15)
    assert Costs(PARAMS).scale("in256") == 1


def test_pretraining_costs_about_the_hours_that_the_authors_report():
    costs = Costs(PARAMS)
    hours = {key: A100.hours(costs.of(f"pretrain/{key}")) for key in ("in256-maskdit", "in256-dit-control")}
    assert 8 * 260 / 1.5 < hours["in256-maskdit"] < 8 * 260 * 1.5
    assert hours["in256-dit-control"] / hours["in256-maskdit"] == pytest.approx(1.81, abs=0.01)


def test_the_small_studies_of_imagenet_take_one_gpu_two_days():
    site = Site("h100", MFU, 1, 24.0)
    nodes = {node for bench in ("in256-small", "in256-small-1k") for node in Plan(PARAMS, bench, Freshness(PARAMS)).nodes}
    assert 24 < sum(site.hours(Costs(PARAMS).of(node)) for node in nodes) < 48
    branch = Plan(PARAMS, "in256-small", Freshness(PARAMS)).behind("finetune/in256-small-tread-0080k")
    assert branch["pretrain/in256-small-tread"] == 80_000 / 200_000, "it needs no more of the pretraining"


@pytest.mark.parametrize(("theirs", "ours"), [("in256-theirs-open", "in256-maskdit"), ("in256-dit-published", "in256-dit-control")])
def test_finetuning_published_weights_costs_what_finetuning_a_run_of_the_paper_s_size_costs(theirs, ours):
    like = PARAMS.finetune["in256-maskdit-open"]
    entries = {"run": {"run": ours, "phase": "pretrain"}, "published": {"run": theirs, "phase": "released"}}
    made = {f"in256-{key}": like.model_copy(update=entry) for key, entry in entries.items()}
    samples = {key: PARAMS.sample["in256-open-guided"].model_copy(update={"run": key}) for key in made}
    costs = Costs(PARAMS.model_copy(update={"finetune": made, "sample": samples}))
    for verb in ("finetune", "sample"):
        run, published = (costs.of(f"{verb}/{key}") for key in made)
        assert run == published
        assert run.flops > 1e15
    assert costs.memory("finetune/in256-run", A100) == costs.memory("finetune/in256-published", A100)


def test_trainings_on_a_cpu_cost_what_the_records_of_fashion_say():
    costs, found = Costs(PARAMS), []
    for key in (f"fashion-{end}" for arm in ENDS for end in (arm, arm.replace("-", "-seed1-"), arm.replace("-", "-seed2-"))):
        spent = json.loads((ROOT / "docs" / "fashion" / "metrics" / "fashion" / f"{key}.json").read_text())["checkpoint"]
        assert (spent["speed"]["device"], spent["precision"]) == ("cpu", "bf16")
        branch = PARAMS.sample[key].run
        hours = sum(CPU.hours(costs.of(node)) for node in (f"pretrain/{PARAMS.finetune[branch].run}", f"finetune/{branch}"))
        found.append((hours * 3600, spent["device_seconds"]))
    assert len(found) == 9
    assert all(1 / 1.3 < computed / measured < 1.3 for computed, measured in found)
    assert sum(computed for computed, _ in found) == pytest.approx(sum(measured for _, measured in found), rel=0.2)


@pytest.mark.parametrize(("marks", "widths"), [((8,), ()), ((2, 4, 6, 8), ()), ((4, 8), (0.05, 0.1))])
def test_a_training_never_holds_more_weights_on_disk_than_the_plan_counts(marks, widths, latents, monkeypatch):
    most, real = [], Recovery._prune
    monkeypatch.setattr(Recovery, "due", lambda self: True)
    monkeypatch.setattr(train, "LOG_STEPS", 2)

    def held() -> int:
        return sum(path.stat().st_size for path in latents.parent.rglob("*.safetensors"))

    monkeypatch.setattr(Recovery, "_prune", lambda self, *words: (most.append(held()), real(self, *words)))
    config = masked(*marks, posthoc_ema=widths, encoder={"patch": 2, "depth": 2, "width": 64, "heads": 2})
    out = pretrained(latents, "out", config)
    weights = next(out.glob("net-*")).stat().st_size
    assert max([*most, held()]) / weights == pytest.approx(copies(config), rel=0.05)


def test_a_cpu_computes_in_the_precision_that_torch_finds(monkeypatch):
    assert has_bf16() == (native(torch.device("cpu")) == "bf16")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert not has_bf16()
    training, slow = Costs(PARAMS).of("pretrain/fashion-dit"), Site("cpu", MFU, 1, 0.0, bf16=False)
    assert slow.hours(training) > 2 * CPU.hours(training)


@pytest.mark.parametrize(
    ("hours", "text"),
    [(5034.3, "5,034 h"), (99.7, "100 h"), (1.26, "1.3 h"), (0.4, "24 min"), (0.002, "7.2 s"), (1e-6, "<0.1 s"), (0.0, "")],
)
def test_a_time_has_digits_however_short_it_is(hours, text):
    assert duration(hours) == text


def test_a_size_has_digits_however_small_it_is():
    assert [size(count) for count in (1.2e12, 4.66e11, 3.82e8, 9.4e6, 2e3, 0)] == [
        "1.2 TB",
        "466 GB",
        "382 MB",
        "9.4 MB",
        "2 kB",
        "",
    ]


def test_a_plan_counts_jobs_and_names_parts_only_as_a_maximum(study, capsys):
    lines = said(PARAMS, capsys, "in256")
    rows = {line.split()[0]: line for line in lines[2:-1]}
    assert re.match(r"sample +21 +up to 1,050 +69 h +1\.7 h +206 GB$", rows["sample"])
    assert re.match(r"pretrain +2 +5,034 h +406 h +134 GB +17 slices of 24 h$", rows["pretrain"])
    assert re.match(r"rescore +8 +up to 400 +2\.3 h +2\.2 min$", rows["rescore"]), "400,000 images of 162e9 FLOPs in fp32"
    assert re.match(r"all +103 +5,566 h", rows["all"])
    assert lines[-1] == "103 of 103 nodes to make: snakemake results/recon_in256.csv results/report_in256.html"


def test_the_plan_of_a_small_study_is_short_and_has_no_zeros(study, capsys):
    lines = said(PARAMS, capsys, device="cpu")
    assert lines[0].startswith("demo on 1 x cpu core in ")
    assert len(lines) <= 14
    assert not re.search(r"\b0\.0\b", "\n".join(lines))
    assert re.match(r"all +51 +[\d.]+ min +[\d.]+ min +[\d.]+ GB$", lines[-2])


def test_an_early_milestone_is_paid_for_its_steps_only(study):
    found = planned(PARAMS, "in256")
    early, late = (found.behind(f"evaluate/in256-maskdit-{step}") for step in ("0100k", "2000k"))
    assert (early["pretrain/in256-maskdit"], late["pretrain/in256-maskdit"]) == (0.05, 1.0)


def test_a_larger_budget_pays_for_no_less(study):
    def paid(budget):
        return [line[0] for line in affordable(planned(PARAMS, "in256"), A100, budget) if line[3] == "yes"]

    small, large = paid(20.0), paid(400.0)
    assert "evaluate/in256-theirs-guided" in small
    assert set(small) < set(large)
    assert "evaluate/in256-dit-control-0100k" in large


def test_what_is_made_is_not_planned(made, capsys):
    assert said(made, capsys) == ["demo: everything is made"]
    lines = said(changed("evaluate", "demo", "neighbours", 2), capsys)
    assert [line.split()[:2] for line in lines[2:-1]] == [["evaluate", "2"], ["results", "6"], ["all", "8"]]
    assert lines[-1] == "8 of 22 nodes to make: snakemake results/report_demo.html"
    paid = said(changed("evaluate", "demo", "neighbours", 2), capsys, budget=0.0)
    assert [line.split()[1:] for line in paid[2:]] == [["yes"], ["yes"]], "their features are here"


def test_a_longer_training_is_planned_for_the_rest_of_its_steps(made):
    longer = changed("pretrain", "demo-maskdit", "milestones", [2, 4, 16])
    found, whole, node = planned(longer, "demo"), Costs(longer).of("pretrain/demo-maskdit"), "pretrain/demo-maskdit"
    assert found.hours(node, CPU) == pytest.approx(0.75 * CPU.hours(whole))
    assert found.paid({node: 0.5}, CPU) == pytest.approx(0.25 * CPU.hours(whole)), "a quarter is done"
    assert found.paid({node: 0.1}, CPU) == 0


@pytest.mark.parametrize(
    "change",
    [
        ("vae", "demo", "steps", 5),
        ("finetune", "demo-maskdit", "lr", 0.5),
        ("pretrain", "demo-maskdit", "milestones", [2, 4, 8]),
        ("table", "demo", "title", "Another"),
    ],
)
def test_plan_and_status_agree_on_what_is_left(change, made):
    params = changed(*change)
    found, told = planned(params, "demo"), states(Freshness(params), "demo", {}, "cpu")
    site = Site("cpu", MFU, 1, 0.0)
    assert {node: found.hours(node, site) for node in found.left} == {
        node: fact["device_hours"] for node, fact in told.items() if fact["make"]
    }


def test_the_device_is_that_of_the_last_training_not_of_a_table():
    trained, shown = {"verb": "pretrain", "device": "NVIDIA A100-SXM4"}, {"verb": "table", "device": "cpu"}
    assert device_of([{"verb": "sample", "device": "Tesla V100"}, trained, shown]) == "a100"
    assert device_of([{**trained, "device": "cpu"}]) == "cpu"
    assert device_of([]) == "a100"


def jobs(where: Path, targets: list[Path]) -> dict[str, int]:
    """The jobs that Snakemake would start, by rule."""
    text = project.says(where, "snakemake", "--cores", "1", "--dry-run", "--quiet", "rules", "--", *map(str, targets))
    return {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", text, re.M)}


def by_step(found: Plan) -> dict[str, int]:
    """The jobs of a plan, by step."""
    return {**Counter(node.split("/")[0] for node in found.left), "total": len(found.left)}


def engine(where: Path, tree: dict | Path) -> Params:
    """Add what Snakemake reads to a folder, with these numbers; the numbers as the plan reads them."""
    for part in ("workflow", "profiles"):
        shutil.copytree(ROOT / part, where / part, dirs_exist_ok=True)
    shutil.copy(ROOT / "Snakefile", where)
    (where / "params.yaml").write_text(tree.read_text() if isinstance(tree, Path) else yaml_subset.write(tree))
    return load(where / "params.yaml")


@pytest.mark.pipeline
@pytest.mark.parametrize(
    ("numbers", "bench", "total"),
    [(project.TOY, "demo", 22), (ROOT / "params.yaml", "demo", 51), (ROOT / "params.yaml", "in256", 103)],
    ids=["toy", "demo", "in256"],
)
def test_a_plan_counts_the_jobs_that_snakemake_starts(numbers, bench, total, study):
    found = planned(engine(study, numbers), bench)
    assert Path(f"results/report_{bench}.html") in found.targets
    assert by_step(found) == jobs(study, found.targets)
    assert len(found.left) == total


@pytest.mark.pipeline
def test_a_plan_of_the_rest_counts_the_jobs_that_snakemake_starts(made, study):
    tree = copy.deepcopy(TREE)
    tree["pretrain"]["demo-maskdit"]["milestones"] = [2, 4, 8]
    tree["finetune"]["demo-maskdit"]["lr"] = 0.5
    shutil.rmtree(output(made, "sample/demo-dit-plain"))
    found = planned(engine(study, tree), "demo")
    assert (found.left["pretrain/demo-maskdit"], found.left["finetune/demo-maskdit"]) == (0.5, 1.0)
    assert not {"pretrain/demo-dit", "sample/demo-dit-plain"} & found.left.keys()
    assert by_step(found) == jobs(study, found.targets)


def test_make_plans_the_study_that_is_named():
    make = ("make", "--dry-run", "--assume-old=setup", "plan", "STUDY=demo")
    alone = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # as if no make ran the tests
    assert subprocess.check_output(make, cwd=ROOT, env=alone, text=True).splitlines()[-1] == "maskdit plan demo"


def test_a_plan_shows_how_many_images_a_device_takes_at_once_where_memory_is_short(capsys, monkeypatch):
    title = "training                     images per device    at once          memory"
    lines = said(PARAMS, capsys, "in512", device="h100")
    assert title in lines
    assert "pretrain/in512-maskdit                     128  64 (auto)  70 GB of 80 GB" in lines
    lines = said(PARAMS, capsys, "in512", device="h200")
    assert "pretrain/in512-maskdit                     128  128 (auto)  122 GB of 141 GB" in lines
    assert "training" not in "".join(said(PARAMS, capsys, "demo", device="cpu"))
    whole = {key: entry.model_copy(update={"micro_batch": None}) for key, entry in PARAMS.pretrain.items()}
    lines = said(PARAMS.model_copy(update={"pretrain": whole}), capsys, "in512", device="h100")
    [line] = [line for line in lines if line.startswith("pretrain/in512-maskdit")]
    assert line.split()[1:3] == ["128", "128"]
    assert line.endswith("122 GB of 80 GB  set micro_batch: auto, or checkpointing: true")
    monkeypatch.setattr("maskdit.tools.plan.system_memory", lambda processes: (10**6 // processes, 10**6))
    assert "training" in "".join(said(PARAMS, capsys, "demo", device="cpu")), "a machine without memory"


def test_a_plan_takes_no_torch_and_less_than_two_seconds_of_a_processor():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code, told = project.run(ROOT, sys.executable, "-X", "importtime", "-m", "maskdit.cli", "plan", "in512")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert code == 0
    assert "pretrain" in told
    assert " torch" not in told
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2


@pytest.mark.parametrize(
    ("change", "text"), [({"device": "abacus"}, "choose one of a100"), ({"mfu": 0.0}, "--mfu"), ({"bench": "x"}, "no entry 'x'")]
)
def test_a_plan_that_makes_no_sense_is_refused(change, text, capsys):
    with pytest.raises(UserError, match=text):
        said(PARAMS, capsys, **change)
