"""Targets and losses of temporal-difference learning. The first axis of `q` is the ensemble."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffcps.rl.replay import Labelled
from diffcps.types import Metric, Real, Scalar, Transition


def td_target(
    reward: Float[Array, "*b"], terminal: Float[Array, "*b"], next_value: Float[Array, "*b"], discount: Real
) -> Float[Array, "*b"]:
    """y = r + gamma (1 - d) V(s'), under stop-gradient."""
    return jax.lax.stop_gradient(reward + discount * (1.0 - terminal) * next_value)


def clipped_double_q_target(
    reward: Float[Array, "*b"], terminal: Float[Array, "*b"], q_next: Float[Array, "n *b"], discount: Real
) -> Float[Array, "*b"]:
    """y = r + gamma (1 - d) min_j Q_j(s', a'), under stop-gradient.

    Reference: TD3 (arXiv:1802.09477), eq. 10; DiffCPS (arXiv:2310.05333), algorithm 1, line 7.
    """
    return td_target(reward, terminal, jnp.min(q_next, axis=0), discount)


def soft_clipped_target(
    reward: Float[Array, "*b"],
    terminal: Float[Array, "*b"],
    q_next: Float[Array, "n *b k"],
    min_weight: Real,
    discount: Real,
) -> Float[Array, "*b"]:
    """y = r + gamma (1 - d) max_k [lambda min_j Q_j(s', a'_k) + (1 - lambda) max_j Q_j(s', a'_k)], lambda = min_weight.

    Under stop-gradient.
    Reference: soft clipped double Q-learning of BCQ (arXiv:1812.02900); BEAR (arXiv:1906.00949) has it from there.
    """
    soft = min_weight * jnp.min(q_next, axis=0) + (1.0 - min_weight) * jnp.max(q_next, axis=0)
    return td_target(reward, terminal, jnp.max(soft, axis=-1), discount)


def max_over_candidates(q_next: Float[Array, "n *b k"]) -> Float[Array, "n *b"]:
    """max_k Q_j(s', a'_k) for each network of the ensemble: the max-Q backup, taken before the minimum over j.

    Reference: CQL (arXiv:2006.04779), appendix F; used on AntMaze by Diffusion-QL (arXiv:2208.06193) and DiffCPS.
    """
    return jnp.max(q_next, axis=-1)


def td_loss(q: Float[Array, "n *b"], target: Float[Array, "*b"]) -> Scalar:
    """sum_j mean (Q_j(s, a) - y)^2. Reference: DiffCPS (arXiv:2310.05333), algorithm 1, line 8."""
    return jnp.sum(jnp.mean(jnp.square(q - target), axis=tuple(range(1, q.ndim))))


def critic_loss(
    critic: Callable[[Float[Array, "b obs"], Float[Array, "b act"]], Float[Array, "n b"]],
    batch: Transition | Labelled,
    target: Float[Array, " b"],
) -> tuple[Scalar, Float[Array, "n b"]]:
    """`td_loss` of an ensemble of Q on the logged actions, and each Q_j(s, a)."""
    q = critic(batch.observation, batch.action)
    return td_loss(q, target), q


def mean_critic_loss(
    critic: Callable[[Float[Array, "b obs"], Float[Array, "b act"]], Float[Array, "n b"]],
    batch: Transition | Labelled,
    target: Float[Array, " b"],
) -> tuple[Scalar, Float[Array, "n b"]]:
    """`critic_loss` divided by the number of networks, as the programs of IDQL and SRPO have it; and each Q_j(s, a)."""
    loss, q = critic_loss(critic, batch, target)
    return loss / q.shape[0], q


CRITIC_METRICS = {
    "critic/q": Metric("Q of the data's actions", "Q"),
    "critic/loss": Metric("Critic loss (squared TD errors)", "critic loss", "log"),
    "critic/td_error": Metric("Squared TD error of one critic", scale="log"),
    "critic/grad_norm": Metric("Norm of the critics' gradient", scale="log"),
}
"""What every method reports that learns an ensemble of Q from targets."""
