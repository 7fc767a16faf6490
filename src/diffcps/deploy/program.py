"""A trained policy as one function of numbers: observations and random numbers in, actions out."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import jax
import jax.export
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffcps.data.scaling import Scaling
from diffcps.deploy.draws import Instead, LawName, Traced, as_it_is, trace
from diffcps.optim import without_memory
from diffcps.records.record import RunRecord
from diffcps.run.policy import Checkpoint, load_run
from diffcps.training.members import Member
from diffcps.types import Algorithm, Spec, Tree


class Exported(NamedTuple):
    """One member's policy at one checkpoint, and what it was made of."""

    record: RunRecord
    """The run, but for how its policy acts, where that was overridden."""
    run: Path
    checkpoint: Checkpoint | int
    updates: int
    """That the member had made by then."""
    member: Member
    algorithm: Algorithm[Tree]
    state: Tree
    """Without what the optimisers remember."""
    scaling: Scaling
    traced: Traced

    @property
    def spec(self) -> Spec:
        """Sizes of observations and actions."""
        return self.record.spec

    @property
    def laws(self) -> tuple[LawName, ...]:
        """The random numbers that it takes beside observations; none where it is deterministic."""
        return self.traced.laws

    def act(
        self,
        seen: Float[Array, "b obs"],
        *numbers: Array,
        instead: Instead = as_it_is,
    ) -> Float[Array, "b act"]:
        """Actions in the environment's units for observations as the networks see them, all float32.

        `numbers` (b, n) are those of `laws`, in their order, a row for each observation.
        """

        def one(seen: Float[Array, " obs"], *numbers: Array) -> Float[Array, " act"]:
            return self.traced.act(seen, dict(zip(self.laws, numbers, strict=True)), instead)

        low, high = jnp.asarray(self.scaling.low), jnp.asarray(self.scaling.high)
        return low + (jax.vmap(one)(seen, *numbers) + 1.0) / 2.0 * (high - low)


def exported(
    run: str | Path, checkpoint: Checkpoint | int = "best", member: int = 0, action_choice: str | None = None
) -> Exported:
    """One member's policy of a run folder. Raises `UserError`, also where a draw of it cannot be made an input."""
    loaded = load_run(run, checkpoint, action_choice)
    record, members = loaded.record, loaded.record.members
    algorithm, state = loaded.of_member(member)
    state = without_memory(state)
    traced = trace(algorithm.act, state, record.spec.observation_size)
    return Exported(
        record,
        loaded.folder.path,
        checkpoint,
        loaded.updates[member],
        members[member],
        algorithm,
        state,
        loaded.scaling,
        traced,
    )


def stablehlo(policy: Exported) -> bytes:
    """The policy as a function of (observation float64, then float32 numbers of each law), serialised by `jax.export`.

    The number of rows is free. Observations are in the environment's units: their mean is subtracted in float64.
    """

    def act(observation: Array, *numbers: Array) -> Array:
        seen = (observation - policy.scaling.mean) / policy.scaling.std
        return policy.act(seen.astype(jnp.float32), *numbers)

    (rows,) = jax.export.symbolic_shape("batch")
    with jax.enable_x64(True):
        shapes = [jax.ShapeDtypeStruct((rows, policy.spec.observation_size), jnp.float64)]
        shapes += [jax.ShapeDtypeStruct((rows, policy.traced.size(law)), jnp.float32) for law in policy.laws]
        return bytes(jax.export.export(jax.jit(act), platforms=["cpu", "cuda"])(*shapes).serialize())
