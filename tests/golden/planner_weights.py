"""The authors' U-Nets as ours. PyTorch has convolutions as (out, in, kernel), transposed ones as (in, out, kernel)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from diffcps.diffusion.schedule import Schedule
from diffcps.networks.temporal_unet import TemporalUNet, TrajectoryValue

Arrays = Mapping[str, np.ndarray]


def their_schedule(arrays: Arrays) -> Schedule:
    """The authors' constants, which they compute in float32: ours differ by up to 2e-5 of themselves at T = 20."""
    return Schedule(
        beta=arrays["schedule/betas"],
        alpha_bar=arrays["schedule/alphas_cumprod"],
        posterior_x0_weight=arrays["schedule/posterior_mean_coef1"],
        posterior_xt_weight=arrays["schedule/posterior_mean_coef2"],
        posterior_std=np.exp(0.5 * arrays["schedule/posterior_log_variance_clipped"]),
    )


class Names:
    """The authors' arrays in the order of our leaves, each asked for once; `left` says what nobody asked for."""

    def __init__(self, arrays: Arrays, prefix: str):
        self.arrays = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        self.left = set(self.arrays)

    def take(self, name: str) -> np.ndarray:
        self.left.remove(name)
        return self.arrays[name]

    def has(self, start: str) -> bool:
        return any(name.startswith(start) for name in self.arrays)


def linear(names: Names, name: str) -> Iterator[np.ndarray]:
    yield names.take(f"{name}.weight").reshape(names.arrays[f"{name}.bias"].size, -1).T
    yield names.take(f"{name}.bias")


def convolution(names: Names, name: str) -> Iterator[np.ndarray]:
    weight = names.take(f"{name}.weight")  # (out, in, kernel) -> (kernel in, out)
    yield weight.transpose(2, 1, 0).reshape(-1, weight.shape[0])
    yield names.take(f"{name}.bias")


def upsampling(names: Names, name: str) -> Iterator[np.ndarray]:
    weight = names.take(f"{name}.weight")  # (in, out, kernel) -> (kernel in, out)
    yield weight.transpose(2, 0, 1).reshape(-1, weight.shape[1])
    yield names.take(f"{name}.bias")


def block(names: Names, name: str) -> Iterator[np.ndarray]:
    yield from convolution(names, f"{name}.block.0")
    yield names.take(f"{name}.block.2.weight")
    yield names.take(f"{name}.block.2.bias")


def residual(names: Names, name: str) -> Iterator[np.ndarray]:
    yield from block(names, f"{name}.blocks.0")
    yield from linear(names, f"{name}.time_mlp.1")
    yield from block(names, f"{name}.blocks.1")
    if names.has(f"{name}.residual_conv"):
        yield from linear(names, f"{name}.residual_conv")


def attention(names: Names, name: str) -> Iterator[np.ndarray]:
    yield names.take(f"{name}.fn.norm.g").ravel()
    yield names.take(f"{name}.fn.norm.b").ravel()
    yield names.take(f"{name}.fn.fn.to_qkv.weight")[..., 0].T
    yield from linear(names, f"{name}.fn.fn.to_out")


def level(names: Names, name: str, slot: int = 2) -> Iterator[np.ndarray]:
    yield from residual(names, f"{name}.0")
    yield from residual(names, f"{name}.1")
    if names.has(f"{name}.{slot}.fn"):
        yield from attention(names, f"{name}.{slot}")


def of_unet(names: Names, levels: int, resample: int) -> Iterator[np.ndarray]:
    """In the order of our leaves; `resample` is the number of the slot of a level that changes the resolution."""
    yield from linear(names, "time_mlp.1")
    yield from linear(names, "time_mlp.3")
    for i in range(levels):
        yield from level(names, f"downs.{i}")
    for i in range(levels - 1):
        yield from convolution(names, f"downs.{i}.{resample}.conv")
    yield from residual(names, "mid_block1")
    yield from residual(names, "mid_block2")
    if names.has("mid_attn"):
        yield from attention(names, "mid_attn")
    for j in range(levels - 1):
        yield from level(names, f"ups.{j}")
    for j in range(levels - 1):
        yield from upsampling(names, f"ups.{j}.{resample}.conv")
    yield from block(names, "final_conv.0")
    yield from linear(names, "final_conv.1")


def of_value(names: Names, levels: int) -> Iterator[np.ndarray]:
    yield from linear(names, "time_mlp.1")
    yield from linear(names, "time_mlp.3")
    for i in range(levels):
        yield from level(names, f"blocks.{i}")
    yield from residual(names, "mid_block1")
    yield from residual(names, "mid_block2")
    for i in range(levels):
        yield from convolution(names, f"blocks.{i}.2.conv")
    yield from convolution(names, "mid_down1.conv")
    yield from convolution(names, "mid_down2.conv")
    yield from linear(names, "final_block.0")
    yield from linear(names, "final_block.2")


def mlp_of(names: Names, layers: Sequence[str]) -> Iterator[np.ndarray]:
    for name in layers:
        yield from linear(names, name)


def filled(network: Any, arrays: Iterator[np.ndarray], names: Names) -> Any:
    """The network with these arrays as its leaves; every one of the authors' must have been used."""
    leaves, structure = jax.tree.flatten(network)
    found = [jnp.asarray(array) for array in arrays]
    assert [leaf.shape for leaf in leaves] == [leaf.shape for leaf in found] and not names.left, names.left
    return jax.tree.unflatten(structure, found)


def unet(
    arrays: Arrays,
    prefix: str,
    channels: int,
    width: int,
    multipliers: Sequence[int],
    condition_size: int = 0,
    resample: int = 3,
) -> TemporalUNet:
    """Of what stands below `prefix`, but for an embedding of returns, which is no part of our U-Net."""
    names = Names({name: array for name, array in arrays.items() if "/returns_mlp" not in name}, prefix)
    shape = eqx.filter_eval_shape(
        lambda key: TemporalUNet(channels, width, multipliers, key, names.has("mid_attn"), condition_size),
        jax.random.key(0),
    )
    return filled(shape, of_unet(names, len(multipliers), resample), names)


def value_network(
    arrays: Arrays, prefix: str, channels: int, width: int, multipliers: Sequence[int], horizon: int
) -> TrajectoryValue:
    names = Names(arrays, prefix)
    shape = eqx.filter_eval_shape(
        lambda key: TrajectoryValue(channels, width, multipliers, horizon, key), jax.random.key(0)
    )
    return filled(shape, of_value(names, len(multipliers)), names)
