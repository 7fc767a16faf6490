"""Drawing from logged data."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffcps.types import Dataset, Key, Transition


class Labelled(NamedTuple):
    """Logged actions, each with the number that the stage has computed for its row."""

    observation: Float[Array, "b obs"]
    action: Float[Array, "b act"]
    target: Float[Array, " b"]


def draw_rows(dataset: Dataset, key: Key, batch_size: int) -> Dataset:
    """`batch_size` rows, uniformly and with replacement."""
    row = jax.random.randint(key, (batch_size,), 0, dataset.size)
    return jax.tree.map(lambda array: array[row], dataset)


def sample_transitions(dataset: Dataset, key: Key, batch_size: int) -> Transition:
    """`batch_size` transitions, uniformly and with replacement."""
    return transitions(draw_rows(dataset, key, batch_size))


def sample_labelled(dataset: Dataset, key: Key, batch_size: int) -> Labelled:
    """`batch_size` rows with their labels, uniformly and with replacement."""
    rows = draw_rows(dataset, key, batch_size)
    return Labelled(rows.observation, rows.action, rows.labels)


def transitions(rows: Dataset) -> Transition:
    """Rows of a dataset as transitions."""
    terminal = jnp.asarray(rows.terminal, jnp.float32)
    return Transition(rows.observation, rows.action, rows.reward, rows.next_observation, terminal)
