"""OGBench's single-task datasets, whose files hold no rewards: the package `ogbench` computes them from the goal."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from diffcps.readers.hashes import sha256_of_file
from diffcps.readers.rows import FIELDS, RawRows
from diffcps.tasks.catalogue import Task
from diffcps.types import UserError

NAMES = ("observations", "actions", "rewards", "masks", "terminals", "observations")
"""What OGBench calls each of `FIELDS`."""


def read_ogbench(path: Path, task: Task) -> RawRows:
    """The rows of an OGBench file with the rewards of the task: -1, and 0 at the goal.

    The last row of each trajectory only serves as next observation. A row at the goal is terminal, as in evaluation,
    although the trajectory goes on (OGBench's `masks`); the last row of a trajectory is a timeout.

    Raises `UserError` where the package is missing or the file is not one of OGBench's.
    Reference: https://github.com/seohongpark/ogbench, README, "Usage for standard offline RL".
    """
    try:
        import gymnasium
        from ogbench.relabel_utils import relabel_dataset  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(
            f"{task.id}: its rewards are computed by the package ogbench, which is missing; "
            "pip install 'diffcps[ogbench]'"
        ) from None
    sha256, rows = sha256_of_file(path, str(path)), read_arrays(path)
    last = rows["terminals"] == 1
    last[-1] = True
    kept = np.flatnonzero(~last)
    labelled = {"qpos": rows["qpos"][kept]}
    maze, size, _, *rest = task.id.split("-")  # the package's environments do not name the kind of data
    package_id = "-".join((maze, size, *rest))
    environment = gymnasium.make(f"ogbench:{package_id}", disable_env_checker=True)
    relabel_dataset(package_id, environment, labelled)
    environment.close()
    terminal = np.asarray(labelled["masks"]) == 0
    return RawRows(
        observation=rows["observations"][kept],
        action=rows["actions"][kept],
        reward=np.asarray(labelled["rewards"]),
        terminal=terminal,
        timeout=last[kept + 1] & ~terminal,
        next_observation=rows["observations"][kept + 1],
        names=dict(zip(FIELDS, NAMES, strict=True)),
        sha256=sha256,
    )


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Observations, actions, terminals (ends of trajectories) and qpos, as the file has them. Raises `UserError`."""
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("it may be truncated")
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in ("observations", "actions", "terminals", "qpos")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: not a complete file of OGBench ({error}); get it again") from None
