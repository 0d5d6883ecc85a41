"""Latents on disk: what is drawn from them, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from maskdit.artifacts.atomic import read_json, write_json
from maskdit.config.base import UserError
from maskdit.latents.dataset import Latents, Space


@pytest.fixture(params=["mapped", "read"])
def latents(tmp_path, monkeypatch, request):
    monkeypatch.setenv("MASKDIT_MMAP", "01"[request.param == "mapped"])
    moments = np.random.default_rng(0).normal(size=(5, 2, 4, 3, 3)).astype(np.float16)
    np.save(tmp_path / "moments-0000.npy", moments[:2])
    np.save(tmp_path / "moments-0001.npy", moments[2:])
    np.save(tmp_path / "labels.npy", np.arange(5))
    space = Space(2, 3, (0.5, -1.0), (2.0, 0.25), "vae", ("a",))
    shards = [{"file": f"moments-000{number}.npy", "count": count} for number, count in enumerate((2, 3))]
    write_json(tmp_path / "index.json", {"shape": moments.shape, "space": space.__dict__, "shards": shards})
    return tmp_path, moments.astype(np.float32)


def test_a_latent_is_drawn_from_its_posterior_then_shifted_and_scaled(latents):
    folder, moments = latents
    normal = np.random.default_rng(1).normal(size=(3, 2, 3, 3)).astype(np.float32)
    found = Latents.load(folder).draw(np.array([4, 0, 2]), np.array([1, 0, 1]), normal)
    for place, (row, mirror) in enumerate([(4, 1), (0, 0), (2, 1)]):
        for channel, (shift, scale) in enumerate([(0.5, 2.0), (-1.0, 0.25)]):
            mean, logvar = moments[row, mirror, channel], moments[row, mirror, 2 + channel]
            wanted = (mean + np.exp(logvar / 2) * normal[place, channel] - shift) * scale
            np.testing.assert_allclose(found[place, channel], wanted, rtol=1e-5)


def test_moments_of_another_shape_than_the_index_says_are_refused(latents):
    folder, _ = latents
    np.save(folder / "moments-0001.npy", np.zeros((3, 2, 2, 3, 3), np.float16))
    with pytest.raises(UserError, match="run encode again"):
        Latents.load(folder)


def test_a_boundless_variance_is_bounded(latents):
    folder, moments = latents
    moments[0, 0, 2:] = 60_000
    np.save(folder / "moments-0000.npy", moments[:2].astype(np.float16))
    found = Latents.load(folder).draw(np.array([0]), np.array([0]), np.ones((1, 2, 3, 3), np.float32))
    np.testing.assert_allclose(found[0, 0], (moments[0, 0, 0] + np.exp(10) - 0.5) * 2, rtol=1e-5)


def test_latents_with_another_index_have_another_identity(latents):
    folder, _ = latents
    before, index = Latents.load(folder).sha256, read_json(folder / "index.json")
    write_json(folder / "index.json", {**index, "dtype": "another"})
    assert Latents.load(folder).sha256 != before


def test_a_batch_is_read_from_any_shards_in_its_own_order(latents):
    folder, moments = latents
    rows, mirrors = np.array([4, 0, 3, 1, 4]), np.array([0, 1, 1, 0, 1])
    np.testing.assert_array_equal(Latents.load(folder).read(rows, mirrors).astype(np.float32), moments[rows, mirrors])
    with pytest.raises(IndexError):
        Latents.load(folder).read(np.array([5]), np.array([0]))


@pytest.mark.parametrize("mapped", [True, False])
def test_a_shard_is_mapped_unless_one_asks_for_none_of_it(latents, monkeypatch, mapped):
    folder, _ = latents
    monkeypatch.setenv("MASKDIT_MMAP", "01"[mapped])
    found = Latents.load(folder)
    found.read(np.arange(5), np.zeros(5, int))
    assert (f"{folder}/moments-0001.npy" in Path("/proc/self/maps").read_text()) == mapped


@pytest.mark.parametrize("cuts", [[], [1], [7, 7, 120], list(range(1, 200))], ids=["one", "two", "an empty one", "two hundred"])
@pytest.mark.parametrize("batch", [1, 64, 130, 500])
def test_reading_is_plain_indexing_however_the_moments_are_cut(cuts, batch):
    rng = np.random.default_rng(0)
    moments = rng.normal(size=(200, 2, 4, 3, 3)).astype(np.float16)
    latents = Latents.of(np.split(moments, cuts), np.arange(200), Space(2, 3, (0.0,) * 2, (1.0,) * 2, "vae", ("a",)))
    rows, mirrors = rng.integers(200, size=batch), rng.integers(2, size=batch)
    np.testing.assert_array_equal(latents.read(rows, mirrors), moments[rows, mirrors])
    assert latents.mirrors == 2


@pytest.mark.parametrize("row", [-1, 200])
def test_a_sample_that_is_not_there_is_an_error(row):
    moments = np.zeros((200, 1, 4, 3, 3), np.float16)
    latents = Latents.of(np.split(moments, [50]), np.arange(200), Space(2, 3, (0.0,) * 2, (1.0,) * 2, "vae", ("a",)))
    with pytest.raises(IndexError):
        latents.read(np.array([row]), np.array([0]))


def test_a_shard_that_is_cut_or_missing_is_named(latents):
    folder, _ = latents
    path = folder / "moments-0001.npy"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"moments-0001\.npy: cannot be read .* rerun the step"):
        Latents.load(folder)
    path.unlink()
    with pytest.raises(UserError, match=r"moments-0001\.npy: No such file or directory"):
        Latents.load(folder)
