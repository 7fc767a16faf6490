"""How long the updates of a method take on this machine, by a short measurement on made-up data."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffcps.training.loop import prepared
from diffcps.training.members import Program
from diffcps.types import Dataset, DatasetInfo, Spec, Tree

ROWS = 2_000
"""Of made-up data: few, because stages begin with computations for every row."""
EPISODE_STEPS = 100
"""Of made-up data, where windows need no more."""


class StageTiming(NamedTuple):
    """Of one stage of a training, and of those that are the same; all members together."""

    share: float
    """Of the updates: of all these stages, where those of the whole training add up to 1."""
    count: int
    """How many they are."""
    begin_seconds: float
    """What each does before its first update, on the rows that were measured."""
    compile_seconds: float
    """Of the first call."""
    seconds_per_update: float
    """Median of the calls behind the first."""


def made_up_data(spec: Spec, rows: int = ROWS, episode_steps: int = EPISODE_STEPS) -> Dataset:
    """Random numbers in episodes of at least so many steps: the speed does not depend on their values."""
    rng = np.random.default_rng(0)
    last = (np.arange(rows) + 1) % max(EPISODE_STEPS, episode_steps) == 0
    terminal = last & (rng.random(rows) < 0.5)
    return Dataset(
        observation=rng.normal(size=(rows, spec.observation_size)).astype(np.float32),
        action=rng.uniform(-1, 1, size=(rows, spec.action_size)).astype(np.float32),
        reward=rng.normal(size=rows).astype(np.float32),
        next_observation=rng.normal(size=(rows, spec.observation_size)).astype(np.float32),
        terminal=terminal,
        timeout=last & ~terminal,
        info=DatasetInfo("made up", "0"),
    )


def time_stages(program: Program, calls: int = 3, seconds_per_call: float = 1.0) -> tuple[list[StageTiming], Tree]:
    """Each stage that differs from those before it, and the state after the last; `seconds_per_call`: about how long a
    call takes.
    """
    state, labels, alive = program.init(), (), jnp.ones(len(program.members), bool)
    shares, kinds = program.shares, [program.first_like(stage) for stage in range(program.num_stages)]
    found: list[StageTiming] = []
    for stage in dict.fromkeys(kinds):
        begun = 0.0
        for _ in range(2):  # the first time it is compiled
            started = time.perf_counter()
            begun_with = jax.block_until_ready(
                program.begin(state, prepared(program, state, labels, stage), alive, stage)
            )
            begun = time.perf_counter() - started
        state, labels = begun_with
        same = [number for number, kind in enumerate(kinds) if kind == stage]
        share = sum(shares[number] for number in same) / sum(shares)
        state, compiled, seconds = time_updates(program, stage, state, labels, calls, seconds_per_call)
        found.append(StageTiming(share, len(same), begun, compiled, statistics.median(seconds)))
    return found, state


def seconds_per_update(stages: Sequence[StageTiming]) -> float:
    """Of a whole training, without what stages do before their first update."""
    return sum(stage.share * stage.seconds_per_update for stage in stages)


def time_updates(
    program: Program, stage: int, state: Tree, labels: Tree, calls: int, seconds_per_call: float
) -> tuple[Tree, float, list[float]]:
    """The state after the updates, the seconds of the first call, and those of the others per update."""
    alive = jnp.ones(len(program.members), bool)

    def advance(first: int, last: int) -> float:
        nonlocal state, alive
        started = time.perf_counter()
        state, alive, _ = program.advance(state, alive, first, last, labels, stage)
        alive.block_until_ready()
        return time.perf_counter() - started

    compiled = advance(0, 2)
    probe = advance(2, 12) / 10
    updates = max(2, 2 * round(seconds_per_call / probe / 2))  # even: of policies that move every second update
    of_calls = [advance(12 + i * updates, 12 + (i + 1) * updates) / updates for i in range(calls)]
    return state, compiled, of_calls
