"""Encoding: moments are a function of the image alone, in any number of shards, by any number of processes."""

import errno
import json
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from maskdit.artifacts import publish
from maskdit.artifacts.atomic import read_json, sha256, write_json
from maskdit.artifacts.publish import publishing
from maskdit.config.base import UserError
from maskdit.config.images import VAE_WEIGHTS
from maskdit.latents import autoencoder, encode
from maskdit.latents.dataset import Latents
from maskdit.runtime import environment
from small import TRAINED, encoded, images, make_vae, vae  # noqa: F401, fixtures


def homes(folder):
    """Folders of shards for artifacts in this folder."""
    return sorted(folder.glob(".encode-*"))


def moments(folder):
    return np.concatenate([np.load(folder / shard["file"]) for shard in read_json(folder / "index.json")["shards"]])


@pytest.fixture
def whole(images, vae, tmp_path):
    encoded(images, vae, tmp_path / "whole", shards=1)
    return moments(tmp_path / "whole")


def test_moments_are_those_of_a_plain_loop_over_images_and_their_mirror_images(images, vae, whole):
    net = autoencoder.load(vae, torch.device("cpu"))
    pixels = np.load(images / "images.npy")[TRAINED]
    assert whole.shape == (20, 2, 4, 4, 4)
    for mirror, view in enumerate((pixels, pixels[:, :, ::-1])):
        clean = torch.from_numpy(view.transpose(0, 3, 1, 2) / np.float32(127.5) - np.float32(1))
        wanted = torch.cat([net.encode(image[None]).latent_dist.parameters for image in clean])
        np.testing.assert_allclose(whole[:, mirror], wanted.numpy(), atol=2e-3)
    assert np.abs(whole[:, 1].astype(np.float32) - whole[:, 0, :, :, ::-1]).max() > 0.01, "a flipped latent is another one"


def test_samples_of_the_posteriors_have_mean_0_and_standard_deviation_a_half(images, vae, tmp_path):
    encoded(images, vae, tmp_path / "out", shards=3)
    mean, logvar = np.split(moments(tmp_path / "out").astype(np.float64), 2, axis=2)
    space = Latents.load(tmp_path / "out").space
    for channel in range(2):
        variance = mean[:, :, channel].var() + np.exp(logvar[:, :, channel]).mean()
        assert space.shift[channel] == pytest.approx(mean[:, :, channel].mean(), rel=1e-12)
        assert space.scale[channel] == pytest.approx(0.5 / np.sqrt(variance), rel=1e-12)


@pytest.mark.parametrize("name", ["0.18215", "left out, as in SD's file"])
def test_a_published_autoencoder_brings_its_scale(images, vae, tmp_path, name):
    sd = make_vae(tmp_path / "sd")
    config = json.loads((sd / "config.json").read_text()) | {"scaling_factor": 0.18215}
    if name != "0.18215":
        del config["scaling_factor"]
    (sd / "config.json").write_text(json.dumps(config))
    encoded(images, sd, tmp_path / "out")
    space = Latents.load(tmp_path / "out").space
    assert (space.scale, space.shift) == ((0.18215, 0.18215), (0.0, 0.0))


@pytest.mark.parametrize("shards", [2, 5, 20])
def test_moments_are_the_same_bits_in_any_shards(images, vae, whole, tmp_path, shards):
    encoded(images, vae, tmp_path / "out", shards=shards)
    np.testing.assert_array_equal(moments(tmp_path / "out").view(np.uint16), whole.view(np.uint16))
    index = read_json(tmp_path / "out" / "index.json")
    assert [shard["sha256"] for shard in index["shards"]] == [sha256(tmp_path / "out" / shard["file"]) for shard in index["shards"]]
    assert (index["shape"], index["dtype"], len(index["shards"])) == ([20, 2, 4, 4, 4], "float16", shards)
    assert index["space"]["vae"] == autoencoder.identity(vae)


def test_moments_are_the_same_bits_by_any_processes_in_any_order(images, vae, whole, tmp_path, monkeypatch):
    for part in ((3, 3), (1, 3), (3, 3), (2, 3)):
        monkeypatch.setattr(environment, "PART", part)
        encoded(images, vae, tmp_path / "out")
        assert not any((tmp_path / "out").iterdir()), "a part publishes nothing"
    monkeypatch.setattr(environment, "PART", None)
    monkeypatch.setattr(encode, "store", None)  # nothing is left to make
    encoded(images, vae, tmp_path / "out")
    found = Latents.load(tmp_path / "out")
    rows, mirrors = np.random.default_rng(0).permutation(20), np.arange(20) % 2
    np.testing.assert_array_equal(found.read(rows, mirrors).view(np.uint16), whole[rows, mirrors].view(np.uint16))
    np.testing.assert_array_equal(found.labels, TRAINED % 3)
    assert not homes(tmp_path), "what is published needs no shards"


def test_what_was_finished_before_a_kill_is_not_made_again(images, vae, whole, tmp_path, monkeypatch):
    real, stored = encode.store, []

    def dying(folder, rows, made):
        def cut(batches):
            yield next(batches)
            raise KeyboardInterrupt

        stored.append(rows.tolist())
        real(folder, rows, cut(made) if len(stored) == 3 else made)

    monkeypatch.setattr(encode, "store", dying)
    with pytest.raises(KeyboardInterrupt):
        encoded(images, vae, tmp_path / "out", batch=2)
    made = [path.name for path in homes(tmp_path)[0].glob("part-*")]
    assert sorted(made) == ["part-0000", "part-0001"], "a half of a part is no part"
    monkeypatch.setattr(encode, "store", lambda folder, rows, made: (stored.append(rows.tolist()), real(folder, rows, made)))
    encoded(images, vae, tmp_path / "out", batch=2)
    assert stored == [part.tolist() for part in np.split(TRAINED, 5)[:3] + np.split(TRAINED, 5)[2:]]
    difference = np.abs(moments(tmp_path / "out").astype(np.float32) - whole.astype(np.float32))
    assert difference.max() < 2e-3  # batches of another size


@pytest.fixture
def parts(images, vae, tmp_path, monkeypatch):
    """The folder of five finished parts, which nobody has taken yet."""
    monkeypatch.setattr(environment, "PART", (1, 1))
    encoded(images, vae, tmp_path / "out")
    monkeypatch.setattr(environment, "PART", None)
    return homes(tmp_path)[0]


@pytest.mark.parametrize("name", ["moments.npy", "labels.npy", "facts.json"])
def test_a_part_damaged_before_it_is_published_is_named_and_made_again(images, vae, whole, parts, tmp_path, name, capsys):
    path = parts / "part-0003" / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    encoded(images, vae, tmp_path / "out")
    assert f"{path.parent}: damaged since it was made" in capsys.readouterr().err
    np.testing.assert_array_equal(moments(tmp_path / "out"), whole)


@pytest.mark.parametrize("change", ["the images", "the autoencoder", "the batch"])
def test_parts_of_another_making_are_not_taken(images, vae, parts, tmp_path, monkeypatch, change):
    monkeypatch.setattr(environment, "PART", (1, 1))
    if change == "the images":
        (copy := tmp_path / "others").mkdir()
        for file in images.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        write_json(copy / "manifest.json", {"of": "other images"})
        encoded(copy, vae, tmp_path / "out")
    elif change == "the autoencoder":
        other = make_vae(tmp_path / "other")
        tensors = load_file(other / VAE_WEIGHTS)
        save_file({name: tensor + 0.01 for name, tensor in tensors.items()}, other / VAE_WEIGHTS)
        encoded(images, other, tmp_path / "out")
    else:
        encoded(images, vae, tmp_path / "out", batch=5)
    assert len(homes(tmp_path)) == 2


def held(folder, pattern="*"):
    """Bytes of the files below a folder; one with two names counts once."""
    found = {(file.stat().st_dev, file.stat().st_ino): file.stat().st_size for file in folder.rglob(pattern) if file.is_file()}
    return sum(found.values())


@pytest.mark.parametrize("links", [True, False])
def test_the_disk_never_holds_the_moments_twice(images, vae, whole, tmp_path, monkeypatch, links):
    real, seen, home = publish.sync, [], tmp_path / "artifacts"
    if not links:
        monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "no hard links here")))
    with publishing(home / "out", "encode/toy", {}, {}) as place:
        monkeypatch.setattr(publish, "sync", lambda path: (seen.append(held(home, "moments*")), real(path)))
        encoded(images, vae, place, shards=2, tidy=False)
    environment.tidy()
    found = Latents.load(home / "out")
    np.testing.assert_array_equal(found.read(np.arange(20), np.zeros(20, int)), whole[:, 0])
    assert not any(path.is_symlink() for path in (home / "out").iterdir())
    assert [path.name for path in home.iterdir()] == ["out"]
    assert len(seen) > 4
    assert set(seen) == {held(home, "moments*")}


def test_a_disk_without_room_for_all_moments_is_told_before_the_first_image(images, vae, tmp_path, monkeypatch):
    need = 20 * 2 * 4 * 4 * 4 * 2
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=need - 1))
    with pytest.raises(
        UserError, match=rf"^{tmp_path}: encode needs {need} bytes more, but {need - 1} bytes are free; .* larger disk$"
    ):
        encoded(images, vae, tmp_path / "out")
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=need))
    monkeypatch.setattr(environment, "PART", (1, 2))
    encoded(images, vae, tmp_path / "out")
    made = held(homes(tmp_path)[0])
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=need - made))
    monkeypatch.setattr(environment, "PART", None)
    encoded(images, vae, tmp_path / "out")  # three of the five parts are there


def test_an_image_whose_moments_are_no_numbers_is_named(images, tmp_path):
    broken = make_vae(tmp_path / "broken")
    tensors = load_file(broken / VAE_WEIGHTS)
    tensors["quant_conv.bias"][0] = 1e6  # beyond float16
    save_file(tensors, broken / VAE_WEIGHTS)
    with pytest.raises(UserError, match="the moments of image 1 do not fit float16"):
        encoded(images, broken, tmp_path / "out")


def test_more_shards_than_images_are_refused(images, vae, tmp_path):
    with pytest.raises(UserError, match=r"encode\.shards: 21 shards for 20 images"):
        encoded(images, vae, tmp_path / "out", shards=21)


def test_a_part_is_written_in_the_memory_of_a_batch(tmp_path):
    batch = np.random.default_rng(0).normal(size=(16, 1, 8, 32, 32)).astype(np.float16)  # 256 KiB
    tracemalloc.start()
    try:
        encode.store(tmp_path / "part", np.arange(16 * 200), ((batch + np.float16(0), np.zeros(16, int)) for _ in range(200)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert np.load(tmp_path / "part" / "moments.npy").nbytes == 200 * batch.nbytes
    assert peak < 40 * batch.nbytes
