"""Randomness is a function of its arguments."""

import numpy as np
import pytest

from maskdit.runtime.random import generator, order


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
