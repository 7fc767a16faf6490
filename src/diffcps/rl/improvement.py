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


def softmax_value(q: Float[Array, "*b k"], sharpness: Real) -> Float[Array, "*b"]:
    """sum_j softmax_j(alpha Q(s, a_j)) Q(s, a_j), alpha = `sharpness`: from the mean at 0 to the maximum at infinity.

    For a_j ~ mu the value of the policy proportional to mu(a | s) exp(alpha Q(s, a)), as more of them are drawn.
    Reference: the programs of SfBC (arXiv:2209.14548) and QGPO (arXiv:2304.12824).
    """
    return jnp.sum(jax.nn.softmax(sharpness * q, axis=-1) * q, axis=-1)


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
