"""The noise model of a diffusion policy."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from diffcps.networks.mlp import MLP, mish
from diffcps.types import Denoise, Key, Spec


def sinusoidal_embedding(t: Num[Array, "*b"], size: int, endpoint: bool = True) -> Float[Array, "*b size"]:
    """[sin(t f_k), cos(t f_k)] with f_k = 10000^(-k / (size/2 - 1)), k = 0..size/2 - 1, down to 1/10000.

    Without the endpoint f_k = 10000^(-k / (size/2)), which stops one step before it.
    Reference: as in the programs of DiffCPS and Diffusion-QL; without the endpoint as in arXiv:1706.03762, section 3.5,
    and in the program of EDP (arXiv:2305.20081).
    """
    if size < 4 or size % 2:
        raise ValueError(f"a time embedding has an even size of 4 or more, not {size}")
    half = size // 2
    frequency = np.exp(-np.log(10000.0) * np.arange(half) / (half - 1 if endpoint else half)).astype(np.float32)
    angle = t[..., None] * frequency
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


class Denoiser(eqx.Module):
    """eps_theta(x_t, s, t): time embedding -> 2 x size -> Mish -> size; then an MLP over [x_t, time, observation].

    Reference: DiffCPS (arXiv:2310.05333), appendix C; the same network as Diffusion-QL's (arXiv:2208.06193).
    """

    time: MLP
    body: MLP
    time_size: int = eqx.field(static=True)
    endpoint: bool = eqx.field(static=True)

    def __init__(self, spec: Spec, width: int, depth: int, time_size: int, key: Key, endpoint: bool = True):
        key_time, key_body = jax.random.split(key)
        self.time_size, self.endpoint = time_size, endpoint
        self.time = MLP((time_size, 2 * time_size, time_size), key_time)
        fan_in = spec.action_size + time_size + spec.observation_size
        self.body = MLP((fan_in, *[width] * depth, spec.action_size), key_body)

    @property
    def action_size(self) -> int:
        return self.body.layers[-1].bias.shape[-1]

    def given(self, observation: Float[Array, "*b obs"], num_steps: int) -> Denoise:
        """`given_at` every step of a schedule, t = 0..num_steps - 1."""
        return self.given_at(observation, jnp.arange(num_steps))

    def given_at(self, observation: Float[Array, "*b obs"], times: Num[Array, " calls"]) -> Denoise:
        """eps_theta(., s, .), with what does not depend on x_t computed once for a whole reverse chain.

        The first layer's product is split by rows of its weight: [x_t, time, s] W = x_t W_x + time W_t + s W_s. The
        time part is a table over `times`, whole numbers or not, and t counts its rows. Axes of x_t that the observation
        lacks must be of size one in it.
        """
        first, *rest = self.body.layers
        size = first.weight.shape[0] - self.time_size - observation.shape[-1]
        weight_x, weight_time, weight_s = jnp.split(first.weight, [size, size + self.time_size])
        time = self.time(sinusoidal_embedding(times, self.time_size, self.endpoint)) @ weight_time
        context = observation @ weight_s + first.bias

        def denoise(xt: Float[Array, "*b act"], t: Int[Array, "*#b"]) -> Float[Array, "*b act"]:
            hidden = mish(xt @ weight_x + time[t] + context)
            for layer in rest[:-1]:
                hidden = mish(layer(hidden))
            return rest[-1](hidden)

        return denoise
