"""Linear layers and multi-layer perceptrons that work on arrays with any leading axes."""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffcps.types import Key

MISH_CLAMP = 10.0
"""Above this tanh(softplus(x)) is 1 in float32, so that clamping x in it changes nothing; and m^4 is finite."""


@jax.custom_jvp
def mish(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """x tanh(softplus(x)), with one exponential: x n / (n + 2), n = e (e + 2), e = exp(x).

    The slope is written out, (n (n + 2) + 4 x e (e + 1)) / (n + 2)^2, and reaches the cotangent as one factor of order
    one. Differentiating the quotient instead multiplies cotangents by 1 / (n + 2)^2, which flushes small ones to zero
    where x is large: it ruins training while every ordinary check passes.

    Both forms divide once and take their exponential from `_exp`: XLA then makes one loop of each. With `jnp.exp` and a
    reciprocal used twice it makes four.
    Reference: arXiv:1908.08681.
    """
    e = _exp(jnp.clip(x, -87.0, MISH_CLAMP))
    n = e * (e + 2.0)
    return x * (n / (n + 2.0))


@mish.defjvp
def _mish_jvp(primals, tangents):
    (x,), (tangent,) = primals, tangents
    clamped = jnp.clip(x, -87.0, MISH_CLAMP)
    e = _exp(clamped)
    n = e * (e + 2.0)
    m = n + 2.0
    slope = (n * m + 4.0 * clamped * e * (e + 1.0)) / jnp.square(m)
    return mish(x), slope * tangent


def _exp(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """exp(x) for x in [-87, 88] in float32, out of operations that XLA does not hesitate to fuse.

    2^k e^f with k whole and |f| <= ln(2) / 2, e^f by its Taylor polynomial of degree 7 (relative error 3e-7). ln(2)
    is subtracted in two parts, the first of which times k is exact.
    """
    k = jnp.round(x * np.float32(1.0 / np.log(2.0)))
    f = (x - k * np.float32(0.693359375)) + k * np.float32(2.12194440e-4)
    power = np.float32(1.0 / 5040.0)
    for factorial in (720.0, 120.0, 24.0, 6.0, 2.0, 1.0, 1.0):
        power = power * f + np.float32(1.0 / factorial)
    return power * jax.lax.bitcast_convert_type((k.astype(jnp.int32) + 127) << 23, jnp.float32)


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


Activation = Callable[[Float[Array, "*b"]], Float[Array, "*b"]]


class MLP(eqx.Module):
    """Linear layers with an activation between them and nothing after the last."""

    layers: tuple[Linear, ...]
    activation: Activation = eqx.field(static=True)

    def __init__(self, sizes: tuple[int, ...], key: Key, activation: Activation = mish):
        keys = jax.random.split(key, len(sizes) - 1)
        self.layers = tuple(
            Linear(fan_in, fan_out, k) for fan_in, fan_out, k in zip(sizes[:-1], sizes[1:], keys, strict=True)
        )
        self.activation = activation

    def __call__(self, x: Float[Array, "*b fan_in"]) -> Float[Array, "*b fan_out"]:
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)
