"""The networks of SfBC and QGPO in continuous time: a score in the shape of a U, and an energy that guides it."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffcps.networks.mlp import MLP, Linear
from diffcps.types import Denoise, Key, Spec, UserError


class ConditionedBlock(eqx.Module):
    """silu(W_2 (silu(W_1 x) + W_e silu(e))) + x, e the condition; W_3 x in the place of x where the widths differ."""

    first: Linear
    condition: Linear
    second: Linear
    skip: Linear | None

    def __init__(self, fan_in: int, width: int, embedding_size: int, key: Key):
        key_first, key_condition, key_second, key_skip = jax.random.split(key, 4)
        self.first = Linear(fan_in, width, key_first)
        self.condition = Linear(embedding_size, width, key_condition)
        self.second = Linear(width, width, key_second)
        self.skip = None if fan_in == width else Linear(fan_in, width, key_skip)

    def __call__(self, x: Float[Array, "*b fan_in"], active: Float[Array, "*#b embedding"]) -> Float[Array, "*b width"]:
        """`active` is silu(e)."""
        hidden = jax.nn.silu(self.first(x)) + self.condition(active)
        return jax.nn.silu(self.second(hidden)) + (x if self.skip is None else self.skip(x))


def unet_widths(width: int, depth: int) -> tuple[int, ...]:
    """width, width / 2, ...: so many. Raises `UserError` where nothing is left to halve."""
    if width < 2 ** (depth - 1):
        raise UserError(
            f"behaviour_width is {width}: halved {depth - 1} times nothing is left, make it larger or behaviour_depth "
            "smaller"
        )
    return tuple(width // 2**level for level in range(depth))


class ScoreUNet(eqx.Module):
    """h_theta(x_t, s, t) for t in [0, 1], given features of t: a U of blocks over the action. The score is h / std_t.

    Condition: features -> as many; s -> as many -> silu; both -> `embedding_size` -> silu -> `embedding_size`. The U:
    blocks x_t -> widths[0] -> widths[1] -> ..., one of the last width, and back: each takes [what went down, what comes
    up] of one width to the width above. Reference: the programs of SfBC (arXiv:2209.14548) and QGPO (arXiv:2304.12824),
    with 32 features, widths (512, 256, 128) and a condition of 128.
    """

    time: Linear
    observation: Linear
    embedding: MLP
    down: tuple[ConditionedBlock, ...]
    middle: ConditionedBlock
    up: tuple[ConditionedBlock, ...]
    last: Linear

    def __init__(self, spec: Spec, widths: tuple[int, ...], num_features: int, embedding_size: int, key: Key):
        key_time, key_observation, key_embedding, key_middle, key_last, key_blocks = jax.random.split(key, 6)
        self.time = Linear(num_features, num_features, key_time)
        self.observation = Linear(spec.observation_size, num_features, key_observation)
        self.embedding = MLP((2 * num_features, embedding_size, embedding_size), key_embedding, jax.nn.silu)
        keys = iter(jax.random.split(key_blocks, 2 * len(widths)))
        ways_down = zip((spec.action_size, *widths), widths, strict=False)
        self.down = tuple(ConditionedBlock(fan_in, width, embedding_size, next(keys)) for fan_in, width in ways_down)
        self.middle = ConditionedBlock(widths[-1], widths[-1], embedding_size, key_middle)
        ways_up = zip(widths[:0:-1], widths[-2::-1], strict=True)
        self.up = tuple(
            ConditionedBlock(2 * width, width_above, embedding_size, next(keys)) for width, width_above in ways_up
        )
        self.last = Linear(2 * widths[0], spec.action_size, key_last)

    @property
    def action_size(self) -> int:
        return self.last.bias.shape[-1]

    def __call__(
        self,
        xt: Float[Array, "*b act"],
        observation: Float[Array, "*b obs"],
        features: Float[Array, "*b features"],
    ) -> Float[Array, "*b act"]:
        return self._of_active(xt, self._active(observation, self.time(features)))

    def given(self, observation: Float[Array, "*b obs"], features: Float[Array, "calls features"]) -> Denoise:
        """h_theta(., s, .) for a whole reverse chain, where the second argument counts the calls.

        The condition does not depend on x_t: it is computed once, for each call and each observation. Axes of x_t that
        the observation lacks must be of size one in it: candidates share their condition.
        """
        time = self.time(features)
        axes = (1,) * (observation.ndim - 1)
        active = self._active(observation, time.reshape(time.shape[0], *axes, time.shape[1]))

        def h(xt: Float[Array, "*b act"], call: Int[Array, ""]) -> Float[Array, "*b act"]:
            return self._of_active(xt, active[call])

        return h

    def _active(
        self, observation: Float[Array, "*#b obs"], time: Float[Array, "*#b features"]
    ) -> Float[Array, "*b embedding"]:
        """silu(e), as every block takes it."""
        seen = jax.nn.silu(self.observation(observation))
        return jax.nn.silu(self.embedding(jnp.concatenate(jnp.broadcast_arrays(seen, time), axis=-1)))

    def _of_active(self, xt: Float[Array, "*b act"], active: Float[Array, "*#b embedding"]) -> Float[Array, "*b act"]:
        passed = []
        for block in self.down:
            xt = block(xt, active)
            passed.append(xt)
        hidden = self.middle(xt, active)
        for block in self.up:
            hidden = block(jnp.concatenate([passed.pop(), hidden], axis=-1), active)
        return self.last(jnp.concatenate([passed.pop(), hidden], axis=-1))


class EnergyNetwork(eqx.Module):
    """f_phi(x_t, s, t) for t in [0, 1], given features of t: [x_t, time, s] -> hidden -> 1, with silu between.

    Time: features -> as many, without an activation. Reference: the program of QGPO (arXiv:2304.12824).
    """

    time: Linear
    network: MLP

    def __init__(self, spec: Spec, hidden: tuple[int, ...], num_features: int, key: Key):
        key_time, key_network = jax.random.split(key)
        self.time = Linear(num_features, num_features, key_time)
        fan_in = spec.action_size + num_features + spec.observation_size
        self.network = MLP((fan_in, *hidden, 1), key_network, jax.nn.silu)

    def __call__(
        self,
        xt: Float[Array, "*b act"],
        observation: Float[Array, "*#b obs"],
        features: Float[Array, "*#b features"],
    ) -> Float[Array, "*b"]:
        """Axes of x_t that observation or features lack must be of size one in them."""
        axes = xt.shape[:-1]
        time, observation = (
            jnp.broadcast_to(array, (*axes, array.shape[-1])) for array in (self.time(features), observation)
        )
        return self.network(jnp.concatenate([xt, time, observation], axis=-1))[..., 0]
