"""What collecting writes: parts (npz) while it goes on, one HDF5 file in D4RL's layout at the end."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from diffcps.run.folder import RunFolder
from diffcps.storage import write_atomically
from diffcps.types import UserError

Rows = dict[str, np.ndarray]
"""Arrays of equal length under D4RL's names: observations, actions, ..., infos/qpos."""


def save_rows(path: Path, rows: Rows) -> None:
    """Writes a part as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.savez(buffer, **rows)  # pyright: ignore[reportArgumentType]
    write_atomically(path, buffer.getvalue())


def load_rows(path: Path) -> Rows:
    """What `save_rows` wrote. Raises `UserError` where it is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: a part of a collection is missing or damaged ({error}); remove its folder") from error


def join(parts: Sequence[Rows]) -> Rows:
    """Parts one after another."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def arrays(columns: dict[str, list]) -> Rows:
    """Columns gathered step by step, in the types of the files."""
    kinds = {"terminals": bool, "timeouts": bool, "infos/qpos": np.float64, "infos/qvel": np.float64}
    return {name: np.asarray(column, kinds.get(name, np.float32)) for name, column in columns.items()}


def first_rows(rows: Rows, count: int) -> Rows:
    """The first `count` rows; an episode that is cut there ends with a timeout."""
    if count >= len(rows["rewards"]):
        return rows
    cut = {name: array[:count].copy() for name, array in rows.items()}
    cut["timeouts"][-1] = not cut["terminals"][-1]
    return cut


def provenance(task: str, environment_id: str, recipe: str, seed: int) -> dict[str, Any]:
    """The attributes common to all collected files: what was asked, and by which versions it was made."""
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
    }


def write_d4rl(path: Path, rows: Rows, attributes: dict[str, Any]) -> None:
    """Writes rows and attributes as HDF5 (gzip), as a whole or not at all.

    Adds `transitions`, `episodes`, `mean_return` and `std_return`, over the episodes that end in the file.
    """
    import h5py

    length = {name: len(array) for name, array in rows.items()}
    assert len(set(length.values())) == 1, length
    returns = episode_returns(rows)
    counts = {
        "transitions": len(rows["rewards"]),
        "episodes": len(returns),
        "mean_return": float(returns.mean()),
        "std_return": float(returns.std()),
    }
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, array in rows.items():
            chunk = (min(len(array), 2**14), *array.shape[1:])
            file.create_dataset(
                name, data=array, chunks=chunk, compression="gzip", compression_opts=4, shuffle=True, track_times=False
            )
        for name, value in sorted({**attributes, **counts}.items()):
            file.attrs[name] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())


def holds(path: Path, wanted: dict[str, Any]) -> bool:
    """Whether a file has these attributes: it is what would be written."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            return all(
                name in file.attrs and np.array_equal(np.asarray(file.attrs[name]), wanted[name]) for name in wanted
            )
    except OSError:
        return False


def claim(folder: RunFolder, content: dict[str, Any]) -> None:
    """Says in a locked folder what it holds. Raises `UserError` where it holds something else."""
    if not folder.config.exists():
        folder.write_json(folder.config, content)
        return
    stored = folder.read_config()
    different = [name for name in content if stored.get(name) != content[name]]
    if different:
        raise UserError(
            f"{folder.path}: holds a run with another {different[0]} ({stored.get(different[0])}, asked for "
            f"{content[different[0]]}); remove it or collect elsewhere"
        )


def episode_returns(rows: Rows) -> np.ndarray:
    """Sum of rewards of each episode, (episodes,) float64; an unmarked rest at the end counts."""
    ends = np.flatnonzero(rows["terminals"] | rows["timeouts"]) + 1
    starts = np.append(0, ends)
    return np.add.reduceat(rows["rewards"].astype(np.float64), starts[starts < len(rows["rewards"])])


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
