"""Windows by hand: where rows stand, which may start one, what lies behind an end."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffcps.rl.windows import draw_starts, places, returns_to_go, starts, starts_first, window
from tests.problems import dataset_of

# Episodes of 3 (terminal), 1 (time limit) and 4 rows (time limit).
TERMINAL, TIMEOUT = [0, 0, 1, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0, 0, 1]
STEP, LEFT = [0, 1, 2, 0, 0, 1, 2, 3], [2, 1, 0, 0, 3, 2, 1, 0]


def dataset():
    row = np.arange(8.0)
    return dataset_of(row[:, None], row[:, None], row, row[:, None], TERMINAL, TIMEOUT)


def test_places():
    place = places(dataset())
    np.testing.assert_array_equal(place.step, STEP)
    np.testing.assert_array_equal(place.left, LEFT)


@pytest.mark.parametrize("penalty", [0.0, -100.0])
def test_returns_to_go_end_with_their_episode(penalty):
    found = returns_to_go(dataset(), 0.5, penalty)
    expected = [sum(0.5**k * (row + k + penalty * TERMINAL[row + k]) for k in range(LEFT[row] + 1)) for row in range(8)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("horizon", "padded_below", "expected"),
    [
        (2, 0, [0, 4, 5]),  # two steps, and a row behind them
        (3, 0, [4]),
        (4, 0, []),
        (2, 1000, [0, 1, 4, 5, 6]),  # all but the last row of each
        (2, 4, [0, 1, 4, 5]),  # the episode of four steps is not below four
        (2, 5, [0, 1, 4, 5, 6]),
        (1, 0, [0, 1, 4, 5, 6]),
    ],
)
def test_starts(horizon, padded_below, expected):
    np.testing.assert_array_equal(np.flatnonzero(starts(places(dataset()), horizon, padded_below)), expected)


def test_a_window_is_held_at_the_end_of_its_episode():
    left = places(dataset()).left
    row, inside = window(jnp.array([1, 4]), left[jnp.array([1, 4])], 4)
    np.testing.assert_array_equal(row, [[1, 2, 2, 2], [4, 5, 6, 7]])
    np.testing.assert_array_equal(inside, [[True, True, False, False], [True] * 4])


def test_only_starts_are_drawn():
    found = starts_first(starts(places(dataset()), 2, 0))
    assert set(np.asarray(draw_starts(found, jax.random.key(0), 300))) == {0, 4, 5}
    last = dataclasses.replace(dataset(), labels=found)  # labels have a row for each transition
    assert all(len(array) == last.size for array in jax.tree.leaves(last))
