"""The variational auto-encoder as a model of the data's actions."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffcps.networks.vae import VAE
from diffcps.rl.divergence import vae_loss
from diffcps.types import Metric, Real, Scalar, Transition


def auto_encoding_loss(
    vae: VAE, batch: Transition, noise: Float[Array, "b latent"], kl_weight: Real
) -> tuple[Scalar, tuple[Scalar, Scalar]]:
    """E[(a - a_hat)^2] + w KL(q(z | s, a) || N(0, I)), a_hat decoded from z = mean + std noise; and both terms."""
    mean, log_std = vae.encode(batch.observation, batch.action)
    reconstruction = vae.decode(batch.observation, mean + jnp.exp(log_std) * noise)
    loss, squared_error, kl = vae_loss(reconstruction, batch.action, mean, log_std, kl_weight)
    return loss, (squared_error, kl)


VAE_METRICS = {
    "vae/loss": Metric("VAE loss", "VAE loss", "log"),
    "vae/squared_error": Metric("Squared error of the VAE's actions", scale="log"),
    "vae/kl": Metric("KL divergence of the VAE's latents"),
    "vae/grad_norm": Metric("Norm of the VAE's gradient", scale="log"),
}
"""What every method reports that trains a VAE."""
