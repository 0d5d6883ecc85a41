"""Table, curves and grid: what people read, from records."""

import csv
import re
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from maskdit.artifacts.arrays import Joined, read_array
from maskdit.artifacts.atomic import digest, read_json, write_json
from maskdit.artifacts.publish import publishing
from maskdit.config.base import UserError
from maskdit.config.load import load
from maskdit.config.reporting import Curves, Efficiency, Grid, Recon, Strip, Table
from maskdit.images.dataset import Images
from maskdit.reporting.curves import curves
from maskdit.reporting.efficiency import efficiency
from maskdit.reporting.pictures import grid, strip, write
from maskdit.reporting.records import COMPARABLE, SAMPLING, published
from maskdit.reporting.sample_size import notes
from maskdit.reporting.table import SAMPLED, best, recon, scores, table
from maskdit.reporting.table_formats import rounded
from maskdit.reporting.table_formats import write as write_table
from project import TOY
from project import run as run_in

PROTOCOL = {
    "family": "mobilenet-v2",
    "extractor_sha256": "e",
    "reference_sha256": "r",
    "images": 16,
    "labels": "random",
    "quantisation": "round",
    "sampler": "EDM Heun",
    "nfe": 23,
    "neighbours": 3,
    "guidance": 2.0,
}


def record(
    folder, name, model="DiT", phase="pretrain", step=2, fd=123.456789, metrics=None, run=None, seed=0, start=None, **protocol
):
    spent = {"images": 8 * step, "seconds": step / 2, "flops": step * 1e12, "parameters": 9, "precision": "bf16"}
    spent |= {"device_seconds": 1800.0 * step, "forward_flops": 4e9}
    spent |= {"speed": {"device": "cpu", "devices": 1, "images_per_second": 80.0, "mfu": 0.5, "data_wait": 0.0, "peak_memory": 2e9}}
    checkpoint = {"model": model, "phase": phase, "step": step, **spent}
    real = {"heldout": {"images": 5, "fd_mobilenet": 50.0, "probe_accuracy": 0.8}}
    measured = metrics or {"fd_mobilenet": fd, "probe_accuracy": 0.5}
    tree = {"metrics": measured, "checkpoint": checkpoint, "protocol": PROTOCOL | protocol, "real": real}
    if run is not None:
        config = {"mask_ratio": 0.5, "decoder": {"depth": 8}, "batch": 8, "milestones": [6], **run, "seed": seed}
        sample = {"run": name, "step": step, "seed": 0}
        lineage = {f"pretrain/{name}": {"config": config, "digest": ""}, f"sample/{name}": {"config": sample, "digest": ""}}
        if phase == "finetune":
            branch = {"start": start} if start else {}
            lineage[f"finetune/{name}"] = {"config": {"run": name, "batch": 4, "seed": seed + 7, **branch}, "digest": ""}
        tree["manifest"] = {"lineage": lineage}
    folder.mkdir(exist_ok=True)
    write_json(folder / f"{name}.json", tree)


def rows_of(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def test_a_row_that_was_not_run_says_so_and_real_images_come_last(tmp_path):
    record(tmp_path, "a")
    table(Table(title="T", evals=("a", "b")), metrics=tmp_path, out=tmp_path / "t.csv")
    rows = list(csv.DictReader((tmp_path / "t.csv").read_text().splitlines()))
    assert [row["eval"] for row in rows] == ["a", "b", "real, held out"]
    assert rows[0]["fd_mobilenet"] == "123.46"
    assert rows[0]["parameters"] == "9"
    assert rows[1]["model"] == "not run"
    assert rows[1]["fd_mobilenet"] == ""
    assert rows[2]["probe_accuracy"] == "0.8"
    assert rows[2]["fd_mobilenet"] == "", "a distance over another number of images shares no column"
    lines = (tmp_path / "t.md").read_text().splitlines()
    assert lines[0] == "T"
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1


@pytest.mark.parametrize("field", COMPARABLE)
def test_two_protocols_never_share_a_column(tmp_path, field):
    record(tmp_path, "a")
    record(tmp_path, "b", **{field: "other"})
    for step, entry, out in ((table, Table, "t.csv"), (curves, Curves, "c.csv")):
        with pytest.raises(UserError, match=f"b has {field} other, a has .* cannot share a column"):
            step(entry(title="T", evals=("a", "b")), metrics=tmp_path, out=tmp_path / out)


@pytest.mark.parametrize("field", ["sampler", "nfe"])
def test_two_samplers_share_a_table_that_names_them_but_no_curve(tmp_path, field):
    record(tmp_path, "a")
    record(tmp_path, "b", **{field: "other"})
    table(Table(title="T", evals=("a", "b")), metrics=tmp_path, out=tmp_path / "t.csv")
    rows = list(csv.DictReader((tmp_path / "t.csv").read_text().splitlines()))
    assert [row[field] for row in rows[:2]] == [str(PROTOCOL[field]), "other"]
    with pytest.raises(UserError, match=f"b has {field} other, a has .* cannot share a column"):
        curves(Curves(title="T", evals=("a", "b")), metrics=tmp_path, out=tmp_path / "c.csv")


@pytest.mark.parametrize("field", SAMPLING)
def test_how_images_were_sampled_has_a_column_only_where_rows_differ_in_it(tmp_path, field):
    record(tmp_path, "a", **{field: "one"})
    record(tmp_path, "b", **{field: "one"})
    record(tmp_path, "c", **{field: "other"})
    columns = {}
    for evals in (("a", "b"), ("a", "c", "d")):
        table(Table(title="T", evals=evals), metrics=tmp_path, out=tmp_path / "t.csv")
        columns[evals] = [row.get(SAMPLED[field]) for row in csv.DictReader((tmp_path / "t.csv").read_text().splitlines())]
    assert columns == {("a", "b"): [None] * 3, ("a", "c", "d"): ["one", "other", "", ""]}
    with pytest.raises(UserError, match=f"c has {field} other, a has one: they cannot share a column"):
        curves(Curves(title="T", evals=("a", "c")), metrics=tmp_path, out=tmp_path / "c.csv")


def test_evaluations_that_differ_in_their_seed_only_are_one_row_of_mean_and_spread(tmp_path):
    for seed, fd in enumerate((100.0, 103.0, 106.0)):
        record(tmp_path, f"seed-{seed}", fd=fd, run={}, seed=seed)
    record(tmp_path, "masked", fd=90.0, run={"mask_ratio": 0.75})
    evals = ("seed-0", "masked", "seed-1", "seed-2")
    table(Table(title="T", numbers=("pretrain.mask_ratio",), evals=evals), metrics=tmp_path, out=tmp_path / "t.csv")
    rows = rows_of(tmp_path / "t.csv")
    assert [row["eval"] for row in rows[:2]] == ["seed-0 seed-1 seed-2", "masked"]
    assert (rows[0]["fd_mobilenet"], rows[0]["fd_mobilenet_spread"], rows[0]["seeds"]) == ("103.0", "3.0", "3")
    assert rows[1]["seeds"] == ""
    assert [row["pretrain.mask_ratio"] for row in rows] == ["0.5", "0.75", ""]
    assert r"seed-0 (3 seeds) & 2.0 & 103.0 $\pm$ 3" in (tmp_path / "t.tex").read_text()
    assert "| seed-0 (3 seeds) | 2.0 | 103.0 ± 3 |" in (tmp_path / "t.md").read_text()


def seeded(folder, *made):
    """Records of one recipe, given by name, training, samples and distance."""
    for name, training, samples, fd in made:
        record(folder, name, fd=fd, run={})
        tree = read_json(folder / f"{name}.json")
        lineage = tree["manifest"]["lineage"]
        lineage[f"pretrain/{name}"]["digest"], lineage[f"sample/{name}"]["digest"] = training, samples
        write_json(folder / f"{name}.json", tree)
    names = tuple(name for name, *_ in made)
    table(Table(title="T", evals=names), metrics=folder, out=folder / "t.csv")
    return rows_of(folder / "t.csv")[0], (folder / "t.md").read_text()


def test_one_sample_under_two_names_is_one_seed_without_a_spread(tmp_path):
    row, text = seeded(tmp_path, ("a", "run", "images", 100.0), ("b", "run", "images", 100.0))
    assert (row["eval"], row.get("seeds"), row.get("fd_mobilenet_spread")) == ("a", None, None)
    assert "seed" not in text


def test_two_samplings_of_one_training_are_not_two_seeds_of_training(tmp_path):
    row, text = seeded(tmp_path, ("a", "run", "one", 100.0), ("b", "run", "two", 104.0))
    assert (row["seeds"], row["samplings"], row["spread_over"], row["fd_mobilenet"]) == ("1", "2", "samplings", "102.0")
    assert "a (1 seed, 2 samplings)" in text


def test_the_spread_of_several_trainings_is_that_of_their_means(tmp_path):
    made = ("a", "run", "one", 100.0), ("b", "run", "two", 104.0), ("c", "other", "three", 106.0), ("d", "other", "three", 106.0)
    row, text = seeded(tmp_path, *made)
    assert (row["seeds"], row["samplings"], row["spread_over"], row["fd_mobilenet"]) == ("2", "3", "trainings", "104.0")
    assert float(row["fd_mobilenet_spread"]) == pytest.approx(8**0.5, rel=1e-4)
    assert "a (2 seeds)" in text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "12", [1.0, float("nan")]])
def test_a_metric_that_is_no_number_is_refused_in_a_line_that_names_its_record(tmp_path, value):
    record(tmp_path, "a", metrics={"fd_mobilenet": value})
    with pytest.raises(UserError, match=r"a\.json: fd_mobilenet is .*, not a number; delete the record") as refusal:
        table(Table(title="T", evals=("a",)), metrics=tmp_path, out=tmp_path / "t.csv")
    assert "\n" not in str(refusal.value)


def test_curves_of_evaluations_without_a_distance_are_refused(tmp_path):
    record(tmp_path, "a", metrics={"is": 3.0})
    with pytest.raises(UserError, match="none of these evaluations has a Fréchet distance"):
        curves(Curves(title="T", evals=("a",)), metrics=tmp_path, out=tmp_path / "c.csv")


def test_no_cell_is_a_formula_or_markup(tmp_path):
    risky = ["=1+1", "@SUM(A1)", "+cmd", "-2+3", "-2.5", "+3%", "<b>x</b>", "[x](y)", "a|b", "a\nb", "`x`"]
    write_table(pd.DataFrame({"text": risky, "number": range(len(risky))}), "T", tmp_path / "t.csv")
    told = [row["text"] for row in csv.DictReader((tmp_path / "t.csv").read_text().splitlines())]
    assert told[:6] == ["'=1+1", "'@SUM(A1)", "'+cmd", "'-2+3", "-2.5", "+3%"]
    text = (tmp_path / "t.md").read_text()
    assert not re.search(r"<b>|(?<!\\)\[x|a\|b|(?<!\\)`x", text)
    assert len(text.splitlines()) == 4 + len(risky)


def test_a_row_has_the_papers_columns_and_steps_of_both_phases(tmp_path):
    record(tmp_path, "a", phase="finetune", run={})
    table(Table(title="T", evals=("a",)), metrics=tmp_path, out=tmp_path / "t.csv")
    row = rows_of(tmp_path / "t.csv")[0]
    assert list(row)[:5] == ["eval", "model", "phase", "guidance", "fd_mobilenet"]
    assert (row["steps"], row["device_hours"], row["gmac_forward"], row["train_images"]) == ("8", "1.0", "2.0", "16")


@pytest.mark.parametrize("images", [32, 9_999, 10_000])
def test_notes_warn_of_few_samples_and_name_the_distance_of_held_out_real_images(tmp_path, images):
    record(tmp_path, "a", images=images)
    table(Table(title="T", evals=("a",)), metrics=tmp_path, out=tmp_path / "t.csv")
    text, tex = ((tmp_path / f"t.{kind}").read_text() for kind in ("md", "tex"))
    warning = f"\nWarning: fd_mobilenet rests on {images:,} samples; the authors of FID recommend at least 10,000. "
    assert (warning in text) == (images < 10_000)
    assert f"\nSamples: {images:,} of each row, with random labels. Trained on 1 x cpu.\n" in text
    real = "Real images for comparison: 5 held-out real images have a fd_mobilenet of 50. This is over 5 images, not"
    assert f"\n{real} {images:,}.\n" in text
    assert real.replace("_", r"\_") in tex
    assert tex.index(r"\end{tabular}") < tex.index("Real images") < tex.index(r"\end{table}")


def test_notes_name_the_held_out_distance_as_its_record_does_and_there_are_none_without_a_distance(tmp_path):
    real = {"heldout": {"images": 5, "fd_inception": 50.0}}
    assert notes({"a": {"metrics": {"fid": 5.0}, "protocol": {"images": 50_000}, "real": real}}) == [
        "Real images for comparison: 5 held-out real images have a fd_inception of 50. This is over 5 images, not 50,000."
    ]
    assert notes({"a": {"metrics": {"fid": 5.0}, "protocol": {"images": 50_000}, "real": {"heldout": None}}}) == []
    floor = {"heldout": None, "floor": {"images": 5000, "fd_inception": 2.5, "kid_inception": 0.0}}
    assert notes({"a": {"metrics": {"fid": 5.0}, "protocol": {"images": 50_000}, "real": floor}}) == [
        "Floor: between two halves of the real images, 5,000 each, fd_inception 2.5, kid_inception 0."
    ]
    assert notes({"a": {"metrics": {"probe_accuracy": 0.5}, "protocol": {"images": 5}, "real": real}}) == notes({}) == []


def test_every_row_of_a_tie_is_bold(tmp_path):
    for name, fid, precision in (("a", 5.7, 0.5), ("b", 5.700001, 0.5), ("c", 5.8, 0.4)):
        record(tmp_path, name, metrics={"fid": fid, "precision": precision})
    table(Table(title="T", evals=("a", "b", "c")), metrics=tmp_path, out=tmp_path / "t.csv")
    assert re.findall(r"^\| (\w) \| 2.0 \| (\S+) \| (\S+) \|", (tmp_path / "t.md").read_text(), re.M) == [
        ("a", "**5.7**", "**0.5**"),
        ("b", "**5.7**", "**0.5**"),
        ("c", "5.8", "0.4"),
    ]


FID = {"fid": 5.8, "sfid": 10.0, "is": 178.0, "precision": 0.74, "recall": 0.6}


def test_a_row_that_reproduces_a_published_one_tells_its_deviation(tmp_path):
    record(tmp_path, "a", metrics=FID, guidance=1.0)
    record(tmp_path, "b", metrics={"fid": 2.497}, guidance=1.5)
    config = Table(title="T", published="in256", evals=("a", "b", "c"), reproduces={"a": "MaskDiT", "b": "DiT-XL/2-G"})
    table(config, metrics=tmp_path, out=tmp_path / "t.csv")
    ours, guided, missing, *others = rows_of(tmp_path / "t.csv")
    assert (ours["reproduces"], ours["precision"]) == ("MaskDiT", "0.74")
    assert float(ours["fid_deviation"]) == pytest.approx(5.8 / 5.69 - 1, rel=1e-4)
    assert float(ours["is_deviation"]) == 0
    assert float(guided["fid_deviation"]) == pytest.approx(2.497 / 2.27 - 1, rel=1e-4), "of two such rows that with this guidance"
    assert missing["fid_deviation"] == ""
    lines = (tmp_path / "t.md").read_text().splitlines()
    assert "| FID beside the reported |" in lines[2]
    assert lines[2].endswith("| source |")
    assert "| +1.9% |" in next(line for line in lines if line.startswith("| a |"))
    assert {row["phase"] for row in others if row["eval"].startswith("MaskDiT")} == {"reported"}
    with pytest.raises(UserError, match=r"reproduces names 'MaskDit', but published\.csv has no such row of in256"):
        table(config.model_copy(update={"reproduces": {"a": "MaskDit"}}), metrics=tmp_path, out=tmp_path / "t.csv")


def test_latex_is_escaped_and_only_rows_that_were_sampled_alike_are_compared_in_bold(tmp_path):
    record(tmp_path, "a", metrics={"fid": 5.8}, guidance=1.0)
    record(tmp_path, "b", metrics={"fid": 5.7}, guidance=1.0)
    record(tmp_path, "c", metrics={"fid": 2.2}, guidance=1.5)
    record(tmp_path, "d", metrics={"fid": 2.1}, guidance=1.5, nfe=9)
    table(Table(title="50 % & #1_a", published="in256", evals=("a", "b", "c", "d", "e")), metrics=tmp_path, out=tmp_path / "t.csv")
    text = (tmp_path / "t.tex").read_text()
    assert r"\caption{50 \% \& \#1\_a}" in text
    assert re.findall(r"^(\w+) .*\\textbf\{(.*?)\}", text, re.M) == [("b", "5.7")]
    assert re.findall(r"^\| (\w+) .*\*\*(.*?)\*\*", (tmp_path / "t.md").read_text(), re.M) == [("b", "5.7")]
    body = text.split(r"\midrule", 1)[1].split(r"\bottomrule")[0]
    columns = re.search(r"begin\{tabular\}\{(\w+)\}", text).group(1)
    assert columns[:3] == "llr", "guidance is not always a number"
    assert {line.count("&") for line in body.splitlines() if line.endswith(r"\\")} == {len(columns) - 1}
    assert re.search(r"^e &  & not run", body, re.M)
    assert text.count("{") == text.count("}")


def test_speed_is_told_of_the_training_behind_an_evaluation_against_the_first(tmp_path):
    record(tmp_path, "a", run={})
    record(tmp_path, "b", phase="finetune", run={})
    tree = read_json(tmp_path / "b.json")
    tree["checkpoint"]["speed"]["images_per_second"] = 120.0
    write_json(tmp_path / "b.json", tree)
    config = Efficiency(title="T", published="in256-speed", evals=("a", "b", "c"))
    efficiency(config, metrics=tmp_path, out=tmp_path / "e.csv")
    first, second, missing, *others = rows_of(tmp_path / "e.csv")
    assert (first["steps_per_second"], first["memory_gb"], first["mfu"], first["speedup"]) == ("10.0", "2.0", "0.5", "1.0")
    assert (second["batch"], second["steps_per_second"], second["speedup"]) == ("4", "30.0", "1.5")
    assert (missing["model"], missing["images_per_second"]) == ("not run", "")
    assert {row["phase"] for row in others} == {"published", "reported"}
    assert all(row["steps_per_second"] and row["memory_gb"] and row["source"] for row in others)
    assert "Steps/s" in (tmp_path / "e.tex").read_text()


def test_tables_curves_and_ledger_are_made_again_without_torch(tmp_path):
    shutil.copy(TOY, tmp_path / "params.yaml")
    params, folder = load(TOY), tmp_path / "results" / "metrics" / "demo"
    folder.mkdir(parents=True)
    for name in params.evaluate:
        record(folder, name, model="MaskDiT" if "mask" in name else "DiT")
        tree = read_json(folder / f"{name}.json")
        files = {f"{name}.json": {"bytes": 0, "sha256": digest(tree)}}
        write_json(
            folder / f"{name}.json", {**tree, "manifest": {"node": f"evaluate/{name}", "files": files, "lineage": {}, "made": {}}}
        )
    program = """
import sys
sys.modules["torch"] = None
from maskdit.cli import main
for verb in ("table", "curves", "efficiency"):
    assert main([verb, "demo", "--metrics", "results/metrics/demo", "--out", f"results/{verb}_demo.csv"]) == 0
assert main(["claims", "claims", "--results", "results", "--out", "results/claims.csv"]) == 0
"""
    run_in(tmp_path, sys.executable, "-c", program, good=True)
    made = {path.name for path in (tmp_path / "results").iterdir()}
    assert {"table_demo.tex", "curves_demo_crossing.csv", "curves_demo.svg", "efficiency_demo.md", "claims.csv"} <= made


def test_no_offline_number_is_called_fid(tmp_path):
    record(tmp_path, "a")
    table(Table(title="T", evals=("a",)), metrics=tmp_path, out=tmp_path / "t.csv")
    header = (tmp_path / "t.csv").read_text().splitlines()[0]
    assert not re.search(r"\bfid\b", header, re.I)


def test_curves_are_sorted_by_what_was_spent_and_drawn_twice_alike(tmp_path):
    record(tmp_path, "late", step=4, fd=10.0)
    record(tmp_path, "early", step=2)
    record(tmp_path, "masked", model="MaskDiT", phase="finetune", step=3)
    entry = Curves(title="T", evals=("late", "early", "masked"))
    curves(entry, metrics=tmp_path, out=tmp_path / "c.csv")
    rows = list(csv.DictReader((tmp_path / "c.csv").read_text().splitlines()))
    assert [row["eval"] for row in rows] == ["early", "late", "masked"]
    assert [float(row["tflop"]) for row in rows] == [2, 4, 3]
    pictures = [(tmp_path / f"c.{suffix}").read_bytes() for suffix in ("png", "svg")]
    curves(entry, metrics=tmp_path, out=tmp_path / "c.csv")
    assert pictures == [(tmp_path / f"c.{suffix}").read_bytes() for suffix in ("png", "svg")]
    with Image.open(tmp_path / "c.png") as picture:
        assert picture.size[0] > 1000


def test_what_released_weights_do_not_tell_is_an_empty_cell(tmp_path):
    record(tmp_path, "ours")
    record(tmp_path, "theirs", phase="released", step=7)
    tree = read_json(tmp_path / "theirs.json")
    tree["checkpoint"] |= {"images": None, "seconds": None, "flops": None}
    write_json(tmp_path / "theirs.json", tree)
    for evals in (("ours", "theirs"), ("theirs",)):
        table(Table(title="T", evals=evals), metrics=tmp_path, out=tmp_path / "t.csv")
        curves(Curves(title="T", evals=evals), metrics=tmp_path, out=tmp_path / "c.csv")
        for file, names in (("t", ("train_images", "train_seconds", "train_tflop")), ("c", ("images", "seconds", "tflop"))):
            rows = {row["eval"]: row for row in csv.DictReader((tmp_path / f"{file}.csv").read_text().splitlines())}
            assert [rows["theirs"][name] for name in names] == ["", "", ""]
            assert rows["theirs"]["steps"] == "7"
        assert "None" not in (tmp_path / "t.md").read_text()


def test_curves_of_nothing_are_refused(tmp_path):
    with pytest.raises(UserError, match="none of the evaluations"):
        curves(Curves(title="T", evals=("a",)), metrics=tmp_path, out=tmp_path / "c.csv")


@pytest.mark.parametrize("heldout", [True, False])
def test_a_grid_shows_real_images_and_samples_of_each_class_held_out_if_there_are_some(tmp_path, heldout):
    raw, samples = tmp_path / "raw", tmp_path / "samples"
    raw.mkdir()
    samples.mkdir()
    red, blue = (np.full((8, 4, 4, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 0, 255)))
    Images(red, np.arange(8) % 2, np.full(8, heldout), ("a", "b")).save(raw)
    np.save(samples / "images-0000.npy", blue)
    np.save(samples / "labels.npy", np.arange(8) % 2)
    write_json(samples / "index.json", {"shards": ["images-0000.npy"], "checkpoint": {"model": "DiT"}, "protocol": PROTOCOL})
    grid(Grid(dataset="toy", sample="toy", columns=3), images=raw, samples=samples, out=tmp_path / "g.png")
    with Image.open(tmp_path / "g.png") as file:
        picture = np.asarray(file.convert("RGB"))
    left, right = np.split(picture, [picture.shape[1] // 2], axis=1)
    assert (left == [255, 0, 0]).all(-1).mean() > 0.1
    assert (right == [0, 0, 255]).all(-1).mean() > 0.1
    assert not (left == [0, 0, 255]).all(-1).any()


POINTS = {"dit-2": ("DiT", 2), "dit-4": ("DiT", 4), "maskdit-2": ("MaskDiT", 2), "maskdit-4": ("MaskDiT", 4)}
STRIP = Strip(images=(1, 0), evals=(*POINTS, "never-run"))


def shade(name, number):
    """The colour of an image: red tells its milestone, green its model, blue its number."""
    model, step = POINTS[name]
    return [40 * step, 200 if model == "DiT" else 90, 100 + 90 * number]


@pytest.fixture
def trained(tmp_path):
    """Two models at two milestones each, evaluated, and their samples: two of one colour each."""
    for name, (model, step) in POINTS.items():
        folder = tmp_path / "artifacts" / "samples" / name
        with publishing(folder, f"sample/{name}", {}, {}) as place:
            np.save(place / "images.npy", np.array([np.full((4, 4, 3), shade(name, number)) for number in range(2)], np.uint8))
            np.save(place / "labels.npy", np.array([3, 5]))
            write_json(place / "index.json", {"shards": ["images.npy"]})
        record(tmp_path / "results", name, model=model, step=step, run={})
        tree = read_json(tmp_path / "results" / f"{name}.json")
        whole = read_json(folder / "manifest.json")["lineage"][f"sample/{name}"]["digest"]
        tree["manifest"]["lineage"][f"sample/{name}"] = {"config": {"run": model.lower()}, "digest": whole}
        write_json(tmp_path / "results" / f"{name}.json", tree)
    return tmp_path


def middles(file):
    """Where the middle of each image is in a strip, across and down; None where it is not shown."""
    with Image.open(file) as opened:
        picture = np.asarray(opened.convert("RGB"))
    found = {(name, number): np.argwhere((picture == shade(name, number)).all(-1)) for name in POINTS for number in range(2)}
    return {image: place.mean(0).round().tolist()[::-1] if len(place) > 100 else None for image, place in found.items()}


def test_a_strip_has_a_row_a_noise_and_model_and_a_column_a_milestone_and_names_both(trained, monkeypatch):
    figures = []
    monkeypatch.setattr("maskdit.reporting.pictures.write", lambda figure, out: (figures.append(figure), write(figure, out)))
    strip(STRIP, results=trained / "results", out=trained / "s.png")
    where = middles(trained / "s.png")
    across, down = (sorted({place[side] for place in where.values()}) for side in (0, 1))
    assert {name: across.index(where[name, 0][0]) for name in POINTS} == {name: step // 2 - 1 for name, (_, step) in POINTS.items()}
    rows = [("DiT", 1), ("MaskDiT", 1), ("DiT", 0), ("MaskDiT", 0)]
    assert {image: rows[down.index(place[1])] for image, place in where.items()} == {
        (name, number): (POINTS[name][0], number) for name, number in where
    }
    panels = figures[0].axes
    assert [label.get_text() for label in panels[0].get_xticklabels()] == ["2", "4"]
    assert [label.get_text() for panel in panels for label in panel.get_yticklabels()] == [model for model, _ in rows]
    assert [panel.get_ylabel() for panel in panels] == ["class 5\nnoise 1", "class 3\nnoise 0"]


def test_samples_that_are_gone_are_empty_in_a_strip_and_others_than_were_evaluated_are_refused(trained):
    samples = trained / "artifacts" / "samples"
    shutil.rmtree(samples / "dit-4")
    strip(STRIP, results=trained / "results", out=trained / "s.png")
    assert {name for (name, _), place in middles(trained / "s.png").items() if place is None} == {"dit-4"}
    with publishing(samples / "dit-2", "sample/dit-2", {}, {}) as place:
        (place / "index.json").write_text("anew")
    with pytest.raises(UserError, match="samples/dit-2: not the images that dit-2 was evaluated on"):
        strip(STRIP, results=trained / "results", out=trained / "s.png")
    shutil.rmtree(samples)
    with pytest.raises(UserError, match=r"s\.png: none of its samples exist"):
        strip(STRIP, results=trained / "results", out=trained / "s.png")


def test_images_of_several_files_are_indexed_as_one_array(tmp_path):
    every = np.random.default_rng(0).integers(0, 256, (11, 2, 2, 3), np.uint8)
    files = [tmp_path / f"{start}.npy" for start in (0, 4, 5)]
    for file, part in zip(files, (every[:4], every[4:5], every[5:]), strict=True):
        np.save(file, part)
    rows = np.array([10, 0, 3, 4, 5, 4])
    joined = Joined([read_array(file, mapped=True) for file in files])
    np.testing.assert_array_equal(joined[rows], every[rows])
    assert joined[rows[:0]].shape == (0, 2, 2, 3)


def reconstruction(folder, name, **protocol):
    told = {"family": "inception-2015", "extractor_sha256": "e", "images": 50_000, "images_sha256": "i", "resolution": 256}
    told |= {"crop": "ADM", "posterior": "sample", "quantisation": "round", "vae_sha256": "0123456789abcdef"} | protocol
    write_json(folder / f"{name}.json", {"metrics": {"rfid": 0.612345, "psnr": 26.9, "ssim": 0.7}, "protocol": told})


def test_reconstructions_stand_above_what_others_report_with_its_protocol_and_source(tmp_path):
    reconstruction(tmp_path, "ema")
    recon(Recon(title="R", published="in256-recon", evals=("ema", "mse")), metrics=tmp_path, out=tmp_path / "r.csv")
    rows = list(csv.DictReader((tmp_path / "r.csv").read_text().splitlines()))
    assert [row["phase"] for row in rows] == ["reconstructed", "not run", *["published"] * 8]
    assert (rows[0]["rfid"], rows[0]["psnr"], rows[0]["vae"]) == ("0.61235", "26.9", "0123456789ab")
    assert "50000 held-out images of 256 pixels against themselves" in rows[0]["protocol"]
    assert not any(rows[1][name] for name in ("rfid", "psnr", "ssim", "posterior"))
    assert sorted(float(row["rfid"]) for row in rows[2:]) == [0.61, 0.61, 0.61, 0.61, 0.62, 0.78, 0.9, 0.9]
    assert all(row["source"] for row in rows[2:])
    assert "sd-vae-ft-ema; val 50K" in rows[2]["protocol"]
    lines = (tmp_path / "r.md").read_text().splitlines()
    assert len({line.count("|") for line in lines[2:]}) == 1


@pytest.mark.parametrize("field", ["family", "images", "images_sha256", "resolution", "posterior", "crop", "quantisation"])
def test_two_protocols_of_reconstruction_never_share_a_column(tmp_path, field):
    reconstruction(tmp_path, "a")
    reconstruction(tmp_path, "b", **{field: "other"})
    with pytest.raises(UserError, match=f"b has {field} other, a has .* cannot share a column"):
        recon(Recon(title="R", evals=("a", "b")), metrics=tmp_path, out=tmp_path / "r.csv")


@pytest.mark.parametrize("bench", ["in256", "in512", "in256-recon"])
def test_each_published_number_lies_in_its_own_column(bench):
    numbers = {"fid", "sfid", "is", "precision", "recall", "rfid", "psnr", "ssim", "lpips", "parameters"}
    numbers |= {"gmac_forward", "train_images", "steps", "batch", "device_hours"}
    rows = published(bench)
    for row in rows:
        assert row["source"]
        assert row.keys() <= numbers | {"eval", "phase", "guidance", "posterior", "protocol", "source"}
        assert all(float(row[name]) > 0 for name in numbers & row.keys())
        assert all(float(row[name]) < 1 for name in {"precision", "recall", "ssim", "lpips"} & row.keys())
        assert row.get("posterior", "sample") in ("sample", "mean")
        assert row.get("parameters", 4e8) > 3e8
    named = {row["eval"]: row for row in rows}
    if bench == "in256":
        assert (named["ADM-G,ADM-U"]["parameters"], named["ADM-G,ADM-U"]["fid"]) == (673_000_000, "3.94")
    if bench == "in512":
        assert (named["ADM-G,ADM-U"]["parameters"], named["MaskDiT"]["parameters"]) == (774_000_000, 731_800_000)


def test_an_interval_is_a_cell_of_a_table() -> None:
    assert rounded({"guidance_interval": [0.2, 2.0], "fid": 2.2812345, "seeds": 3}) == {
        "guidance_interval": "0.2 to 2.0",
        "fid": 2.2812,
        "seeds": 3,
    }


def test_rows_that_a_sweep_chose_are_compared_whatever_it_chose() -> None:
    rows = [("a-best", 2.0, "EMA of relative width 0.05", 2.0), ("b-best", 1.5, "EMA", 1.0), ("c", 1.5, "EMA", 3.0)]
    frame = pd.DataFrame([dict(zip(("eval", "guidance", "weights", "fd_x"), row, strict=True), sampler="EDM Heun") for row in rows])
    assert best(frame, ["fd_x"], {"a-best": ["sweep"], "b-best": ["sweep"]}) == {(1, "fd_x")}
    assert best(frame, ["fd_x"]) == {(1, "fd_x")}
    frame.loc[2, "fd_x"] = 0.5
    assert best(frame, ["fd_x"], ["a-best", "b-best"]) == {(1, "fd_x")}, "the other row is not compared with them"
    assert best(frame, ["fd_x"]) == {(2, "fd_x")}


def test_a_share_of_copies_is_a_column_of_which_none_is_the_best_beside_that_of_real_images():
    row = {"eval": "a", "sampler": "EDM Heun", "guidance": 1.0}
    frame = pd.DataFrame([{**row, "fd_mobilenet": each, "memorised_mobilenet": each / 10} for each in (1.0, 2.0)])
    assert scores(frame) == ["fd_mobilenet", "memorised_mobilenet"]
    assert best(frame, scores(frame)) == {(0, "fd_mobilenet")}
    real = {"memorisation": {"images": 1000, "of": 2000, "memorised_mobilenet": 0.4}, "train_images": 60_000}
    record = {"metrics": {"fd_mobilenet": 1.0}, "protocol": {"images": 10**5}, "real": real}
    [told] = notes({"a": record})
    assert "over only 2,000 of the 60,000 training images. Of 1,000 real images, each left out in turn, it is 0.4;" in told
