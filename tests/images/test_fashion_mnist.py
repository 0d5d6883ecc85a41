import gzip
import hashlib

import numpy as np
import pytest

from maskdit.config.base import UserError
from maskdit.config.images import Fashion
from maskdit.images import fashion_mnist
from maskdit.images.dataset import Images


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Five training and two test images in the files' format, and their hashes in place of the official ones."""
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "nowhere")
    source = np.random.default_rng(0)
    for part, count in (("train", 5), ("t10k", 2)):
        for kind, numbers in (
            ("images-idx3", source.integers(0, 256, (count, 28, 28), np.uint8)),
            ("labels-idx1", np.arange(count, dtype=np.uint8)),
        ):
            data = bytes(fashion_mnist.HEADERS[kind.split("-")[0]]) + numbers.tobytes()
            (tmp_path / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(data))
            monkeypatch.setitem(fashion_mnist.CONTENTS, f"{part}-{kind}-ubyte", hashlib.sha256(data).hexdigest())
    return tmp_path


def entry(root, images=5, url=None):
    return Fashion.model_validate({"source": "fashion-mnist", "root": str(root), "url": url, "resolution": 32, "images": images})


def test_images_stand_on_a_black_border_and_the_test_part_is_held_out(small, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    fashion_mnist.lay(entry(small), out)
    images = Images.load(out)
    assert images.pixels.shape == (7, 32, 32, 3)
    assert images.heldout.tolist() == [False] * 5 + [True] * 2
    assert images.labels.tolist() == [0, 1, 2, 3, 4, 0, 1]
    first = gzip.decompress((small / "train-images-idx3-ubyte.gz").read_bytes())[16 : 16 + 784]
    assert images.pixels[0, 2:30, 2:30, 1].tobytes() == first
    assert images.pixels[:, :2].max() == 0


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "cannot be read"),
        (lambda path: path.write_bytes(gzip.compress(b"x" * 800)), "is not Fashion-MNIST's"),
        (lambda path: path.write_bytes(b"<html>"), "cannot be read"),
        (lambda path: path.unlink(), "no such file; install Debian's dataset-fashion-mnist, or set url"),
    ],
)
def test_a_file_that_is_not_the_official_one_is_named(damage, said, small, tmp_path):
    damage(small / "train-images-idx3-ubyte.gz")
    with pytest.raises(UserError, match=rf"train-images-idx3-ubyte\.gz: .*{said}"):
        fashion_mnist.lay(entry(small), tmp_path)


def test_files_that_root_lacks_are_fetched(small, tmp_path):
    fetched, out = tmp_path / "fetched", tmp_path / "out"
    out.mkdir()
    fashion_mnist.lay(entry(fetched, url=small.as_uri()), out)
    assert len(list(fetched.glob("*.gz"))) == 4


def test_a_wrong_declared_number_is_refused(small, tmp_path):
    with pytest.raises(UserError, match=r"5 images found, params\.yaml declares images: 6"):
        fashion_mnist.lay(entry(small, images=6), tmp_path)


@pytest.mark.skipif(not fashion_mnist.DEBIAN.exists(), reason="Debian's dataset-fashion-mnist is not installed")
def test_debian_s_package_is_the_official_data(tmp_path):
    fashion_mnist.lay(entry(fashion_mnist.DEBIAN, images=60_000), tmp_path)
    images = Images.load(tmp_path)
    assert np.bincount(images.labels[~images.heldout]).tolist() == [6000] * 10
