"""The report: what it shows is what the files say, in a real browser, from nothing but the one file."""

import base64
import csv
import io
import json
import math
import re
import shutil
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from markupsafe import escape
from PIL import Image

from browser import CHROMIUM, browser
from maskdit.artifacts.atomic import write_json
from maskdit.artifacts.compute_log import LEDGER, append
from maskdit.artifacts.manifest import Origin, read_manifest
from maskdit.artifacts.publish import publishing
from maskdit.config.base import UserError
from maskdit.config.graph import study
from maskdit.config.load import load
from maskdit.images.dataset import Images
from maskdit.reporting.curve_crossings import reach
from maskdit.reporting.report.dag import draw, heights, spread
from maskdit.reporting.report.nearest import nearest
from maskdit.reporting.report.page import rows_of, short, table
from maskdit.reporting.report.report import ahead, at, claims, drawn, report
from maskdit.reporting.report.summary import answer, best, cards, untested, verdicts
from project import ROOT, TOY, edit, restated

HOSTILE = "</title><script>document.title = 'mine'</script><img src=x onerror=alert(1)> <!--data--> & \\\"quotes\\\""
SHOWN = "</title><script>document.title = 'mine'</script><img src=x onerror=alert(1)> <!--data--> & \"quotes\""
CURVES = """eval,model,phase,step,images,seconds,tflop,guidance,fd_mobilenet
demo-dit-2,DiT,pretrain,2,1000,36.0,1.5,2.0,300.123456789
demo-dit-4,DiT,pretrain,4,2000,72.5,3.0,2.0,150.5
demo-maskdit-2,MaskDiT,pretrain,2,1000,20.25,0.8,2.0,280.75
demo-maskdit-4,MaskDiT,finetune,4,2000,40.0,1.6,2.0,200.0625
"""
TABLE = """eval,model,phase,fd_mobilenet,probe_accuracy
demo-dit-plain,DiT,pretrain,150.5,0.48047
demo-maskdit-guided,not run,,,
</script><b>hostile</b>,DiT,pretrain,20.123456789,0.5
"""
CLAIMS = "claim,says,verdict\nfaster,a step is cheaper,REPRODUCED\nbetter,as good,NOT RUN\nsmaller,it is,REPRODUCED\n"
CROSSING = (
    "axis,status,ratio,quality,reads\nsteps,reached,0.5,200,of steps\nseconds,reached,0.7,250,of early\n"
    "seconds,reached,0.8,200,<of late>\nseconds,not reached,,150,of never\n"
)
WATERFALL = "step,from,to,ratio\nmasking,a,b,1.6457976\nprecision,b,c,0.9\nall together,a,c,1.48\n"
BENCH = "pair,slow,fast,ratio,verdict,machine\none,a,b,1.5,met,a machine\n"


def made(home, commit="c" * 40, name="demo-dit-plain", **record):
    """A record of an evaluation, with its manifest and that of the images behind it."""
    params = load(TOY)
    fetch = params.fetch["demo"].model_dump(mode="json")
    with publishing(home / "artifacts" / "raw" / "demo", "fetch/demo", fetch, {}) as place:
        (place / "x").write_text("images")
    manifest = home / "artifacts" / "raw" / "demo" / "manifest.json"
    restated(manifest, lambda tree: tree["made"].update(commit=commit))
    tree = json.loads(manifest.read_text())
    ancestors = {"fetch/demo": Origin(fetch, tree["lineage"]["fetch/demo"]["digest"])}
    ancestors[f"sample/{name}"] = Origin(params.sample[name].model_dump(mode="json"), "")
    entry = params.evaluate[name].model_dump(mode="json")
    with publishing(home / "results" / "metrics" / "demo" / f"{name}.json", f"evaluate/{name}", entry, ancestors) as place:
        write_json(place, {"metrics": {}, **record})
    return tree["lineage"]["fetch/demo"]["digest"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A study with everything in it, and a title that would be markup."""
    home = tmp_path_factory.mktemp("study")
    (home / "params.yaml").write_bytes(TOY.read_bytes())
    first = "table:\n  demo:\n    title: {}\n"
    edit(home / "params.yaml", first.format("Toy"), first.format(f'"{HOSTILE}"'))
    edit(home / "params.yaml", "bench: {}", "bench: " + bench())
    (home / "results").mkdir()
    files = {"curves_demo": CURVES, "table_demo": TABLE, "claims": CLAIMS, "bench_cpu": BENCH, "bench_cpu_waterfall": WATERFALL}
    files["curves_demo_crossing"] = CROSSING
    for name, text in files.items():
        (home / "results" / f"{name}.csv").write_text(text)
    for name in ("curves_demo", "grid_demo-dit", "bench_cpu"):  # and no grid_demo-maskdit
        Image.new("RGB", (40, 20), "red").save(home / "results" / f"{name}.png")
    digest = made(home)
    for node, code, end in (("fetch/demo", 143, None), ("fetch/demo", 0, digest), ("fetch/other", 0, None)):
        verb, key = node.split("/")
        spent = {"seconds": 1.5, "device_seconds": 3.0, "peak_memory": 5e6, "slurm_job": "777", "attempt": 1}
        append({"verb": verb, "key": key, **spent, "exit": code, "digest": end}, home / LEDGER)
    return home


def bench():
    """The study's benchmark on one line: only its key is looked at."""
    from ruamel.yaml import YAML

    yaml, stream = YAML(typ="safe", pure=True), io.StringIO()
    yaml.default_flow_style, yaml.width = True, 10**6
    yaml.dump(YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text())["bench"], stream)
    return stream.getvalue().strip()


@pytest.fixture(scope="module")
def html(home):
    """Its report."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        config = load().report["demo"]
        report(config, results=home / "results", out=home / "results" / "report_demo.html")
    return home / "results" / "report_demo.html"


def test_a_report_waits_for_no_torch_and_is_written_by_its_command(home, tmp_path):
    home = shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    program = "import sys; from maskdit.cli import main; code = main(['report', 'demo', '--out', 'results/other.html'])\n"
    program += "assert not {'torch', 'pandas', 'matplotlib'} & set(sys.modules); sys.exit(code)"
    done = subprocess.run([sys.executable, "-c", program], cwd=home, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert (home / "results" / "other.html").stat().st_size > 10_000


def test_nothing_that_a_file_says_becomes_markup_and_no_address_is_in_the_page(html):
    tags: list[tuple[str, dict[str, str | None]]] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.append((tag, dict(attributes)))
    text = html.read_text()
    parser.feed(text)
    names = [tag for tag, _ in tags]
    assert (names.count("script"), names.count("b")) == (2, 0)
    assert unescape(re.search(r"<h1>(.*?)</h1>", text, re.S)[1]) == SHOWN
    addresses = [attributes[name] for _, attributes in tags for name in ("src", "href") if name in attributes]
    assert len(addresses) > 10
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert not any(name.startswith("on") or name == "style" for _, attributes in tags for name in attributes)
    assert not re.search(r"\beval\(|\bFunction\(|@import|url\((?!data:)", text)
    assert "default-src 'none'" in text


def test_what_was_not_run_and_what_failed_is_told(html):
    text = html.read_text()
    assert "not run: grid_demo-maskdit.png does not exist" in text
    assert "Of 3 claims: 2 REPRODUCED, 1 not measured here." in text
    assert "evaluate/demo-maskdit-guided" in re.search(r"Not run: (.*?)\.</li>", text)[1]
    assert "fetch/demo, attempt 1, , Slurm job 777: SIGTERM (exit code 143) after 1.5 s" in text
    assert '<tr class=absent><th scope="row">demo-maskdit-guided</th><td>not run</td>' in text


def test_the_first_screen_says_whether_masking_pays_with_four_numbers(html):
    text = html.read_text()
    assert '<p class="verdict">Masking does not pay off here, by a single seed of each. of never.</p>' in text, (
        "DiT's last quality was not reached"
    )
    cards = re.findall(r"<li><span>(.*?)</span><strong>(.*?)</strong><span>(.*?)</span></li>", text)
    assert cards == [
        ("Images per second in training", "not run", "of DiT&#39;s"),
        ("Memory in training", "not run", "of DiT&#39;s"),
        ("Time to equal quality", "0.80x", "of DiT&#39;s, at a fd_mobilenet of 200"),
        ("Final fd_mobilenet", "150.5 / 200.1", "DiT / MaskDiT"),
    ]
    between = 300.123456789 - 149.623456789 * math.log(40 / 36) / math.log(72.5 / 36)
    best = "the curve of MaskDiT has the best fd_mobilenet"
    assert f"After 40 seconds of training {best}: MaskDiT 200.06, DiT {between:.5g}." in text


def test_the_final_quality_is_the_method_s_and_not_that_before_its_finetuning():
    text = "eval,series,model,phase,seed,device_hours,fid\n"
    text += "a,DiT before finetuning,DiT,pretrain,0/0,1,17\na2,DiT,DiT,finetune,0/0,4,15\n"
    text += "b,MaskDiT before finetuning,MaskDiT,pretrain,0/0,2,25\nb2,MaskDiT,MaskDiT,finetune,0/0,4,20\n"
    points = drawn(list(csv.DictReader(io.StringIO(text))))
    last = re.search(r"Final fid</span><strong>(.*?)</strong><span>(.*?)</span>", str(cards([], [], points)))
    assert last.groups() == ("15 / 20", "DiT / MaskDiT")
    assert (
        ahead(points["points"], "device_hours", "hours", "fid")
        == "After 4 hours the curve of DiT has the best fid: DiT 15, MaskDiT 20."
    )


HELD = {"heldout": {"images": 20, "fd_mobilenet": 233.66}}
PROTOCOL = {"images": 32, "guidance": 1.0}


def evaluated(fd, **more):
    """A record of an evaluation."""
    return {"metrics": {"fd_mobilenet": fd}, "protocol": {**PROTOCOL, **more}, "real": HELD}


def test_the_best_of_all_evaluations_is_named_though_it_is_no_point_of_the_curves_and_notes_are_below_the_table(
    home, tmp_path, monkeypatch
):
    home = shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(home)
    made(home, name="demo-dit-plain", **evaluated(1161.8))
    made(home, name="demo-maskdit-guided", **evaluated(1150.0, guidance=2.0))
    report(load().report["demo"], results=home / "results", out=home / "r.html")
    text = unescape((home / "r.html").read_text())
    assert "<li>The best fd_mobilenet of 2 evaluations of 32 samples is 1150: demo-maskdit-guided with guidance 2.</li>" in text
    tables = re.search(r'<section id="tables">.*?</section>', text, re.S)[0]
    assert "<p>Warning: fd_mobilenet rests on 32 samples; the authors of FID recommend at least 10,000." in tables
    assert "20 held-out real images have a fd_mobilenet of 233.66." in tables


def test_the_best_is_a_mean_over_seeds_all_of_a_tie_and_one_for_each_protocol():
    def seed(number, fd):
        origin = {"config": {"seed": number}, "digest": ""}
        return {**evaluated(fd), "manifest": {"lineage": {f"pretrain/{number}": origin}}}

    records = {"s0": seed(0, 90.0), "s1": seed(1, 110.0), "b": evaluated(100.0), "c": evaluated(101.0)}
    assert best(records) == [
        "The best fd_mobilenet of 4 evaluations of 32 samples is 100: s0 (2 seeds) with guidance 1 and b with guidance 1."
    ]
    assert best({"b": evaluated(100.0), "c": evaluated(90.0, images=64)}) == [
        "The best fd_mobilenet of 1 evaluation of 32 samples is 100: b with guidance 1.",
        "The best fd_mobilenet of 1 evaluation of 64 samples is 90: c with guidance 1.",
    ]
    assert best({"none": {"metrics": {"probe_accuracy": 0.5}}}) == best({}) == []


def test_claims_that_were_not_measured_here_are_not_told_as_if_they_were(tmp_path):
    path = tmp_path / "c.csv"
    rows = "time,SCALED-DOWN ONLY: contradicts,opposite\nspeed,SCALED-DOWN ONLY: supports,as claimed\n"
    older = "mask,SCALED-DOWN ONLY,as claimed\nfid,NOT RUN,\nis,REPRODUCED,as claimed\n"
    path.write_text(f"claim,verdict,direction\n{rows}{older}")
    assert verdicts(rows_of(path)) == [
        "Of 5 claims: 3 SCALED-DOWN ONLY, 1 not measured here, 1 REPRODUCED.",
        "Scaled-down evidence, not of the paper's size, supports: speed, mask.",
        "Scaled-down evidence, not of the paper's size, contradicts: time.",
    ]
    told = unescape(claims(path))
    assert "<li>SCALED-DOWN ONLY: the claim itself, at the paper's size and on its images, was not measured here." in told
    assert "<li>NOT RUN: not measured here, so the claim is not judged.</li>" in told
    path.write_text("claim,verdict\nfid,REPRODUCED\n")
    assert "not measured here" not in claims(path)


def test_the_most_suspicious_samples_stand_above_their_nearest_training_image(home, tmp_path, monkeypatch):
    home = shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(home)
    params, name = load(), "demo-dit-plain"
    real = np.arange(8 * 4 * 4 * 3, dtype=np.uint8).reshape(8, 4, 4, 3)
    lineage = {}
    with publishing(Path("artifacts/raw/demo"), "fetch/demo", entry := params.fetch["demo"].model_dump(mode="json"), {}) as place:
        Images(real, np.zeros(8, int), np.arange(8) % 2 == 0, ("a",)).save(place)
    lineage["fetch/demo"] = read_manifest(Path("artifacts/raw/demo")).lineage["fetch/demo"]
    lineage["reference/demo"] = Origin(params.reference["demo"].model_dump(mode="json"), "")
    entry = params.sample[name].model_dump(mode="json")
    with publishing(Path("artifacts/samples") / name, f"sample/{name}", entry, {}) as place:
        np.save(place / "images-0000.npy", 255 - real)
        np.save(place / "labels.npy", np.zeros(8, int))
        write_json(place / "index.json", {"shards": ["images-0000.npy"]})
    lineage |= read_manifest(Path("artifacts/samples") / name).lineage
    record = evaluated(1161.8, memorised_from=4)
    record["metrics"]["memorised_mobilenet"] = 0.25
    record["real"] = {"heldout": None, "memorisation": {"images": 4, "of": 4, "memorised_mobilenet": 0.5}}
    record["nearest"] = [
        {"sample": 6, "row": 1, "distance": 0.125, "own": 2.5},
        {"sample": 0, "row": 3, "distance": 2.0, "own": 2.5},
    ]
    found = nearest(
        name, {**record, "manifest": {"lineage": {node: vars(origin) for node, origin in lineage.items()}}}, Path("results")
    )
    pictures = [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for data in re.findall(r"base64,([^\"]+)", found)]
    for picture, wanted in zip(pictures, (255 - real[6], real[3], 255 - real[0], real[7]), strict=True):
        np.testing.assert_array_equal(picture, wanted)
    assert "sample 6: 0.125, its own nearest 2.5<" in found
    assert "No farther than that are 25.0% of all samples, and 50.0% of real images when each is left out in turn." in found
    assert nearest(name, evaluated(1161.8), Path("results")) == ""


NOISE = "Masking {}, within the noise of the seeds. It reads."
ONE = "Masking {}, by a single seed of each. It reads."


@pytest.mark.parametrize(
    ("last", "told"),
    [
        ({"status": "reached", "ratio": "0.5"}, ONE.format("pays off here")),
        (
            {"status": "reached", "ratio": "0.9", "low": "0.7", "high": "1.1"},
            NOISE.format("pays off here"),
        ),
        ({"status": "not reached", "ratio": "", "low": "0.5", "high": "inf"}, "Does masking pay off here? Undecided. It reads."),
        (
            {"status": "not reached", "ratio": "", "low": "1.4", "high": "inf", "interval": "one seed, no interval"},
            "Masking does not pay off here, by a single seed of each. It reads.",
        ),
        ({"status": "reached", "ratio": "1.2", "low": "1.1", "high": "1.4"}, "Masking does not pay off here. It reads."),
        (
            {"status": "reached", "ratio": "1.2", "low": "0.9", "high": "1.4"},
            NOISE.format("does not pay off here"),
        ),
        ({"status": "before the first milestone", "ratio": "0.4"}, ONE.format("pays off here")),
        ({"status": "not reached", "ratio": ""}, ONE.format("does not pay off here")),
    ],
)
def test_the_answer_follows_the_last_crossing_and_its_interval(last, told):
    assert answer([{"status": "reached", "ratio": "9", "reads": "Not this"}, {**last, "reads": "It reads"}]) == told
    assert answer([]).startswith("Does masking pay off here? Undecided")
    failed = "Does masking pay off? This study cannot tell: the control failed. It reads."
    assert answer([{**last, "reads": "It reads"}], "the control failed") == failed


def test_the_answer_is_about_masking_where_there_is_a_masked_model_and_else_about_the_model():
    masked, other = (
        {"model": name, "status": "reached", "ratio": "0.5", "low": "0.4", "high": "0.6"} for name in ("MaskDiT", "MoD")
    )
    rows = [{**masked, "reads": "Masked"}, {**other, "reads": "Other"}]
    assert answer(rows) == "Masking pays off here. Masked."
    assert answer(rows[1:]) == "MoD pays off here. Other."


def test_a_study_cannot_tell_if_the_claim_that_its_curves_judge_is_untestable():
    row = {"verdict": "UNTESTABLE HERE", "direction": "the control failed", "from": "results/curves_demo_crossing.csv"}
    assert untested([row], "demo") == "the control failed"
    assert untested([row], "fashion") == untested([{**row, "verdict": "TIE"}], "demo") == ""


def test_crossings_are_a_table_for_each_axis_and_columns_without_a_value_are_left_out(html):
    text = html.read_text()
    names = re.findall(r"<caption><span>When one model is as good as the other, in ([\w ]+) <", text)
    assert names == ["training steps", "seconds of training"]
    assert text.count("<summary>When one model") == 1, "one is open"
    columns = re.search(r'data-file="claims.csv".*?</thead>', text, re.S)[0]
    assert re.findall(r">(\w+)</th>", columns) == ["claim", "says", "verdict"]


def test_curves_of_several_seeds_prices_and_published_points_are_drawn_by_their_columns():
    text = "eval,series,model,phase,seed,steps,seconds,device_hours,cost,fid\n"
    text += "a,DiT,DiT,pretrain,0/0,7,3600,8.0,16.0,9.5\na2,DiT,DiT,pretrain,1/0,7,3600,8.0,16.0,9.0\n"
    text += "b,MaskDiT,MaskDiT,pretrain,0/0,7,1800,4.0,8.0,9.25\nADM,ADM (published),,published,,,,,,3.94\nnone,DiT,DiT,,,,,,,\n"
    found = drawn(list(csv.DictReader(io.StringIO(text))))
    assert found["quality"] == "fid"
    assert found["hours"] == ["device_hours", 1.0]
    assert [name for name, *_ in found["axes"]] == ["steps", "seconds", "device_hours", "cost"]
    points = found["points"]
    assert [(each["series"], each["seed"], each["ours"]) for each in points][1:] == [
        ("DiT", "1/0", True),
        ("MaskDiT", "0/0", True),
        ("ADM (published)", "", False),
    ]
    told = "After 8 euros the curve of MaskDiT has the best fid: MaskDiT 9.25, DiT no milestone yet."
    assert ahead(points, "cost", "euros", "fid") == told
    assert "fid: DiT 9.25, MaskDiT 9.25." in ahead(points, "steps", "steps", "fid"), "the mean of its seeds"


@pytest.mark.parametrize("wanted", [300.0, 260.0, 200.0, 199.0, 150.0])
def test_a_budget_is_read_off_a_curve_as_its_crossings_are(wanted):
    spent, quality = np.array([10.0, 40.0, 100.0]), np.array([300.0, 200.0, 150.0])
    spots = list(zip(spent, quality, strict=True))
    assert at(spots, reach(spent, quality, wanted)) == pytest.approx(wanted)
    assert (math.isnan(at(spots, 9.9)), at(spots, 1e3)) == (True, 150.0)


def test_a_bound_that_is_infinite_is_a_number_of_a_table(tmp_path):
    (tmp_path / "x.csv").write_text("axis,ratio,low,high\nseconds,0.9,0.5,inf\n")
    rows = rows_of(tmp_path / "x.csv")
    assert rows == [{"axis": "seconds", "ratio": "0.9", "low": "0.5", "high": "inf"}]
    assert ">inf<" in table(rows, "Crossings", "x.csv")


def test_provenance_joins_the_manifest_with_the_ledger(html):
    row = re.search(r'<tr><th scope="row">fetch/demo</th>(.*?)</tr>', html.read_text(), re.S)[1]
    assert f'title="{"c" * 40}"' in row
    assert "python 3" in row
    for value in ("1.5", "3.0", "5.0", "777"):
        assert f'<data value="{value}">' in row
    sums = re.search(r'<tr><th scope="row">this study</th>(.*?)</tr>', html.read_text())[1]
    assert re.findall(r'value="([\d.]+)"', sums) == ["2", "1", "3.0", "6.0", "5.0"]


def test_provenance_says_what_is_stale_and_why_and_that_changes_were_uncommitted(home, tmp_path, monkeypatch):
    home = shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(home)
    made(home, f"{'d' * 40}+changes")
    edit(home / "params.yaml", "    resolution: 16\n", "    resolution: 32\n")
    report(load().report["demo"], results=home / "results", out=home / "r.html")
    text = unescape((home / "r.html").read_text())
    head = re.search(r"How each artifact was made.*?</thead>", text, re.S)[0]
    row = re.search(r'<tr><th scope="row">fetch/demo</th>(.*?)</tr>', text, re.S)[1]
    place = re.findall(r">([\w ]+)</th>", head).index("uncommitted changes")
    assert re.findall(r"<td[^>]*>(.*?)</td>", row, re.S)[place - 1] == "yes"
    assert "stale: resolution" in row
    assert re.search(r'<g class="stale"><title>fetch/demo: stale: resolution', text)
    assert "fetch/demo" in re.search(r"<li>Stale: (.*?)\.</li>", text)[1].split(", ")
    absent = re.search(r"<li>Not run: (.*?)\.</li>", text)[1].split(", ")
    assert "sample/demo-maskdit-guided" in absent
    assert "sample/demo-dit-plain" not in absent, "a record was made from it"
    assert '<g class="not-here"><title>sample/demo-dit-plain: not here' in text


def test_what_was_left_out_of_the_images_is_told_by_reason(home, tmp_path, monkeypatch):
    home = shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(home)
    known = {"damaged images": {"count": 1200, "first": [f"red/{HOSTILE}.png", "b.png", "c.png", "d.png"]}}
    write_json(Path("artifacts/raw/demo/report.json"), {"images": {}, "layout": "the folder is the class", "left_out": known})
    report(load().report["demo"], results=home / "results", out=home / "r.html")
    line = f"fetch/demo: the folder is the class. Left out: damaged images: 1,200 (red/{HOSTILE}.png, b.png, c.png)."
    assert f"<li>{escape(line)}</li>" in (home / "r.html").read_text()


def test_results_of_another_folder_are_refused_for_their_provenance_is_not_here(home, tmp_path, monkeypatch):
    monkeypatch.chdir(home)
    with pytest.raises(UserError, match="the report is about the project in the current folder"):
        report(load().report["demo"], results=tmp_path / "results", out=tmp_path / "r.html")


def test_artifacts_of_two_commits_are_refused_in_a_line_that_names_both(home, tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_bytes(TOY.read_bytes())
    monkeypatch.chdir(tmp_path)
    made(tmp_path, "a" * 40)
    config = load().report["demo"]
    assert config.mixed
    report(config, results=tmp_path / "results", out=tmp_path / "r.html")
    with pytest.raises(UserError) as error:
        report(config.model_copy(update={"mixed": False}), results=tmp_path / "results", out=tmp_path / "s.html")
    assert "artifacts/raw/demo was made at commit aaaaaaaaaaaa, " in str(error.value)
    assert "demo-dit-plain.json at " in str(error.value)
    assert "set report.demo.mixed: true" in str(error.value)
    assert not (tmp_path / "s.html").exists()


def test_a_study_of_which_nothing_was_run_has_a_report_that_says_so(tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_bytes(TOY.read_bytes())
    monkeypatch.chdir(tmp_path)
    report(load().report["demo"], results=tmp_path / "results", out=tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    for name in ("table_demo.csv", "curves_demo.csv", "claims.csv", "grid_demo-dit.png"):
        assert f"not run: {name} does not exist" in text
    assert "There is no ledger" in text


@pytest.mark.parametrize(
    ("exact", "seen"),
    [("606.3707976039036", "606.37"), ("1876880", "1876880"), ("0.0012345678", "0.0012346"), ("1.0", "1.0"), ("1e-05", "1e-05")],
)
def test_a_number_is_shortened_and_its_exact_value_kept(exact, seen):
    assert short(exact) == seen
    assert f'<data value="{exact}">{seen}</data>' in table([{"name": "x", "value": exact}], "T")


@pytest.mark.parametrize("bench", ["demo", "in256", "in512"])
def test_the_graph_has_each_ancestor_once_and_no_two_boxes_in_one_place(bench):
    edges = study(load(ROOT / "params.yaml"), f"report/{bench}")
    svg = draw(edges, dict.fromkeys(edges, "made"), bench)
    assert svg.count("<rect") == len(edges)
    places = re.findall(r'<rect x="(\d+)" y="([\d.]+)"', svg)
    assert len(set(places)) == len(edges)
    assert min(heights(edges).values()) == 0
    params = load(ROOT / "params.yaml")
    assert {f"evaluate/{name}" for name, entry in params.evaluate.items() if entry.bench == bench} <= set(edges)


def test_places_are_kept_where_they_are_apart_and_moved_alike_where_not():
    assert spread([0.0, 2.0, 5.0]) == [0.0, 2.0, 5.0]
    assert spread([1.0, 1.0]) == [0.5, 1.5]
    assert spread([0.0, 0.0, 0.5, 9.0]) == pytest.approx([-5 / 6, 1 / 6, 7 / 6, 9.0])


def test_the_picture_of_the_speed_benchmark_tells_its_steps(html):
    told = re.search(r'alt="(Times faster[^"]*)" src="data:image/png', html.read_text())[1]
    assert (
        told
        == "Times faster per image than plain DiT in float32; a machine: masking x 1.6458; precision x 0.9; all together x 1.48"
    )


def test_the_script_is_short_and_plain():
    script = (ROOT / "src" / "maskdit" / "reporting" / "report" / "report.js").read_text()
    assert len(script.splitlines()) < 300
    assert not re.search(r"\beval\(|innerHTML|document\.write|import\b|fetch\(|https?://(?!www\.w3\.org/2000/svg)", script)


# In a browser


@pytest.fixture(scope="module")
def tab(html, tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with browser(tmp_path_factory.mktemp("profile")) as page:
        page.html = html
        yield page


@pytest.fixture
def page(tab):
    tab.open(tab.html, 1200, 900)
    yield tab
    assert tab.complaints() == []
    assert tab.requests() == [tab.html.as_uri()], "nothing but the file is asked for"


def cells(page, file):
    """A table as the browser has it."""
    read = "[...row.cells].map((cell) => cell.querySelector('data')?.value ?? cell.textContent)"
    return page.ask(f"[...document.querySelector('[data-file=\"{file}\"]').rows].map((row) => {read})")


@pytest.mark.parametrize("name", ["table_demo", "curves_demo", "claims", "bench_cpu_waterfall"])
def test_the_figures_on_the_page_are_those_of_the_files(name, page, home):
    rows = list(csv.reader(io.StringIO((home / "results" / f"{name}.csv").read_text())))
    assert cells(page, f"{name}.csv") == rows


def test_the_chart_draws_each_point_of_the_file_and_follows_its_axes(page, home):
    seen = "[...document.querySelectorAll('.mark[data-eval]')].map((mark) => [mark.dataset.eval, mark.dataset.value])"
    points = sorted([row["eval"], row["fd_mobilenet"]] for row in rows_of(home / "results" / "curves_demo.csv"))
    assert sorted(page.ask(seen)) == points
    before = page.ask("document.getElementById('plot').getAttribute('aria-label')")
    assert before.startswith("fd_mobilenet against training images")
    for control, value in (("axis", "seconds"), ("across", "log"), ("up", "log")):
        change(page, control, value, "change")
        assert sorted(page.ask(seen)) == points
    assert "against training time (s)" in page.ask("document.getElementById('plot').getAttribute('aria-label')")
    assert all(0 < number < 1200 for pair in marks(page) for number in pair)


def marks(page):
    """Where the marks of the chart are, in pixels."""
    found = page.ask("[...document.querySelectorAll('.mark[data-eval]')].map((m) => m.getAttribute('transform').match(/[\\d.]+/g))")
    return [[float(number) for number in pair] for pair in found]


def test_the_points_fill_the_chart_from_top_to_bottom(page):
    whole = page.ask("document.getElementById('plot').getBoundingClientRect().height")
    heights = [height for _, height in marks(page)]
    assert max(heights) - min(heights) > 0.7 * whole
    ticks = page.ask("[...document.querySelectorAll('.tick[text-anchor=end]')].map((tick) => Number(tick.textContent))")
    assert ticks == [150, 200, 250, 300]


def change(page, control, value, event):
    """Set a control as a person does."""
    page.ask(f"((it) => {{it.value = '{value}'; it.dispatchEvent(new Event('{event}'));}})(document.getElementById('{control}'))")


def slide(page, place):
    """The winner's evaluation, and the words, with the slider at a place."""
    change(page, "slider", place, "input")
    return page.ask("[document.getElementById('winner').dataset.eval, document.getElementById('winner').textContent]")


def test_the_slider_moves_the_winner(page):
    assert slide(page, 200) == ["demo-dit-4", "DiT wins: fd_mobilenet 150.5 (demo-dit-4, after 1.21 device-minutes)"]
    hours = 16.2 * (72.5 / 16.2) ** (180 / 200)
    between = 300.123456789 - 149.623456789 * math.log(hours / 36) / math.log(72.5 / 36)
    told = f"DiT wins: fd_mobilenet {between:.5g} (between demo-dit-2 and demo-dit-4)"
    assert slide(page, 180) == ["demo-dit-2", told], "it is ahead before its milestone is reached"
    assert slide(page, 130)[0] == "demo-maskdit-4"
    assert slide(page, 60)[0] == "demo-maskdit-2"
    assert slide(page, 0) == ["", "No run reaches a milestone within this budget"]
    assert page.ask("document.getElementById('slider').getAttribute('aria-valuetext')").startswith("16.2 device-seconds")


def test_of_several_seeds_the_budget_takes_the_mean(page):
    page.ask(
        "data.points.push({...data.points.find((point) => point.eval === 'demo-dit-4'), eval: 'other', seed: '1/0', y: '200.5'})"
    )
    told = "DiT wins: fd_mobilenet 175.5 (demo-dit-4, after 1.21 device-minutes; mean of 2 seeds)"
    assert slide(page, 200) == ["demo-dit-4", told]
    assert slide(page, 190)[0] == "demo-maskdit-4", "a seed without a milestone has no place in a mean"


def test_points_before_a_finetuning_win_no_budget(page):
    point = "{...data.points.find((point) => point.eval === 'demo-dit-4'), eval: 'early', y: '1'"
    page.ask(f"data.points.push({point}, compared: false}})")
    assert slide(page, 200)[0] == "demo-dit-4"


def test_everything_is_reached_by_keys_in_the_order_of_the_page(page):
    order = []
    for _ in range(200):
        page.press("Tab")
        seen = page.ask(
            "(() => {const a = document.activeElement; const box = a.getBoundingClientRect(); const style = getComputedStyle(a);"
            "return a === document.body ? null : [a.id ? '#' + a.id : a.textContent.slice(0, 20) || a.ariaLabel, box.top + scrollY,"
            "parseFloat(style.outlineWidth), a.closest('nav, .skip') !== null]})()"
        )
        if seen is None or (order and seen == order[0]):
            break
        order.append(seen)
    names = [name for name, *_ in order]
    assert names[0] == "Skip to the results"
    controls = ["#axis", "#across", "#up", "#plot", "#slider"]
    assert [name for name in names if name in controls] == controls
    assert all(width >= 2 for _, _, width, _ in order), "the focus is seen wherever it is"
    sections = page.ask("[...document.querySelectorAll('section')].map((section) => section.getBoundingClientRect().top + scrollY)")
    reached = [max((place for place, top in enumerate(sections) if top <= y), default=0) for _, y, _, bar in order if not bar]
    assert reached == sorted(reached)
    assert len(set(reached)) >= 7


def test_arrow_keys_read_the_points_of_the_chart(page):
    page.ask("document.getElementById('plot').focus()")
    page.press("ArrowRight")
    first = page.ask("document.getElementById('told').textContent")
    page.press("ArrowLeft")
    last = page.ask("document.getElementById('told').textContent")
    assert re.fullmatch(r"(DiT|MaskDiT), demo-\w+-2, pretrain: fd_mobilenet (300.12|280.75) at 1000 training images", first)
    assert last.endswith("at 2000 training images")


def test_tables_are_sorted_by_any_column_and_empty_cells_stay_last(page):
    press = "document.querySelectorAll('[data-file=\"table_demo.csv\"] thead button')[3].click()"
    column = "[...document.querySelectorAll('[data-file=\"table_demo.csv\"] tbody tr')].map((r) => r.cells[3].textContent)"
    orders = []
    for _ in range(2):
        page.ask(press)
        orders.append(page.ask(column))
    assert orders == [["20.123", "150.5", ""], ["150.5", "20.123", ""]]
    assert page.ask("document.querySelector('[data-file=\"table_demo.csv\"] [aria-sort]').ariaSort") == "descending"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_no_page_scrolls_sideways_and_its_text_has_contrast(width, dark, page, tmp_path):
    page.open(page.html, width, 800, dark)
    assert page.ask("document.documentElement.scrollWidth") <= width
    outside = "[...document.querySelectorAll('main *')].filter((each) => !each.closest('.wide'))"
    assert page.ask(f"{outside}.filter((each) => each.getBoundingClientRect().right > innerWidth + 1).length") == 0
    names = "[...document.querySelectorAll('tbody th')].filter((each) => each.offsetParent)"
    assert page.ask(f"Math.min(...{names}.map((each) => each.clientWidth))") > 60, "not a letter a line"
    colours = page.ask(
        "['color', 'backgroundColor'].map((name) => getComputedStyle(document.body)[name].match(/\\d+/g).map(Number))"
    )
    ink, ground = (
        sum(weight * (part / 255) ** 2.2 for weight, part in zip((0.2126, 0.7152, 0.0722), each, strict=False)) for each in colours
    )
    assert (max(ink, ground) + 0.05) / (min(ink, ground) + 0.05) > 7
    assert (ground < 0.1) == dark
    page.picture(tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as picture:
        assert picture.size == (width, 800)


def test_on_paper_nothing_is_cut_off(page):
    page.call("Emulation.setEmulatedMedia", media="print")
    page.call("Emulation.setDeviceMetricsOverride", width=1030, height=700, deviceScaleFactor=1, mobile=False)  # A4 across
    try:
        assert page.ask("document.documentElement.scrollWidth") <= 1030
        assert page.ask("getComputedStyle(document.querySelector('nav')).display") == "none"
    finally:
        page.call("Emulation.setEmulatedMedia", media="")
