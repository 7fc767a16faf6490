"""DPM-Solver and DPM-Solver++: a reverse process in few calls of the network, without noise but at its start.

Single steps of order 1 (DDIM), 2 or 3. References: DPM-Solver (arXiv:2206.00927), algorithms 1 and 2, for a network
that predicts noise; DPM-Solver++ (arXiv:2211.01095), appendix, for one that predicts data; DDIM (arXiv:2010.02502).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

Prediction = Literal["noise", "data"]


class Solver(NamedTuple):
    """The constants of a chain, a row for each call of the network; see `sample_dpm` for what they multiply."""

    starts: Bool[np.ndarray, " calls"]
    """Whether the call is the first of its step."""
    start_weight: Float[np.ndarray, " calls"]
    first_weight: Float[np.ndarray, " calls"]
    difference_weight: Float[np.ndarray, " calls"]


def solver_orders(calls: int, order: int) -> tuple[int, ...]:
    """The orders of the single steps that make `calls` calls in all: as many as fit, then lower ones.

    Order 3 as in DPM-Solver: 15 calls are 3, 3, 3, 3, 2, 1. Order 2 ends with one step of order 1 (odd counts) or two
    (even), as in the program of QGPO (arXiv:2304.12824).
    """
    if order == 1:
        return (1,) * calls
    if order == 2:
        pairs = (calls - 1) // 2
        return (2,) * pairs + (1,) * (calls - 2 * pairs)
    triples = calls // 3 - (calls % 3 == 0)
    return (3,) * triples + {0: (2, 1), 1: (1,), 2: (2,)}[calls % 3]


def dpm_solver(log_alpha: Float[np.ndarray, " nodes"], orders: tuple[int, ...], predicts: Prediction) -> Solver:
    """The constants of steps of the given orders through the given nodes, in float64.

    `log_alpha` has a value for each call of the network, from noise to data, and one for the end: a step of order k
    goes from a node to the k-th after it and calls the network at those between. r is the place of an inner node in
    lambda = log(alpha / std), whatever the grid.
    """
    if log_alpha.size != sum(orders) + 1:
        raise ValueError(f"{log_alpha.size} nodes for {sum(orders)} calls: there must be one more")
    log_alpha = np.asarray(log_alpha, np.float64)
    alpha, std = np.exp(log_alpha), np.sqrt(-np.expm1(2.0 * log_alpha))
    half_log_snr = log_alpha - np.log(std)
    kept, made, sign = (alpha, std, 1.0) if predicts == "noise" else (std, alpha, -1.0)
    rows = []
    start = 0
    for order in orders:
        passed = half_log_snr - half_log_snr[start]
        r = passed / passed[start + order]
        for node in range(start + 1, start + order + 1):
            grown = np.expm1(sign * passed[node])
            slope = grown / (sign * passed[node]) - 1.0
            difference = 0.0
            if node == start + 2:
                difference = grown / (2.0 * r[start + 1]) if order == 2 else slope * r[node] / r[start + 1]
            elif node == start + 3:
                difference = slope / r[start + 2]
            rows.append((node == start + 1, kept[node] / kept[start], -made[node] * grown, -made[node] * difference))
        start += order
    starts, *weights = zip(*rows, strict=True)
    return Solver(np.array(starts), *(np.array(weight) for weight in weights))


def sample_dpm(
    solver: Solver,
    predict: Callable[[Float[Array, "*b d"], Int[Array, ""]], Float[Array, "*b d"]],
    noise: Float[Array, "*b d"],
) -> Float[Array, "*b d"]:
    """x at the last node, from x = noise at the first. Nothing is clipped.

    `predict(x, call)` is the network's noise or data at the node of call 0, 1, ...; x_start and first are x and the
    prediction where the step began, and each call leads to the next node:
    x = start_weight x_start + first_weight first + difference_weight (prediction - first).
    """

    def step(carry, constants):
        x, x_start, first = carry
        call, starts, start_weight, first_weight, difference_weight = constants
        prediction = predict(x, call)
        x_start = jnp.where(starts, x, x_start)
        first = jnp.where(starts, prediction, first)
        x = start_weight * x_start + first_weight * first + difference_weight * (prediction - first)
        return (x, x_start, first), None

    starts, *weights = solver
    constants = (jnp.arange(starts.size), jnp.asarray(starts), *(jnp.asarray(w, noise.dtype) for w in weights))
    (x, _, _), _ = jax.lax.scan(step, (noise, noise, noise), constants)
    return x
