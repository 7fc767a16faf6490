"""Other versions of an environment, and the same one with other frame skips: does one of them fit better?"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from diffcps.envs.make import environment_sizes, make_environment
from diffcps.simulator.probe import FITS, probe
from diffcps.simulator.replay import Case, Simulator
from diffcps.simulator.state import Mujoco
from diffcps.types import UserError

if TYPE_CHECKING:
    import gymnasium

FRAME_SKIPS = (1, 2, 3, 4, 5, 8, 10)


@dataclass(frozen=True)
class Version:
    """How well another version of the environment does on the same steps: shares of them that agree."""

    environment: str
    reward_at_terminals: float | None
    agree: float
    reward: float

    @property
    def fits(self) -> bool:
        """Steps and rewards agree, those of terminal rows too."""
        at_terminals = self.reward_at_terminals
        return self.agree >= FITS and self.reward >= FITS and (at_terminals is None or at_terminals >= 0.9)


def compare_versions(steps: Case, ends: np.ndarray, environment_id: str, stack: ExitStack, seed: int) -> list[Version]:
    """The other versions of the environment on some of the steps and of the terminal rows `ends`.

    `stack` closes what is made here.
    """
    found = []
    for other in other_versions(environment_id):
        simulator, rng = probe(_make_quietly(other, stack), seed), np.random.default_rng(seed)
        on_steps = Case(simulator, steps.record, spread(steps.rows, 300)).compare(rng)
        at_ends = Case(simulator, steps.record, spread(ends, 100)).compare(rng)
        found.append(
            Version(
                other,
                float(at_ends.reward_agrees.mean()) if len(ends) else None,
                agree=float(on_steps.agree.mean()),
                reward=float(on_steps.reward_agrees.mean()),
            )
        )
    return found


def other_simulators(
    environment_id: str, simulator: Simulator, stack: ExitStack, seed: int
) -> Iterator[tuple[str, Simulator]]:
    """Other versions with the same sizes and other frame skips of this one, each with the fault that it stands for."""
    for other in other_versions(environment_id):
        fault = f"the data are from another version of the environment, {other}"
        yield fault, probe(_make_quietly(other, stack), seed)
    own = simulator.environment.unwrapped
    if not isinstance(own, Mujoco):
        return
    for skip in FRAME_SKIPS:
        if skip != own.frame_skip:
            made = _make_quietly(environment_id, stack)
            made.reset(seed=seed)
            assert isinstance(made.unwrapped, Mujoco)
            made.unwrapped.frame_skip = skip
            fault = f"the data were recorded with a frame skip of {skip}, and the environment has {own.frame_skip}"
            yield fault, replace(simulator, environment=made)


def other_versions(environment_id: str) -> list[str]:
    """Ids of the same name with another version number that can be made and have the same sizes."""
    import gymnasium

    spec = environment_sizes(environment_id)
    name = re.sub(r"-v\d+$", "", environment_id)
    fitting = []
    for other in gymnasium.registry:
        if other == environment_id or re.sub(r"-v\d+$", "", other) != name:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                sizes = environment_sizes(other)
        except UserError:  # it ran on mujoco-py
            continue
        if sizes[:2] == spec[:2]:
            fitting.append(other)
    return fitting


def _make_quietly(environment_id: str, stack: ExitStack) -> gymnasium.Env:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return stack.enter_context(closing(make_environment(environment_id)))


def spread(rows: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the rows (n,), evenly over them."""
    return rows if len(rows) <= count else rows[np.linspace(0, len(rows) - 1, count).astype(int)]
