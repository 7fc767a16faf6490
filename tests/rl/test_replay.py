"""Rows are drawn uniformly, with replacement, and stay together."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffcps.rl.replay import sample_transitions, transitions
from diffcps.types import Dataset, DatasetInfo

pytestmark = pytest.mark.usefixtures("strict_promotion")

NUM_ROWS, NUM_DRAWS = 50, 20_000


def counting(num_rows: int = NUM_ROWS) -> Dataset:
    """Row i says i in every field."""
    i = jnp.arange(num_rows, dtype=jnp.float32)
    return Dataset(
        observation=jnp.stack([i, 10 * i], axis=1),
        action=i[:, None] / 128,
        reward=-i,
        next_observation=jnp.stack([i + 1, 10 * i + 10], axis=1),
        terminal=jnp.arange(num_rows) % 3 == 0,
        timeout=jnp.arange(num_rows) % 3 == 1,
        info=DatasetInfo(source="counting", sha256=""),
    )


def test_rows_stay_together():
    batch = sample_transitions(counting(), jax.random.key(0), 200)
    i = np.asarray(batch.observation)[:, 0]
    np.testing.assert_array_equal(batch.observation, np.stack([i, 10 * i], axis=1))
    np.testing.assert_array_equal(batch.action, i[:, None] / 128)
    np.testing.assert_array_equal(batch.reward, -i)
    np.testing.assert_array_equal(batch.next_observation, np.stack([i + 1, 10 * i + 10], axis=1))
    np.testing.assert_array_equal(batch.terminal, i % 3 == 0)


def test_terminal_is_a_number_and_timeouts_do_not_enter_it():
    terminal = sample_transitions(counting(), jax.random.key(0), 200).terminal
    assert terminal.dtype == jnp.float32 and terminal.shape == (200,)
    dataset = counting()
    never = Dataset(**{**vars(dataset), "terminal": jnp.zeros(NUM_ROWS, bool)})
    assert np.any(terminal) and not np.any(sample_transitions(never, jax.random.key(0), 200).terminal)


def test_rows_as_transitions():
    dataset = counting(4)
    batch = transitions(dataset)
    for name in ("observation", "action", "reward", "next_observation"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(dataset, name))
    np.testing.assert_array_equal(batch.terminal, [1.0, 0.0, 0.0, 1.0])
    assert batch.terminal.dtype == jnp.float32


def chi_square(num_rows: int, seed: int) -> float:
    """Of the rows drawn from a dataset of `num_rows`, against equal counts of NUM_ROWS rows."""
    batch = sample_transitions(counting(num_rows), jax.random.key(seed), NUM_DRAWS)
    counts = np.bincount(np.asarray(batch.observation, int)[:, 0], minlength=NUM_ROWS)
    return float(np.sum((counts - NUM_DRAWS / NUM_ROWS) ** 2) / (NUM_DRAWS / NUM_ROWS))


@pytest.mark.parametrize("seed", [0, 1])
def test_rows_are_drawn_uniformly(seed):
    # With 400 draws expected per row the statistic follows chi-square of 49 degrees of freedom; the bound is exceeded
    # with probability 1e-4: 92.9. Too even is as wrong: a draw without replacement would give nearly 0.
    law = stats.chi2(NUM_ROWS - 1)
    assert law.ppf(1e-4) < chi_square(NUM_ROWS, seed) < law.isf(1e-4)
    # Negative control: a sampler that never reaches the last row. Its empty cell alone adds 400.
    assert chi_square(NUM_ROWS - 1, seed) > law.isf(1e-4) + 300


@pytest.mark.parametrize("lag", [1, 2])
def test_draws_are_independent(lag):
    # The correlation of n independent pairs has standard deviation 1 / sqrt(n), and is normal for n this large: beyond
    # 3.9 of them with probability 1e-4.
    row = np.asarray(sample_transitions(counting(), jax.random.key(2), NUM_DRAWS).observation)[:, 0]
    tolerance = 3.9 / np.sqrt(NUM_DRAWS)
    assert abs(np.corrcoef(row[:-lag], row[lag:])[0, 1]) < tolerance
    assert abs(np.corrcoef(np.sort(row)[:-lag], np.sort(row)[lag:])[0, 1]) > tolerance  # negative control


def test_the_key_decides():
    def draw(seed):
        return np.asarray(sample_transitions(counting(), jax.random.key(seed), 20).observation)

    np.testing.assert_array_equal(draw(0), draw(0))
    assert np.any(draw(0) != draw(1))
