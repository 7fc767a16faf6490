"""Drawing from logged data."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from diffcps.types import Dataset, Key, Transition


def draw_rows(dataset: Dataset, key: Key, batch_size: int) -> Dataset:
    """`batch_size` rows, uniformly and with replacement."""
    row = jax.random.randint(key, (batch_size,), 0, dataset.size)
    return jax.tree.map(lambda array: array[row], dataset)


def sample_transitions(dataset: Dataset, key: Key, batch_size: int) -> Transition:
    """`batch_size` transitions, uniformly and with replacement."""
    return transitions(draw_rows(dataset, key, batch_size))


def transitions(rows: Dataset) -> Transition:
    """Rows of a dataset as transitions."""
    terminal = jnp.asarray(rows.terminal, jnp.float32)
    return Transition(rows.observation, rows.action, rows.reward, rows.next_observation, terminal)
