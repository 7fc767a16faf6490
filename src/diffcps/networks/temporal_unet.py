"""U-Nets over time: models of whole trajectories, as Diffuser and the planners after it use them.

A trajectory is "time channel": convolutions run along time, and every network here takes any leading axes. Layers are
initialised as PyTorch does. Reference: Diffuser (arXiv:2205.09991), appendix C, with the details of its program.
"""

from __future__ import annotations

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffcps.networks.denoiser import sinusoidal_embedding
from diffcps.networks.mlp import MLP, Linear, mish
from diffcps.types import Key, UserError

GROUPS = 8
"""Groups of channels that are normalised together, whatever the width."""
EPSILON = 1e-5
"""In the denominator of both normalisations."""
KERNEL = 5
"""Steps that a convolution of a block sees."""
HEADS, HEAD_SIZE = 4, 32
"""Of linear attention."""


class Convolution(eqx.Module):
    """A convolution along time, with zeros beyond both ends: y_i = sum_k x_{stride i + k - size // 2} W_k + b.

    The weights of all steps of the kernel stand below one another: rows k fan_in to (k + 1) fan_in are W_k.
    """

    linear: Linear
    size: int = eqx.field(static=True)
    stride: int = eqx.field(static=True)

    def __init__(self, fan_in: int, fan_out: int, size: int, key: Key, stride: int = 1):
        self.linear = Linear(size * fan_in, fan_out, key)
        self.size, self.stride = size, stride

    def __call__(self, x: Float[Array, "*b h fan_in"]) -> Float[Array, "*b h_out fan_out"]:
        return self.linear(patches(x, self.size, self.stride))


def patches(x: Float[Array, "*b h c"], size: int, stride: int = 1) -> Float[Array, "*b h_out patch"]:
    """What a convolution sees at each of its steps, side by side."""
    length, half = x.shape[-2], size // 2
    padded = jnp.pad(x, [*[(0, 0)] * (x.ndim - 2), (half, half), (0, 0)])
    return jnp.concatenate([padded[..., k : k + length : stride, :] for k in range(size)], axis=-1)


class Upsampling(eqx.Module):
    """A transposed convolution along time that doubles it: kernel 4, stride 2, padding 1.

    y_{2i} = x_i W_1 + x_{i-1} W_3 + b and y_{2i+1} = x_{i+1} W_0 + x_i W_2 + b, with zeros beyond both ends; the
    weights W_0 to W_3 stand below one another.
    """

    linear: Linear

    def __init__(self, channels: int, key: Key):
        self.linear = Linear(4 * channels, channels, key)

    def __call__(self, x: Float[Array, "*b h c"]) -> Float[Array, "*b double c"]:
        weight = jnp.split(self.linear.weight, 4)
        before, now, after = jnp.split(patches(x, 3), 3, axis=-1)
        even = now @ weight[1] + before @ weight[3]
        odd = after @ weight[0] + now @ weight[2]
        both = jnp.stack([even, odd], axis=-2) + self.linear.bias
        return both.reshape(*x.shape[:-2], 2 * x.shape[-2], -1)


class GroupNorm(eqx.Module):
    """scale (x - mean) / sqrt(variance + epsilon) + bias, over time and the channels of a group.

    Reference: arXiv:1803.08494. Raises `UserError` for channels that do not make eight equal groups.
    """

    scale: Float[Array, "*ensemble c"]
    bias: Float[Array, "*ensemble c"]

    def __init__(self, channels: int):
        if channels % GROUPS:
            raise UserError(
                f"a block has {channels} channels, which do not make {GROUPS} equal groups: take a width (or "
                f"multipliers) with which every level has a multiple of {GROUPS} channels, the last one of {4 * GROUPS}"
            )
        self.scale, self.bias = jnp.ones(channels), jnp.zeros(channels)

    def __call__(self, x: Float[Array, "*b h c"]) -> Float[Array, "*b h c"]:
        grouped = x.reshape(*x.shape[:-1], GROUPS, -1)
        mean = jnp.mean(grouped, axis=(-3, -1), keepdims=True)
        variance = jnp.var(grouped, axis=(-3, -1), keepdims=True)
        normal = (grouped - mean) * jax.lax.rsqrt(variance + EPSILON)
        return normal.reshape(x.shape) * self.scale + self.bias


class ConvolutionBlock(eqx.Module):
    """Mish(GroupNorm(convolution(x)))."""

    convolution: Convolution
    norm: GroupNorm

    def __init__(self, fan_in: int, fan_out: int, key: Key):
        self.convolution = Convolution(fan_in, fan_out, KERNEL, key)
        self.norm = GroupNorm(fan_out)

    def __call__(self, x: Float[Array, "*b h fan_in"]) -> Float[Array, "*b h fan_out"]:
        return mish(self.norm(self.convolution(x)))


class TemporalBlock(eqx.Module):
    """Two convolutions, between them the embedding, the same at all times: x + B_2(B_1(x) + W Mish(e)).

    Where the channels change in number, x itself passes a linear layer.
    """

    first: ConvolutionBlock
    embedding: Linear
    second: ConvolutionBlock
    shortcut: Linear | None

    def __init__(self, fan_in: int, fan_out: int, embedding_size: int, key: Key):
        key_first, key_second, key_embedding, key_shortcut = jax.random.split(key, 4)
        self.first = ConvolutionBlock(fan_in, fan_out, key_first)
        self.second = ConvolutionBlock(fan_out, fan_out, key_second)
        self.embedding = Linear(embedding_size, fan_out, key_embedding)
        self.shortcut = None if fan_in == fan_out else Linear(fan_in, fan_out, key_shortcut)

    def __call__(
        self, x: Float[Array, "*b h fan_in"], embedding: Float[Array, "*#b e"]
    ) -> Float[Array, "*b h fan_out"]:
        hidden = self.first(x) + self.embedding(mish(embedding))[..., None, :]
        return self.second(hidden) + (x if self.shortcut is None else self.shortcut(x))


class LinearAttention(eqx.Module):
    """x + A(norm(x)), the norm over the channels of each step; A's cost grows linearly with time.

    softmax over time of the keys; context = k^T v; out = q context / sqrt(head size), heads side by side.
    Reference: arXiv:1812.01243, as in Diffuser's program.
    """

    scale: Float[Array, "*ensemble c"]
    bias: Float[Array, "*ensemble c"]
    queries: Float[Array, "*ensemble c qkv"]
    """Weights of queries, keys and values side by side; there is no bias."""
    out: Linear

    def __init__(self, channels: int, key: Key):
        key_in, key_out = jax.random.split(key)
        bound = channels**-0.5
        self.scale, self.bias = jnp.ones(channels), jnp.zeros(channels)
        self.queries = jax.random.uniform(key_in, (channels, 3 * HEADS * HEAD_SIZE), minval=-bound, maxval=bound)
        self.out = Linear(HEADS * HEAD_SIZE, channels, key_out)

    def __call__(self, x: Float[Array, "*b h c"]) -> Float[Array, "*b h c"]:
        mean, variance = jnp.mean(x, axis=-1, keepdims=True), jnp.var(x, axis=-1, keepdims=True)
        normal = (x - mean) / jnp.sqrt(variance + EPSILON) * self.scale + self.bias
        heads = (normal @ self.queries).reshape(*x.shape[:-1], 3, HEADS, HEAD_SIZE)
        query, key, value = heads[..., 0, :, :], heads[..., 1, :, :], heads[..., 2, :, :]
        context = jnp.einsum("...hnd,...hne->...nde", jax.nn.softmax(key, axis=-3), value)
        out = jnp.einsum("...nde,...hnd->...hne", context, query * HEAD_SIZE**-0.5)
        return x + self.out(out.reshape(*x.shape[:-1], HEADS * HEAD_SIZE))


class Level(eqx.Module):
    """Two residual blocks, with attention behind them where it is asked for."""

    first: TemporalBlock
    second: TemporalBlock
    attention: LinearAttention | None

    def __init__(self, fan_in: int, fan_out: int, embedding_size: int, attention: bool, key: Key):
        key_first, key_second, key_attention = jax.random.split(key, 3)
        self.first = TemporalBlock(fan_in, fan_out, embedding_size, key_first)
        self.second = TemporalBlock(fan_out, fan_out, embedding_size, key_second)
        self.attention = LinearAttention(fan_out, key_attention) if attention else None

    def __call__(
        self, x: Float[Array, "*b h fan_in"], embedding: Float[Array, "*#b e"]
    ) -> Float[Array, "*b h fan_out"]:
        x = self.second(self.first(x, embedding), embedding)
        return x if self.attention is None else self.attention(x)


class TemporalUNet(eqx.Module):
    """f(x, t) of a trajectory's size: down through the levels, two blocks in the middle, up again.

    Level i has width x multipliers[i] channels and half the time of the one before. On the way up each level reads what
    its like on the way down gave; that of the first, at full resolution, nothing reads. A condition, if there is one,
    is a vector beside the embedded time.
    """

    time: MLP
    down: tuple[Level, ...]
    halve: tuple[Convolution, ...]
    """Behind each level but the last."""
    middle: tuple[TemporalBlock, TemporalBlock]
    attention: LinearAttention | None
    """Between the two."""
    up: tuple[Level, ...]
    double: tuple[Upsampling, ...]
    last: ConvolutionBlock
    out: Linear

    def __init__(
        self,
        channels: int,
        width: int,
        multipliers: Sequence[int],
        key: Key,
        attention: bool = False,
        condition_size: int = 0,
    ):
        keys = jax.random.split(key, 9)
        sizes = [width * multiplier for multiplier in multipliers]
        steps, size, deepest = len(sizes) - 1, width + condition_size, sizes[-1]
        self.time = MLP((width, 4 * width, width), keys[0])
        self.down = tuple(
            Level(fan_in, fan_out, size, attention, key)
            for fan_in, fan_out, key in zip(
                [channels, *sizes[:-1]], sizes, jax.random.split(keys[1], len(sizes)), strict=True
            )
        )
        self.halve = tuple(
            Convolution(size, size, 3, key, 2)
            for size, key in zip(sizes[:-1], jax.random.split(keys[2], steps), strict=True)
        )
        self.middle = (
            TemporalBlock(deepest, deepest, size, keys[3]),
            TemporalBlock(deepest, deepest, size, keys[4]),
        )
        self.attention = LinearAttention(deepest, keys[5]) if attention else None
        upwards = list(zip(sizes[:0:-1], sizes[-2::-1], strict=True))
        self.up = tuple(
            Level(2 * fan_in, fan_out, size, attention, key)
            for (fan_in, fan_out), key in zip(upwards, jax.random.split(keys[6], steps), strict=True)
        )
        self.double = tuple(
            Upsampling(fan_out, key)
            for (_, fan_out), key in zip(upwards, jax.random.split(keys[7], steps), strict=True)
        )
        key_last, key_out = jax.random.split(keys[8])
        self.last = ConvolutionBlock(sizes[0], width, key_last)
        self.out = Linear(width, channels, key_out)

    def __call__(
        self, x: Float[Array, "*b h c"], t: Int[Array, "*#b"], condition: Float[Array, "*#b condition"] | None = None
    ) -> Float[Array, "*b h c"]:
        embedding = beside(embedded(self.time, t), condition)
        skips: list[Float[Array, "*b h_level c_level"]] = []
        for level, halve in zip(self.down, [*self.halve, lambda x: x], strict=True):
            skips.append(level(x, embedding))
            x = halve(skips[-1])
        x = self.middle[0](x, embedding)
        x = x if self.attention is None else self.attention(x)
        x = self.middle[1](x, embedding)
        for level, double in zip(self.up, self.double, strict=True):
            x = double(level(jnp.concatenate([x, skips.pop()], axis=-1), embedding))
        return self.out(self.last(x))


def embedded(network: MLP, t: Int[Array, "*b"]) -> Float[Array, "*b e"]:
    """A network of the sinusoids of t, of which there are as many as it has inputs."""
    return network(sinusoidal_embedding(t, network.layers[0].weight.shape[-2]))


def beside(
    embedding: Float[Array, "*#b e"], condition: Float[Array, "*#b condition"] | None
) -> Float[Array, "*#b all"]:
    """A condition behind the embedding, where there is one."""
    if condition is None:
        return embedding
    leading = jnp.broadcast_shapes(embedding.shape[:-1], condition.shape[:-1])
    parts = [jnp.broadcast_to(part, (*leading, part.shape[-1])) for part in (embedding, condition)]
    return jnp.concatenate(parts, axis=-1)


def check_horizon(horizon: int, multipliers: Sequence[int]) -> None:
    """Raises `UserError` unless every level but the last can halve the time, and the way up double it again."""
    factor = 2 ** (len(multipliers) - 1)
    if horizon % factor:
        raise UserError(
            f"horizon is {horizon}: a U-Net of {len(multipliers)} levels halves it {len(multipliers) - 1} times, so it "
            f"must be a multiple of {factor}; take {max(factor, round(horizon / factor) * factor)}, or fewer levels"
        )


class TrajectoryValue(eqx.Module):
    """J(x, t), a number for a trajectory: the way down of a U-Net, with half the time behind every level.

    Two more blocks follow, each with half the channels of the one before and half the time behind it, then a layer
    over everything that is left and the embedded time, and a second one, to one number.
    """

    time: MLP
    blocks: tuple[Level | TemporalBlock, ...]
    halve: tuple[Convolution, ...]
    """Behind each of them."""
    head: MLP

    def __init__(self, channels: int, width: int, multipliers: Sequence[int], horizon: int, key: Key):
        key_time, key_levels, key_narrow, key_halve, key_head = jax.random.split(key, 5)
        levels = [width * multiplier for multiplier in multipliers]
        narrow = [levels[-1] // 2, levels[-1] // 4]
        self.time = MLP((width, 4 * width, width), key_time)
        fans = zip([channels, *levels[:-1]], levels, jax.random.split(key_levels, len(levels)), strict=True)
        fans_narrow = zip([levels[-1], narrow[0]], narrow, jax.random.split(key_narrow), strict=True)
        self.blocks = (
            *(Level(fan_in, fan_out, width, False, key) for fan_in, fan_out, key in fans),
            *(TemporalBlock(fan_in, fan_out, width, key) for fan_in, fan_out, key in fans_narrow),
        )
        keys = jax.random.split(key_halve, len(self.blocks))
        self.halve = tuple(
            Convolution(size, size, 3, key, 2) for size, key in zip([*levels, *narrow], keys, strict=True)
        )
        steps = horizon
        for _ in self.halve:
            steps = -(-steps // 2)
        flat = steps * narrow[-1]
        self.head = MLP((flat + width, flat // 2, 1), key_head)

    def __call__(self, x: Float[Array, "*b h c"], t: Int[Array, "*#b"]) -> Float[Array, "*b"]:
        embedding = embedded(self.time, t)
        for block, halve in zip(self.blocks, self.halve, strict=True):
            x = halve(block(x, embedding))
        flat = jnp.swapaxes(x, -1, -2).reshape(*x.shape[:-2], -1)  # channel by channel, as the program has it
        embedding = jnp.broadcast_to(embedding, (*flat.shape[:-1], embedding.shape[-1]))
        return self.head(jnp.concatenate([flat, embedding], axis=-1))[..., 0]
