"""Finding out how observations tell the state of a simulator, and whether that is enough.

Nothing is known beforehand about any robot. The simulator runs, and what it returns is compared with the state inside:
an entry of the observation that always equals a coordinate of the state tells that coordinate. Then the simulator is
put back into the observations of a roll-out of its own: only where that gives the same steps again can the steps of a
file be judged.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from diffcps.envs.quiet import mujoco_warnings
from diffcps.simulator.record import Record, step_scale
from diffcps.simulator.replay import Case, Layout, Simulator
from diffcps.simulator.state import correct_state, get_state, num_velocities
from diffcps.types import UserError

if TYPE_CHECKING:
    import gymnasium

EPISODES, STEPS = 8, 25
"""The probe: so many episodes of so many steps with random actions."""
BOOST = 10.0
"""Standard deviation of the random factor on the velocities in half of the probes: it shows where they are clipped."""
FITS = 0.99
"""Data fit a simulator, and a simulator fits its own roll-out, where at least this share of steps agrees."""


def probe(environment: gymnasium.Env, seed: int = 0) -> Simulator:
    """A simulator with the layout of its state, and how well it gives its own steps again.

    Raises `UserError` where the environment has no state that can be set.
    """
    environment.reset(seed=seed)
    if get_state(environment) is None:
        name = environment.spec.id if environment.spec is not None else type(environment.unwrapped).__name__
        raise UserError(
            f"environment {name} has no state that could be set (neither MuJoCo's qpos and qvel nor "
            "`state`), so that its steps cannot be compared with stored ones"
        )
    layout = _layout(*_samples(environment, np.random.default_rng(seed), seed))
    record = _own_record(environment, seed)
    inner = np.flatnonzero(~np.append(True, record.end[:-1]))
    best = Simulator(environment, layout, reproduced=-1.0)
    for run_in in (False, True):
        candidate = replace(best, run_in=run_in)
        rows = inner[~candidate.clipped(record.observation[inner])]
        if not len(rows):
            return replace(best, reproduced=0.0)
        found = Case(candidate, record, rows).compare(np.random.default_rng(seed))
        candidate = replace(candidate, reproduced=float(found.agree.mean()))
        if min(found.agree.mean(), found.reward_agrees.mean()) >= FITS:
            return candidate
        if candidate.reproduced > best.reproduced:
            best = candidate
    return best


def _samples(
    environment: gymnasium.Env, rng: np.random.Generator, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """States (p, state), the observations (p, obs) made of them, and whether the velocities are natural (p,) bool."""
    environment.action_space.seed(seed)
    states, observations, natural = [], [], []
    velocities = num_velocities(environment)
    with mujoco_warnings(lambda _: None):
        for episode in range(EPISODES):
            boosted = episode % 2 == 1
            environment.reset(seed=seed + episode)
            for _ in range(STEPS):
                if boosted and velocities:
                    state = get_state(environment)
                    assert state is not None
                    state[-velocities:] *= BOOST * rng.standard_normal(velocities)
                    state[-velocities:] = np.clip(state[-velocities:], -50.0, 50.0)
                    correct_state(environment, state)
                observation, *_ = environment.step(environment.action_space.sample())
                states.append(get_state(environment))
                observations.append(np.asarray(observation, np.float64))
                natural.append(not boosted)
    return np.asarray(states), np.asarray(observations), np.asarray(natural)


def _layout(states: np.ndarray, observations: np.ndarray, natural: np.ndarray) -> Layout:
    finite = np.isfinite(states).all(axis=1) & np.isfinite(observations).all(axis=1)
    states, observations, natural = states[finite], observations[finite], natural[finite]
    largest = np.abs(observations).max(axis=0)
    clip = np.full(len(largest), np.inf)
    direct, angles = [], []
    moves = observations.std(axis=0) > 0

    def entries(feature: np.ndarray) -> np.ndarray:
        """Entries of the observation that equal a number of each sample (p,), cut off at the largest that is seen."""
        told = np.clip(feature[:, None], -largest, largest)
        return np.flatnonzero(moves & (np.abs(told - observations) <= 5e-7 * np.abs(told)).all(axis=0))

    for coordinate in range(states.shape[1]):
        value = states[:, coordinate]
        if value.std() == 0:
            continue
        if len(found := entries(value)):
            direct.append((found[0], coordinate))
            if np.abs(value).max() > largest[found[0]] * (1 + 1e-6):
                clip[found[0]] = largest[found[0]]
        elif len(cosine := entries(np.cos(value))) and len(sine := entries(np.sin(value))):
            angles.append((cosine[0], sine[0], coordinate))
    known = {coordinate for *_, coordinate in direct + angles}
    constant = states[natural].std(axis=0) == 0
    return Layout(
        np.asarray(direct, int).reshape(-1, 2),
        np.asarray(angles, int).reshape(-1, 3),
        clip,
        hidden=np.asarray([i for i in range(states.shape[1]) if i not in known], int),
        fill=np.where(constant, states[natural][0], 0.0),
    )


def _own_record(environment: gymnasium.Env, seed: int) -> Record:
    """A short roll-out with random actions, as a file would hold it."""
    rows, ends = [], []
    environment.action_space.seed(seed + 1)
    for episode in range(EPISODES):
        observation, _ = environment.reset(seed=seed + EPISODES + episode)
        for step in range(STEPS):
            action = environment.action_space.sample()
            after, reward, terminated, truncated, _ = environment.step(action)
            rows.append((observation, action, reward, after, terminated))
            ends.append(bool(terminated or truncated or step == STEPS - 1))
            observation = after
            if ends[-1]:
                break
    columns = [np.asarray(column, np.float32) for column in zip(*rows, strict=True)]
    scale = step_scale(columns[0], columns[3])
    return Record(*columns[:4], terminal=columns[4] == 1, end=np.asarray(ends), infos={}, scale=scale)
