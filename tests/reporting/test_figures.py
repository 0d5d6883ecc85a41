"""Figures are laid out for their data: no text over another, no legend over points, nothing cut, at each size of study."""

import itertools
import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from matplotlib import cbook
from matplotlib.text import Text
from PIL import Image
from test_report import POINTS, PROTOCOL, STRIP, record, trained  # noqa: F401

from maskdit.artifacts.atomic import read_json, write_json
from maskdit.artifacts.publish import publishing
from maskdit.benchmark.bench import draw_waterfall
from maskdit.config.load import load
from maskdit.config.reporting import Curves, Grid
from maskdit.images.dataset import Images
from maskdit.reporting.curve_plot import coloured, unit
from maskdit.reporting.curves import curves
from maskdit.reporting.figures import save
from maskdit.reporting.heldout_plot import heldout_plot
from maskdit.reporting.pictures import grid, strip, write
from project import ROOT


def told(figure):
    """Every text that is drawn: tick labels that are in view, labels, titles and legends."""
    figure.draw_without_rendering()
    ticks, hidden = [], set()
    for panel in figure.axes:
        for axis in (panel.xaxis, panel.yaxis, *(side.yaxis for side in panel.child_axes)):
            low, high = sorted(axis.get_view_interval())
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                hidden |= {tick.label1, tick.label2}
                if low <= tick.get_loc() <= high:
                    ticks += [text for text in (tick.label1, tick.label2) if text.get_visible()]
    others = [text for text in figure.findobj(Text) if text not in hidden and text.get_visible()]
    return [text for text in (*ticks, *others) if text.get_text().strip()]


def faults(figure, cropped=False):
    """What is wrong with a figure: texts that overlap or are cut, marks and bars that are cut, a legend over a panel."""
    texts = [(text.get_text(), text.get_window_extent()) for text in told(figure)]
    found = [f"{one} over {two}" for (one, here), (two, there) in itertools.combinations(texts, 2) if here.overlaps(there)]
    for name, box in [] if cropped else texts:
        if box.x0 < 0 or box.y0 < 0 or box.x1 > figure.bbox.x1 or box.y1 > figure.bbox.y1:
            found.append(f"{name} is cut")
    for panel in figure.axes:
        frame = panel.get_window_extent()
        found += [f"{name} over a panel" for name, box in texts if frame.padded(-1).overlaps(box)]
        found += ["a legend over a panel" for legend in figure.legends if legend.get_window_extent().overlaps(frame)]
        for line in panel.get_lines():
            radius = line.get_markersize() / 2 * figure.dpi / 72
            for x, y in panel.transData.transform(line.get_xydata()) if line.get_marker() != "None" else ():
                if not frame.padded(-radius).contains(x, y):
                    found.append(f"a mark at {x:.0f}, {y:.0f} is cut")
        found += ["a bar is cut" for bar in panel.patches if not frame.padded(1).containsx(bar.get_window_extent().x1)]
        found += ["a bar is cut" for bar in panel.patches if not frame.padded(1).containsx(bar.get_window_extent().x0)]
    return found


@pytest.fixture
def drawn(monkeypatch):
    """The figures of curves, which are not written, and the pictures."""
    figures = []
    monkeypatch.setattr("maskdit.reporting.curves.save", lambda figure, *_, **__: figures.append(figure))
    monkeypatch.setattr("maskdit.reporting.pictures.write", lambda figure, out: (figures.append(figure), write(figure, out)))
    return figures


def toy(folder):
    record(folder, "a", model="MaskDiT", phase="finetune", step=6, fd=1050.3, run={"milestones": [0]})
    tree = read_json(folder / "a.json")
    tree["checkpoint"] |= {"flops": 19e6, "device_seconds": 0.29}
    write_json(folder / "a.json", tree)
    return Curves(title="Toy", evals=("a",))


def demo(folder):
    for model, more in (("DiT", 0), ("MaskDiT", 20)):
        for step, fd in ((25, 600.0), (400, 410.0), (900, 350.0), (1600, 310.0)):
            record(folder, f"{model.lower()}-{step}", model=model, step=step, fd=fd + more, run={"decoder": model})
    names = tuple(f"{model}-{step}" for model in ("dit", "maskdit") for step in (25, 400, 900, 1600))
    return Curves(title="OpenMoji at 32 pixels, no guidance; hollow marks are finetuned without a mask", evals=names)


def close(folder):
    for step, fd in ((2, 1270.0), (4, 1150.0)):
        record(folder, f"close-{step}", step=step, fd=fd, run={})
    return Curves(title="Close", evals=("close-2", "close-4"))


def fashion(folder):
    shutil.copytree(ROOT / "docs" / "fashion" / "metrics" / "fashion", folder, dirs_exist_ok=True)
    return load(ROOT / "params.yaml").curves["fashion"]


def imagenet(folder):
    names = []
    for ratio, seed, (step, fid) in itertools.product((50, 75), range(2), ((100_000, 60.0), (400_000, 30.0), (2_000_000, 5.7))):
        names.append(f"mask{ratio}-seed{seed}-{step}")
        run = {"mask_ratio": ratio / 100}
        record(folder, names[-1], "MaskDiT", step=step, metrics={"fid": fid + seed}, run=run, seed=seed, guidance=1.0)
    return Curves(title="ImageNet", published=("in256", "in256-milestones"), price_per_device_hour=3.0, evals=tuple(names))


def released(folder):
    record(folder, "theirs", phase="released", step=7)
    tree = read_json(folder / "theirs.json")
    tree["checkpoint"] |= {"images": None, "seconds": None, "flops": None, "device_seconds": None}
    write_json(folder / "theirs.json", tree)
    return Curves(title="ImageNet at 256 pixels, no guidance, under a title that is longer than its one panel", evals=("theirs",))


@pytest.mark.parametrize("study", [toy, demo, close, fashion, imagenet, released])
def test_curves_of_any_size_have_no_fault(tmp_path, drawn, study):
    folder = tmp_path / "records"
    folder.mkdir()
    curves(study(folder), metrics=folder, out=tmp_path / "c.csv")
    assert faults(drawn[0]) == []
    texts = told(drawn[0])
    for panel in drawn[0].axes:
        assert 2 <= sum(text in texts for text in panel.get_xticklabels()) <= 7


@pytest.mark.parametrize(
    ("study", "costs", "quality"),
    [(close, "linear", "linear"), (toy, "linear", "linear"), (demo, "log", "linear"), (imagenet, "log", "log")],
)
def test_an_axis_is_logarithmic_where_its_values_span_more_than_a_decade(tmp_path, drawn, study, costs, quality):
    curves(study(tmp_path), metrics=tmp_path, out=tmp_path / "c.csv")
    assert {(panel.get_xscale(), panel.get_yscale()) for panel in drawn[0].axes} == {(costs, quality)}
    if costs == "linear":
        assert {panel.get_xlim()[0] for panel in drawn[0].axes} == {0}


def test_the_axis_of_the_quality_is_that_of_the_data(tmp_path, drawn):
    curves(close(tmp_path), metrics=tmp_path, out=tmp_path / "c.csv")
    low, high = drawn[0].axes[0].get_ylim()
    assert 1130 < low < 1150
    assert 1270 < high < 1290


def test_a_cost_has_a_unit_of_which_there_is_at_least_a_tenth():
    assert unit("tflop", 19e-6, "") == ("training compute (MFLOP)", 1e6)
    assert unit("tflop", 2e6, "") == ("training compute (EFLOP)", 1e-6)
    assert unit("device_hours", 0.17, "") == ("device-hours", 1.0)
    assert unit("device_hours", 0.29 / 3600, "") == ("device-seconds", 3600.0)
    assert unit("seconds", 1e-9, "") == ("training time (s)", 1.0)
    assert unit("steps", 3, "training steps") == ("training steps", 1.0)


SHIPPED = [("masking", 1.69), ("precision", 1.68), ("our blocks and flat weights, attention kernel", 1.04), ("batch", 0.96)]


@pytest.mark.parametrize("steps", [SHIPPED, [("masking", 0.5), ("precision", 30.0)], [("batch", 1.0)]])
def test_a_waterfall_has_no_fault_and_its_ratios_beside_it(tmp_path, steps):
    rows = [*steps, ("all together", np.prod([ratio for _, ratio in steps]))]
    frame = pd.DataFrame(rows, columns=["step", "ratio"]).assign(flops_ratio=1.73)
    figure = draw_waterfall(frame, "AMD EPYC 7763 64-Core Processor, 1 thread(s), torch 2.14.1+cu130, and more that is told of it")
    assert faults(figure) == []
    assert [text.get_text() for text in told(figure) if text.get_text().startswith("x ")] == [f"x {ratio:.2f}" for _, ratio in rows]
    once = [save(figure, tmp_path / "b.png", ".png", ".svg") or (tmp_path / f"b{end}").read_bytes() for end in (".png", ".svg")]
    again = [save(figure, tmp_path / "b.png", ".png", ".svg") or (tmp_path / f"b{end}").read_bytes() for end in (".png", ".svg")]
    assert once == again


def sheet(side, columns, heldout, folder, classes=("face", "flag", "transport")):
    """A grid of three classes, of which all but the last have `heldout` held-out images, and eight samples each."""
    raw, samples = folder / "raw", folder / "samples"
    raw.mkdir()
    samples.mkdir()
    labels = np.repeat([0, 1], heldout)
    red, blue = (
        np.full((count, side, side, 3), colour, np.uint8) for count, colour in ((len(labels), (255, 0, 0)), (24, (0, 0, 255)))
    )
    Images(red, labels, np.ones(len(labels), bool), classes).save(raw)
    np.save(samples / "images-0000.npy", blue)
    np.save(samples / "labels.npy", np.arange(24) % 3)
    write_json(samples / "index.json", {"shards": ["images-0000.npy"], "checkpoint": {"model": "MaskDiT"}, "protocol": PROTOCOL})
    grid(Grid(dataset="toy", sample="toy", columns=columns), images=raw, samples=samples, out=folder / "g.png")
    with Image.open(folder / "g.png") as file:
        return np.asarray(file.convert("RGB"))


@pytest.mark.parametrize(("side", "columns", "heldout"), [(8, 1, 1), (32, 8, 2), (32, 8, 8), (256, 4, 4), (32, 8, 0)])
def test_a_grid_has_gaps_and_no_more_columns_than_images_and_no_fault(tmp_path, drawn, side, columns, heldout):
    picture = sheet(side, columns, heldout, tmp_path)
    real, samples = drawn[0].axes
    assert faults(drawn[0], cropped=True) == []
    assert [text.get_text() for text in real.get_yticklabels()] == ["face", "flag", "transport"]
    assert len(samples.get_xticks()) == columns
    assert len(real.get_xticks()) == max(1, min(heldout, columns)), "an empty class has no column"
    assert real.get_position().y0 == samples.get_position().y0
    blue = (picture == [0, 0, 255]).all(-1)
    middle = blue[np.flatnonzero(blue.any(1))[10]].astype(int)
    assert (np.diff(middle) == 1).sum() == columns, "a gap between two images"


DOLLARS = ("costs $5 or $6", r"$\frac{", "a $x^2$ b")


def test_dollar_signs_in_class_names_and_titles_begin_no_mathematics(tmp_path, drawn):
    sheet(8, 1, 1, tmp_path, DOLLARS)
    (tmp_path / "records").mkdir()
    study = toy(tmp_path / "records").model_copy(update={"title": DOLLARS[1]})
    curves(study, metrics=tmp_path / "records", out=tmp_path / "c.csv")
    grid_of, curves_of = drawn
    curves_of.savefig(tmp_path / "c.png")
    assert faults(grid_of, cropped=True) == faults(curves_of) == []
    texts = [text.get_text() for text in grid_of.axes[0].get_yticklabels()] + [curves_of.get_suptitle()]
    assert [text.replace(r"\$", "$") for text in texts] == [*DOLLARS, DOLLARS[1]]
    assert not any(map(cbook.is_math_text, texts))


def test_bytes_of_a_class_name_that_are_no_utf8_are_shown_as_replaced(tmp_path, drawn):
    names = (b"Gr\xf6\xdfe", "Größe".encode(), b"\xff")
    sheet(8, 1, 1, tmp_path, tuple(map(os.fsdecode, names)))
    assert [text.get_text() for text in drawn[0].axes[0].get_yticklabels()] == ["Gr\ufffd\ufffde", "Größe", "\ufffd"]


PLOT = """
import sys
from pathlib import Path
from matplotlib.figure import Figure
from maskdit.reporting.figures import save
from maskdit.reporting.heldout_plot import heldout_plot
figure = Figure()
figure.subplots().plot([1, 2], label="a_b")
figure.legend()
figure.suptitle("Größe")
save(figure, Path(sys.argv[1]), ".png", ".svg")
"""
OF_A_USER = "text.usetex: True\nfont.size: 30\nlines.color: red\naxes.prop_cycle: cycler(color='r')\nsavefig.dpi: 300\n"


def test_no_figure_depends_on_the_users_matplotlibrc(tmp_path):
    def drawn_in(folder, text):
        folder.mkdir()
        if text:
            (folder / "matplotlibrc").write_text(text)
        done = subprocess.run([sys.executable, "-c", PLOT, "x.csv"], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return [(folder / f"x{suffix}").read_bytes() for suffix in (".png", ".svg")]

    assert drawn_in(tmp_path / "with", OF_A_USER) == drawn_in(tmp_path / "without", "")


def test_a_strip_names_the_class_and_sets_models_and_noises_apart(trained, drawn):
    raw = trained / "artifacts" / "raw" / "toy"
    with publishing(raw, "fetch/toy", {}, {}) as place:
        write_json(place / "index.json", {"kind": "array", "classes": ["a", "b", "c", "T-shirt", "e", "an ankle boot"]})
    whole = read_json(raw / "manifest.json")["lineage"]["fetch/toy"]["digest"]
    for name in POINTS:
        path = trained / "results" / f"{name}.json"
        tree = read_json(path)
        tree["manifest"]["lineage"] |= {
            "encode/toy": {"config": {"dataset": "toy"}, "digest": ""},
            "fetch/toy": {"config": {}, "digest": whole},
        }
        write_json(path, tree)
    strip(STRIP, results=trained / "results", out=trained / "s.png")
    assert faults(drawn[0], cropped=True) == []
    first, second = drawn[0].axes
    assert [panel.get_ylabel() for panel in (first, second)] == ["an ankle boot\nnoise 1", "T-shirt\nnoise 0"]
    assert [text.get_text() for text in first.get_yticklabels()] == ["DiT", "MaskDiT"]
    assert len({text.get_color() for text in first.get_yticklabels()}) == 2
    assert first.get_position().y0 - second.get_position().y1 > 0.1, "inches"
    once = (trained / "s.png").read_bytes()
    strip(STRIP, results=trained / "results", out=trained / "s.png")
    assert (trained / "s.png").read_bytes() == once
    with publishing(raw, "fetch/toy", {}, {}) as place:
        write_json(place / "index.json", {"kind": "array", "classes": ["other"] * 6})
    strip(STRIP, results=trained / "results", out=trained / "s.png")
    assert drawn[-1].axes[0].get_ylabel() == "class 5\nnoise 1", "not the names of another data set"
    shutil.rmtree(raw)
    strip(STRIP, results=trained / "results", out=trained / "s.png")
    assert drawn[-1].axes[0].get_ylabel() == "class 5\nnoise 1"


def test_a_user_s_method_has_the_same_colour_in_a_strip_as_in_the_curves(trained, drawn):
    for name in POINTS:
        path = trained / "results" / f"{name}.json"
        tree = read_json(path)
        if tree["checkpoint"]["model"] == "MaskDiT":
            tree["checkpoint"]["model"] = "Mine"
            write_json(path, tree)
    strip(STRIP, results=trained / "results", out=trained / "s.png")
    colours = {text.get_text(): text.get_color() for text in drawn[0].axes[0].get_yticklabels()}
    assert colours == {model: coloured(["Mine", "DiT"])[model] for model in ("DiT", "Mine")}


def test_the_held_out_loss_of_the_curves_has_a_panel_for_the_mean_and_each_level_and_no_fault(tmp_path):
    metrics = tmp_path / "records"
    for name, model, step in (("a", "DiT", 2), ("b", "DiT", 4), ("c", "MaskDiT", 2), ("d", "MaskDiT", 6)):
        record(metrics, name, model=model, step=step, run={})
        tree = read_json(metrics / f"{name}.json")
        tree["checkpoint"]["heldout"] = {
            "heldout": 1 / step,
            **{f"heldout_{level:.3f}": level / step for level in (0.05, 0.5, 2.0)},
        }
        write_json(metrics / f"{name}.json", tree)
    config = Curves(title="Two", evals=("a", "b", "c", "d"))
    curves(config, metrics=metrics, out=tmp_path / "curves_two.csv")
    figure = heldout_plot(pd.read_csv(tmp_path / "curves_two.csv"), "device_hours", "device-hours")
    assert [panel.get_title() for panel in figure.axes if panel.get_title()] == ["mean", "sigma 0.05", "sigma 0.5", "sigma 2"]
    drawn = {line.get_label(): line.get_ydata().tolist() for line in figure.axes[0].get_lines()}
    assert drawn == {"DiT": [1 / 2, 1 / 4], "MaskDiT": [1 / 2, 1 / 6]}
    assert faults(figure) == []
