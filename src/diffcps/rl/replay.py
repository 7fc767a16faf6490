"""Drawing from logged data."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from diffcps.types import Dataset, Key, Transition


def sample_transitions(dataset: Dataset, key: Key, batch_size: int) -> Transition:
    """`batch_size` transitions, uniformly and with replacement."""
    row = jax.random.randint(key, (batch_size,), 0, dataset.size)
    return Transition(
        observation=dataset.observation[row],
        action=dataset.action[row],
        reward=dataset.reward[row],
        next_observation=dataset.next_observation[row],
        terminal=dataset.terminal[row].astype(jnp.float32),
    )
