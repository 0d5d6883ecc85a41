"""Formats on disk, and randomness that is a function of its arguments."""

import numpy as np
import pytest

from maskdit.config import UserError
from maskdit.data import Images, generator, order
from maskdit.files import read_json, write_json
from maskdit.latents import Latents, Space


def test_each_pass_visits_every_sample_once_in_another_order():
    visited = order(0, 10, 0, 30).reshape(3, 10)
    assert all(sorted(row) == list(range(10)) for row in visited.tolist())
    assert not np.array_equal(visited[0], visited[1])
    assert not np.array_equal(visited[0], order(1, 10, 0, 10))


@pytest.mark.parametrize("batch", [1, 3, 7, 10, 25])
def test_the_order_does_not_depend_on_how_it_is_cut(batch):
    pieces = [order(5, 10, start, min(start + batch, 40)) for start in range(0, 40, batch)]
    np.testing.assert_array_equal(np.concatenate(pieces), order(5, 10, 0, 40))


def test_a_draw_is_a_function_of_seed_purpose_step_and_index():
    base = generator(0, "a", 1, 2).random(4)
    np.testing.assert_array_equal(base, generator(0, "a", 1, 2).random(4))
    for other in ((1, "a", 1, 2), (0, "b", 1, 2), (0, "a", 2, 2), (0, "a", 1, 3), (0, "a", 2, 1)):
        assert not np.array_equal(base, generator(*other).random(4))


@pytest.mark.parametrize("other", [(0, 1), (1, 0)], ids=["index", "step"])
def test_long_draws_of_neighbours_do_not_overlap(other):
    first, second = (generator(0, "a", *place).random(10_000) for place in ((0, 0), other))
    assert not np.isin(first, second).any()


def test_images_come_back_as_they_were_saved(tmp_path):
    pixels = np.arange(4 * 2 * 2 * 3, dtype=np.uint8).reshape(4, 2, 2, 3)
    Images(pixels, np.array([0, 1, 1, 0]), np.array([False, True, False, False]), ("a", "b")).save(tmp_path)
    again = Images.load(tmp_path)
    assert again.classes == ("a", "b")
    np.testing.assert_array_equal(again.pixels[again.rows(heldout=False)], pixels[[0, 2, 3]])
    np.testing.assert_array_equal(again.labels[again.rows(heldout=True)], [1])


@pytest.fixture
def latents(tmp_path):
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
    with pytest.raises(UserError, match="encode it again"):
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


@pytest.mark.parametrize("pack", [np.savez, np.savez_compressed], ids=["stored", "compressed"])
def test_a_batch_of_adm_s_evaluator_is_read_as_images(tmp_path, pack):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 6, 3), np.uint8)
    pack(tmp_path / "batch.npz", pixels, mu=np.zeros(3))
    write_json(tmp_path / "index.json", {"kind": "npz", "shape": [4, 6, 6, 3]})
    images = Images.load(tmp_path)
    np.testing.assert_array_equal(images.pixels[np.array([3, 1])], pixels[[3, 1]])
    assert list(images.labels) == [-1] * 4


def test_what_is_not_images_is_refused_as_images(tmp_path):
    write_json(tmp_path / "index.json", {"kind": "extractor"})
    with pytest.raises(UserError, match="holds extractor, not images"):
        Images.load(tmp_path)
