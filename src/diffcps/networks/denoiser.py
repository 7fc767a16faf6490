"""The noise model of a diffusion policy."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffcps.networks.mlp import MLP
from diffcps.types import Key, Spec


def sinusoidal_embedding(t: Int[Array, "*b"], size: int) -> Float[Array, "*b size"]:
    """[sin(t f_k), cos(t f_k)] with f_k = 10000^(-k / (size/2 - 1)), k = 0..size/2 - 1.

    Reference: as in the authors' program; arXiv:1706.03762 section 3.5 with another spacing of the frequencies.
    """
    half = size // 2
    frequency = np.exp(-np.log(10000.0) * np.arange(half) / (half - 1)).astype(np.float32)
    angle = t[..., None] * frequency
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


class Denoiser(eqx.Module):
    """eps_theta(x_t, s, t): time embedding -> 2 x size -> Mish -> size; then an MLP over [x_t, time, observation].

    Reference: DiffCPS (arXiv:2310.05333), section 4 and appendix C; the same network as Diffusion-QL's (arXiv:2208.06193).
    """

    time: MLP
    body: MLP
    time_size: int = eqx.field(static=True)

    def __init__(self, spec: Spec, width: int, depth: int, time_size: int, key: Key):
        key_time, key_body = jax.random.split(key)
        self.time_size = time_size
        self.time = MLP((time_size, 2 * time_size, time_size), key_time)
        fan_in = spec.action_size + time_size + spec.observation_size
        self.body = MLP((fan_in, *[width] * depth, spec.action_size), key_body)

    def __call__(
        self, xt: Float[Array, "*b act"], t: Int[Array, "*#b"], observation: Float[Array, "*b obs"]
    ) -> Float[Array, "*b act"]:
        time = self.time(sinusoidal_embedding(t, self.time_size))
        time = jnp.broadcast_to(time, (*xt.shape[:-1], self.time_size))
        return self.body(jnp.concatenate([xt, time, observation], axis=-1))
