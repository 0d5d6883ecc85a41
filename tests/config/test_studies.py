"""The studies of params.yaml: the paper's numbers, an even control, and plans that need no GPU."""

import re
import time

import pandas as pd
import pytest

from maskdit.config.load import load
from maskdit.config.reporting import Table
from maskdit.reporting.table import table
from project import ROOT, project, says

PARAMS = load(ROOT / "params.yaml")
XL, DECODER = (2, 28, 1152, 16), (8, 512, 16)


def numbers(part):
    return tuple(getattr(part, name) for name in ("patch", "depth", "width", "heads") if hasattr(part, name))


@pytest.mark.parametrize(("key", "steps"), [("in256-maskdit", 2_000_000), ("in512-maskdit", 1_050_000)])
def test_pretraining_is_the_paper_s(key, steps):
    run = PARAMS.pretrain[key]
    assert (numbers(run.encoder), numbers(run.decoder)) == (XL, DECODER)
    assert (run.mask_ratio, run.mask_schedule, run.mae_weight, run.label_dropout) == (0.5, "constant", 0.1, 0.1)
    assert (run.batch, run.lr, run.betas, run.warmup, run.milestones[-1]) == (1024, 1e-4, (0.9, 0.999), 0, steps)
    assert (run.ema, run.ema_warmup) == (0.9999, 1)


@pytest.mark.parametrize(
    ("key", "start", "mask", "steps"),
    [
        ("in256-maskdit-open", "in256-maskdit", (0.0, "constant", None), 75_000),
        ("in256-maskdit-cosine", "in256-maskdit", (0.5, "cosine4", 100_000), 37_500),
        ("in512-maskdit-open", "in512-maskdit", (0.0, "constant", None), 30_000),
    ],
)
def test_each_finetuning_is_the_paper_s(key, start, mask, steps):
    run = PARAMS.finetune[key]
    assert (run.mask_ratio, run.mask_schedule, run.schedule_steps) == mask
    assert (run.run, run.batch, run.lr, run.milestones, run.precision) == (start, 512, 5e-5, (steps,), "tf32")
    assert (run.ema, run.label_dropout, run.betas, run.mae_weight) == (0.9999, 0.1, (0.9, 0.999), 0.1)


def test_the_cosine_unmasking_ends_partly_masked_as_the_published_checkpoint():
    assert PARAMS.finetune["in256-maskdit-cosine"].mask_at(37_500) == pytest.approx(0.239, abs=5e-4)


@pytest.mark.parametrize("study", ["demo", "in256", "in512"])
def test_dit_is_trained_as_maskdit_but_for_mask_and_decoder(study):
    other = "dit" if study == "demo" else "dit-control"
    ours, control = (PARAMS.pretrain[f"{study}-{name}"].recipe() for name in ("maskdit", other))
    assert {field for field in ours if ours[field] != control[field]} == {"mask_ratio", "decoder"}
    assert (control["mask_ratio"], control["decoder"]) == (0.0, None)


def test_authors_weights_are_sampled_as_the_paper_and_dit_s_as_its_own():
    theirs, dit = PARAMS.sample["in256-theirs-guided"], PARAMS.sample["in256-dit-published-guided"]
    assert (theirs.solver, theirs.solver_steps, theirs.guidance, theirs.guidance_channels) == ("heun", 40, 1.5, "all")
    assert (theirs.images, theirs.labels, theirs.quantisation) == (50_000, "random", "floor")
    assert (dit.solver, dit.solver_steps, dit.guidance, dit.guidance_channels) == ("ddpm", 250, 1.5, "first3")


@pytest.mark.parametrize(("study", "trainings", "evaluations"), [("in256", 4, 7), ("in512", 3, 7)])
def test_a_paper_study_is_planned_in_seconds_without_a_gpu(study, trainings, evaluations, tmp_path):
    where = project(tmp_path, ROOT / "params.yaml")
    began = time.monotonic()
    said = says(where, "snakemake", "--dry-run", f"results/table_{study}.csv")
    assert time.monotonic() - began < 20
    counts = dict(re.findall(r"^(\w+) +(\d+)$", said, re.M))
    assert int(counts["pretrain"]) + int(counts["finetune"]) == trainings
    assert counts["released"] == "3"
    assert counts["rescore"] == "8"
    assert int(counts["evaluate"]) >= evaluations


@pytest.mark.parametrize("study", ["in256", "in512"])
def test_each_row_of_the_paper_s_tables_has_an_fdd_against_the_whole_training_set(study):
    rows = PARAMS.table[study]
    assert rows.rescored == rows.evals
    for key in rows.rescored:
        reference = PARAMS.reference[PARAMS.rescore[key].reference]
        assert (PARAMS.fetch[reference.extractor].family, PARAMS.fetch[reference.dataset].images) == ("dinov2", 1_281_167)


def test_slurm_s_profile_gives_each_job_what_it_needs_and_cuts_what_can_be_shared(tmp_path):
    where = project(tmp_path, ROOT / "params.yaml")
    (where / "slurm").symlink_to("profiles/slurm")
    said = says(where, "snakemake", "--profile", "slurm", "--dry-run", "results/table_in256.csv")
    asked = {
        rule: dict(re.findall(r"(\w+)=([^ ,]+)", words))
        for rule, words in re.findall(r"^rule (\w+):\n(?:    .*\n)*?    resources: (.*)$", said, re.M)
    }
    assert {rule for rule, words in asked.items() if words.get("gres") == "gpu:8"} == {"pretrain", "finetune"}
    assert all(
        asked[rule]["gres"] == "gpu:1" for rule in ("encode", "encode_part", "sample_part", "features_part", "reference_part")
    )
    assert not any("gres" in asked[rule] for rule in ("fetch", "released", "evaluate", "table"))
    assert all(
        {"slurm_partition", "slurm_account", "runtime", "mem_mb", "cpus_per_task"} <= words.keys() for words in asked.values()
    )
    counts = {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", said, re.M)}
    assert counts["sample_part"] == 8 * counts["sample"]
    assert len(set(re.findall(r"sample in256-open-guided --part (\d/8)", said))) == 8


def test_published_rows_stand_below_ours_with_their_source(tmp_path):
    config = Table.model_validate({"title": "toy", "published": "in256", "evals": ("in256-open-guided",)})
    table(config, metrics=tmp_path, out=tmp_path / "table.csv")
    frame = pd.read_csv(tmp_path / "table.csv").set_index("eval")
    assert frame.loc["in256-open-guided", "model"] == "not run"
    reported = frame.loc["MaskDiT-G"]
    assert (reported.phase, reported.fid, reported["is"], reported.precision) == ("reported", 2.28, 276.56, 0.8)
    assert reported.parameters == 730.5e6
    others = frame[frame.phase.isin(["published", "reported"])]
    assert len(others) == 27
    assert others.source.notna().all()
    assert others.model.isna().all()
