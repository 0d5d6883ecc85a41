"""Images, as fetch leaves them, are read as they were."""

import numpy as np
import pytest

from maskdit.artifacts.atomic import write_json
from maskdit.config.base import UserError
from maskdit.images.dataset import Images


def test_images_come_back_as_they_were_saved(tmp_path):
    pixels = np.arange(4 * 2 * 2 * 3, dtype=np.uint8).reshape(4, 2, 2, 3)
    Images(pixels, np.array([0, 1, 1, 0]), np.array([False, True, False, False]), ("a", "b")).save(tmp_path)
    again = Images.load(tmp_path)
    assert again.classes == ("a", "b")
    np.testing.assert_array_equal(again.pixels[again.rows(heldout=False)], pixels[[0, 2, 3]])
    np.testing.assert_array_equal(again.labels[again.rows(heldout=True)], [1])


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
