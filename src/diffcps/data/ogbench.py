"""OGBench's single-task datasets, whose files hold no rewards: the package `ogbench` computes them from the goal."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from diffcps.data.catalogue import Task
from diffcps.data.formats import FIELDS, Raw, sha256_of_file
from diffcps.types import UserError


def read_ogbench(path: Path, task: Task) -> Raw:
    """The rows of an OGBench file with the rewards of the task: -1, and 0 at the goal.

    The last row of each trajectory only serves as next observation. A row at the goal is terminal, as in evaluation,
    although the trajectory goes on (OGBench's `masks`); the last row of a trajectory is a timeout.

    Raises `UserError` where the package is missing or the file is not one of OGBench's.
    Reference: https://github.com/seohongpark/ogbench, README, "Usage for standard offline RL".
    """
    try:
        import gymnasium
        from ogbench.relabel_utils import relabel_dataset
        from ogbench.utils import load_dataset
    except ImportError:
        raise UserError(
            f"{task.id}: its rewards are computed by the package ogbench, which is missing; "
            "pip install 'diffcps[ogbench]'"
        ) from None
    sha256 = sha256_of_file(path, str(path))
    try:
        rows = load_dataset(str(path), add_info=True)
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise UserError(f"{path}: not a complete file of OGBench ({error}); get it again") from None
    environment = gymnasium.make(task.environment, disable_env_checker=True)
    relabel_dataset(task.environment.removeprefix("ogbench:"), environment, rows)
    environment.close()
    terminal = np.asarray(rows["masks"]) == 0
    names = ("observations", "actions", "rewards", "masks", "terminals", "observations")
    return Raw(
        observation=rows["observations"],
        action=rows["actions"],
        reward=rows["rewards"],
        terminal=terminal,
        timeout=(np.asarray(rows["terminals"]) == 1) & ~terminal,
        next_observation=rows["next_observations"],
        names=dict(zip(FIELDS, names, strict=True)),
        sha256=sha256,
    )
