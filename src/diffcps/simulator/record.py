"""Stored transitions as the check needs them: in the environment's units, with what a file holds of the state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffcps.data.checks import Rows
from diffcps.data.load import read, transitions
from diffcps.envs.ant_maze import SUCCESS_RADIUS
from diffcps.envs.make import EnvironmentSizes, environment_sizes
from diffcps.types import DatasetInfo, Reading, UserError

GOAL_ROWS, GOAL_STEPS = 50_000, 1000
"""A goal is sought with so many rows and corrections at most."""


class Record(NamedTuple):
    """Stored transitions, every array with one row per step, in the units of the environment."""

    observation: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    next_observation: np.ndarray
    """NaN where it is not known."""
    terminal: np.ndarray
    end: np.ndarray
    """The row ends an episode (terminal or not): (n,) bool."""
    infos: Mapping[str, np.ndarray]
    """What the file holds of the simulator's state at the row, such as qpos and qvel: (n, size) each."""
    scale: np.ndarray
    """(obs,): standard deviation of the change in one step, the unit of errors; for an entry that never changes, 1."""
    goal: np.ndarray | None = None
    """Where the rewards have the goal (2,), for an environment that draws its own at a reset."""


@dataclass(frozen=True)
class FileFacts:
    """What is known of a file before any step is compared."""

    source: str
    sha256: str
    environment_of_file: str | None
    rows: int
    """Transitions."""
    has_next_observations: bool
    names_action_box: bool


def read_record(source: str, environment_id: str) -> tuple[Record, FileFacts, list[str]]:
    """The transitions of a file, facts about the file, and remarks on its faults.

    Unlike `load_dataset` it takes actions outside their box, and remarks on them. Raises `UserError` for a file that
    cannot be read and for sizes that are not the environment's.
    """
    spec = environment_sizes(environment_id)
    if not np.isfinite([spec.action_low, spec.action_high]).all():
        raise UserError(
            f"environment {environment_id} has no bounds for its actions: random ones cannot be drawn there"
        )
    raw, rows, ends, _ = read(source, Reading(continuous_actions=True))
    _check_sizes(rows, spec, source, environment_id, None if raw.environment is None else str(raw.environment))
    unknown = ends.foreign
    if rows.next_observation is not None:
        unknown = unknown | np.isnan(rows.next_observation[:, 0])
    data = transitions(rows, ends, DatasetInfo(source=source, sha256=raw.sha256))
    observation, action, reward, following, terminal, timeout = (
        np.asarray(x)
        for x in (data.observation, data.action, data.reward, data.next_observation, data.terminal, data.timeout)
    )
    scale = step_scale(observation, following)
    if raw.next_observation is None:
        # Rows before a dropped one end by the file's own rule; a terminal row has no next observation at all.
        unknown = rows.terminal
    following = np.where(unknown[ends.kept, None], np.nan, following)
    infos = {name: value[ends.kept] for name, value in _read_infos(source, rows.size).items()}
    record = Record(observation, action, reward, following, terminal, terminal | timeout, infos, scale)
    facts = FileFacts(
        source=source,
        sha256=raw.sha256,
        environment_of_file=None if raw.environment is None else str(raw.environment),
        rows=len(reward),
        has_next_observations=raw.next_observation is not None,
        names_action_box=raw.action_low is not None or raw.action_high is not None,
    )
    return record, facts, _remarks(action, spec)


def _check_sizes(
    rows: Rows, spec: EnvironmentSizes, source: str, environment_id: str, environment_of_file: str | None
) -> None:
    for name, ours, theirs in (
        ("observations", rows.observation.shape[1], spec.observation_size),
        ("actions", rows.action.shape[1], spec.action_size),
    ):
        if ours != theirs:
            raise UserError(
                f"{source}: {name} have {ours} numbers, but {theirs} in environment {environment_id}: "
                f"name the environment (and its version) that the data were recorded in"
                + (f"; the file names {environment_of_file}" if environment_of_file else "")
            )


def _remarks(action: np.ndarray, spec: EnvironmentSizes) -> list[str]:
    low, high = np.asarray(spec.action_low, np.float32), np.asarray(spec.action_high, np.float32)
    outside = (action < low - 1e-5 * (high - low)) | (action > high + 1e-5 * (high - low))
    if not outside.any():
        return []
    return [
        f"actions lie outside the environment's box in {outside.mean():.1%} of their entries (largest "
        f"{np.abs(action).max():.3g}); the simulator cuts its controls, but a reward may count them in full"
    ]


def _read_infos(source: str, rows: int) -> dict[str, np.ndarray]:
    """Two-dimensional numbers under `infos/`, or qpos and qvel beside the fields, with one row per step."""
    path = Path(source)
    found: dict[str, np.ndarray] = {}
    if path.suffix.lower() in (".hdf5", ".h5"):
        import h5py

        with h5py.File(path, "r") as file:
            for prefix in ("infos", "/"):
                group = file.get(prefix)
                if isinstance(group, h5py.Group):
                    for name, item in group.items():
                        if isinstance(item, h5py.Dataset) and item.ndim == 2 and (prefix == "infos" or name[0] == "q"):
                            found.setdefault(name, item[()])
    elif path.suffix.lower() == ".npz":
        with np.load(path, allow_pickle=False) as file:
            for name in file.files:
                if name.startswith("infos/") or name in ("qpos", "qvel"):
                    found[name.removeprefix("infos/")] = file[name]
    return {
        name: value
        for name, value in found.items()
        if value.ndim == 2 and len(value) == rows and value.dtype.kind in "iuf"
    }


def step_scale(observation: np.ndarray, next_observation: np.ndarray) -> np.ndarray:
    """`Record.scale` of some transitions; rows without a next observation (NaN) are left out."""
    scale = np.nanstd(next_observation.astype(np.float64) - observation, axis=0)
    return np.where(scale > 1e-7 * (1.0 + np.abs(observation).max(axis=0)), scale, 1.0)


def goal_of(record: Record) -> np.ndarray | None:
    """The goal (2,) of AntMaze data, one for the whole file: a reward says whether a step ends within its radius.

    Starts in the middle of the rewarded positions, and again and again puts the position right that contradicts most.
    None where no step, or every step, is rewarded.
    """
    known = np.flatnonzero(~np.isnan(record.next_observation).any(axis=1))
    known = known[:: -(-len(known) // GOAL_ROWS) or 1]
    xy, reward = record.next_observation[known, :2].astype(np.float64), record.reward[known]
    inside = reward > reward.min(initial=np.inf)
    if not inside.any():
        return None
    goal = xy[inside].mean(axis=0)
    for _ in range(GOAL_STEPS):
        from_goal = xy - goal
        distance = np.linalg.norm(from_goal, axis=1)
        off = np.where(inside, distance - SUCCESS_RADIUS, SUCCESS_RADIUS - distance)
        worst = off.argmax()
        if off[worst] <= 0.0:
            break
        outwards = from_goal[worst] / max(distance[worst], 1e-9)
        goal = goal + 0.5 * off[worst] * (outwards if inside[worst] else -outwards)
    return goal


def windows(record: Record, rows: np.ndarray) -> tuple[Record, np.ndarray]:
    """The two rows before and after each of `rows` and the row itself, as a record, and where the rows are in it."""
    around = np.clip(rows[:, None] + np.arange(-2, 3), 0, len(record.reward) - 1)
    end, flat = record.end[around], around.ravel()
    end[:, -1] = True
    arrays = [value[flat] for value in record[:5]]
    infos = {name: value[flat] for name, value in record.infos.items()}
    cut = Record(*arrays, end=end.ravel(), infos=infos, scale=record.scale, goal=record.goal)
    return cut, 5 * np.arange(len(rows)) + 2


def episode_lengths(record: Record, ends: np.ndarray) -> np.ndarray:
    """Stored steps of the episodes that end at the rows `ends`."""
    last = np.flatnonzero(record.end)
    return np.diff(last, prepend=-1)[np.searchsorted(last, ends)]
