"""From PNG to FID: the whole way of Inception's features, with random weights in torch-fidelity's file format."""

import io
import os
import pickle
import shutil
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from maskdit.artifacts.arrays import read_arrays
from maskdit.artifacts.atomic import read_json, sha256, write_json
from maskdit.config.base import UserError
from maskdit.config.evaluation import Calibrate, Evaluate, Features, Reference
from maskdit.config.images import Fetch
from maskdit.evaluation import protocol
from maskdit.evaluation.calibrate import calibrate, compared, demand_within
from maskdit.evaluation.evaluate import evaluate
from maskdit.evaluation.extractors import Network
from maskdit.evaluation.features import features
from maskdit.evaluation.metrics import moments, monge_distance
from maskdit.evaluation.protocol import OFFICIAL, suffix
from maskdit.evaluation.reference import reference, summed
from maskdit.images.dataset import Images
from maskdit.images.fetch import fetch
from maskdit.runtime.random import generator

ENTRY = TypeAdapter(Fetch)
COUNT, SIDE = 6, 32  # the network sees four to six images a second on a CPU: 26 in this file
NEIGHBOURS = 3
FIVE = ("fid", "sfid", "is", "precision", "recall")
SPACES = {"features": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}
SAMPLED = {"labels": "random", "quantisation": "round", "sampler": "EDM Heun", "nfe": 79, "guidance": 1.5, "weights": "EMA"}


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKDIT_SCRATCH", str(tmp_path / "scratch"))


def pixels_of(seed):
    source = np.random.default_rng(seed)
    base = source.integers(0, 256, (COUNT, 4, 4, 3))
    noise = source.integers(-40, 40, (COUNT, SIDE, SIDE, 3))
    return (base.repeat(8, 1).repeat(8, 2) + noise).clip(0, 255).astype(np.uint8)


REAL, MADE = pixels_of(0), pixels_of(1)


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


def run(step, entry, out, **paths):
    out.mkdir()
    step(entry, **paths, out=out)
    return out


@pytest.fixture(scope="module")
def home(weights, tmp_path_factory):
    """An extractor, a folder of PNG files as real images, samples in two shards, and the features of both."""
    where = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASKDIT_SCRATCH", str(where / "scratch"))
        fetched(where / "extractor", source="extractor", family="inception-2015", url=weights.as_uri(), sha256=sha256(weights))
        for number, picture in enumerate(REAL):
            path = where / "png" / "one" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path)
        entry = {"root": str(where / "png"), "bad": "fail", "resolution": SIDE, "images": COUNT}
        fetched(where / "images", source="folder", **entry)
        samples = where / "samples"
        samples.mkdir()
        names = [f"images-{number:04d}.npy" for number in range(2)]
        for name, part in zip(names, np.split(MADE, [2]), strict=True):
            np.save(samples / name, part)
        np.save(samples / "labels.npy", np.zeros(COUNT, int))
        (samples / "manifest.json").write_text("samples")
        index = {"shards": names, "checkpoint": {"model": "DiT"}, "protocol": {"images": COUNT, **SAMPLED}}
        write_json(samples / "index.json", index)
        entry, net = Reference(dataset="x", extractor="x", batch=3, shards=2), where / "extractor"
        run(reference, entry, where / "reference", images=where / "images", extractor=net)
        run(features, Features(extractor="x", batch=2), where / "features", samples=samples, extractor=net)
    return where


@pytest.fixture(scope="module")
def seen(home):
    """What the network said of real and made images, as the steps have stored it."""
    made = protocol.gathered([home / "features" / name for name in read_json(home / "features" / "index.json")["shards"]])
    return read_arrays(home / "reference" / "reference.npz"), made


@pytest.fixture(scope="module")
def official(weights):
    """These weights and this number of images are those of FID."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol, "OFFICIAL", sha256(weights))
        patch.setattr(protocol, "FULL", COUNT)
        yield


def scored_by(home, out):
    paths = {"features": home / "features", "reference": home / "reference"}
    evaluate(Evaluate(bench="x", dataset="x", neighbours=NEIGHBOURS), **paths, out=out)
    return read_json(out)


@pytest.fixture(scope="module")
def record(home, official):
    return scored_by(home, home / "record.json")


def test_fid_has_its_name_only_with_inception_s_own_weights_on_50000_images():
    assert OFFICIAL == "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
    assert suffix("inception-2015", OFFICIAL, 50_000) == ""
    assert suffix("inception-2015", OFFICIAL, 49_999) == "_inception"
    assert suffix("inception-2015", "ab" * 32, 50_000) == "_inception_abababab"
    assert suffix("mobilenet-v2", OFFICIAL, 50_000) == "_mobilenet"
    assert suffix("dinov2", OFFICIAL, 50_000) == "_dinov2"


def test_png_files_become_the_five_numbers_of_adm_s_evaluator(record):
    assert list(record["metrics"]) == [*FIVE, "kid", "density", "coverage"]


def test_mind_and_the_floor_of_two_halves_are_there_if_asked_for_and_the_floor_is_no_fid(home, official, record, seen):
    paths = {"features": home / "features", "reference": home / "reference"}
    entry = Evaluate(bench="x", dataset="x", neighbours=NEIGHBOURS, mind=True, floor=True)
    evaluate(entry, **paths, out=home / "more.json")
    found = read_json(home / "more.json")
    assert list(found["metrics"]) == [*FIVE, "kid", "mind", "density", "coverage"]
    assert {**found["metrics"], "mind": None} == {**record["metrics"], "mind": None}
    known, made = seen
    wanted = monge_distance(made["features"], known["features"], generator(2020, "mind"))
    assert found["metrics"]["mind"] == pytest.approx(wanted)
    floor = found["real"]["floor"]
    assert list(floor) == ["images", "fd_inception", "kid_inception", "mind_inception"]
    assert floor["images"] == min(COUNT, len(known["features"]) // 2)
    assert "floor" not in record["real"]


def part(seen, width=40):
    """The same with some of the features only: quick."""
    known, made = seen
    known = {name: array[:width, :width] if name.startswith("sigma") else array[..., :width] for name, array in known.items()}
    return {name: array[:, :width] if name != "logits" else array for name, array in made.items()}, known


def test_with_other_weights_no_metric_has_a_plain_name(seen, tmp_path):
    name = suffix("inception-2015", "ab" * 32, 50_000)
    metrics = protocol.scored(*part(seen), NEIGHBOURS, name, tmp_path)
    assert all(metric.endswith("_inception_abababab") for metric in metrics)
    assert {metric.split("_")[0] for metric in metrics} == {"fd", "sfd", "is", "precision", "recall", "kid", "density", "coverage"}


def test_another_number_of_neighbours_than_adm_s_shows_in_the_name(seen, tmp_path):
    metrics = protocol.scored(*part(seen), 2, "", tmp_path)
    assert {"fid", "precision_k2", "recall_k2"} < metrics.keys()
    assert not {"precision", "recall"} & metrics.keys()


def test_the_features_are_those_of_the_stock_network_and_of_its_layer_bit_for_bit(home, seen, weights):
    stock = FeatureExtractorInceptionV3("stock", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights))
    given = {}
    stock.Mixed_6d.register_forward_hook(lambda module, inputs, out: given.update(x=inputs[0]))
    with torch.inference_mode():
        features, logits = stock(torch.from_numpy(MADE[1:3]).permute(0, 3, 1, 2))  # of both shards
    made = seen[1]
    np.testing.assert_array_equal(made["features"][1:3], features)
    np.testing.assert_array_equal(made["logits"][1:3], logits)
    np.testing.assert_allclose(logits, made["features"][1:3] @ stock.fc.weight.numpy().T, rtol=1e-5, atol=1e-5)

    layer = stock.Mixed_6d.branch1x1  # by hand: a matrix product at each place, normalised, not below 0
    x = given["x"].double().numpy()
    z = np.einsum("bcyx,kc->byxk", x, layer.conv.weight[:7, :, 0, 0].double().numpy())
    mean, variance, scale, shift = (
        getattr(layer.bn, name)[:7].double().numpy() for name in ("running_mean", "running_var", "weight", "bias")
    )
    wanted = np.maximum((z - mean) / np.sqrt(variance + 0.001) * scale + shift, 0)
    assert made["spatial"].shape == (COUNT, 2023)
    assert len(np.unique(wanted.mean((0, 1, 2)).round(6))) == 7, "channels differ"
    np.testing.assert_allclose(made["spatial"][1:3].reshape(2, 17, 17, 7), wanted, rtol=1e-3, atol=1e-4)


def test_the_metrics_are_torch_fidelity_s_of_the_same_features(seen, tmp_path):
    from torch_fidelity.metric_fid import fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    made, known = part(seen)
    found = protocol.scored(made, known, NEIGHBOURS, "", tmp_path)
    for name, space in (("fid", "features"), ("sfid", "spatial")):
        pair = [dict(zip(("mu", "sigma"), moments(made[space]), strict=True))]
        pair.append({field: known[theirs] for field, theirs in zip(("mu", "sigma"), SPACES[space], strict=True)})
        wanted = fid_statistics_to_metric(*pair, verbose=False)["frechet_inception_distance"]
        assert found[name] == pytest.approx(wanted, rel=1e-6)
    logits, *vectors = (torch.from_numpy(array) for array in (made["logits"], made["features"], known["features"]))
    assert found["is"] == pytest.approx(isc_features_to_metric(logits, splits=1, shuffle=False)["inception_score_mean"], rel=1e-9)
    wanted = prc_features_to_metric(*vectors, prc_neighborhood=NEIGHBOURS, verbose=False)
    assert (found["precision"], found["recall"]) == pytest.approx((wanted["precision"], wanted["recall"]))
    wanted = kid_features_to_metric(*vectors, kid_subset_size=COUNT, kid_subsets=1, verbose=False)
    assert found["kid"] == pytest.approx(wanted["kernel_inception_distance_mean"], rel=1e-4)


def test_a_record_holds_its_whole_protocol(record, home, weights):
    assert record["protocol"] == {
        **SAMPLED,
        "images": COUNT,
        "resolution": SIDE,
        "family": "inception-2015",
        "extractor_sha256": sha256(weights),
        "resize": "299 pixels, bilinear as in TensorFlow 1",
        "reference_sha256": sha256(home / "reference" / "reference.npz"),
        "statistics": "computed",
        "neighbours": NEIGHBOURS,
        "neighbours_from": COUNT,
        "near": 5,
        "is_split": 5000,
        "is_order": "by number",
        "kid_subsets": "100 of 1000",
    }


@pytest.mark.parametrize(("field", "value"), [("family", "dinov2"), ("extractor_sha256", "0" * 64), ("resolution", 64)])
def test_features_and_a_reference_that_do_not_belong_together_are_refused(home, tmp_path, field, value):
    (tmp_path / "reference").mkdir()
    os.link(home / "reference" / "reference.npz", tmp_path / "reference" / "reference.npz")
    write_json(tmp_path / "reference" / "real.json", read_json(home / "reference" / "real.json") | {field: value})
    (tmp_path / "features").symlink_to(home / "features")
    with pytest.raises(UserError, match=rf"features: {field} .* the reference .* has {value}; (make both|use the)") as refusal:
        scored_by(tmp_path, tmp_path / "r.json")
    assert "\n" not in str(refusal.value)


def entry_of(expected, tolerance=1e-4):
    entry = {"dataset": "x", "reference": "x", "extractor": "x", "batch": 2, "shards": 3, "neighbours": NEIGHBOURS}
    return Calibrate(**entry, expected=expected, tolerance=dict.fromkeys(expected, tolerance))


def test_the_evaluator_is_held_against_published_numbers_in_files_like_adm_s(home, record, seen, tmp_path, capsys):
    given = {name: seen[0][name] for pair in SPACES.values() for name in pair}
    files = {"reference": {"arr_0": REAL, **given}, "samples": {"arr_0": MADE, "arr_1": np.zeros(COUNT, int)}}
    raw = {}
    for name, arrays in files.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
        url = (tmp_path / f"{name}.npz").as_uri()
        raw[name] = fetched(tmp_path / f"raw-{name}", source="npz", url=url, sha256=None, resolution=SIDE, images=COUNT)
    net = home / "extractor"
    known = run(reference, Reference(dataset="x", extractor="x", batch=3), tmp_path / "ref", images=raw["reference"], extractor=net)
    assert read_json(known / "real.json")["statistics"] == "given"
    found = read_arrays(known / "reference.npz")
    assert found.keys() == seen[0].keys()
    for name in found:
        np.testing.assert_array_equal(found[name], seen[0][name])

    paths = {"images": raw["samples"], "reference": known, "extractor": net, "out": tmp_path / "c.csv"}
    expected = {name: record["metrics"][name] for name in FIVE}
    known_before = mock.patch("maskdit.evaluation.calibrate.scored", return_value=record["metrics"])  # they are the same images
    with known_before, pytest.raises(UserError, match=r"^calibrate: sfid is \S+, published 1: values of this evaluator"):
        calibrate(entry_of(expected | {"sfid": 1.0}), **paths)
    assert capsys.readouterr().err.count("within") == 4
    assert not (tmp_path / "c.csv").exists()
    with mock.patch.object(Network, "see", side_effect=AssertionError("the features are there")):
        for name, message in (("lpips", "no metric lpips; known: fid, sfid"), ("fid_infinity", "fid_infinity cannot be computed")):
            with known_before, pytest.raises(UserError, match=rf"calibrate\.expected: {message}"):
                calibrate(entry_of({name: 1.0}), **paths)
        calibrate(entry_of(expected, 1e-9), **paths)
    lines = (tmp_path / "c.csv").read_text().splitlines()
    assert lines[0] == "metric,expected,found,difference,tolerance,verdict"
    assert [line.split(",")[0] for line in lines[1:]] == list(FIVE)
    assert all(line.endswith(",within") for line in lines[1:])


def test_a_metric_out_of_its_tolerance_is_named_with_both_values():
    frame = compared(entry_of({"fid": 2.0, "sfid": 3.0, "is": 4.0}, 1e-3), {"fid": 2.0005, "sfid": 3.002, "is": 4.0})
    assert list(frame["verdict"]) == ["within", "outside", "within"]
    with pytest.raises(UserError, match=r"calibrate: sfid is 3\.002, published 3: values of this evaluator are not comparable"):
        demand_within(frame)


def test_a_metric_that_is_no_number_is_outside_of_every_tolerance():
    assert list(compared(entry_of({"fid": 2.0}, 1e9), {"fid": np.nan})["verdict"]) == ["outside"]


class Trap:
    """What a pickle does that runs code when it is loaded."""

    def __reduce__(self):
        return (os.mkdir, ("trapped",))


@pytest.mark.parametrize("content", [b"PK", pickle.dumps(Trap(), 2), b"", "torch"], ids=["zip", "pickle", "empty", "torch"])
def test_weights_that_are_no_tensors_are_refused_and_not_executed(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    if content == "torch":
        torch.save(Trap(), tmp_path / "x.pth")
    else:
        (tmp_path / "x.pth").write_bytes(content)
    url = (tmp_path / "x.pth").as_uri()
    raw = fetched(tmp_path / "raw", source="extractor", family="inception-2015", url=url, sha256=None)
    with pytest.raises(UserError, match=r"not the weights of inception-2015") as refusal:
        Network(raw)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "trapped").exists()


def test_the_network_never_downloads_its_weights(home):
    with mock.patch("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", side_effect=AssertionError):
        net = Network(home / "extractor")
    assert not any(parameter.requires_grad for parameter in net.net.parameters())
    assert not any(module.training for module in net.net.modules())


def test_features_that_cannot_be_scored_are_refused_in_one_line(tmp_path):
    good = np.random.default_rng(0).normal(size=(9, 4))
    known = {"features": good, "mu": np.zeros(4), "sigma": np.eye(4)}
    broken = np.where(np.arange(9)[:, None] == 3, np.nan, good)
    for given, message in (
        (broken, "place: features of 1 images are not finite"),
        (good[:5], "place: 5 images are too few for 5 neighbours; add images, to 6 at least"),
        (good[:, :3], "place: features have width 3, the reference 4"),
    ):
        with pytest.raises(UserError, match=message):
            protocol.scored({"features": given}, known, 3, "_x", tmp_path / "place")


def test_the_distance_of_unboundedly_many_images_needs_ten_times_as_many_as_features():
    source = np.random.default_rng(0)
    good, known = source.normal(size=(41, 4)), {"features": source.normal(size=(9, 4)), "mu": np.zeros(4), "sigma": np.eye(4)}
    assert "fd_infinity_x" in protocol.scored({"features": good}, known, 3, "_x", None)
    assert "fd_infinity_x" not in protocol.scored({"features": good[:40]}, known, 3, "_x", None)


def test_images_of_the_folder_are_those_of_the_png_files(home):
    np.testing.assert_array_equal(Images.load(home / "images").pixels[:], REAL)


def test_copies_among_the_samples_are_counted_over_all_training_images_that_the_reference_keeps(home, official, seen, tmp_path):
    source, folders = np.random.default_rng(0), {name: tmp_path / name for name in ("features", "reference")}
    for name, folder in folders.items():
        shutil.copytree(home / name, folder)
    every = np.abs(source.normal(size=(30, 2048))).astype(np.float32)
    np.savez(folders["reference"] / "reference.npz", **seen[0], every=every)
    made = dict(seen[1])
    made["features"] = np.concatenate([every[[7, 21]], every[: COUNT - 2] + 9])
    index = read_json(folders["features"] / "index.json")
    for shard, rows in zip(index["shards"], np.split(np.arange(COUNT), [2]), strict=True):
        np.savez(folders["features"] / shard, **{name: array[rows] for name, array in made.items()})
    config = Evaluate(bench="x", dataset="x", neighbours=NEIGHBOURS, memorisation=True)
    evaluate(config, **folders, out=tmp_path / "r.json")
    record = read_json(tmp_path / "r.json")
    assert record["metrics"]["memorised_inception"] == 2 / COUNT
    assert record["protocol"]["memorised_from"] == 30
    assert {pair["sample"]: (pair["row"], pair["distance"]) for pair in record["nearest"][:2]} == {0: (7, 0), 1: (21, 0)}
    floor = record["real"]["memorisation"]
    assert (floor["images"], floor["of"]) == (30, 30)
    assert 0.2 < floor["memorised_inception"] < 0.9


def test_a_reference_keeps_the_drawn_features_and_if_asked_for_all():
    features = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    keep = np.array([True, False, True, False, False])
    for every in (False, True):
        found = summed(iter([{"features": features[:2]}, {"features": features[2:]}]), keep, True, every)
        np.testing.assert_array_equal(found["kept"], features[keep])
        assert ("every" in found) == every
    np.testing.assert_array_equal(found["every"], features)
