"""The step `rescore`: the numbers of `evaluate` by another way, and what is refused."""

import copy

import numpy as np
import pytest

from maskdit.artifacts.atomic import read_json, write_json
from maskdit.config import yaml_subset
from maskdit.config.base import UserError
from maskdit.config.evaluation import Evaluate, Features, Reference, Rescore
from maskdit.config.load import load, validate
from maskdit.evaluation.evaluate import evaluate
from maskdit.evaluation.extractors import Network
from maskdit.evaluation.features import features
from maskdit.evaluation.reference import reference
from maskdit.evaluation.rescore import rescore
from maskdit.images.dataset import Images
from maskdit.images.fetch import fetch
from maskdit.runtime import environment
from project import GUIDED, ROOT, TOY, with_rescore

COUNT = 12
REAL, MADE = np.random.default_rng(0).integers(0, 256, (2, COUNT, 32, 32, 3), np.uint8)
CONFIG = Rescore(bench="x", reference="x", extractor="x", batch=4, mind=True, floor=True)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """MobileNetV2, its reference, and samples in two shards."""
    monkeypatch.setenv("MASKDIT_SCRATCH", str(tmp_path / "scratch"))
    for name in ("extractor", "images", "reference", "samples", "features"):
        (tmp_path / name).mkdir()
    fetch(load(ROOT / "params.yaml").fetch["demo-features"], out=tmp_path / "extractor")
    Images(REAL, np.zeros(COUNT, int), np.zeros(COUNT, bool), ("a",)).save(tmp_path / "images")
    for number, part in enumerate(np.split(MADE, [5])):
        np.save(tmp_path / "samples" / f"{number}.npy", part)
    np.save(tmp_path / "samples" / "labels.npy", np.zeros(COUNT, int))
    write_json(tmp_path / "samples" / "index.json", {"shards": ["0.npy", "1.npy"], "checkpoint": {}, "protocol": {"images": COUNT}})
    for name in ("images", "samples"):
        (tmp_path / name / "manifest.json").write_text("{}")
    entry, net = Reference(dataset="x", extractor="x", batch=4), tmp_path / "extractor"
    reference(entry, images=tmp_path / "images", extractor=net, out=tmp_path / "reference")
    return tmp_path


def rescored(home, out):
    rescore(CONFIG, **{name: home / name for name in ("samples", "reference", "extractor")}, out=out)
    return read_json(out)


def test_the_distances_are_those_of_features_and_evaluate(home):
    features(Features(extractor="x", batch=4), samples=home / "samples", extractor=home / "extractor", out=home / "features")
    entry = Evaluate(bench="x", dataset="x", neighbours=3, mind=True, floor=True)
    evaluate(entry, features=home / "features", reference=home / "reference", out=home / "e.json")
    ours, theirs = rescored(home, home / "r.json"), read_json(home / "e.json")
    assert list(ours["metrics"]) == ["fd_mobilenet", "kid_mobilenet", "mind_mobilenet"]
    assert ours["metrics"] == {name: theirs["metrics"][name] for name in ours["metrics"]}
    assert ours["real"] == theirs["real"]
    assert ours["protocol"].items() <= theirs["protocol"].items()


def test_a_part_publishes_nothing_and_the_whole_does_not_look_again(home, monkeypatch):
    for part in (1, 2):
        monkeypatch.setattr(environment, "PART", (part, 2))
        rescore(CONFIG, **{name: home / name for name in ("samples", "reference", "extractor")}, out=home / "r.json")
        assert not (home / "r.json").exists()
    monkeypatch.setattr(environment, "PART", None)
    monkeypatch.setattr(Network, "see", None)
    assert rescored(home, home / "r.json")["protocol"]["images"] == COUNT


@pytest.mark.parametrize(("field", "value"), [("extractor_sha256", "0" * 64), ("resolution", 64)])
def test_a_reference_of_another_network_or_size_is_refused_before_an_image_is_seen(home, field, value, monkeypatch):
    monkeypatch.setattr(Network, "see", None)
    write_json(home / "reference" / "real.json", read_json(home / "reference" / "real.json") | {field: value})
    with pytest.raises(UserError, match=rf"samples: {field} .* the reference .* has {value}"):
        rescored(home, home / "r.json")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    path = tmp_path_factory.mktemp("toy") / "params.yaml"
    path.write_text(TOY.read_text())
    with_rescore(path)
    return yaml_subset.read(path.read_text())


UNFIT = {
    "no sample": ({"key": "demo-other"}, r"rescore\.demo-other: sample has no entry 'demo-other'"),
    "another study": ({"bench": "other"}, rf"rescore\.{GUIDED}\.bench: must be demo, the study of"),
    "another extractor": ({"extractor": "demo-features"}, rf"rescore\.{GUIDED}\.extractor: must be demo-dinov2, as in reference"),
    "its own network": (
        {"extractor": "demo-features", "reference": "demo"},
        rf"rescore\.{GUIDED}\.extractor: mobilenet-v2 is what the sample's own reference has",
    ),
}


@pytest.mark.parametrize("case", UNFIT)
def test_an_entry_is_refused_that_names(case, tree):
    changed, message = UNFIT[case]
    changed, other = dict(changed), copy.deepcopy(tree)
    key = changed.pop("key", GUIDED)
    other["rescore"] = {key: other["rescore"][GUIDED] | changed}
    with pytest.raises(UserError, match=message):
        validate(other)


def test_without_an_entry_nothing_is_recorded(tree):
    for known in ({**tree, "rescore": {}}, {verb: entries for verb, entries in tree.items() if verb != "rescore"}):
        assert "rescored" not in validate(known).table["demo"].model_dump(mode="json")
    assert validate(tree).table["demo"].model_dump(mode="json")["rescored"] == [GUIDED]
