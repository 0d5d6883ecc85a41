"""What the README and the design promise of the tree."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from lint import executions, unatomic, unencoded
from maskdit.config.load import load
from maskdit.config.schema import text

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "maskdit"
SOURCES = sorted(PACKAGE.rglob("*.py"))
PARAMS = load(ROOT / "params.yaml")


def test_every_place_that_the_docs_name_exists():
    places = re.findall(
        r"`([\w/]+\.py)::(\w+)`", "".join((ROOT / name).read_text() for name in ("README.md", "docs/architecture.md"))
    )
    assert len(places) > 10
    for file, name in places:
        tree = ast.parse((PACKAGE / file).read_text())
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        assert name in names, f"the docs name {file}::{name}"


def test_the_picture_of_the_rooms_shows_today_s_imports(tmp_path):
    subprocess.run([sys.executable, str(ROOT / "docs" / "rooms.py"), str(tmp_path / "rooms.svg")], check=True)
    assert (ROOT / "docs" / "rooms.svg").read_text() == (tmp_path / "rooms.svg").read_text(), "run make schema"


def test_the_page_of_keys_shows_today_s_models(tmp_path):
    subprocess.run([sys.executable, str(ROOT / "docs" / "keys.py"), str(tmp_path / "keys.md")], check=True)
    assert (ROOT / "docs" / "keys.md").read_text() == (tmp_path / "keys.md").read_text(), "run make schema"


def test_git_ignores_what_is_made_and_the_user_s_images_even_as_links(tmp_path):
    shutil.copy(ROOT / ".gitignore", tmp_path)
    subprocess.run(["git", "init", "--quiet", "."], cwd=tmp_path, check=True)
    for name in ("data", "artifacts"):
        (tmp_path / name).symlink_to(tmp_path.parent)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "claims.csv").touch()
    done = subprocess.run(["git", "status", "--short"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "?? .gitignore\n"


STEPS_OF_OLD = r"snakemake (?!-)\S*(artifacts/|results/metrics/)|\btee\b|--(images|latents|features)\b|--samples [a-z]+/"


def test_the_docs_name_targets_that_exist_and_no_old_way():
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "results" / "README.md", *(ROOT / "docs").glob("*.md")]
    for page in pages:
        text = page.read_text()
        assert not re.search(STEPS_OF_OLD, re.sub(r"(maskdit init \S+ \[?)--images", r"\1", text)), f"{page.name} tells an old way"
        for verb, key in re.findall(r"\.scratch/made/([a-z]+)/([a-z0-9-]+)", text):
            PARAMS.entry(verb, key)


def test_the_schema_for_editors_is_that_of_the_models():
    assert (ROOT / "workflow" / "schemas" / "params.schema.json").read_text() == text(), "run make schema"


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    assert len(text.encode()) <= 9 * 2**10


def test_the_top_of_the_package_fits_on_a_screen():
    assert len([path for path in PACKAGE.iterdir() if path.name != "__pycache__"]) <= 17


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_stays_short_enough_to_answer_one_question(path):
    assert len(path.read_text().splitlines()) <= 300


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_executes_what_it_reads(path):
    assert list(executions(path.read_text())) == []


PLANTED = (
    "import pickle",
    "from pickle import UnpicklingError, loads",
    "import dill as json",
    "import importlib; importlib.import_module('pickle')",
    "torch.load(path, weights_only=False)",
    "torch.load(path)",
    "torch.load(path, **options)",
    "options = {'weights_only': False}",
    "options = dict(weights_only=0)",
    "options['weights_only'] = False",
    "np.load(path)",
    "np.load(path, allow_pickle=True)",
    "np.load(path, allow_pickle=bool(1))",
    "eval(text)",
    "exec(text)",
    "__import__(text)",
    "os.system(text)",
    "os.popen(text)",
    "subprocess.run('ls ' + text)",
    "subprocess.run(f'ls {text}')",
    "subprocess.Popen('ls')",
    "subprocess.run(words, shell=True)",
    "subprocess.getoutput(text)",
    "tar.extractall(folder)",
    "tarfile.open(path).extractall()",
    "yaml.load(text, Loader=yaml.Loader)",
    "YAML(typ='unsafe')",
    "from torch import hub",
    "import torch.hub",
    "torch.hub.load(name)",
    "from torch.distributed.checkpoint import load",
    "AutoModel.from_pretrained(name, trust_remote_code=True)",
)


@pytest.mark.parametrize("line", PLANTED)
def test_each_of_32_planted_executions_is_found(line):
    assert len(list(executions(line))) >= 1
    assert len(PLANTED) == 32


@pytest.mark.parametrize("line", ["net.eval()", "torch.load(x, weights_only=True)", "subprocess.run([*words])", "re.compile(x)"])
def test_what_only_looks_like_an_execution_is_none(line):
    assert list(executions(line)) == []


PUBLISHED = "into the place that publishing gives, which becomes visible as a whole"
SHARD = "into the place that Shards.fill gives, which is renamed when it is whole"
UNATOMIC = {  # where a file may be written as it is, and why
    ("artifacts/shards.py", "savez"): f"{SHARD}; or {PUBLISHED}",
    ("artifacts/shards.py", "place"): PUBLISHED,
    ("latents/encode.py", "store"): SHARD,
    ("weights/export.py", "write_folder"): PUBLISHED,
    ("weights/export.py", "write_code"): PUBLISHED,
    ("images/fetch.py", "extractor"): PUBLISHED,
    ("latents/vae.py", "take"): PUBLISHED,
    ("latents/vae.py", "train"): PUBLISHED,
    ("reporting/report/report.py", "report"): PUBLISHED,
    ("artifacts/provenance.py", "stamp"): PUBLISHED,
    ("runtime/lock.py", "held"): "a lock, which holds nothing",
    ("runtime/lock.py", "free"): "the same lock",
    ("runtime/lock.py", "create"): "a lease, which only one process can create; half of one counts as new",
    ("runtime/logs.py", "keep_log"): "a log, which grows",
    ("training/loggers.py", "write"): "rows of a log, which grows; it is written anew when a training goes on",
    ("runtime/lock.py", "show"): "a sign that a step is running; half of one counts as none",
    ("runtime/environment.py", "scratch"): "the node that a work folder is for, which only maskdit clean reads",
    ("artifacts/stamps.py", "set_stamps"): "a mark that a result is stale, whose contents nobody reads",
    ("images/download.py", "fetch_rest"): "a part, which is checked before it is given its name",
    ("evaluation/inception.py", "__init__"): "into memory",
    ("reporting/heldout_plot.py", "heldout_png"): "into memory",
    ("config/yaml_subset.py", "write"): "into memory",
    ("config/yaml_subset.py", "flow"): "into memory",
    ("runtime/device.py", "_first"): "under another name, to which a link is then made",
    ("benchmark/timing.py", "peak_of"): "a switch of the kernel, no file",
}


def test_every_file_is_written_under_another_name_first_but_in_25_places_that_say_why():
    found = {(str(path.relative_to(PACKAGE)), function) for path in SOURCES for function, _ in unatomic(path.read_text())}
    assert found == set(UNATOMIC)
    assert len(UNATOMIC) == 25


WRITES = (
    "open(path, 'w')",
    "path.open('wb')",
    "path.open(mode='a')",
    "path.open('ab' if more else 'wb')",
    "open(path, 'r+b')",
    "path.write_text(text)",
    "(folder / 'x').write_bytes(data)",
    "np.save(path, array, allow_pickle=False)",
    "np.savez(path, **arrays)",
    "array.tofile(path)",
    "frame.to_csv(path)",
    "figure.savefig(path)",
    "save_file(tensors, path)",
    "torch.save(tree, path)",
    "json.dump(tree, stream)",
    "shutil.copyfile(one, other)",
    "zipfile.ZipFile(path, 'w')",
    "tarfile.open(path, 'x:')",
    "net.save_pretrained(folder)",
)


@pytest.mark.parametrize("line", WRITES)
def test_each_of_19_planted_writes_is_found_and_is_allowed_in_a_temporary_file(line):
    assert next(iter(unatomic(f"def step():\n    {line}")))[0] == "step"
    assert list(unatomic(f"def step():\n    with replacing(path) as temporary:\n        {line}")) == []
    assert len(WRITES) == 19


@pytest.mark.parametrize("line", ["path.open()", "path.open('rb')", "open(path)", "zipfile.ZipFile(path)", "Image.open(stream)"])
def test_a_reading_is_no_write(line):
    assert list(unatomic(line)) == []


@pytest.mark.parametrize("path", [*SOURCES, *(ROOT / "docs").glob("*.py")], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_text_file_is_opened_as_utf8_whatever_the_locale(path):
    assert list(unencoded(path.read_text(encoding="utf-8"))) == []


LOCALES = (
    "open(path)",
    "open(path, 'w')",
    "path.open()",
    "path.open('a', buffering=1)",
    "path.open(mode='r')",
    "(folder / 'x').read_text()",
    "path.write_text(text)",
    "os.fdopen(handle, 'w')",
    "subprocess.run(words, text=True)",
)


@pytest.mark.parametrize("line", LOCALES)
def test_each_of_9_planted_readings_by_locale_is_found(line):
    assert len(list(unencoded(line))) == 1
    assert len(LOCALES) == 9


@pytest.mark.parametrize(
    "line",
    [
        "path.open('rb')",
        "path.open(encoding='utf-8')",
        "tarfile.open(path)",
        "archive.open(member)",
        "Image.open(stream)",
        "os.open(path, flags)",
        "path.read_text(encoding='utf-8')",
        "subprocess.run(words, encoding='utf-8')",
    ],
)
def test_bytes_and_texts_in_utf8_are_no_reading_by_locale(line):
    assert list(unencoded(line)) == []


def test_the_lock_is_exact_and_holds_every_direct_dependency():
    entries = re.split(r"\n(?! )", (ROOT / "requirements.lock").read_text().strip())
    for entry in entries:
        assert re.match(r"[a-z0-9-]+==[\w.]+( ; .*)? \\\n( +--hash=sha256:[0-9a-f]{64}( \\\n)?)+$", entry), entry
    tree = tomllib.loads((ROOT / "pyproject.toml").read_text())
    direct = [
        *tree["project"]["dependencies"],
        *tree["project"]["optional-dependencies"]["dev"],
        *tree["dependency-groups"]["lock"],
    ]
    assert {re.split("[>=]", name)[0].lower().replace(".", "-") for name in direct} <= {entry.split("==")[0] for entry in entries}


def test_snakemake_s_lint_has_no_complaint():
    done = subprocess.run([sys.executable, "-m", "snakemake", "--lint"], cwd=ROOT, capture_output=True, text=True)
    assert re.findall(r"^ +\* (.*):$", done.stderr, re.M) == []


def test_every_test_that_a_page_names_exists():
    found = 0
    for page in (ROOT / "docs").glob("*.md"):
        for file, name in re.findall(r"`((?:\w+/)?test_\w+\.py)(?:::(\w+))?`", page.read_text()):
            assert not name or f"def {name}(" in (ROOT / "tests" / file).read_text(), f"{page.name} names {file}::{name}"
            assert (ROOT / "tests" / file).exists(), f"{page.name} names {file}"
            found += 1
    assert found > 50
