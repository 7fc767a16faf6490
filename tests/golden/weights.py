"""The authors' PyTorch weights as our networks. PyTorch stores a linear layer's weight as (out, in)."""

from __future__ import annotations

from collections.abc import Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from diffcps.networks.critic import Critic
from diffcps.networks.denoiser import Denoiser
from diffcps.networks.mlp import MLP, Linear
from diffcps.types import Spec

Arrays = Mapping[str, np.ndarray]


def denoiser_from_golden(arrays: Arrays, prefix: str) -> Denoiser:
    """The noise model stored under `prefix`, such as `actor` or `update_q1/after/actor`."""
    time = [_linear(arrays, f"{prefix}/model.time_mlp.{i}") for i in (1, 3)]
    body = [_linear(arrays, f"{prefix}/model.{layer}") for layer in (*_middle_layers(arrays, prefix), "final_layer")]
    time_size, (fan_in, width), action_size = time[-1][1].size, body[0][0].shape, body[-1][1].size
    spec = Spec(fan_in - time_size - action_size, action_size)
    denoiser = eqx.filter_eval_shape(Denoiser, spec, width, len(body) - 1, time_size, jax.random.key(0))
    return eqx.tree_at(_parameters_of_denoiser, denoiser, [array for pair in (*time, *body) for array in pair])


def critic_from_golden(arrays: Arrays, prefix: str) -> Critic:
    """Both Q networks stored under `prefix`, such as `critic` or `target_critic`, as one ensemble."""
    indices = sorted(int(name.split(".")[-2]) for name in arrays if _is_first_weight_of_critic(name, prefix))
    pairs = [[_linear(arrays, f"{prefix}/q{j}_model.{i}") for i in indices] for j in (1, 2)]
    layers = [(jnp.stack([w1, w2]), jnp.stack([b1, b2])) for (w1, b1), (w2, b2) in zip(*pairs, strict=True)]
    _, fan_in, width = layers[0][0].shape
    spec = Spec(fan_in - 1, 1)  # the two sizes enter by their sum alone
    critic = eqx.filter_eval_shape(Critic, spec, (width,) * (len(layers) - 1), jax.random.key(0))
    return eqx.tree_at(_parameters_of_critic, critic, [array for pair in layers for array in pair])


def _middle_layers(arrays: Arrays, prefix: str) -> list[str]:
    start = f"{prefix}/model."
    names = [
        name.removeprefix(start).removesuffix(".weight") for name in arrays if name.startswith(f"{start}mid_layer")
    ]
    return sorted((name for name in names if not name.endswith(".bias")), key=lambda name: int(name.split(".")[1]))


def _is_first_weight_of_critic(name: str, prefix: str) -> bool:
    return name.startswith(f"{prefix}/q1_model.") and name.endswith(".weight")


def _linear(arrays: Arrays, name: str) -> tuple[jax.Array, jax.Array]:
    return jnp.asarray(arrays[f"{name}.weight"].T), jnp.asarray(arrays[f"{name}.bias"])


def _parameters_of_mlp(mlp: MLP) -> list[jax.Array]:
    layers: tuple[Linear, ...] = mlp.layers
    return [array for layer in layers for array in (layer.weight, layer.bias)]


def _parameters_of_denoiser(denoiser: Denoiser) -> list[jax.Array]:
    return _parameters_of_mlp(denoiser.time) + _parameters_of_mlp(denoiser.body)


def _parameters_of_critic(critic: Critic) -> list[jax.Array]:
    return _parameters_of_mlp(critic.networks)
