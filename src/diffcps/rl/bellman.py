"""Targets and losses of temporal-difference learning. The first axis of `q` is the ensemble."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffcps.types import Real, Scalar


def clipped_double_q_target(
    reward: Float[Array, "*b"], terminal: Float[Array, "*b"], q_next: Float[Array, "n *b"], discount: Real
) -> Float[Array, "*b"]:
    """y = r + gamma (1 - d) min_j Q_j(s', a'), under stop-gradient.

    Reference: TD3 (arXiv:1802.09477), eq. 10; DiffCPS (arXiv:2310.05333), algorithm 1, line 7.
    """
    return jax.lax.stop_gradient(reward + discount * (1.0 - terminal) * jnp.min(q_next, axis=0))


def max_over_candidates(q_next: Float[Array, "n *b k"]) -> Float[Array, "n *b"]:
    """max_k Q_j(s', a'_k) for each network of the ensemble: the max-Q backup, taken before the minimum over j.

    Reference: CQL (arXiv:2006.04779), appendix F; used on AntMaze by Diffusion-QL (arXiv:2208.06193) and DiffCPS.
    """
    return jnp.max(q_next, axis=-1)


def td_loss(q: Float[Array, "n *b"], target: Float[Array, "*b"]) -> Scalar:
    """sum_j mean (Q_j(s, a) - y)^2. Reference: DiffCPS (arXiv:2310.05333), algorithm 1, line 8."""
    return jnp.sum(jnp.mean(jnp.square(q - target), axis=tuple(range(1, q.ndim))))
