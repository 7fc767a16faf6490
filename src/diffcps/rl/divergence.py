"""How far two distributions over actions lie apart, and the loss of a variational auto-encoder."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffcps.types import Real, Scalar

Kernel = Literal["gaussian", "laplacian"]


def mmd(x: Float[Array, "*b n act"], y: Float[Array, "*b m act"], kernel: Kernel, sigma: Real) -> Float[Array, "*b"]:
    """sqrt(mean_ij k(x_i, x_j) + mean_ij k(y_i, y_j) - 2 mean_ij k(x_i, y_j) + 1e-6), terms i = j included.

    gaussian: k(x, y) = exp(-|x - y|_2^2 / (2 sigma)), sigma not squared; laplacian: k(x, y) = exp(-|x - y|_1 / (2
    sigma)). Of equal samples it is 1e-3.
    Reference: the sampled maximum mean discrepancy of BEAR (arXiv:1906.00949), with the kernels of its program.
    """

    def mean_kernel(x, y):
        """The mean of k, less 1: the three ones cancel, and near them float32 would lose small distances."""
        difference = x[..., :, None, :] - y[..., None, :, :]
        distance = jnp.sum(jnp.square(difference) if kernel == "gaussian" else jnp.abs(difference), axis=-1)
        return jnp.mean(jnp.expm1(-distance / (2.0 * sigma)), axis=(-2, -1))

    return jnp.sqrt(mean_kernel(x, x) + mean_kernel(y, y) - 2.0 * mean_kernel(x, y) + 1e-6)


def gaussian_kl(mean: Float[Array, "*b d"], log_std: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """KL(N(mean, std^2) || N(0, 1)) = (mean^2 + std^2 - 1) / 2 - log std, for each dimension by itself."""
    return 0.5 * (jnp.square(mean) + jnp.exp(2.0 * log_std) - 1.0) - log_std


def vae_loss(
    reconstruction: Float[Array, "*b act"],
    action: Float[Array, "*b act"],
    mean: Float[Array, "*b latent"],
    log_std: Float[Array, "*b latent"],
    kl_weight: Real,
) -> tuple[Scalar, Scalar, Scalar]:
    """mean (a_hat - a)^2 + kl_weight mean KL; also both means. Each is over the batch and its own dimensions.

    Reference: BCQ (arXiv:1812.02900), its VAE, with the means of its program (kl_weight 1/2).
    """
    squared_error = jnp.mean(jnp.square(reconstruction - action))
    kl = jnp.mean(gaussian_kl(mean, log_std))
    return squared_error + kl_weight * kl, squared_error, kl
