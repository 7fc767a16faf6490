"""What collecting writes: parts (npz) while it goes on, one HDF5 file in D4RL's layout at the end."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeAlias

import numpy as np

from diffcps.data.transforms import episode_sums
from diffcps.data.writers import Attribute, write_hdf5
from diffcps.types import UserError

Columns: TypeAlias = dict[str, np.ndarray]
"""Arrays with a row for each transition under D4RL's names: observations, actions, ..., infos/qpos."""

TRANSITION = ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts")
"""Names of what every collected file has, in the order in which it is recorded."""
SIMULATOR_STATE = ("infos/qpos", "infos/qvel")
"""The simulator's state before the step."""
_TYPES = {"terminals": bool, "timeouts": bool, "infos/qpos": np.float64, "infos/qvel": np.float64}


def as_columns(names: Sequence[str], rows: Iterable[Sequence[object]]) -> Columns:
    """Rows recorded step by step, each with a value for every name, as columns in the types of the files."""
    return {
        name: np.asarray(values, _TYPES.get(name, np.float32))
        for name, values in zip(names, zip(*rows, strict=True), strict=True)
    }


def load_part(path: Path) -> Columns:
    """A part that `write_npz` wrote. Raises `UserError` where it is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: a part of a collection is missing or damaged ({error}); remove its folder") from error


def join(parts: Sequence[Columns]) -> Columns:
    """Parts one after another."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def first_rows(columns: Columns, count: int) -> Columns:
    """The first `count` rows; an episode that is cut there ends with a timeout."""
    if count >= len(columns["rewards"]):
        return columns
    cut = {name: array[:count].copy() for name, array in columns.items()}
    cut["timeouts"][-1] = not cut["terminals"][-1]
    return cut


def episode_returns(columns: Columns) -> np.ndarray:
    """Sum of rewards of each episode, (episodes,) float64; an unmarked rest at the end counts."""
    return episode_sums(columns["rewards"], columns["terminals"] | columns["timeouts"])


def provenance(
    task: str, environment_id: str, recipe: str, seed: int, reference: tuple[float, float], action_size: int
) -> dict[str, Attribute]:
    """The attributes common to all collected files: what was asked, by which versions it was made, its scales."""
    side = np.ones(action_size, np.float32)
    return {
        "task": task,
        "env_id": environment_id,
        "recipe": recipe,
        "seed": seed,
        "source": "collected by diffcps in today's simulators; not a D4RL file: compare scores only within such files",
        "versions": ", ".join(
            f"{name} {found}"
            for name in ("diffcps", "gymnasium", "mujoco", "jax", "numpy", "ogbench")
            if (found := _version(name))
        ),
        "ref_min_score": reference[0],
        "ref_max_score": reference[1],
        "action_low": -side,
        "action_high": side,
    }


def write_d4rl(path: Path, columns: Columns, attributes: Mapping[str, Attribute]) -> None:
    """Writes columns and attributes as HDF5, as a whole or not at all.

    Adds `transitions`, `episodes`, `mean_return` and `std_return`, over the episodes that end in the file.
    """
    returns = episode_returns(columns)
    counts = {
        "transitions": len(columns["rewards"]),
        "episodes": len(returns),
        "mean_return": float(returns.mean()),
        "std_return": float(returns.std()),
    }
    write_hdf5(path, columns, {**attributes, **counts})


def has_attributes(path: Path, wanted: Mapping[str, Attribute]) -> bool:
    """Whether an HDF5 file has these attributes, and so is what would be written."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            return all(
                name in file.attrs and np.array_equal(np.asarray(file.attrs[name]), wanted[name]) for name in wanted
            )
    except OSError:
        return False


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
