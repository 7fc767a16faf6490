"""Updates made again from recorded batches and draws."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from diffcps.optim import Trained
from diffcps.types import Algorithm, Metrics, Spec, Transition, UpdateIndex
from tests.golden.weights import Arrays

SPEC = Spec(observation_size=5, action_size=3)
"""The sizes of every recording."""

Networks = dict[str, Any]


def state_with(algorithm: Algorithm[Any], **networks: Any) -> Any:
    """The state before the first update: the given networks, everything else zero (optimisers without memory)."""
    shapes = jax.eval_shape(algorithm.init, jax.random.key(0))
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def replaced(part: Any, network: Any) -> Any:
        return dataclasses.replace(part, model=network) if isinstance(part, Trained) else network

    return state._replace(**{name: replaced(getattr(state, name), network) for name, network in networks.items()})


def networks_of(state: Any) -> Networks:
    """Every part of a state by its name, without the optimisers' memory."""
    return {name: part.model if isinstance(part, Trained) else part for name, part in state._asdict().items()}


def recorded(arrays: Arrays, group: str, *names: str) -> list[jax.Array]:
    """Arrays of one group, such as `steps`, with a row for each update."""
    return [jnp.asarray(arrays[f"{group}/{name}"]) for name in names]


def batches_of(arrays: Arrays) -> Transition:
    """The batches, one a row."""
    return Transition(*recorded(arrays, "batch", *Transition._fields))


def replay(
    algorithm: Algorithm[Any], state: Any, batches: Any, draws: Any, first: int | jax.Array = 0
) -> tuple[Networks, Metrics]:
    """All updates in one scan: networks after each of them and the metrics of each, along the first axis.

    `batches` and `draws` have a row for each update; `first` is the index of the first one.
    """

    def body(state, inputs):
        batch, draws, index = inputs
        state, metrics = algorithm.stages[0].update(state, batch, draws, UpdateIndex(index))
        return state, (networks_of(state), metrics)

    indices = first + jnp.arange(len(jax.tree.leaves(batches)[0]))
    return jax.lax.scan(body, state, (batches, draws, indices))[1]


def after(networks: Networks, updates: int, name: str) -> Any:
    """One network after so many updates."""
    return jax.tree.map(lambda leaf: leaf[updates - 1], networks[name])
