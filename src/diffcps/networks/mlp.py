"""Linear layers and multi-layer perceptrons that work on arrays with any leading axes."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffcps.types import Key

MISH_CLAMP = 12.0
"""Above this tanh(softplus(x)) is 1 in float32, so that clamping e^x there changes no bit of the result."""


@jax.custom_jvp
def mish(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """x tanh(softplus(x)), with one exponential: x n / (n + 2), n = e (e + 2), e = exp(x).

    The slope is written out, 1 - 2 / (n + 2) + 4 x e (e + 1) / (n + 2)^2, and reaches the cotangent as one factor of order
    one. Differentiating the quotient instead multiplies cotangents by 1 / (n + 2)^2, which flushes small ones to zero
    where x is large: it ruins training while every ordinary check passes.
    Reference: arXiv:1908.08681.
    """
    return _mish_and_slope(x)[0]


@mish.defjvp
def _mish_jvp(primals, tangents):
    value, slope = _mish_and_slope(primals[0])
    return value, slope * tangents[0]


def _mish_and_slope(x):
    e = jnp.exp(jnp.minimum(x, MISH_CLAMP))
    n = e * (e + 2.0)
    inverse = 1.0 / (n + 2.0)
    ratio = n * inverse
    return x * ratio, ratio + x * (4.0 * e * (e + 1.0) * inverse * inverse)


class Linear(eqx.Module):
    """y = x W + b, initialised as PyTorch does: uniform in +-1/sqrt(fan_in), the bias too."""

    weight: Float[Array, "*ensemble fan_in fan_out"]
    bias: Float[Array, "*ensemble fan_out"]

    def __init__(self, fan_in: int, fan_out: int, key: Key):
        key_weight, key_bias = jax.random.split(key)
        bound = fan_in**-0.5
        self.weight = jax.random.uniform(key_weight, (fan_in, fan_out), minval=-bound, maxval=bound)
        self.bias = jax.random.uniform(key_bias, (fan_out,), minval=-bound, maxval=bound)

    def __call__(self, x: Float[Array, "*b fan_in"]) -> Float[Array, "*b fan_out"]:
        return x @ self.weight + self.bias


class MLP(eqx.Module):
    """Linear layers with Mish between them and nothing after the last."""

    layers: tuple[Linear, ...]

    def __init__(self, sizes: tuple[int, ...], key: Key):
        keys = jax.random.split(key, len(sizes) - 1)
        self.layers = tuple(
            Linear(fan_in, fan_out, k) for fan_in, fan_out, k in zip(sizes[:-1], sizes[1:], keys, strict=True)
        )

    def __call__(self, x: Float[Array, "*b fan_in"]) -> Float[Array, "*b fan_out"]:
        for layer in self.layers[:-1]:
            x = mish(layer(x))
        return self.layers[-1](x)
