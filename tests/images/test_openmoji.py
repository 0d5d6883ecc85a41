"""OpenMoji as eight classes."""

from collections import Counter

import numpy as np
import pytest

from maskdit.config.base import UserError
from maskdit.config.images import Openmoji
from maskdit.images import openmoji
from maskdit.images.dataset import Images


@pytest.fixture(scope="module")
def drawings():
    return openmoji.drawings()


def test_the_classes_have_the_drawings_that_the_unicode_categories_give(drawings):
    counts = Counter(openmoji.CLASSES[drawing.label] for drawing in drawings)
    assert set(counts) == set(openmoji.CLASSES)
    assert counts["transport"] == 72
    assert counts["flag"] > 250
    assert counts["person"] > 900, "with their skin tones"


def test_an_emoji_s_skin_tones_stay_on_one_side_of_the_split(drawings):
    aside = openmoji.held_out([drawing.base for drawing in drawings], 0.1, seed=0)
    bases = {drawing.base for drawing in drawings}
    assert len(aside) == round(0.1 * len(bases))
    assert aside < bases


def test_a_class_is_cut_by_the_seed(drawings):
    one, same, other = (openmoji.chosen(drawings, 20, seed) for seed in (0, 0, 1))
    assert one == same != other
    assert set(Counter(drawing.label for drawing in one).values()) == {20}


def test_a_rendered_drawing_is_opaque_on_white(drawings):
    picture = openmoji.render(drawings[0].path, 16)
    assert picture.shape == (16, 16, 3)
    assert picture.dtype == np.uint8
    assert picture.min() < 128 < picture.max()


def test_another_number_of_images_than_declared_is_refused_and_the_right_one_is_kept(tmp_path):
    entry = {"source": "openmoji", "resolution": 8, "per_class": 3, "heldout": 0.5, "seed": 0}
    with pytest.raises(UserError, match=r"24 images found, params\.yaml declares images: 7"):
        openmoji.draw(Openmoji.model_validate({**entry, "images": 7}), tmp_path)
    openmoji.draw(Openmoji.model_validate({**entry, "images": 24}), tmp_path)
    images = Images.load(tmp_path)
    assert images.pixels.shape == (24, 8, 8, 3)
    assert Counter(images.labels.tolist()) == dict.fromkeys(range(8), 3)
    assert len(np.unique(images.pixels.reshape(24, -1), axis=0)) == 24, "no two pictures are equal"
