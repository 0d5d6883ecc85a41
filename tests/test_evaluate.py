"""From PNG to FID: the whole way of Inception's features, with random weights in torch-fidelity's file format."""

import io
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from maskdit import inception, scores
from maskdit.calibrate import calibrate, compared, demand_within
from maskdit.config import Calibrate, Evaluate, Features, Reference, UserError
from maskdit.data import Images
from maskdit.evaluate import evaluate
from maskdit.extractor import Network
from maskdit.features import features
from maskdit.fetch import fetch
from maskdit.files import read_json, sha256, write_json
from maskdit.metrics import moments
from maskdit.reference import reference
from maskdit.scores import suffix
from maskdit.sources import Fetch

ENTRY = TypeAdapter(Fetch)
COUNT, SIDE = 8, 32
NEIGHBOURS = 3


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKDIT_SCRATCH", str(tmp_path / "scratch"))


def pixels_of(seed, count=COUNT):
    source = np.random.default_rng(seed)
    base = source.integers(0, 256, (count, 4, 4, 3))
    noise = source.integers(-40, 40, (count, SIDE, SIDE, 3))
    return (base.repeat(8, 1).repeat(8, 2) + noise).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file as torch-fidelity publishes it, with random numbers that keep the size of activations."""
    torch.manual_seed(0)
    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    with mock.patch.object(FeatureExtractorInceptionV3, "load_state_dict"):
        net = FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path=empty)
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    torch.nn.init.normal_(net.fc.weight, std=0.3)
    path = tmp_path_factory.mktemp("weights") / "weights-inception.pth"
    torch.save(net.state_dict(), path)
    return path


def fetched(where, **entry):
    where.mkdir(parents=True)
    fetch(ENTRY.validate_python(entry), out=where)
    (where / "manifest.json").write_text(where.name)
    return where


@pytest.fixture(scope="module")
def home(weights, tmp_path_factory):
    """An extractor, a folder of PNG files as real images, and samples in two shards."""
    where = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASKDIT_SCRATCH", str(where / "scratch"))
        fetched(where / "extractor", source="extractor", family="inception-2015", url=weights.as_uri(), sha256=sha256(weights))
        for number, picture in enumerate(pixels_of(0)):
            path = where / "png" / "one" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path)
        entry = {"root": str(where / "png"), "bad": "fail", "resolution": SIDE, "images": COUNT}
        fetched(where / "images", source="folder", **entry)
        samples = where / "samples"
        samples.mkdir()
        names = []
        for number, part in enumerate(np.split(pixels_of(1), [3])):
            names.append(f"images-{number:04d}.npy")
            np.save(samples / names[-1], part)
        np.save(samples / "labels.npy", np.zeros(COUNT, int))
        (samples / "manifest.json").write_text("samples")
        write_json(samples / "index.json", {"shards": names, "checkpoint": {"model": "DiT"}, "protocol": {"images": COUNT}})
        for name, step, entry, paths in (
            ("reference", reference, Reference(dataset="x", extractor="x", batch=4, shards=2), {"images": where / "images"}),
            ("features", features, Features(extractor="x", batch=4), {"samples": samples}),
        ):
            (where / name).mkdir()
            step(entry, **paths, extractor=where / "extractor", out=where / name)
    return where


@pytest.fixture(scope="module")
def record(home, weights):
    """What evaluate says, where these weights and this number of images are those of FID."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "OFFICIAL", sha256(weights))
        patch.setattr(scores, "FULL", COUNT)
        paths = {"features": home / "features", "reference": home / "reference"}
        evaluate(Evaluate(bench="x", dataset="x", neighbours=NEIGHBOURS), **paths, out=home / "record.json")
    return read_json(home / "record.json")


def test_fid_has_its_name_only_with_inception_s_own_weights_on_50000_images():
    assert suffix("inception-2015", inception.OFFICIAL, 50_000) == ""
    assert suffix("inception-2015", inception.OFFICIAL, 49_999) == "_inception"
    assert suffix("inception-2015", "ab" * 32, 50_000) == "_inception_abababab"
    assert suffix("mobilenet-v2", inception.OFFICIAL, 50_000) == "_mobilenet"
    assert suffix("dinov2", inception.OFFICIAL, 50_000) == "_dinov2"


def test_png_files_become_the_five_numbers_of_adm_s_evaluator(record, weights):
    found = record["metrics"]
    assert {"fid", "sfid", "is", "precision", "recall", "kid", "density", "coverage"} == found.keys()

    from torch_fidelity.metric_fid import fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    stock = FeatureExtractorInceptionV3("stock", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights))
    with torch.inference_mode():
        real, made = (stock(torch.from_numpy(pixels_of(seed)).permute(0, 3, 1, 2)) for seed in (0, 1))
    pair = [dict(zip(("mu", "sigma"), moments(part[0].numpy()), strict=True)) for part in (made, real)]
    assert found["fid"] == pytest.approx(fid_statistics_to_metric(*pair, verbose=False)["frechet_inception_distance"], rel=1e-6)
    assert found["is"] == pytest.approx(isc_features_to_metric(made[1], splits=1, shuffle=False)["inception_score_mean"], rel=1e-6)
    theirs = prc_features_to_metric(made[0], real[0], prc_neighborhood=NEIGHBOURS, verbose=False)
    assert (found["precision"], found["recall"]) == pytest.approx((theirs["precision"], theirs["recall"]))
    theirs = kid_features_to_metric(made[0], real[0], kid_subset_size=COUNT, kid_subsets=1, verbose=False)
    assert found["kid"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4)
    protocol = record["protocol"]
    assert protocol["extractor_sha256"] == sha256(weights)
    assert protocol["statistics"] == "computed"


def test_spatial_features_are_the_first_channels_of_mixed_6_conv_channels_last(home, weights):
    net = Network(home / "extractor")
    found = net.extract(pixels_of(1), np.arange(2), 2)
    assert {name: array.shape[1] for name, array in found.items()} == {"features": 2048, "spatial": 2023, "logits": 1008}
    stock = net.net.net
    seen = {}
    handle = stock.Mixed_6d.branch1x1.register_forward_hook(lambda module, given, out: seen.update(out=out))
    with torch.inference_mode():
        stock(torch.from_numpy(pixels_of(1)[:2]).permute(0, 3, 1, 2))
    handle.remove()
    wanted = np.array([[seen["out"][0, channel, y, x] for channel in range(7)] for y in range(17) for x in range(17)]).ravel()
    np.testing.assert_array_equal(found["spatial"][0], wanted)
    np.testing.assert_allclose(found["logits"], found["features"] @ stock.fc.weight.numpy().T, rtol=1e-2, atol=1e-4)


def test_a_reference_that_brings_statistics_is_believed_and_another_network_s_is_not(home, tmp_path):
    source = np.random.default_rng(0)
    given = {name: source.normal(size=(width,)) for name, width in (("mu", 2048), ("mu_s", 2023))}
    given |= {"sigma": np.eye(2048), "sigma_s": np.eye(2023)}

    def made(name, **arrays):
        np.savez(tmp_path / f"{name}.npz", arr_0=pixels_of(2, 4), **arrays)
        url = (tmp_path / f"{name}.npz").as_uri()
        raw = fetched(tmp_path / name, source="npz", url=url, sha256=None, resolution=SIDE, images=4)
        out = tmp_path / f"{name}-reference"
        out.mkdir()
        reference(Reference(dataset="x", extractor="x", batch=4), images=raw, extractor=home / "extractor", out=out)
        return out

    with np.load(made("good", **given) / "reference.npz") as known:
        assert all(np.array_equal(known[name], given[name]) for name in given)
        assert known["features"].shape == (4, 2048)
    assert read_json(tmp_path / "good-reference" / "real.json")["statistics"] == "given"
    with pytest.raises(UserError, match=r"mu \(768,\) is not of this network"):
        made("bad", mu=np.zeros(768), sigma=np.eye(768))


def entry_of(expected):
    entry = {"dataset": "x", "reference": "x", "extractor": "x", "batch": 4, "shards": 3, "neighbours": NEIGHBOURS}
    return Calibrate(**entry, expected=expected, tolerance=dict.fromkeys(expected, 1e-3))


def test_the_evaluator_is_held_against_published_numbers(home, record, tmp_path):
    np.savez(tmp_path / "batch.npz", arr_0=pixels_of(1))
    url = (tmp_path / "batch.npz").as_uri()
    raw = fetched(tmp_path / "raw", source="npz", url=url, sha256=None, resolution=SIDE, images=COUNT)
    expected = {name: record["metrics"][name] for name in ("fid", "sfid", "is", "precision", "recall")}
    paths = {"images": raw, "reference": home / "reference", "extractor": home / "extractor"}
    calibrate(entry_of(expected), **paths, out=tmp_path / "c.csv")
    assert (tmp_path / "c.csv").read_text().count("within") == 5
    with pytest.raises(UserError, match=r"calibrate\.expected: no metric lpips"):
        calibrate(entry_of({"lpips": 1.0}), **paths, out=tmp_path / "c.csv")


def test_a_metric_out_of_its_tolerance_is_named_with_both_values():
    frame = compared(entry_of({"fid": 2.0, "sfid": 3.0, "is": 4.0}), {"fid": 2.0005, "sfid": 3.002, "is": 4.0})
    assert list(frame["verdict"]) == ["within", "outside", "within"]
    with pytest.raises(UserError, match=r"calibrate: sfid is 3\.002, published 3: numbers of this evaluator are not comparable"):
        demand_within(frame)


@pytest.mark.parametrize("content", [b"PK", b"\x80\x02cos\nsystem\n.", b""])
def test_weights_that_are_no_tensors_are_refused_and_not_executed(tmp_path, content):
    (tmp_path / "x.pth").write_bytes(content)
    url = (tmp_path / "x.pth").as_uri()
    raw = fetched(tmp_path / "raw", source="extractor", family="inception-2015", url=url, sha256=None)
    with pytest.raises(UserError, match=r"not the weights of inception-2015") as refusal:
        Network(raw)
    assert "\n" not in str(refusal.value)


def test_features_that_are_no_numbers_are_refused():
    good = np.random.default_rng(0).normal(size=(9, 4))
    known = {"features": good, "mu": np.zeros(4), "sigma": np.eye(4)}
    with pytest.raises(UserError, match="features of 1 images are not finite"):
        scores.scored({"features": np.where(np.arange(9)[:, None] == 3, np.nan, good)}, known, 3, "_x")
    with pytest.raises(UserError, match="4 images are too few for 5 neighbours"):
        scores.scored({"features": good[:4]}, known, 3, "_x")


def test_images_of_the_folder_are_those_of_the_png_files(home):
    np.testing.assert_array_equal(Images.load(home / "images").pixels[:], pixels_of(0))
