"""Features and references in shards: any cut, any number of processes and any kill give the same numbers."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from maskdit.artifacts.arrays import read_arrays
from maskdit.artifacts.atomic import read_json, write_json
from maskdit.config.base import UserError
from maskdit.config.evaluation import Features, Reference
from maskdit.config.load import load
from maskdit.evaluation import metrics, reference
from maskdit.evaluation.extractors import Network
from maskdit.evaluation.features import features
from maskdit.evaluation.protocol import gathered
from maskdit.images.dataset import Images
from maskdit.images.fetch import fetch
from maskdit.runtime import environment
from project import ROOT

COUNT, HELDOUT = 23, 6
PIXELS = np.random.default_rng(0).integers(0, 256, (COUNT, 32, 32, 3), np.uint8)
LABELS = np.arange(COUNT) % 2


@pytest.fixture(scope="module")
def extractor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("extractor")
    fetch(load(ROOT / "params.yaml").fetch["demo-features"], out=folder)
    return folder


@pytest.fixture(scope="module")
def whole(extractor):
    """What the network says of all images in one pass."""
    return Network(extractor).extract(PIXELS, np.arange(COUNT), 4)


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKDIT_SCRATCH", str(tmp_path / "scratch"))
    return tmp_path / "scratch"


def samples(where, cuts=(1, 10)):
    where.mkdir()
    names = [f"images-{number:04d}.npy" for number in range(len(cuts) + 1)]
    for name, part in zip(names, np.split(PIXELS, cuts), strict=True):
        np.save(where / name, part)
    np.save(where / "labels.npy", LABELS)
    (where / "manifest.json").write_text("{}")
    write_json(where / "index.json", {"shards": names, "checkpoint": {}, "protocol": {"images": COUNT}})
    return where


def images(where, heldout=HELDOUT, classes=2):
    where.mkdir()
    Images(PIXELS, LABELS % classes, np.arange(COUNT) >= COUNT - heldout, ("a", "b")).save(where)
    (where / "manifest.json").write_text("{}")
    return where


def extract(extractor, where, out):
    out.mkdir(exist_ok=True)
    features(Features(extractor="x", batch=4), samples=where, extractor=extractor, out=out)
    return out


def refer(extractor, where, out, **fields):
    out.mkdir(exist_ok=True)
    reference.reference(Reference(dataset="x", extractor="x", batch=4, **fields), images=where, extractor=extractor, out=out)
    return read_arrays(out / "reference.npz") if environment.PART is None else None


def share(monkeypatch, part):
    monkeypatch.setattr(environment, "PART", part)


@pytest.mark.parametrize("processes", [1, 2, 5])
def test_features_of_any_number_of_processes_are_those_of_one_pass_bit_for_bit(processes, extractor, whole, tmp_path, monkeypatch):
    where, out = samples(tmp_path / "samples"), tmp_path / "out"
    for process in range(processes):
        if processes > 1:
            share(monkeypatch, (process + 1, processes))
            extract(extractor, where, out)
            assert not list(out.iterdir()), "a part publishes nothing"
    share(monkeypatch, None)
    if processes > 1:
        monkeypatch.setattr(Network, "see", None)  # nothing is left to do
    index = read_json(extract(extractor, where, out) / "index.json")
    found = gathered([out / name for name in index["shards"]])
    assert found.keys() == whole.keys()
    for name, array in whole.items():
        np.testing.assert_array_equal(found[name], array)
    assert index["protocol"]["family"] == "mobilenet-v2"
    assert index["protocol"]["resolution"] == 32
    environment.tidy()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "samples"]


def test_a_killed_extraction_goes_on_with_the_shard_that_it_lost(extractor, tmp_path, monkeypatch):
    where, see, seen = samples(tmp_path / "samples"), Network.see, []

    def killed(net, pixels):
        seen.append(len(pixels))
        if len(seen) == 3:  # the first batch is the first shard, the second one has three
            raise KeyboardInterrupt
        return see(net, pixels)

    monkeypatch.setattr(Network, "see", killed)
    with pytest.raises(KeyboardInterrupt):
        extract(extractor, where, tmp_path / "out")
    extract(extractor, where, tmp_path / "out")
    assert len(seen) == 3 + 3 + 4


def test_other_samples_or_other_weights_share_no_shards(extractor, tmp_path, monkeypatch):
    share(monkeypatch, (1, 2))
    where = samples(tmp_path / "samples")
    extract(extractor, where, tmp_path / "out")
    (where / "manifest.json").write_text('{"files": "others"}')
    extract(extractor, where, tmp_path / "out")
    assert len(list(tmp_path.glob(".features-*"))) == 2
    other = tmp_path / "extractor"
    other.mkdir()
    index = read_json(extractor / "index.json")
    tensors = torch.load(extractor / index["file"], weights_only=True)
    torch.save(tensors, other / "other.pth")
    write_json(other / "index.json", index | {"file": "other.pth", "sha256": reference.sha256(other / "other.pth")})
    extract(other, where, tmp_path / "out")
    assert len(list(tmp_path.glob(".features-*"))) == 3


def test_samples_that_are_not_whole_are_refused(extractor, tmp_path):
    where = samples(tmp_path / "samples")
    np.save(where / "images-0001.npy", PIXELS[:2])
    with pytest.raises(UserError, match=r"samples: 16 images, the index lists 23; rerun the sample step"):
        extract(extractor, where, tmp_path / "out")
    np.save(where / "images-0001.npy", PIXELS.astype(np.float32))
    with pytest.raises(UserError, match=r"images-0001\.npy: float32 \(23, 32, 32, 3\), not images like the others"):
        extract(extractor, where, tmp_path / "out")


def test_a_reference_in_shards_has_the_features_of_one_pass_and_its_moments(extractor, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "PART", 8)
    where, train = images(tmp_path / "images"), COUNT - HELDOUT
    one, many = (refer(extractor, where, tmp_path / str(shards), shards=shards) for shards in (1, 5))
    exact = whole["features"][:train].astype(np.float64)
    assert one.keys() == many.keys() == {"features", "mu", "sigma", "probe_weight", "probe_bias"}
    for found in (one, many):
        np.testing.assert_array_equal(found["features"], whole["features"][:train])
        np.testing.assert_allclose(found["mu"], exact.mean(0), rtol=1e-12)
        np.testing.assert_allclose(found["sigma"], np.cov(exact, rowvar=False), rtol=0, atol=1e-12 * exact.var(0).max())


def test_a_reference_may_keep_some_features_drawn_alike_in_any_cut(extractor, whole, tmp_path):
    where, train = images(tmp_path / "images"), whole["features"][: COUNT - HELDOUT]
    one, many = (refer(extractor, where, tmp_path / str(shards), shards=shards, neighbours_from=7) for shards in (1, 4))
    np.testing.assert_array_equal(one["features"], many["features"])
    rows = [int(np.flatnonzero((train == vector).all(1))[0]) for vector in one["features"]]
    assert len(rows) == 7
    assert rows == sorted(set(rows))
    assert rows != list(range(7))
    np.testing.assert_allclose(one["mu"], train.astype(np.float64).mean(0), rtol=1e-12)  # of all
    assert read_json(tmp_path / "1" / "real.json")["heldout"] is None


def test_held_out_images_score_against_the_training_images(extractor, whole, tmp_path):
    refer(extractor, images(tmp_path / "images"), tmp_path / "out")
    train, unseen = np.split(whole["features"], [COUNT - HELDOUT])
    real = read_json(tmp_path / "out" / "real.json")
    assert real["heldout"]["images"] == HELDOUT
    assert real["resolution"] == 32
    wanted = metrics.frechet_distance(metrics.moments(unseen), metrics.moments(train))
    assert real["heldout"]["fd_mobilenet"] == pytest.approx(wanted, rel=1e-9)
    mean, spread = train.mean(0), train.std(0) + 1e-6
    probe = LogisticRegression(C=0.01, max_iter=300).fit((train - mean) / spread, LABELS[: COUNT - HELDOUT])
    assert real["heldout"]["probe_accuracy"] == probe.score((unseen - mean) / spread, LABELS[COUNT - HELDOUT :])


@pytest.mark.parametrize("why", ["no images are held out", "there is one class", "there are too many"])
def test_there_is_no_probe_where(why, extractor, tmp_path, monkeypatch):
    if why == "there are too many":
        monkeypatch.setattr(reference, "PROBED", COUNT - HELDOUT - 1)
    fields = {"no images are held out": {"heldout": 0}, "there is one class": {"classes": 1}}.get(why, {})
    found = refer(extractor, images(tmp_path / "images", **fields), tmp_path / "out")
    assert found.keys() == {"features", "mu", "sigma"}
    assert read_json(tmp_path / "out" / "real.json")["heldout"] is None


def batch(where, **arrays):
    where.mkdir()
    np.savez(where / "batch.npz", arr_0=PIXELS, **arrays)
    write_json(where / "index.json", {"kind": "npz", "classes": [], "shape": PIXELS.shape})
    (where / "manifest.json").write_text("{}")
    return where


GIVEN = {"mu": np.arange(1280.0), "sigma": np.eye(1280)}


def test_statistics_that_a_batch_brings_are_believed_and_its_images_are_for_neighbours(extractor, whole, tmp_path):
    where = batch(tmp_path / "raw", mu=GIVEN["mu"].astype(np.float32), sigma=GIVEN["sigma"])
    found = refer(extractor, where, tmp_path / "out", shards=3)
    assert found.keys() == {"features", "mu", "sigma"}
    assert found["mu"].dtype == found["sigma"].dtype == np.float64
    assert all((found[name] == GIVEN[name]).all() for name in GIVEN)
    np.testing.assert_array_equal(found["features"], whole["features"])
    assert read_json(tmp_path / "out" / "real.json")["statistics"] == "given"


def test_a_batch_of_images_only_has_its_statistics_computed(extractor, whole, tmp_path):
    found = refer(extractor, batch(tmp_path / "raw"), tmp_path / "out")
    np.testing.assert_allclose(found["mu"], whole["features"].astype(np.float64).mean(0), rtol=1e-12)
    assert read_json(tmp_path / "out" / "real.json")["statistics"] == "computed"


WRONG = {
    "another network's": ({"mu": np.zeros(2048), "sigma": np.eye(2048)}, r"mu \(2048,\) does not fit mobilenet-v2"),
    "spatial of a network without": (
        GIVEN | {"mu_s": np.zeros(2023), "sigma_s": np.eye(2023)},
        r"mu_s \(2023,\) does not fit mobilenet",
    ),
    "half": ({"mu": GIVEN["mu"]}, "contains only mu of the statistics mu, sigma"),
    "spatial alone": ({"mu_s": np.zeros(3), "sigma_s": np.eye(3)}, "contains only mu_s, sigma_s of the statistics mu"),
    "no covariance": (GIVEN | {"sigma": np.eye(9)}, r"mu \(1280,\) and sigma \(9, 9\) are not a mean and a covariance"),
    "no numbers": (GIVEN | {"mu": np.full(1280, np.nan)}, "are not a mean and a covariance"),
    "pickles": (GIVEN | {"mu": np.array([{}], object)}, "damaged \\(Object arrays cannot be loaded"),
    "words": (GIVEN | {"mu": np.array(["one"])}, "the statistics mu, sigma are not all numbers"),
}


@pytest.mark.parametrize("case", WRONG)
def test_statistics_are_refused_before_any_image_is_seen_that_are(case, extractor, tmp_path, monkeypatch):
    arrays, message = WRONG[case]
    monkeypatch.setattr(Network, "see", None)
    with pytest.raises(UserError, match=rf"batch\.npz: .*{message}") as refusal:
        refer(extractor, batch(tmp_path / "raw", **arrays), tmp_path / "out")
    assert "\n" not in str(refusal.value)


def test_more_shards_than_images_are_refused(extractor, tmp_path):
    with pytest.raises(UserError, match="17 training images are too few for statistics in 18 shards"):
        refer(extractor, images(tmp_path / "images"), tmp_path / "out", shards=18)
