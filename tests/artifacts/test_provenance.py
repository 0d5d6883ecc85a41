"""What a manifest, a picture and the ledger tell of how something was made, and what it cost."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from types import SimpleNamespace

import pytest
from PIL import Image, PngImagePlugin
from ruamel.yaml import YAML

from maskdit.artifacts import compute_log, provenance
from maskdit.artifacts.atomic import sha256
from maskdit.artifacts.compute_log import append, recorded, rows, taken
from maskdit.artifacts.provenance import made_by
from maskdit.artifacts.publish import publishing
from maskdit.artifacts.step import code_of
from maskdit.cli import main
from maskdit.config.base import UserError
from maskdit.runtime.logs import end_log, keep_log, note_in_log
from maskdit.runtime.process_group import Stopped
from project import ROOT, TOY, commit, environment, project


def marked(file):
    """What `stamp` has written into a file: node, commit, config, lock; empty if there is nothing of it."""
    shape = rb"maskdit (\S+): commit (\S+), config ([0-9a-f]{64}), lock ([0-9a-f]{64}|none)"  # in a PNG any byte may follow
    found = re.search(shape, file.read_bytes() if file.exists() else b"")
    return dict(zip(("node", "commit", "config", "lock"), map(bytes.decode, found.groups()), strict=True)) if found else {}


@pytest.fixture
def home(monkeypatch, tmp_path):
    """A folder to stand in, with the toy's params.yaml."""
    (tmp_path / "params.yaml").write_bytes(TOY.read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_manifest_names_commit_lock_hardware_and_versions_and_is_the_same_twice(monkeypatch):
    monkeypatch.chdir(ROOT)
    made = made_by()
    assert made == made_by()
    assert re.fullmatch(r"[0-9a-f]{40}(\+changes)?|unknown", made["commit"])
    assert made["lock"] == sha256(ROOT / "requirements.lock")
    assert made["torch"] == version("torch")
    assert made["processor"]
    assert all(isinstance(value, str) for value in made.values())


def test_changed_code_makes_a_commit_dirty_and_a_changed_number_does_not(monkeypatch, tmp_path):
    monkeypatch.chdir(project(tmp_path))
    monkeypatch.setattr(provenance, "git", lambda *words: said(tmp_path, *words))
    clean = made_by()["commit"]
    with (tmp_path / "params.yaml").open("a") as stream:
        stream.write("# another number\n")
    assert made_by()["commit"] == clean
    with (tmp_path / "src" / "maskdit" / "reporting" / "table.py").open("a") as stream:
        stream.write("# another line\n")
    assert made_by()["commit"] == f"{clean}+changes"
    commit(tmp_path)
    assert not made_by()["commit"].endswith("+changes")
    assert made_by()["commit"] != clean


def said(where, *words):
    return subprocess.run(["git", *words], cwd=where, env=environment(where), capture_output=True, text=True).stdout.strip()


def test_pictures_and_tables_tell_commit_and_numbers_and_are_what_they_were_otherwise(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)

    def draw(place):
        Image.new("RGB", (3, 2), "red").save(place.with_suffix(".png"))
        place.with_suffix(".svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"><g/></svg>\n')
        place.with_suffix(".md").write_text("| a |\n")
        place.write_text("a\n1\n")

    for lr in (1.0, 2.0):
        with publishing(tmp_path / f"{lr}" / "c.csv", "curves/demo", {"lr": lr}, {}) as place:
            draw(place)
    marks = [{kind: marked(tmp_path / f"{lr}" / f"c.{kind}") for kind in ("png", "svg", "md")} for lr in (1.0, 2.0)]
    assert marks[0]["png"] == marks[0]["svg"] == marks[0]["md"]
    assert marks[0]["png"]["node"] == "curves/demo"
    assert marks[0]["png"]["commit"] == made_by()["commit"]
    assert marks[0]["png"]["config"] != marks[1]["png"]["config"]
    with Image.open(tmp_path / "1.0" / "c.png") as picture:
        assert isinstance(picture, PngImagePlugin.PngImageFile)
        picture.load()
        assert picture.text["Comment"].startswith("maskdit curves/demo: commit ")
        assert picture.getpixel((0, 0)) == (255, 0, 0)
    assert (tmp_path / "1.0" / "c.csv").read_text() == "a\n1\n", "a table stays one that everybody reads"
    assert (tmp_path / "1.0" / "c.svg").read_text().count("</svg>") == 1


ENDS = [
    (None, 0),
    (UserError("no"), 2),
    (Stopped("later"), 85),
    (KeyboardInterrupt(), 130),
    (SystemExit(143), 143),
    (ValueError(), 1),
]


@pytest.mark.parametrize(("error", "code"), ENDS, ids=lambda each: type(each).__name__)
def test_each_end_of_a_step_is_a_line_of_the_ledger(error, code, home):
    def step():
        with recorded("sample", "demo", code_of) as spent:
            spent["devices"] = 2
            if error is not None:
                raise error

    if error is None:
        step()
    else:
        with pytest.raises(type(error)):
            step()
    (row,) = rows()
    assert (row["node"], row["exit"], row["attempt"], row["devices"]) == ("sample/demo", code, 1, 2)
    assert row["device_seconds"] == pytest.approx(2 * row["seconds"], abs=2e-3)
    assert row["start"] <= row["end"]
    assert row["peak_memory"] > 1e6
    assert {"host", "slurm_job", "joules"} <= row.keys()
    assert compute_log.INSIDE not in os.environ


def test_a_slurm_job_counts_all_devices_that_it_holds(home, monkeypatch):
    for name, value in (("SLURM_JOB_ID", "17"), ("SLURM_NNODES", "2"), ("SLURM_GPUS_ON_NODE", "8")):
        monkeypatch.setenv(name, value)
    with recorded("pretrain", "demo", code_of):
        pass
    assert (rows()[0]["devices"], rows()[0]["slurm_job"]) == (16, "17")


def test_attempts_count_from_the_last_that_ended_well(home):
    for code in (0, 1, 143):
        append({"verb": "sample", "key": "demo", "seconds": 1.0, "exit": code})
    append({"verb": "sample", "key": "other", "seconds": 1.0, "exit": 1})
    assert compute_log.attempt("sample", "demo") == 3
    assert compute_log.attempt("sample", "new") == 1


def test_processes_that_a_step_starts_write_no_line_of_their_own(home):
    with recorded("pretrain", "demo", code_of), recorded("pretrain", "demo", code_of):
        pass
    assert len(rows()) == 1


def test_many_processes_append_whole_lines(home):
    with ProcessPoolExecutor(4, mp_context=get_context("fork")) as pool:
        list(pool.map(append, [{"verb": "v", "key": "k" * 3000, "seconds": n, "exit": 0} for n in range(200)]))
    assert sorted(row["seconds"] for row in rows()) == list(range(200))


def test_a_ledger_that_is_cut_or_cannot_be_written_stops_nothing(home, capsys):
    append({"verb": "sample", "key": "demo", "seconds": 1.0, "exit": 0})
    with compute_log.LEDGER.open("a") as stream:
        stream.write('{"verb": "sam\n[]\n{"verb": 1}\n')
    assert len(rows()) == 1
    compute_log.LEDGER.unlink()
    compute_log.LEDGER.mkdir()
    with pytest.raises(IsADirectoryError):
        append({})
    compute_log.LEDGER.rmdir()
    compute_log.LEDGER.parent.rmdir()
    compute_log.LEDGER.parent.write_text("in the way")
    with recorded("sample", "demo", code_of):
        pass
    assert capsys.readouterr().err == "maskdit: logs/ledger.jsonl: File exists; this step is not in the ledger\n"


def test_each_slurm_job_has_a_ledger_of_its_own_and_all_are_read_in_the_order_of_time(home, monkeypatch):
    row = {"verb": "vae", "key": "a", "seconds": 1.0}
    compute_log.append({**row, "end": "2026-01-02"})
    for job, end in (("12", "2026-01-01"), ("3", "2026-01-03")):
        monkeypatch.setenv("SLURM_JOB_ID", job)
        compute_log.append({**row, "end": end, "slurm_job": job})
        assert (home / "logs" / "ledger" / f"{job}.jsonl").exists()
    assert [found.get("slurm_job") for found in rows()] == ["12", None, "3"]


def test_a_line_that_was_cut_spoils_no_other(home):
    row = {"verb": "vae", "key": "a", "seconds": 1.0}
    append(row)
    whole = compute_log.LEDGER.read_bytes()
    compute_log.LEDGER.write_bytes(whole + whole[:20])
    for seconds in (2.0, 3.0):
        append({**row, "seconds": seconds})
    assert [found["seconds"] for found in rows()] == [1.0, 2.0, 3.0]
    assert compute_log.LEDGER.read_text().count("\n") == 4


@pytest.mark.parametrize(("before", "goes_on", "after"), [("a lon", True, "a lon\n"), ("a\n", True, "a\n"), ("a lon", False, "")])
def test_a_log_that_goes_on_after_a_cut_line_begins_a_new_one(tmp_path, before, goes_on, after):
    log = tmp_path / "x.log"
    log.write_text(before)
    keep_log(log, goes_on)
    note_in_log("next")
    end_log()
    assert log.read_text() == f"{after}next\n"


def test_a_refused_step_is_in_the_ledger_and_a_misspelt_one_is_not(home):
    assert main(["encode", "demo", "--images", "no", "--vae", "no", "--out", "out"]) == 2
    assert main(["encode", "dmeo", "--images", "no", "--vae", "no", "--out", "out"]) == 2
    assert [(row["node"], row["exit"]) for row in rows()] == [("encode/demo", 2)]


def test_a_step_that_is_terminated_writes_its_line(home):
    program = "import time; from maskdit.artifacts import manifest\n"
    program += "manifest.inputs_of = lambda *_: print(1, flush=True) or time.sleep(60)\n"
    program += "from maskdit.cli import main; main(['encode', 'demo', '--images', 'i', '--vae', 'v', '--out', 'o'])"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as step:
        assert step.stdout.readline() == b"1\n"
        began = time.monotonic()
        step.send_signal(signal.SIGTERM)
        assert step.wait() == 143
        assert time.monotonic() - began < 5
    assert [(row["node"], row["exit"]) for row in rows()] == [("encode/demo", 143)]


def test_energy_is_a_difference_that_may_go_round_once(monkeypatch, tmp_path):
    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    (zone / "energy_uj").write_text("900000000\n")
    (zone / "max_energy_range_uj").write_text("1000000000\n")
    monkeypatch.setattr(compute_log, "ZONES", tmp_path)
    before = {name: each for name, each in compute_log.meters().items() if name.startswith("intel")}
    assert before == {"intel-rapl:0": (900.0, 1000.0)}
    assert taken(before, {"intel-rapl:0": (950.0, 1000.0)}, 1.0) == 50.0
    assert taken(before, {"intel-rapl:0": (30.0, 1000.0)}, 1.0) == 130.0
    assert taken(before, {"intel-rapl:0": (30.0, 1000.0)}, 3600.0) is None, "it may have gone round several times"
    assert taken({}, {}, 1.0) is None


def test_the_citation_names_this_version_and_the_paper():
    cited = YAML(typ="safe", pure=True).load((ROOT / "CITATION.cff").read_text())
    assert cited["cff-version"] == "1.2.0"
    assert (
        str(cited["version"]) == tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools_scm"]["fallback_version"]
    )
    assert cited["license"] == "Apache-2.0"
    paper = cited["preferred-citation"]
    assert (paper["type"], paper["title"]) == ("article", "Fast Training of Diffusion Models with Masked Transformers")
    assert [author["family-names"] for author in paper["authors"]] == ["Zheng", "Nie", "Vahdat", "Anandkumar"]
    assert {"message", "title", "authors"} <= cited.keys()
    assert json.dumps(cited)


UUIDS = (b"GPU-aa11", b"GPU-bb22")
NVML = SimpleNamespace(  # the library of a driver with two GPUs, as ctypes loads it
    nvmlInit_v2=lambda: 0,
    nvmlDeviceGetCount_v2=lambda count: setattr(count._obj, "value", len(UUIDS)),
    nvmlDeviceGetHandleByIndex_v2=lambda place, handle: setattr(handle._obj, "value", place + 1),
    nvmlDeviceGetTotalEnergyConsumption=lambda handle, millijoules: setattr(millijoules._obj, "value", 1000 * handle.value),
    nvmlDeviceGetUUID=lambda handle, text, size: setattr(text, "value", UUIDS[handle.value - 1]),
)


@pytest.mark.parametrize(
    ("visible", "joules"),
    [(None, {0: 1, 1: 2}), ("GPU-bb", {1: 2}), ("GPU-bb22,GPU-aa11", {0: 1, 1: 2}), ("1", {1: 2}), ("", {}), ("-1", {})],
)
def test_the_energy_is_that_of_the_gpus_in_use_by_number_or_uuid(visible, joules, monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(compute_log, "ZONES", tmp_path)
    monkeypatch.setattr(compute_log.ctypes, "CDLL", lambda name: NVML)
    assert compute_log.meters() == {f"gpu {place}": (value, float("inf")) for place, value in joules.items()}
