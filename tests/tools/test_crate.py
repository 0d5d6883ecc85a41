"""The provenance of a study as others can check it: the crate is valid, complete and true."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hashes import changed, made, study  # noqa: F401, fixtures
from maskdit.artifacts.atomic import sha256
from maskdit.artifacts.compute_log import append
from maskdit.artifacts.freshness import Freshness
from maskdit.artifacts.manifest import read_manifest
from maskdit.config.base import UserError
from maskdit.config.graph import nodes_of
from maskdit.config.params import Params
from maskdit.config.paths import output
from maskdit.tools.crate import METADATA, crate
from project import ROOT, TOY

rocrate = pytest.importorskip("rocrate", reason="make setup installs it")

VALIDATOR = shutil.which("rocrate-validator")
SAMPLE = "sample/demo-dit-plain"


def entities(folder: Path) -> dict[str, dict[str, Any]]:
    return {each["@id"]: each for each in json.loads((folder / METADATA).read_text())["@graph"]}


def several(found: Any) -> list[str]:
    return [each["@id"] for each in (found if isinstance(found, list) else [found])]


@pytest.fixture
def written(made: Params, capsys: pytest.CaptureFixture[str]) -> Path:
    """The crate of a study that is made, in a project with its workflow, and the line of the ledger of one step."""
    shutil.copy(TOY, "params.yaml")
    for name in ("Snakefile", "dvc.yaml", "requirements.lock", "LICENSE", "workflow"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, name)
    digest = read_manifest(output(made, SAMPLE)).lineage[SAMPLE].digest
    row = {"verb": "sample", "key": SAMPLE[7:], "start": "2026-01-01T00:00:00+00:00", "end": "2026-01-01T00:01:00+00:00"}
    append({**row, "seconds": 60.0, "joules": 12.5, "exit": 0, "digest": digest, "host": "a-name"})
    crate(made, "demo", Path("out/crate"))
    return Path("out/crate")


def test_every_step_is_an_action_with_its_entry_inputs_outputs_and_costs(written: Path, made: Params) -> None:
    found = entities(written)
    for node in nodes_of(made, "demo"):
        action = found[f"#run/{node}"]
        [entry, *inputs] = several(action["object"])
        assert json.loads(found[entry]["value"]) == made.entry(*node.split("/")).model_dump(mode="json")
        verb, key = node.split("/")
        for before in made.upstream(verb, key):
            assert any(each.startswith(output(made, before).as_posix()) for each in inputs), (node, before)
        assert output(made, node).as_posix() in [each.rstrip("/") for each in several(action["result"])]
    action = found[f"#run/{SAMPLE}"]
    assert (action["startTime"], action["endTime"]) == ("2026-01-01T00:00:00+00:00", "2026-01-01T00:01:00+00:00")
    assert {found[each["@id"]]["name"]: found[each["@id"]]["value"] for each in action["resourceUsage"]} == {
        "seconds": "60.0",
        "joules": "12.5",
    }
    assert "a-name" not in (written / METADATA).read_text(), "nothing names a machine"


def test_it_holds_workflow_results_records_and_manifests_as_they_are_and_no_bytes_of_an_artifact(
    written: Path,
    made: Params,
) -> None:
    files = {path.relative_to(written) for path in written.rglob("*") if path.is_file()} - {Path(METADATA)}
    found = entities(written)
    assert {Path(name) for name, each in found.items() if "File" in each["@type"] and "sha256" in each} == files
    for name in files:
        assert sha256(written / name) == sha256(name) == found[name.as_posix()]["sha256"]
    assert {Path("Snakefile"), Path("params.yaml"), Path("requirements.lock"), Path("results/table_demo.csv")} < files
    assert {path.name for path in files if path.parts[0] == "artifacts"} == {"manifest.json"}
    folder = found["artifacts/samples/demo-dit-plain/"]
    assert folder["identifier"] == read_manifest(output(made, SAMPLE)).lineage[SAMPLE].digest


def test_it_is_written_again_in_place_with_the_same_bytes_and_replaces_nothing_else(written: Path, made: Params) -> None:
    before = (written / METADATA).read_bytes()
    crate(made, "demo", written)
    assert (written / METADATA).read_bytes() == before
    Path("other").mkdir()
    with pytest.raises(UserError, match="other: exists and is no crate"):
        crate(made, "demo", Path("other"))
    assert [path.name for path in written.parent.iterdir()] == ["crate"]


def test_samples_that_were_deleted_after_use_are_there_by_their_digest(
    written: Path,
    made: Params,
    capsys: pytest.CaptureFixture[str],
) -> None:
    digest = read_manifest(output(made, SAMPLE)).lineage[SAMPLE].digest
    shutil.rmtree(output(made, SAMPLE))
    crate(made, "demo", written)
    assert f"named by digest alone: {SAMPLE}" in capsys.readouterr().err
    found = entities(written)
    assert found[f"#{SAMPLE}"]["identifier"] == digest
    assert found[f"#run/{SAMPLE}"]["result"] == {"@id": f"#{SAMPLE}"}


def test_what_is_stale_missing_or_changed_is_refused_in_one_line_and_leaves_no_crate(made: Params) -> None:
    table = output(made, "table/demo")
    with pytest.raises(UserError, match=r"crate: pretrain/demo-maskdit and \d+ others missing or stale"):
        crate(changed("pretrain", "demo-maskdit", "lr", 0.5), "demo")
    weights = next(output(made, "pretrain/demo-dit").glob("ema-*"))
    weights.write_text(weights.read_text()[::-1])
    with pytest.raises(UserError, match=r"crate: pretrain/demo-dit: .*is not the file that was written"):
        crate(made, "demo")
    table.unlink()
    with pytest.raises(UserError, match=r"crate: table/demo.* missing or stale"):
        crate(made, "demo")
    assert Freshness(made).verdict("table/demo").state == "missing"
    assert not list(Path().glob("*crate_demo*"))


OFFLINE = """import json, sys
import requests
import rdflib.plugins.shared.jsonld.context as jsonld
from rocrate_validator.cli.main import cli
from rocrate_validator.utils.http import HttpRequester

known = json.load(open(sys.argv.pop(1)))  # of RO-Crate 1.3, as 1.1 writes the terms of Bioschemas
known = {"@context": {name: value.replace("bioschemas.org/terms/", "bioschemas.org/") for name, value in known["@context"].items()}}


def get(url, **_):
    found = requests.Response()
    found.status_code, found.url, found._content = 200, url, json.dumps(known).encode()
    found.headers["Content-Type"] = "application/ld+json"
    return found


HttpRequester.__getattr__ = lambda self, method: get
jsonld.source_to_json = lambda *_, **__: (known, None)
cli()
"""


@pytest.mark.skipif(VALIDATOR is None, reason="uv tool install roc-validator: its pins are not those of the lock")
def test_it_is_a_valid_provenance_run_crate(written: Path) -> None:
    """By the validator's own profiles; the context of RO-Crate, which it would download, is the one in the package rocrate."""
    python = Path(str(VALIDATOR)).read_text().splitlines()[0].removeprefix("#!")
    context = Path(rocrate.__file__).parent / "data" / "ro-crate.jsonld"
    words = [
        "--no-interactive",
        "--disable-color",
        "validate",
        "-p",
        "provenance-run-crate-0.5",
        "-l",
        "required",
        "-v",
        "--no-cache",
    ]
    program = [python, "-c", OFFLINE, str(context), *words]
    apart = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    good = subprocess.run([*program, str(written)], capture_output=True, text=True, env=apart, check=False)
    assert good.returncode == 0, good.stdout + good.stderr
    text = (written / METADATA).read_text()
    (written / METADATA).write_text(text.replace('"OrganizeAction"', '"ControlAction"'))
    bad = subprocess.run([*program, str(written)], capture_output=True, text=True, env=apart, check=False)
    assert bad.returncode == 1, "a crate with a fault is not valid"
