"""Latents: the same bits however the work is cut, from images or from what others have encoded."""

import io
import pickle
import tarfile
import time

import lmdb
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from maskdit import runtime
from maskdit.config import DownloadedVae, Encode, Reconstruct, UserError
from maskdit.data import Images
from maskdit.encode import encode
from maskdit.fetch import fetch
from maskdit.files import read_json, save_array, sha256, write_json
from maskdit.latents import Latents
from maskdit.params import load
from maskdit.published_latents import Webdataset, unpickled
from maskdit.reconstruct import reconstruct
from maskdit.similarity import ssim
from maskdit.vae import vae
from project import ROOT

CONFIG = Encode(dataset="x", vae="x", batch=3, mirror=True)


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKDIT_SCRATCH", str(tmp_path / "scratch"))


@pytest.fixture
def home(tmp_path):
    """Eleven images, one held out, and a small autoencoder in diffusers' layout."""
    pixels = np.random.default_rng(0).integers(0, 256, (11, 16, 16, 3), np.uint8)
    images = tmp_path / "images"
    images.mkdir()
    Images(pixels, np.arange(11) % 3, np.arange(11) == 4, ("a", "b", "c")).save(images)
    (images / "manifest.json").write_text("images")
    autoencoder(tmp_path / "vae", scaling_factor=1.0)
    return tmp_path


def autoencoder(folder, **changes):
    torch.manual_seed(0)
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    AutoencoderKL(block_out_channels=(8, 8), latent_channels=4, norm_num_groups=4, **kinds, **changes).save_pretrained(folder)


def encoded(home, name, config=CONFIG, vae="vae", images="images"):
    out = home / name
    out.mkdir()
    encode(config, images=home / images, vae=home / vae, out=out)
    return out


def whole(folder):
    data = Latents.load(folder)
    rows = np.repeat(np.arange(len(data.labels)), data.mirrors)
    return data.read(rows, np.arange(len(rows)) % data.mirrors), data


def test_moments_are_those_of_the_autoencoder_for_the_image_and_its_mirror(home):
    moments, data = whole(encoded(home, "out"))
    net = AutoencoderKL.from_pretrained(home / "vae")
    images = Images.load(home / "images")
    rows = images.rows(heldout=False)
    clean = torch.from_numpy(images.pixels[rows]).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.inference_mode():
        for place, view in enumerate((clean, clean.flip(-1))):
            wanted = net.encode(view).latent_dist.parameters.numpy()
            np.testing.assert_allclose(moments[place::2].astype(np.float32), wanted, rtol=2e-3, atol=1e-3)
    assert list(data.labels) == list(images.labels[rows])
    drawn = data.draw(np.arange(10), np.zeros(10, int), np.random.default_rng(0).standard_normal((10, 4, 8, 8), np.float32))
    assert drawn.std() == pytest.approx(0.5, rel=0.05)
    assert abs(drawn.mean()) < 0.02


def test_any_shards_and_any_order_of_their_making_give_the_same_bits(home, monkeypatch):
    one, data = whole(encoded(home, "one"))
    three = CONFIG.model_copy(update={"shards": 3})
    for part in ((3, 3), (1, 3)):
        monkeypatch.setattr(runtime, "PART", part)
        encode(three, images=home / "images", vae=home / "vae", out=home / "nothing")
        assert not (home / "nothing").exists()
    kept = sorted(path.name for folder in (home / "scratch").iterdir() for path in folder.iterdir())
    assert kept == ["part-0000", "part-0002"]
    monkeypatch.setattr(runtime, "PART", None)
    other, again = whole(encoded(home, "three", three))
    np.testing.assert_array_equal(one, other)
    assert again.space.scale == pytest.approx(data.space.scale, rel=1e-12)
    assert read_json(home / "three" / "index.json")["shards"][1]["sha256"] == sha256(home / "three" / "moments-0001.npy")
    assert not list((home / "scratch").iterdir())


def test_an_interrupted_encoding_goes_on_with_the_shards_that_are_there(home, monkeypatch):
    three = CONFIG.model_copy(update={"shards": 3})
    monkeypatch.setattr(runtime, "PART", (1, 3))
    encode(three, images=home / "images", vae=home / "vae", out=home / "nothing")
    monkeypatch.setattr(runtime, "PART", None)
    made = []
    real = AutoencoderKL.encode
    monkeypatch.setattr(AutoencoderKL, "encode", lambda self, view: (made.append(len(view)), real(self, view))[1])
    encoded(home, "out", three)
    assert len(made) == 4, "two shards of a batch are left, each in two mirrors"


def test_a_shard_of_other_images_is_never_taken(home, monkeypatch):
    two = CONFIG.model_copy(update={"shards": 2})
    monkeypatch.setattr(runtime, "PART", (1, 2))
    encode(two, images=home / "images", vae=home / "vae", out=home / "nothing")
    monkeypatch.setattr(runtime, "PART", None)
    [part] = (home / "scratch").glob("*/part-0000")
    save_array(part / "rows.npy", np.array([0, 1, 2, 3, 3]))
    with pytest.raises(UserError, match="or one twice; remove the folder and encode again"):
        encoded(home, "out", two)


def test_a_published_autoencoder_keeps_its_published_scale(home):
    autoencoder(home / "sd", scaling_factor=0.18215)
    space = whole(encoded(home, "out", vae="sd"))[1].space
    assert (space.scale, space.shift) == ((0.18215,) * 4, (0.0,) * 4)


def test_a_downloaded_autoencoder_is_checked_and_taken_over(home):
    name = "diffusion_pytorch_model.safetensors"
    write_json(home / "vae" / "index.json", {"kind": "autoencoder", "url": "u", "sha256": sha256(home / "vae" / name)})
    (home / "out").mkdir()
    vae(DownloadedVae(source="download", dataset="x", factor=2, latent_channels=4), images=home / "vae", out=home / "out")
    assert sha256(home / "out" / name) == sha256(home / "vae" / name)
    with pytest.raises(UserError, match="2 pixels a latent and 4 channels, vae declares 8 and 4"):
        vae(DownloadedVae(source="download", dataset="x", factor=8, latent_channels=4), images=home / "vae", out=home / "out")
    (home / "vae" / name).write_bytes(b"cut")
    with pytest.raises(UserError, match="not the autoencoder that was fetched"):
        vae(DownloadedVae(source="download", dataset="x", factor=2, latent_channels=4), images=home / "vae", out=home / "out")


MOMENTS = np.random.default_rng(1).normal(size=(7, 8, 2, 2)).astype(np.float32)


def lay_lmdb(root, length=7):
    root.mkdir()
    with lmdb.open(str(root), map_size=2**24) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"length", str(length).encode())
        for number, moments in enumerate(MOMENTS):
            transaction.put(f"z-{number}".encode(), moments.tobytes())
            transaction.put(f"y-{number}".encode(), str(number % 3).encode())


def lay_tars(root, pickled=lambda moments: pickle.dumps(moments)):
    root.mkdir()
    for shard, numbers in enumerate(([0, 1, 2, 3], [4, 5, 6])):
        with tarfile.open(root / f"latent-{shard:04d}.tar", "w") as tar:
            for number in numbers:
                for suffix, data in (("latent", pickled(MOMENTS[number])), ("cls", str(number % 3).encode())):
                    member = tarfile.TarInfo(f"{number:07d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize(("form", "lay"), [("lmdb", lay_lmdb), ("webdataset", lay_tars)])
def test_published_latents_are_converted_into_the_same_shards(home, form, lay):
    lay(home / "theirs")
    index = {"kind": "latents", "format": form, "root": str(home / "theirs"), "images": 7, "resolution": 16, "classes": list("abc")}
    (home / "raw").mkdir()
    write_json(home / "raw" / "index.json", index)
    (home / "raw" / "manifest.json").write_text("raw")
    plain = CONFIG.model_copy(update={"mirror": False, "shards": 2})
    moments, data = whole(encoded(home, "out", plain, images="raw"))
    np.testing.assert_array_equal(moments, MOMENTS.astype(np.float16))
    assert list(data.labels) == [0, 1, 2, 0, 1, 2, 0]
    with pytest.raises(UserError, match="hold no mirrors"):
        encoded(home, "mirrored", images="raw")
    write_json(home / "raw" / "index.json", {**index, "images": 8})
    with pytest.raises(UserError, match=r"holds 7 latents, .* declares 8"):
        encoded(home, "count", plain, images="raw")


@pytest.mark.parametrize("protocol", range(2, 6))
def test_an_array_is_read_from_any_pickle_without_running_it(protocol):
    if protocol == 2:
        with pytest.raises(UserError, match="holds not one float32 array"):
            unpickled(pickle.dumps(MOMENTS[0], 2), (8, 2, 2), "x")  # bytes as text, which no file of theirs has
    else:
        np.testing.assert_array_equal(unpickled(pickle.dumps(MOMENTS[0], protocol), (8, 2, 2), "x"), MOMENTS[0])


class Bomb:
    def __reduce__(self):
        return (open, ("executed", "w"))


@pytest.mark.parametrize(
    "data", [pickle.dumps(Bomb()), pickle.dumps([MOMENTS[0], MOMENTS[1]]), b"", b"\x80\x04x", pickle.dumps(MOMENTS[0].astype(int))]
)
def test_a_hostile_pickle_is_refused_and_not_run(tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    lay_tars(tmp_path / "theirs", lambda moments: data)
    with pytest.raises(UserError) as refusal:
        Webdataset(tmp_path / "theirs", (8, 2, 2)).read(np.arange(1))
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "executed").exists()


def test_random_batches_are_read_many_times_faster_than_by_the_published_reader(tmp_path):
    shape, count, size = (8, 32, 32), 2048, 1024
    numbers = np.random.default_rng(0).normal(size=(count, *shape)).astype(np.float32)
    with lmdb.open(str(tmp_path / "lmdb"), map_size=2**28) as environment, environment.begin(write=True) as transaction:
        for number in range(count):
            transaction.put(f"z-{number}".encode(), numbers[number].tobytes())
            transaction.put(f"y-{number}".encode(), b"1")
    folder = tmp_path / "ours"
    folder.mkdir()
    np.save(folder / "moments-0000.npy", numbers[:, None].astype(np.float16))
    np.save(folder / "labels.npy", np.ones(count, int))
    space = {"channels": 4, "side": 32, "shift": [0.0] * 4, "scale": [1.0] * 4, "vae": "", "classes": ["a"]}
    shards = [{"file": "moments-0000.npy", "count": count}]
    write_json(folder / "index.json", {"shape": [count, 1, *shape], "space": space, "shards": shards})
    data, environment = Latents.load(folder), lmdb.open(str(tmp_path / "lmdb"), readonly=True, lock=False)

    def theirs(row):  # as a data set that opens a transaction for each value, one sample at a time
        with environment.begin(write=False, buffers=True) as transaction:
            moments = np.frombuffer(transaction.get(f"z-{row}".encode()), np.float32).reshape(shape).copy()
            label = int(bytes(transaction.get(f"y-{row}".encode())))
        return torch.from_numpy(moments), label

    def clock(once):
        began = time.perf_counter()
        once()
        return time.perf_counter() - began

    ratios = []
    for seed in range(6):
        rows = np.random.default_rng(seed).permutation(count)[:size]
        ours = clock(lambda: data.read(rows, np.zeros(size, int)))  # noqa: B023
        other = clock(lambda: torch.stack([theirs(row)[0] for row in rows]))  # noqa: B023
        ratios.append(other / ours)
    environment.close()
    print(f"ratio {np.median(ratios):.1f}")
    assert np.median(ratios) > 3


@pytest.fixture
def judge(home):
    """MobileNetV2, as fetch lays it."""
    folder = home / "extractor"
    folder.mkdir()
    fetch(load(ROOT / "params.yaml").fetch["demo-features"], out=folder)
    return folder


def reconstructed(home, judge, **changes):
    entry = {"bench": "x", "dataset": "x", "vae": "x", "extractor": "x", "posterior": "mean", "batch": 3, "shards": 2, "seed": 0}
    out = home / f"{len(list(home.glob('*.json')))}.json"
    reconstruct(Reconstruct(**entry | changes), images=home / "many", vae=home / "vae", extractor=judge, out=out)
    return read_json(out)


def test_held_out_images_are_reconstructed_and_compared_with_themselves(home, judge):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), np.uint8)
    (home / "many").mkdir()
    Images(pixels, np.zeros(9, int), np.arange(9) > 1, ("a",)).save(home / "many")
    (home / "many" / "manifest.json").write_text("many")
    record = reconstructed(home, judge)
    net = AutoencoderKL.from_pretrained(home / "vae")
    clean = torch.from_numpy(pixels[2:]).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.inference_mode():
        made = net.decode(net.encode(clean).latent_dist.mean).sample
    levels = ((made.clamp(-1, 1) + 1) * 127.5).round()
    error = (levels - (clean + 1) * 127.5).square().mean((1, 2, 3))
    assert record["metrics"]["psnr"] == pytest.approx((10 * torch.log10(255**2 / error)).mean().item(), rel=1e-3)
    assert set(record["metrics"]) == {"rfd_mobilenet", "psnr", "ssim"}
    assert record["metrics"]["rfd_mobilenet"] > 0
    assert (record["protocol"]["images"], record["protocol"]["against"]) == (7, "the same images")
    parts = reconstructed(home, judge, shards=3)
    assert parts["metrics"] == pytest.approx(record["metrics"], rel=1e-4)
    one, same, other = (reconstructed(home, judge, posterior="sample", seed=seed)["metrics"]["psnr"] for seed in (0, 0, 1))
    assert one == same != other


def test_similarity_is_1_for_equal_images_and_the_formula_for_others():
    source = np.random.default_rng(0)
    one, other = (source.integers(0, 256, (2, 11, 11, 3), np.uint8) for _ in range(2))
    both = [torch.from_numpy(pixels) for pixels in (one, other)]
    assert ssim(both[0], both[0]).tolist() == pytest.approx([1, 1])
    places = np.arange(11) - 5
    weights = np.exp(-(places[:, None] ** 2 + places[None] ** 2) / (2 * 1.5**2))
    weights = weights / weights.sum()
    wanted = []
    for x, y in zip(one.astype(float), other.astype(float), strict=True):
        parts = []
        for channel in range(3):
            a, b = x[..., channel], y[..., channel]
            ma, mb = (weights * a).sum(), (weights * b).sum()
            va, vb, cov = ((weights * p * q).sum() - m for p, q, m in ((a, a, ma**2), (b, b, mb**2), (a, b, ma * mb)))
            c1, c2 = 2.55**2, 7.65**2
            parts.append((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
        wanted.append(np.mean(parts))
    np.testing.assert_allclose(ssim(*both).numpy(), wanted, rtol=1e-9)
