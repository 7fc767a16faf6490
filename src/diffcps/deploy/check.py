"""Whether an exported policy acts as the trained one does."""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jaxtyping import Array, Float

from diffcps.deploy.program import Exported
from diffcps.types import EnvObservation, NetAction, UserError

ROWS = 1000
"""Observations that are looked at."""
MOST_NUMBERS = 2_000_000
"""Random numbers in all, above which there are fewer observations: those of a planner take seconds each."""
TOLERANCE = 1e-5
"""Of the width of the action box."""
TIE = 2e-6
"""Two numbers that differ by less, relative to the largest, are equal but for rounding: either may be chosen.

Some thirty roundings of float32; where trained critics chose another candidate, they differed by 3e-7 or less."""

Act = Callable[[np.ndarray, Sequence[np.ndarray]], np.ndarray]
"""Of the exported policy: observations (n, obs) float64 and the numbers of each law (n, size) -> actions (n, act)."""


class Trial(NamedTuple):
    """Observations, random numbers, and what the trained policy does with them."""

    observation: np.ndarray
    """(n, obs) float64, in the environment's units."""
    numbers: tuple[np.ndarray, ...]
    """Of each law (n, size) float32."""
    action: np.ndarray
    """(n, act), by the method's own `act` with the keys of these numbers."""
    margin: np.ndarray
    """(n,): by how much each choice is the best one, relative to the largest number; infinite without a choice."""


@dataclass(frozen=True)
class Parity:
    """How far an exported policy is from the trained one."""

    rows: int
    """Observations that were looked at."""
    largest_difference: float
    """Of the actions, relative to the width of the box; rows of another choice not counted."""
    other_choices: int
    """Rows in which candidates are equal but for rounding, and another one was chosen."""


def trial(policy: Exported, rows: int = ROWS, seed: int = 0) -> Trial:
    """Observations around the data's mean, as far as the run knows it, else standard normal ones."""
    rng, size = np.random.default_rng(seed), policy.spec.observation_size
    each = sum(map(policy.traced.size, policy.laws))
    rows = max(1, min(rows, MOST_NUMBERS // max(each, 1)))
    spread = np.where(np.isfinite(policy.scaling.std), policy.scaling.std, 0.0)
    observation = policy.scaling.mean + spread * rng.normal(size=(rows, size))
    seen = policy.scaling.observation(EnvObservation(observation))

    def keys() -> jax.Array:  # made anew, because they are used twice: to draw, and to know what is drawn
        return jax.random.split(jax.random.key(seed), rows)

    drawn = jax.jit(jax.vmap(policy.traced.numbers_of))(keys())
    numbers = tuple(np.asarray(drawn[law]) for law in policy.laws)
    action = jax.jit(jax.vmap(policy.algorithm.act, (None, 0, 0)))(policy.state, seen, keys())
    margin = jax.jit(jax.vmap(lambda seen, *numbers: _margin(policy, seen, numbers)))(seen, *numbers)
    return Trial(observation, numbers, policy.scaling.action(NetAction(np.asarray(action))), np.asarray(margin))


def compare(policy: Exported, trial: Trial, act: Act, name: str) -> Parity:
    """Raises `UserError` where an action differs by more than `TOLERANCE` without being another of equal candidates."""
    width = policy.scaling.high - policy.scaling.low
    difference = np.abs(act(trial.observation, trial.numbers) - trial.action) / np.where(width > 0, width, 1.0)
    largest = np.where(np.isnan(difference), np.inf, difference).max(axis=1)
    others = (largest > TOLERANCE) & (trial.margin < TIE)
    worst = float(largest[~others].max(initial=0.0))
    if worst > TOLERANCE:
        row = int(np.argmax(np.where(others, 0.0, largest)))
        raise UserError(
            f"{name} would not act as the run does: its actions differ by {worst:.2g} of the width of their box "
            f"(at most {TOLERANCE:g}; row {row} of {len(largest)}), and nothing was written"
        )
    return Parity(len(largest), worst, int(others.sum()))


def onnx_act(policy: Exported, content: bytes) -> Act:
    """How an ONNX graph acts, by onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def act(observation: np.ndarray, numbers: Sequence[np.ndarray]) -> np.ndarray:
        given = {"observation": observation, **dict(zip(policy.laws, numbers, strict=True))}
        try:
            return np.asarray(session.run(["action"], given)[0])
        except Exception as error:  # a runtime is foreign code and raises what it likes
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"policy.onnx does not run, and nothing was written: {reason}") from error

    return act


def stablehlo_act(content: bytes) -> Act:
    """How a serialised StableHLO program acts, by JAX."""
    program = jax.export.deserialize(bytearray(content))

    def act(observation: np.ndarray, numbers: Sequence[np.ndarray]) -> np.ndarray:
        with jax.enable_x64(True):
            return np.asarray(program.call(observation, *numbers))

    return act


def _margin(policy: Exported, seen: Float[Array, " obs"], numbers: Sequence[Float[Array, " _"]]) -> Float[Array, ""]:
    """The least margin of the choices at one observation."""
    found: list[Array] = [jnp.asarray(jnp.inf)]

    def watch(operation: core.JaxprEqn, inputs: Sequence[Any]) -> None:
        if operation.primitive.name not in ("argmax", "top_k"):
            return
        (axis,) = operation.params.get("axes", (-1,))
        chosen = operation.params.get("k", 1)
        ordered = jnp.sort(jnp.moveaxis(inputs[0], axis, -1), axis=-1, descending=True)
        if chosen < ordered.shape[-1]:
            gap = ordered[..., chosen - 1] - ordered[..., chosen]
            found.append(jnp.min(gap / jnp.max(jnp.abs(ordered), axis=-1)))

    policy.traced.act(seen, dict(zip(policy.laws, numbers, strict=True)), watch)
    return jnp.min(jnp.stack(found))
