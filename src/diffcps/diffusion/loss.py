"""The denoising loss: DDPM's simplified bound, and DiffCPS's stand-in for the cross-entropy to the behaviour policy."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffcps.diffusion.process import add_noise
from diffcps.diffusion.schedule import Schedule
from diffcps.types import Denoise


def denoising_loss(
    schedule: Schedule,
    denoise: Denoise,
    x0: Float[Array, "*b d"],
    t: Int[Array, "*#b"],
    eps: Float[Array, "*b d"],
) -> Float[Array, ""]:
    """L_c = mean (eps - eps_theta(sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps, t))^2.

    The mean runs over the batch and over dimensions; eq. 36 of DiffCPS sums over dimensions. The bound kappa of the
    authors' program, and so ours, is on the scale of the mean.
    Reference: DDPM (arXiv:2006.11239), eq. 14; DiffCPS (arXiv:2310.05333), eqs. 16 and 36.
    """
    return jnp.mean(jnp.square(eps - denoise(add_noise(schedule, x0, t, eps), t)))
