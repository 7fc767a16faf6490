"""The forward process q(x_t | x_0), and the estimate of x_0 that it implies."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffcps.diffusion.schedule import Schedule


def add_noise(
    schedule: Schedule, x0: Float[Array, "*b d"], t: Int[Array, "*#b"], eps: Float[Array, "*b d"]
) -> Float[Array, "*b d"]:
    """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps. Reference: DDPM (arXiv:2006.11239), eq. 4."""
    alpha_bar = jnp.asarray(schedule.alpha_bar)[t][..., None]
    return jnp.sqrt(alpha_bar) * x0 + jnp.sqrt(1.0 - alpha_bar) * eps


def predict_x0(
    schedule: Schedule, xt: Float[Array, "*b d"], t: Int[Array, "*#b"], eps: Float[Array, "*b d"]
) -> Float[Array, "*b d"]:
    """The x_0 from which `eps` would have led to x_t: the inverse of `add_noise`. Reference: DDPM, below eq. 15."""
    alpha_bar = jnp.asarray(schedule.alpha_bar)[t][..., None]
    return xt / jnp.sqrt(alpha_bar) - jnp.sqrt(1.0 / alpha_bar - 1.0) * eps


def clip_noise(
    schedule: Schedule, xt: Float[Array, "*b d"], t: Int[Array, "*#b"], eps: Float[Array, "*b d"], clip: float = 1.0
) -> Float[Array, "*b d"]:
    """`eps`, clipped to where the x_0 that it implies lies in [-clip, clip]."""
    alpha_bar = jnp.asarray(schedule.alpha_bar)[t][..., None]
    alpha, std = jnp.sqrt(alpha_bar), jnp.sqrt(1.0 - alpha_bar)
    return jnp.clip(eps, (xt - alpha * clip) / std, (xt + alpha * clip) / std)
