"""Policy improvement: what turns Q values into a loss for the actor, or into a choice among candidate actions."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffcps.types import Key, Real, Scalar

ActionChoice = Literal["sample", "softmax_q", "argmax_q"]


def normalised_q_loss(q: Float[Array, " b"], q_other: Float[Array, " b"]) -> Scalar:
    """-mean Q_j(s, a) / mean |Q_k(s, a)|, k != j, the denominator under stop-gradient.

    Reference: the normalisation of TD3+BC (arXiv:2106.06860), eq. 5, with the other network in the denominator as in
    the programs of Diffusion-QL (arXiv:2208.06193) and DiffCPS (arXiv:2310.05333, eq. 17).
    """
    return -jnp.mean(q) / jax.lax.stop_gradient(jnp.mean(jnp.abs(q_other)))


def repeated(observation: Float[Array, "*b obs"], times: int) -> Float[Array, "*b times obs"]:
    """Each observation so many times: one for each candidate action."""
    return jnp.repeat(observation[..., None, :], times, axis=-2)


def choose_candidate(
    candidates: Float[Array, "*b k act"],
    q: Float[Array, "*b k"],
    choice: ActionChoice,
    temperature: Real,
    key: Key,
) -> Float[Array, "*b act"]:
    """One action out of k: drawn with probability softmax(q / temperature), the one of highest q, or the first.

    Reference: as the programs of Diffusion-QL (arXiv:2208.06193) and DiffCPS act.
    """
    if choice == "softmax_q":
        index = jax.random.categorical(key, q / temperature, axis=-1)
    elif choice == "argmax_q":
        index = jnp.argmax(q, axis=-1)
    else:
        return candidates[..., 0, :]
    return jnp.take_along_axis(candidates, index[..., None, None], axis=-2)[..., 0, :]
