"""The authors' weights as our networks. PyTorch stores a linear layer as (out, in), TensorFlow, Flax as (in, out)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from diffcps.networks.critic import Critic
from diffcps.networks.denoiser import Denoiser
from diffcps.networks.mlp import MLP, Activation, Linear, mish
from diffcps.networks.vae import VAE
from diffcps.types import Spec

Arrays = Mapping[str, np.ndarray]
Layer = str | tuple[str, ...]
"""Name of a linear layer; or of several of one input, which are one layer here, their outputs side by side."""


def distance(ours: Any, theirs: Any) -> float:
    """Largest difference between any two parameters of two networks of the same structure."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return max(float(np.max(np.abs(np.asarray(a) - np.asarray(b)))) for a, b in pairs)


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
    return ensemble(*(mlp(arrays, [f"{prefix}/q{j}_model.{i}" for i in indices], mish) for j in (1, 2)))


def ensemble(*networks: MLP) -> Critic:
    """Q networks that are stored one by one, as one ensemble."""
    first = networks[0]
    fan_in, hidden = first.layers[0].weight.shape[0], tuple(layer.bias.size for layer in first.layers[:-1])
    spec = Spec(fan_in - 1, 1)  # the two sizes enter by their sum alone
    size = len(networks)
    critic = eqx.filter_eval_shape(Critic, spec, hidden, jax.random.key(0), first.activation, size)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *networks)
    return eqx.tree_at(lambda critic: critic.networks, critic, stacked)


def observation_first(critic: Critic, action_size: int) -> Critic:
    """A critic whose networks were made to read the action before the observation, as ours, which read it after."""
    weight = critic.networks.layers[0].weight
    ours = jnp.concatenate([weight[:, action_size:], weight[:, :action_size]], axis=1)
    return eqx.tree_at(lambda critic: critic.networks.layers[0].weight, critic, ours)


def vae_from_golden(arrays: Arrays, prefix: str) -> VAE:
    """The VAE of BCQ and BEAR stored under `prefix`: e1, e2, mean and log_std; d1 to d3."""
    relu = jax.nn.relu
    encoder = mlp(arrays, [f"{prefix}/e1", f"{prefix}/e2", (f"{prefix}/mean", f"{prefix}/log_std")], relu)
    decoder = mlp(arrays, [f"{prefix}/d{i}" for i in (1, 2, 3)], relu)
    action_size, width = decoder.layers[-1].bias.size, decoder.layers[0].bias.size
    spec = Spec(encoder.layers[0].weight.shape[0] - action_size, action_size)
    vae = eqx.filter_eval_shape(VAE, spec, width, jax.random.key(0))
    return eqx.tree_at(lambda vae: (vae.encoder, vae.decoder), vae, (encoder, decoder))


def mlp(arrays: Arrays, layers: Sequence[Layer], activation: Activation) -> MLP:
    """The linear layers of these names, first to last, as one network."""
    pairs = [_linear(arrays, *([layer] if isinstance(layer, str) else layer)) for layer in layers]
    sizes = (pairs[0][0].shape[0], *(bias.size for _, bias in pairs))
    network = eqx.filter_eval_shape(MLP, sizes, jax.random.key(0), activation)
    return eqx.tree_at(_parameters_of_mlp, network, [array for pair in pairs for array in pair])


def linear(arrays: Arrays, name: str) -> Linear:
    """One linear layer, or one of an ensemble that is stored along the first axis."""
    weight, bias = _linear(arrays, name)
    return eqx.tree_at(
        lambda layer: (layer.weight, layer.bias),
        eqx.filter_eval_shape(Linear, *weight.shape[-2:], jax.random.key(0)),
        (weight, bias),
    )


def _middle_layers(arrays: Arrays, prefix: str) -> list[str]:
    start = f"{prefix}/model."
    names = [
        name.removeprefix(start).removesuffix(".weight") for name in arrays if name.startswith(f"{start}mid_layer")
    ]
    return sorted((name for name in names if not name.endswith(".bias")), key=lambda name: int(name.split(".")[1]))


def _is_first_weight_of_critic(name: str, prefix: str) -> bool:
    return name.startswith(f"{prefix}/q1_model.") and name.endswith(".weight")


def _linear(arrays: Arrays, *names: str) -> tuple[jax.Array, jax.Array]:
    for dot in "/.":
        if f"{names[0]}{dot}kernel" in arrays:
            pairs = ((arrays[f"{name}{dot}kernel"], arrays[f"{name}{dot}bias"]) for name in names)
            weights, biases = zip(*pairs, strict=True)
            break
    else:
        weights, biases = zip(*((arrays[f"{name}.weight"].T, arrays[f"{name}.bias"]) for name in names), strict=True)
    return jnp.asarray(np.concatenate(weights, axis=-1)), jnp.asarray(np.concatenate(biases, axis=-1))


def _parameters_of_mlp(mlp: MLP) -> list[jax.Array]:
    layers: tuple[Linear, ...] = mlp.layers
    return [array for layer in layers for array in (layer.weight, layer.bias)]


def _parameters_of_denoiser(denoiser: Denoiser) -> list[jax.Array]:
    return _parameters_of_mlp(denoiser.time) + _parameters_of_mlp(denoiser.body)
