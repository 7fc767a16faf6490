"""Noise models out of residual blocks with layer normalisation and dropout."""

from __future__ import annotations

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffcps.networks.mlp import MLP, Activation, Linear, mish
from diffcps.networks.norm import LayerNorm
from diffcps.types import Denoise, Key, Spec, UserError

EXPANSION = 4
"""Units inside a block for each of its inputs."""


class FourierFeatures(eqx.Module):
    """[cos(2 pi t w_k), sin(2 pi t w_k)], k = 1..size/2, of frequencies w that are trained; at first N(0, std^2).

    Raises `UserError` for an odd size. Reference: arXiv:2006.10739; the frequencies are learned as in IDQL's program.
    """

    frequency: Float[Array, "*ensemble half"]

    def __init__(self, size: int, std: float, key: Key):
        if size < 2 or size % 2:
            raise UserError(f"time_size is {size}: it must be even, as it counts cosines and sines")
        self.frequency = std * jax.random.normal(key, (size // 2,))

    def __call__(self, t: Float[Array, "*b"]) -> Float[Array, "*b size"]:
        angle = (2.0 * math.pi * t)[..., None] * self.frequency
        return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


class ResidualBlock(eqx.Module):
    """x + W_2 act(W_1 norm(kept x) + b_1) + b_2, four times as wide inside.

    `kept` is dropout: 0 where a unit is dropped and 1 / (1 - p) where not. It meets the branch alone, not the sum.
    """

    norm: LayerNorm
    widen: Linear
    narrow: Linear
    activation: Activation = eqx.field(static=True)

    def __init__(self, width: int, key: Key, activation: Activation, epsilon: float):
        key_widen, key_narrow = jax.random.split(key)
        self.norm = LayerNorm(width, epsilon)
        self.widen = Linear(width, EXPANSION * width, key_widen)
        self.narrow = Linear(EXPANSION * width, width, key_narrow)
        self.activation = activation

    def __call__(
        self, x: Float[Array, "*b width"], kept: Float[Array, "*b width"] | None = None
    ) -> Float[Array, "*b width"]:
        branch = self.norm(x if kept is None else kept * x)
        return x + self.narrow(self.activation(self.widen(branch)))


class ResidualBody(eqx.Module):
    """What follows a first layer: hidden -> blocks -> act -> out. `kept` is the dropout of each block."""

    blocks: tuple[ResidualBlock, ...]
    last: Linear
    activation: Activation = eqx.field(static=True)

    def __init__(self, width: int, size: int, num_blocks: int, key: Key, activation: Activation, epsilon: float):
        key_last, key_blocks = jax.random.split(key)
        keys = jax.random.split(key_blocks, num_blocks)
        self.blocks = tuple(ResidualBlock(width, key, activation, epsilon) for key in keys)
        self.last = Linear(width, size, key_last)
        self.activation = activation

    def __call__(
        self, hidden: Float[Array, "*b width"], kept: Float[Array, "blocks *b width"] | None = None
    ) -> Float[Array, "*b size"]:
        dropout = [None] * len(self.blocks) if kept is None else list(kept)
        for block, kept_of_block in zip(self.blocks, dropout, strict=True):
            hidden = block(hidden, kept_of_block)
        return self.last(self.activation(hidden))


class ResidualDenoiser(eqx.Module):
    """eps_theta(x_t, s, t): Fourier features of t -> 2 x size -> act -> 2 x size; then a residual network.

    [x_t, s, time] -> width -> blocks -> act -> eps, without an activation after the first layer. Reference: IDQL
    (arXiv:2304.10573), with the sizes, the trained frequencies and the constants of its program.
    """

    features: FourierFeatures
    time: MLP
    first: Linear
    body: ResidualBody

    def __init__(
        self,
        spec: Spec,
        width: int,
        num_blocks: int,
        time_size: int,
        key: Key,
        activation: Activation = jax.nn.silu,
        epsilon: float = 1e-6,
        frequency_std: float = 0.2,
    ):
        key_features, key_time, key_first, key_body = jax.random.split(key, 4)
        self.features = FourierFeatures(time_size, frequency_std, key_features)
        self.time = MLP((time_size, 2 * time_size, 2 * time_size), key_time, activation)
        self.first = Linear(spec.action_size + spec.observation_size + 2 * time_size, width, key_first)
        self.body = ResidualBody(width, spec.action_size, num_blocks, key_body, activation, epsilon)

    def given(
        self,
        observation: Float[Array, "*b obs"],
        num_steps: int,
        kept: Float[Array, "blocks *b width"] | None = None,
    ) -> Denoise:
        """eps_theta(., s, .), with what does not depend on x_t computed once for a whole reverse chain.

        The first layer's product is split as in `networks.denoiser.Denoiser.given`, with the time part as a table over
        the `num_steps` values of t. Axes of x_t that the observation lacks must be of size one in it. `kept` is the
        dropout of each block.
        """
        weight, size = self.first.weight, self.body.last.bias.shape[-1]
        weight_x, weight_s, weight_time = jnp.split(weight, [size, size + observation.shape[-1]])
        time = self.time(self.features(jnp.arange(num_steps, dtype=jnp.float32))) @ weight_time
        context = observation @ weight_s + self.first.bias

        def denoise(xt: Float[Array, "*b act"], t: Int[Array, "*#b"]) -> Float[Array, "*b act"]:
            return self.body(xt @ weight_x + time[t] + context, kept)

        return denoise


def fixed_frequencies(num_features: int, key: Key) -> Float[Array, " half"]:
    """Frequencies that nothing trains, N(0, 30^2), for so many features. Raises `UserError` for an odd number.

    Reference: the programs of SfBC, QGPO and SRPO.
    """
    if num_features % 2:
        raise UserError(f"num_features is {num_features}: it must be even, as it counts sines and cosines")
    return 30.0 * jax.random.normal(key, (num_features // 2,))


def fixed_features(t: Float[Array, "*b"], frequency: Float[Array, " half"]) -> Float[Array, "*b size"]:
    """[sin(2 pi t w_k), cos(2 pi t w_k)] of frequencies that nothing trains, for t in [0, 1].

    Reference: arXiv:2006.10739, as in the programs of SfBC, QGPO and SRPO.
    """
    angle = t[..., None] * frequency * (2.0 * math.pi)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


class ContinuousDenoiser(eqx.Module):
    """eps_theta(x_t, s, t) for t in [0, 1], given features of t: [x_t, s, time] -> width -> blocks -> act -> eps.

    Time: features -> `time_width` -> act -> `time_width`. No activation follows the first layer. Reference: SRPO
    (arXiv:2310.07297), the behaviour model of its program.
    """

    time: MLP
    first: Linear
    body: ResidualBody

    def __init__(
        self,
        spec: Spec,
        width: int,
        num_blocks: int,
        num_features: int,
        time_width: int,
        key: Key,
    ):
        key_time, key_first, key_body = jax.random.split(key, 3)
        self.time = MLP((num_features, time_width, time_width), key_time, mish)
        self.first = Linear(spec.action_size + spec.observation_size + time_width, width, key_first)
        self.body = ResidualBody(width, spec.action_size, num_blocks, key_body, mish, epsilon=1e-5)

    def __call__(
        self,
        xt: Float[Array, "*b act"],
        observation: Float[Array, "*b obs"],
        features: Float[Array, "*b features"],
        kept: Float[Array, "blocks *b width"] | None = None,
    ) -> Float[Array, "*b act"]:
        hidden = self.first(jnp.concatenate([xt, observation, self.time(features)], axis=-1))
        return self.body(hidden, kept)
