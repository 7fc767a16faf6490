"""Windows of consecutive steps: what planners learn from, gathered from rows that keep the order of the file."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffcps.rl.returns import lambda_returns
from diffcps.types import Dataset, Key, Real


class Place(NamedTuple):
    """Where each row stands in its episode."""

    step: Int[Array, " n"]
    """Steps since the episode's first row."""
    left: Int[Array, " n"]
    """Steps to its last row, which has 0."""


def places(dataset: Dataset) -> Place:
    """Of all rows, by the ends of the episodes."""

    def count(steps: Int[Array, ""], last: Bool[Array, ""]) -> tuple[Int[Array, ""], Int[Array, ""]]:
        now = jnp.where(last, 0, steps + 1)
        return now, now

    end = jnp.asarray(dataset.terminal | dataset.timeout)
    first = jnp.concatenate([jnp.ones(1, bool), end[:-1]])
    before = jnp.int32(-1)
    return Place(jax.lax.scan(count, before, first)[1], jax.lax.scan(count, before, end, reverse=True)[1])


def returns_to_go(dataset: Dataset, discount: Real, terminal_penalty: Real = 0.0) -> Float[Array, " n"]:
    """sum_k gamma^k r_{t+k} to the end of the episode, with a penalty added to the reward of a true termination."""
    reward = dataset.reward + terminal_penalty * dataset.terminal
    penalised = Dataset(**{**vars(dataset), "reward": reward})
    return lambda_returns(penalised, jnp.zeros(dataset.size), discount, 1.0)


def starts(place: Place, horizon: int, padded_below: int) -> Bool[Array, " n"]:
    """The rows at which a window starts.

    In an episode of fewer than `padded_below` steps, a window may go on behind the end; in a longer one it may not.
    With 0 no window goes on behind an end. The last row of an episode starts none, and a window that fits must leave a
    row behind it, as in the program of Diffuser (arXiv:2205.09991).
    """
    fits = place.left >= horizon
    return fits | ((place.left >= 1) & (place.step < padded_below - horizon))


class Starts(NamedTuple):
    """The rows at which windows start, as labels of a stage."""

    row: Int[Array, " n"]
    """Those rows first, in order, then the others."""
    count: Int[Array, " n"]
    """How many there are, in every row."""


def starts_first(start: Bool[Array, " n"]) -> Starts:
    """Of a truth value for each row."""
    return Starts(jnp.argsort(~start, stable=True), jnp.full(start.shape, jnp.sum(start)))


def draw_starts(found: Starts, key: Key, batch_size: int) -> Int[Array, " b"]:
    """`batch_size` of these rows, uniformly and with replacement."""
    return found.row[jax.random.randint(key, (batch_size,), 0, found.count[0])]


class Window(NamedTuple):
    """Rows of one window."""

    row: Int[Array, "*b h"]
    """Held at the episode's last row behind its end."""
    inside: Bool[Array, "*b h"]
    """Whether the step lies in the episode."""


def window(start: Int[Array, "*b"], left: Int[Array, "*b"], horizon: int) -> Window:
    """`horizon` steps from a row on, of which `left` follow it in its episode."""
    step = jnp.arange(horizon)
    return Window(start[..., None] + jnp.minimum(step, left[..., None]), step <= left[..., None])
