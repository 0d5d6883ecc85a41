"""Arrays in files of which only some rows are read, without a map of the file."""

import os

import numpy as np
import pytest

from maskdit.artifacts.arrays import Stored, read_array
from maskdit.config.base import UserError

ARRAY = np.random.default_rng(0).integers(0, 256, (50, 4, 3), np.uint8)


@pytest.fixture
def stored(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKDIT_MMAP", "0")
    np.save(tmp_path / "x.npy", ARRAY)
    found = read_array(tmp_path / "x.npy", mapped=True)
    assert isinstance(found, Stored)
    assert (len(found), found.shape, found.dtype) == (50, ARRAY.shape, ARRAY.dtype)
    return found


SELECTIONS = {
    "one": 7,
    "a number of NumPy": np.int64(49),
    "all": slice(None),
    "some": slice(3, 20),
    "every third": slice(1, 44, 3),
    "none": np.array([], int),
    "scattered": np.array([3, 3, 49, 0, 1, 2, 7, 6]),
    "from the end": slice(-5, None),
}


@pytest.mark.parametrize("name", SELECTIONS)
def test_rows_are_those_of_plain_indexing(stored, name):
    np.testing.assert_array_equal(stored[SELECTIONS[name]], ARRAY[SELECTIONS[name]])


@pytest.mark.parametrize("rows", [50, -1, np.array([0, 50])])
def test_a_row_that_is_not_there_is_an_error(stored, rows):
    with pytest.raises(IndexError):
        stored[rows]


def test_a_file_that_is_cut_after_it_was_opened_is_named(stored):
    stored.path.write_bytes(stored.path.read_bytes()[:400])
    with pytest.raises(UserError, match=r"x\.npy: ends before its numbers do; rerun the step that makes it"):
        stored[:]


def test_a_read_that_brings_less_than_asked_goes_on(stored, monkeypatch):
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, places, offset: whole(file, [places[0][:5]], offset))
    np.testing.assert_array_equal(stored[:], ARRAY)


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_whole_array_is_read_in_the_order_of_its_axes(tmp_path, order):
    np.save(tmp_path / "x.npy", np.asarray(ARRAY, order=order))
    np.testing.assert_array_equal(read_array(tmp_path / "x.npy"), ARRAY)


def test_another_word_than_0_or_1_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKDIT_MMAP", "no")
    np.save(tmp_path / "x.npy", ARRAY)
    with pytest.raises(UserError, match="MASKDIT_MMAP: 'no' is neither 0 nor 1"):
        read_array(tmp_path / "x.npy", mapped=True)
