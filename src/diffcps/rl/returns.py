"""Returns along logged episodes: one backward pass over the rows of a dataset, which keep the order of the file."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffcps.types import Dataset, Real


def lambda_returns(dataset: Dataset, next_value: Float[Array, " n"], discount: Real, trace: Real) -> Float[Array, " n"]:
    """G_t = r_t + gamma [(1 - lambda) V(s_{t+1}) + lambda G_{t+1}], with `next_value` = V(s_{t+1}), lambda = `trace`.

    After a true termination nothing follows; at any other end of an episode V(s_{t+1}) stands for what would have.
    With lambda = 1 and V = 0 it is the sum of the logged rewards.

    Reference: TD(lambda), as the program of AWR (arXiv:1910.00177) computes its targets.
    """

    def backward(following, row):
        reward, terminal, timeout, value = row
        following = (1.0 - trace) * value + trace * jnp.where(timeout, value, following)
        now = reward + discount * jnp.where(terminal, 0.0, following)
        return now, now

    rows = (dataset.reward, dataset.terminal, dataset.timeout, next_value)
    return jax.lax.scan(backward, jnp.float32(0.0), rows, reverse=True)[1]


def planned_returns(dataset: Dataset, value: Float[Array, " n"], discount: Real) -> Float[Array, " n"]:
    """R_t = max(r_t + gamma R_{t+1}, V(s_t)), with `value` = V(s_t) and nothing after the end of an episode.

    Reference: the implicit in-sample planning of SfBC (arXiv:2209.14548), as its program computes it.
    """

    def backward(following, row):
        reward, end, value = row
        now = jnp.maximum(reward + discount * jnp.where(end, 0.0, following), value)
        return now, now

    rows = (dataset.reward, dataset.terminal | dataset.timeout, value)
    return jax.lax.scan(backward, jnp.float32(0.0), rows, reverse=True)[1]
