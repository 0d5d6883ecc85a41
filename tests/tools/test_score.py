"""`maskdit score`: one set of images has the same metrics in whatever form it lies there, and what is no such set is refused."""

import errno
import io
import json
import os
import re
import shutil
import struct
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maskdit.artifacts.atomic import sha256, write_json
from maskdit.cli import main
from maskdit.config.base import UserError
from maskdit.config.load import load
from maskdit.evaluation import metrics, protocol
from maskdit.evaluation.extractors import Extractor
from maskdit.evaluation.sources import Source, opened
from maskdit.images.dataset import npz_rows
from maskdit.images.fetch import packaged
from maskdit.runtime.process_group import launch
from maskdit.tools import score, score_table
from project import ROOT, run

COUNT, SIDE, BATCH = 30, 32, 8
WEIGHTS = packaged("mobilenet-v2")
FIXED = ("--extractor", "mobilenet-v2", "--batch", str(BATCH))


def images_of(seed, side=SIDE, count=COUNT):
    source = np.random.default_rng(seed)
    base = source.integers(0, 256, (count, 4, 4, 3)).repeat(side // 4, 1).repeat(side // 4, 2)
    return (base + source.integers(-40, 40, (count, side, side, 3))).clip(0, 255).astype(np.uint8)


MADE, REAL = images_of(1), images_of(0)


def as_folder(path, images, suffix=".png"):
    path.mkdir(parents=True)
    for number, picture in enumerate(images):
        Image.fromarray(picture).save(path / f"{number:05d}{suffix}")
    return path


def as_samples(path, images):
    path.mkdir()
    for name, part in (("images-0000.npy", images[:11]), ("images-0001.npy", images[11:])):
        np.save(path / name, part)
    write_json(path / "index.json", {"shards": ["images-0000.npy", "images-0001.npy"]})
    return path


def as_npz(path, pack=np.savez, **arrays):
    pack(path, **arrays)
    return path


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """One cache for all tests, as a user has it: what one has computed the next need not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Folders of PNG files, and what the network says of their images."""
    where = tmp_path_factory.mktemp("home")
    as_folder(where / "made", MADE)
    as_folder(where / "real", REAL)
    return where


@pytest.fixture(scope="module")
def seen():
    net = Extractor("mobilenet-v2", WEIGHTS)
    return {name: net.extract(images, np.arange(COUNT), BATCH) for name, images in (("made", MADE), ("real", REAL))}


def told(capsys, *words):
    """What the command says in JSON."""
    assert main(["score", *map(str, words), *FIXED, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def scores(capsys, *words):
    return told(capsys, *words)["sets"][0]["metrics"]


def refusal(capsys, *words):
    """The one line with which a command is refused."""
    assert main(["score", *map(str, words), *FIXED]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    [line] = [line for line in printed.err.splitlines() if line.startswith("maskdit: ")]
    return line


def test_the_metrics_are_those_of_the_network_s_outputs_by_the_other_functions_of_this_package(home, seen, capsys):
    known = {"features": seen["real"]["features"]}
    known |= dict(zip(("mu", "sigma"), metrics.moments(known["features"]), strict=True))
    wanted = protocol.scored(seen["made"], known, protocol.NEIGHBOURS, "_mobilenet", home, mind=True)
    found = scores(capsys, home / "made", "--reference", home / "real", "--mind")
    assert list(found) == list(wanted)
    assert found == pytest.approx(wanted, rel=1e-9)


def test_distance_score_precision_and_recall_are_torch_fidelity_s(home, seen, capsys):
    from torch_fidelity.metric_fid import fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    made, real = (torch.from_numpy(seen[name]["features"]) for name in ("made", "real"))
    found = scores(capsys, home / "made", "--reference", home / "real")
    pair = [dict(zip(("mu", "sigma"), metrics.moments(features.numpy()), strict=True)) for features in (made, real)]
    wanted = {"fd_mobilenet": fid_statistics_to_metric(*pair, verbose=False)["frechet_inception_distance"]}
    logits = torch.from_numpy(seen["made"]["logits"])
    wanted["is_mobilenet"] = isc_features_to_metric(logits, splits=1, shuffle=False)["inception_score_mean"]
    other = prc_features_to_metric(made, real, prc_neighborhood=3, verbose=False)
    wanted |= {f"{name}_mobilenet": other[name] for name in ("precision", "recall")}
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("form", ["stored", "packed", "samples", "features"])
def test_one_set_has_the_same_metrics_in_every_form(home, tmp_path, form, capsys):
    saved = tmp_path / "features.npz"
    match form:
        case "stored":
            mine = as_npz(tmp_path / "made.npz", arr_0=MADE)
        case "packed":
            mine = as_npz(tmp_path / "made.npz", np.savez_compressed, arr_0=MADE)
        case "samples":
            mine = as_samples(tmp_path / "made", MADE)
        case "features":
            told(capsys, home / "made", "--save-features", saved)
            mine = saved
    assert scores(capsys, mine, "--reference", home / "real") == scores(capsys, home / "made", "--reference", home / "real")


def test_saved_statistics_and_features_stand_for_a_reference(home, tmp_path, capsys):
    saved = tmp_path / "real.npz", tmp_path / "statistics.npz"
    told(capsys, home / "real", "--save-features", saved[0], "--save-statistics", saved[1])
    whole = scores(capsys, home / "made", "--reference", home / "real")
    assert scores(capsys, home / "made", "--reference", saved[0]) == whole
    found = scores(capsys, home / "made", "--reference", saved[1])
    assert found == {name: whole[name] for name in ("fd_mobilenet", "is_mobilenet")}


def test_adm_s_batch_gives_its_statistics_for_the_distance_and_its_images_for_the_rest(home, seen, tmp_path, capsys):
    mu, sigma = metrics.moments(seen["real"]["features"] * 1.1)
    batch = as_npz(tmp_path / "batch.npz", np.savez_compressed, arr_0=REAL, mu=mu, sigma=sigma)
    made = told(capsys, home / "made", "--reference", batch)["sets"][0]
    whole = scores(capsys, home / "made", "--reference", home / "real")
    wanted = metrics.frechet_distance(metrics.moments(seen["made"]["features"]), (mu, sigma))
    assert made["metrics"] == whole | {"fd_mobilenet": pytest.approx(wanted, rel=1e-9)}
    assert made["used"]["fd_mobilenet"] == {"images": COUNT, "reference": None}
    assert made["used"]["recall_mobilenet"] == {"images": COUNT, "reference": COUNT}


def test_without_a_reference_there_is_the_inception_score_alone(home, capsys):
    assert list(scores(capsys, home / "made")) == ["is_mobilenet"]


def test_several_sets_are_columns_of_one_table_with_what_cannot_be_compared(home, tmp_path, capsys):
    jpeg = as_folder(tmp_path / "jpeg", MADE, ".jpg")
    assert main(["score", str(home / "made"), str(jpeg), "--reference", str(home / "real"), *FIXED]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["made", "jpeg", "of", "reference"]
    assert lines[1].split() == ["images", "30", "30", "30"]
    values = {line.split()[0]: line.split()[1:] for line in lines[2 : lines.index("")]}
    assert values["is_mobilenet"][2] == "-"
    assert values["fd_mobilenet"][0] != values["fd_mobilenet"][1]
    below = lines[lines.index("") + 1 :]
    assert below[0] == "not comparable with published numbers:"
    assert "- the features are of mobilenet-v2, not of Inception of 2015" in below
    assert "- jpeg: 30 images are JPEG, whose losses the features see; save samples as PNG" in below


def test_what_cannot_be_compared_is_said_and_nothing_else():
    network = {"family": "inception-2015", "extractor_sha256": protocol.OFFICIAL}
    size = {"size": (256, 256), "pixels": object()}
    adm = Source(ROOT, 10_000, given={"mu": np.zeros(1)}, **size)
    [line] = score_table.remarks(Source(ROOT, 50_000, **size), adm, network, mind=False)
    assert line.startswith("the reference does not say how its images were cropped")
    mine = Source(ROOT, 60_000, size=(256, 256), pixels=object(), by_class=True)
    found = " ".join(score_table.remarks(mine, Source(ROOT, 7, jpeg=7, pixels=object()), network, mind=True))
    for part in (
        "60,000 images, not",
        "class by class",
        "of 7 images of yours",
        "reference of 7 images",
        "7 images of the reference",
    ):
        assert part in found
    for part in ("at most", "MIND is of 7", "must have had 256 x 256 pixels"):
        assert part in found


def test_the_numbers_of_images_are_those_that_a_metric_was_computed_of():
    mine, real = Source(ROOT, 60_000, pixels=object()), Source(ROOT, 10_000, pixels=object(), given={"mu": np.zeros(1)})
    of = {metric: tuple(score_table.used(metric, mine, real).values()) for metric in ("fid", "sfid", "fid_infinity", "kid")}
    assert of == {"fid": (60_000, None), "sfid": (60_000, 10_000), "fid_infinity": (50_000, None), "kid": (50_000, 10_000)}


@pytest.mark.parametrize("count", [999, 12_345])
def test_the_summary_of_parts_is_that_of_the_whole_whatever_the_number_of_images(count, tmp_path):
    source = np.random.default_rng(0)
    outputs = {name: source.normal(size=(count, width)).astype(np.float32) for name, width in (("features", 6), ("logits", 5))}
    found = score.summary(Source(tmp_path, count, outputs=outputs), {})
    assert float(found["is"]) == pytest.approx(metrics.inception_score(outputs["logits"]), rel=1e-12)
    np.testing.assert_array_equal(found["features"], outputs["features"])
    for name, wanted in zip(("mu", "sigma"), metrics.moments(outputs["features"]), strict=True):
        np.testing.assert_allclose(found[name], wanted, rtol=0, atol=1e-12)


def test_of_very_many_images_some_are_drawn_for_the_neighbours_and_all_count_for_the_distance(tmp_path, monkeypatch):
    monkeypatch.setattr(score, "KEPT", 70)
    outputs = {"features": np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)}
    found = score.summary(Source(tmp_path, 100, outputs=outputs), {})
    assert len(found["features"]) == 70
    assert len(np.unique(found["features"], axis=0)) == 70
    np.testing.assert_allclose(found["mu"], outputs["features"].mean(0, dtype=np.float64), rtol=1e-12)


@pytest.mark.parametrize("pack", [np.savez, np.savez_compressed], ids=["stored", "packed"])
def test_an_npz_is_never_in_memory_as_a_whole(tmp_path, pack):
    pixels = np.random.default_rng(0).integers(0, 256, (200, 128, 128, 3), np.uint8)
    pack(tmp_path / "x.npz", arr_0=pixels)
    tracemalloc.start()
    try:
        array = opened(tmp_path / "x.npz").pixels
        for at in range(0, 200, 4):
            np.testing.assert_array_equal(array[np.array([at + 2, at, at + 2])], pixels[[at + 2, at, at + 2]])
        np.testing.assert_array_equal(array[np.array([1])], pixels[1:2])  # back to the beginning
        assert tracemalloc.get_traced_memory()[1] < pixels.nbytes / 5
    finally:
        tracemalloc.stop()


def test_an_interrupted_command_goes_on_with_the_parts_that_it_has(home, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(score, "PART", BATCH)
    extract, asked = Extractor.extract, []

    def watched(net, pixels, rows, batch):
        asked.append(int(rows[0]))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return extract(net, pixels, rows, batch)

    monkeypatch.setattr(Extractor, "extract", watched)
    words = ["score", str(home / "made"), *FIXED]
    assert main(words) == 130
    assert "run the command again to continue" in capsys.readouterr().err
    assert main(words) == 0
    assert asked == [0, 8, 16, 16, 24]


def test_features_that_nobody_has_used_for_a_week_are_removed(home, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, age in (("score-old", 8), ("score-young", 6)):
        (tmp_path / "maskdit" / name).mkdir(parents=True)
        when = score.time.time() - age * 24 * 3600
        os.utime(tmp_path / "maskdit" / name, (when, when))
    scores(capsys, home / "made")
    assert not (tmp_path / "maskdit" / "score-old").exists()
    assert (tmp_path / "maskdit" / "score-young").exists()


def test_two_processes_of_a_group_find_what_one_finds(home, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("MASKDIT_DEVICE", "cpu")
    words = ["score", str(home / "made"), str(home / "real"), "--reference", str(home / "real"), *FIXED, "--json"]
    assert launch([sys.executable, "-m", "maskdit.cli", *words], 2) == 0
    found = json.loads(capfd.readouterr().out)
    assert main(words) == 0
    alone = json.loads(capfd.readouterr().out)
    for one, other in zip(found["sets"], alone["sets"], strict=True):
        assert one.pop("metrics") == pytest.approx(other.pop("metrics"), rel=1e-9)
    assert found == alone


def test_features_and_statistics_are_compared_without_torch(home, tmp_path, without_torch, capsys):
    told(capsys, home / "made", "--save-features", tmp_path / "made.npz")
    told(capsys, home / "real", "--save-features", tmp_path / "real.npz")
    whole = scores(capsys, home / "made", "--reference", home / "real")
    code, out = run(tmp_path, *without_torch, "maskdit", "score", "made.npz", "--reference", "real.npz", "--json")
    assert code == 0, out
    assert json.loads(out)["sets"][0]["metrics"] == pytest.approx(whole, rel=1e-6)


def test_the_weights_are_downloaded_once_by_torch_hub_s_rules_and_checked(tmp_path, monkeypatch):
    file = tmp_path / "weights-x.pth"
    file.write_bytes(b"weights")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(protocol, "WEIGHTS", file.as_uri())
    with pytest.raises(UserError, match=r"has sha256 .*; or put that file there: .*weights-x\.pth, or name it by --weights"):
        score.weights_of("inception-2015")
    monkeypatch.setattr(protocol, "OFFICIAL", sha256(file))
    kept = score.weights_of("inception-2015")
    assert kept == tmp_path / "torch" / "hub" / "checkpoints" / "weights-x.pth"
    file.unlink()
    assert score.weights_of("inception-2015") == kept


def test_the_weights_are_those_of_params_yaml():
    entry = load(ROOT / "params.yaml").fetch["in256-features"]
    assert (entry.url, entry.sha256) == (protocol.WEIGHTS, protocol.OFFICIAL)


def png16(path):
    """A PNG of 16 bits a channel, which Pillow reads but does not write."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes(SIDE * 6) for _ in range(SIDE))
    head = struct.pack(">IIBBBBB", SIDE, SIDE, 16, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def saved(picture, name):
    """What puts such a picture into a folder."""
    return lambda path: picture.save(path / name)


PICTURES = {  # what is put into a folder -> the refusal
    "alpha": (saved(Image.new("RGBA", (SIDE, SIDE)), "x.png"), r"x\.png: has a channel of transparency \(RGBA\); save it as RGB"),
    "16 bits grey": (saved(Image.new("I;16", (SIDE, SIDE)), "x.png"), r"x\.png: has more than 8 bits a channel"),
    "16 bits": (lambda path: png16(path / "x.png"), r"x\.png: has more than 8 bits a channel \(RGB\); save it as 8-bit RGB"),
    "float": (saved(Image.new("F", (SIDE, SIDE)), "x.tif"), r"x\.tif: has more than 8 bits a channel \(F\)"),
    "sizes": (
        saved(Image.new("RGB", (SIDE, SIDE + 1)), "x.png"),
        r"several sizes \(00000\.png 32 x 32 and x\.png 32 x 33 pixels\); resize all",
    ),
    "damaged": (lambda path: (path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n"), r"x\.png: damaged \(.*\); make it again, or"),
}


@pytest.mark.parametrize("case", PICTURES)
def test_a_picture_that_is_not_8_bit_rgb_of_the_same_size_is_refused_by_name(case, tmp_path, capsys):
    put, wanted = PICTURES[case]
    put(as_folder(tmp_path / "x", MADE[:7]))
    with pytest.raises(UserError, match=wanted):
        opened(tmp_path / "x")
    assert str(tmp_path / "x") in refusal(capsys, tmp_path / "x")


BATCHES = {  # an npz as samples -> the refusal
    "float": ({"arr_0": MADE / np.float32(255)}, r"arr_0 is float32 \(30, 32, 32, 3\), not images; save uint8 of shape"),
    "float 0 to 255": ({"arr_0": MADE.astype(np.float64)}, r"arr_0 is float64 .*save uint8"),
    "alpha": ({"arr_0": MADE[..., [0, 1, 2, 2]]}, r"arr_0 is uint8 \(30, 32, 32, 4\): has a channel of transparency"),
    "channels first": ({"arr_0": MADE.transpose(0, 3, 1, 2)}, r"has its channels first; save array\.transpose\(0, 2, 3, 1\)"),
    "one image": ({"arr_0": MADE[0]}, r"arr_0 is uint8 \(32, 32, 3\), not images"),
    "grey": ({"arr_0": MADE[..., 0]}, r"arr_0 is uint8 \(30, 32, 32\), not images"),
    "none": ({"arr_0": MADE[:0]}, r"arr_0 is uint8 \(0, 32, 32, 3\), not images"),
    "16 bits": ({"arr_0": MADE.astype(np.uint16)}, r"arr_0 is uint16 .*not images"),
    "Fortran": ({"arr_0": np.asfortranarray(MADE)}, r"arr_0 is in Fortran's order; save np\.ascontiguousarray of it"),
    "objects": (
        {"arr_0": np.array([{}, 1], object)},
        r"not an npz that can be read \(it holds pickled objects, which are never read\)",
    ),
    "other names": ({"images": MADE}, r"holds images; images are named arr_0, statistics mu and sigma"),
    "features of others": ({"features": np.zeros((9, 8), np.float32)}, r"does not say of which network"),
    "object facts": ({"features": np.zeros((9, 8), np.float32), "facts": np.array({}, object)}, r"not an npz|damaged"),
    "wrong facts": (
        {"features": np.zeros((9, 8), np.float32), "facts": np.array('{"images": 9}')},
        r"not a file that maskdit score",
    ),
    "statistics": ({"mu": np.zeros(9), "sigma": np.eye(9)}, r"holds statistics, not images; name it by --reference"),
}


@pytest.mark.parametrize("case", BATCHES)
def test_an_npz_that_is_no_batch_of_images_is_refused(case, tmp_path, capsys):
    arrays, wanted = BATCHES[case]
    line = refusal(capsys, as_npz(tmp_path / "x.npz", **arrays))
    assert str(tmp_path / "x.npz") in line
    assert re.search(wanted, line), line


REFERENCES = {  # statistics -> the refusal
    "width": ({"mu": np.zeros(9), "sigma": np.eye(9)}, r"mu has 9 numbers, which does not fit mobilenet-v2"),
    "NaN": (
        {"mu": np.zeros(1280), "sigma": np.full((1280, 1280), np.nan)},
        r"mu and sigma, not all of them finite, are not a mean and a cov",
    ),
    "shapes": (
        {"mu": np.zeros(1280), "sigma": np.zeros(1280)},
        r"mu \(1280,\) and sigma \(1280,\) are not a mean and a covariance",
    ),
    "negative": ({"mu": np.zeros(1280), "sigma": -np.eye(1280)}, r"x\.npz: sigma is no covariance"),
    "skew": ({"mu": np.zeros(1280), "sigma": np.triu(np.ones((1280, 1280)))}, r"x\.npz: sigma is no covariance, which is symm"),
    "half": ({"mu": np.zeros(1280)}, r"contains only mu of the statistics"),
    "objects": ({"mu": np.array([{}], object), "sigma": np.eye(1)}, r"x\.npz: damaged"),
}


@pytest.mark.parametrize("case", REFERENCES)
def test_statistics_that_are_none_are_refused(case, home, tmp_path, capsys):
    arrays, wanted = REFERENCES[case]
    assert re.search(wanted, refusal(capsys, home / "made", "--reference", as_npz(tmp_path / "x.npz", **arrays)))


@pytest.mark.parametrize("pack", [np.savez, np.savez_compressed], ids=["stored", "packed"])
def test_a_truncated_npz_is_refused(tmp_path, pack, capsys):
    path = as_npz(tmp_path / "x.npz", pack, arr_0=MADE)
    path.write_bytes(path.read_bytes()[:-1000])
    assert re.search(r"x\.npz: not an npz that can be read \(.*\); get or save it again", refusal(capsys, path))


def test_damage_within_a_packed_npz_is_told_when_it_is_read(tmp_path):
    path = as_npz(tmp_path / "x.npz", np.savez_compressed, arr_0=MADE)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"x\.npz: damaged \(.+\); get it again"):
        npz_rows(path, "arr_0")[np.arange(COUNT)]


@pytest.mark.parametrize("shards", ["null", "[1]", '"abc"'])
def test_an_index_of_something_else_is_refused_in_a_line(shards, tmp_path):
    (tmp_path / "index.json").write_text(f'{{"shards": {shards}}}')
    with pytest.raises(UserError, match=r"holds no images|1: No such file"):
        opened(tmp_path)


def test_a_pickle_is_refused_with_the_reason(home, tmp_path, capsys):
    (tmp_path / "x.pkl").write_bytes(b"")
    line = refusal(capsys, home / "made", "--reference", tmp_path / "x.pkl")
    assert "x.pkl: a pickle can run code when it is read" in line


def test_an_empty_folder_and_no_folder_are_refused(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert "empty: holds no images; name a folder of PNG files" in refusal(capsys, tmp_path / "empty")
    assert "none: no such file or folder" in refusal(capsys, tmp_path / "none")


def test_images_of_another_size_than_the_reference_s_are_refused(home, tmp_path, capsys):
    other = as_npz(tmp_path / "x.npz", arr_0=images_of(0, side=64))
    assert re.search(
        r"sizes differ: .*made 32 x 32 and .*x\.npz 64 x 64 pixels", refusal(capsys, home / "made", "--reference", other)
    )


def test_fewer_images_than_neighbours_are_refused_before_the_network_sees_one(home, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Extractor, "see", None)
    few = as_npz(tmp_path / "x.npz", arr_0=MADE[:5])
    for words in ((few, "--reference", home / "real"), (home / "made", "--reference", few)):
        assert "x.npz: 5 images are too few for 5 neighbours; add images, to 6 at least" in refusal(capsys, *words)


def test_features_of_another_network_are_refused(home, tmp_path, capsys):
    facts = {"family": "dinov2", "extractor_sha256": "0" * 64, "resize": "", "images": 9}
    other = as_npz(tmp_path / "x.npz", features=np.zeros((9, 8), np.float32), facts=np.array(json.dumps(facts)))
    assert "x.npz: made with other weights, of dinov2" in refusal(capsys, home / "made", "--reference", other)


def test_features_of_another_network_are_refused_before_weights_are_downloaded(home, tmp_path, monkeypatch, capsys):
    assert main(["score", str(home / "real"), *FIXED, "--save-features", str(tmp_path / "x.npz")]) == 0
    monkeypatch.setattr(score, "weights_of", None)
    assert main(["score", str(home / "made"), "--reference", str(tmp_path / "x.npz")]) == 2
    assert "x.npz: made with other weights, of mobilenet-v2; set --extractor to that" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["made/00003.png", "x.npz"])
def test_a_file_that_may_not_be_read_is_not_called_damaged(name, home, tmp_path, monkeypatch, capsys):
    as_folder(tmp_path / "made", MADE)
    as_npz(tmp_path / "x.npz", arr_0=MADE)
    closed, ways = tmp_path / name, (Path.open, io.open)

    def opening(way):
        def opened(file, *words, **options):
            if Path(file) == closed:
                raise PermissionError(errno.EACCES, "Permission denied", str(file))
            return way(file, *words, **options)

        return opened

    monkeypatch.setattr(Path, "open", opening(ways[0]))
    monkeypatch.setattr(io, "open", opening(ways[1]))
    line = refusal(capsys, tmp_path / name.partition("/")[0])
    assert f"{closed}: Permission denied" in line
    assert "damaged" not in line
    assert "save it again" not in line


def test_features_that_are_not_finite_are_refused(tmp_path):
    outputs = {"features": np.full((9, 4), np.nan, np.float32)}
    with pytest.raises(UserError, match="x: features of 9 images are not finite"):
        score.summary(Source(tmp_path / "x", 9, outputs=outputs), {})


def test_files_are_saved_of_one_set_of_images_only(home, tmp_path, capsys):
    out = tmp_path / "x.npz"
    assert "is made of the images of one set" in refusal(capsys, home / "made", home / "real", "--save-features", out)
    assert "no such file" not in refusal(capsys, home / "made", home / "real", "--save-statistics", out)
    assert not out.exists()


def test_a_folder_is_no_file_to_save_features_in(home, capsys):
    for option in ("--save-features", "--save-statistics"):
        line = refusal(capsys, home / "made", option, home / "real")
        assert line == f"maskdit: {home / 'real'}: is a folder; name a file, as {home / 'real' / 'features.npz'}"


def test_dinov2_without_its_weights_is_refused_by_what_it_needs(home, capsys):
    assert main(["score", str(home / "made"), "--extractor", "dinov2"]) == 2
    assert "name its weights by --weights, model.safetensors of timm's" in capsys.readouterr().err


def test_the_order_of_a_folder_is_that_of_its_paths_and_of_an_npz_tells_classes(tmp_path):
    shutil.copytree(as_folder(tmp_path / "x" / "b", MADE[:2]), tmp_path / "x" / "a")
    found = opened(tmp_path / "x")
    assert found.by_class
    assert [str(file.relative_to(tmp_path / "x")) for file in found.pixels.files] == [
        f"{name}/{number:05d}.png" for name in "ab" for number in range(2)
    ]
    for labels, ordered in (([0, 0, 1, 1], True), ([0, 1, 0, 1], False), ([2, 2, 2, 2], False)):
        for kind in (int, np.uint8, str):
            assert opened(as_npz(tmp_path / "y.npz", arr_0=MADE[:4], arr_1=np.array(labels, kind))).by_class == ordered
