"""The one door through which data comes in."""

from __future__ import annotations

import re
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np

from diffcps.data import transforms
from diffcps.data.checks import check
from diffcps.data.formats import Raw, read_hdf5, read_minari, read_npz, to_dataset
from diffcps.data.transforms import RewardTransform
from diffcps.data.trifinger import read_trifinger
from diffcps.types import Dataset, DatasetInfo, UserError

BUILTIN = "builtin"
"""Names the dataset that comes with the package: half of a Hopper replay buffer."""
MINARI_ID = re.compile(r"[-\w]+(/[-\w]+)*-v\d+")


def load_dataset(
    source: str | Path,
    *,
    reward: RewardTransform = "none",
    normalise_observation: bool = False,
    environment: str | None = None,
) -> Dataset:
    """Read, check and transform logged transitions into numpy arrays (float32, flags bool).

    `source` is a D4RL-layout file (.hdf5, .h5, .npz), a Minari dataset (local folder, or id, which is downloaded when
    absent), a TriFinger dataset (folder TASK.zarr), or the word `builtin`. Actions are scaled from the box
    of the environment to [-1, 1]; the box is Minari's action space, or `action_low` and `action_high` in the file, or
    the TriFinger's torque limits, or [-1, 1]. `environment` overrides the environment id that the file names.

    Raises `UserError`, one line, for whatever is wrong with the source or its contents.
    """
    name = str(source)
    raw = check(_read(name), name)
    low, high = np.asarray(raw.action_low), np.asarray(raw.action_high)
    info = DatasetInfo(
        source=name,
        sha256=raw.sha256,
        environment=environment if environment is not None else raw.environment,
        reference_min=raw.reference_min,
        reference_max=raw.reference_max,
        action_low=tuple(low.tolist()),
        action_high=tuple(high.tolist()),
        reward_transform=reward,
    )
    dataset = to_dataset(raw._replace(action=transforms.scale_action(raw.action, low, high)), info)
    if normalise_observation:
        dataset = transforms.normalise_observation(dataset)
    return transforms.transform_reward(dataset, reward)


def read_raw(source: str | Path) -> Raw:
    """What a source holds, row by row and unchecked: fields are found and named, nothing else. Errors as above."""
    return _read(str(source))


def _read(source: str) -> Raw:
    if source == BUILTIN:
        with as_file(files("diffcps.data") / "builtin" / "hopper-replay.hdf5") as path:
            return read_hdf5(path, source)
    path = Path(source)
    match path.suffix.lower():
        case ".hdf5" | ".h5":
            return read_hdf5(path, source)
        case ".npz":
            return read_npz(path, source)
        case ".zarr" | ".mdb":
            return read_trifinger(path, source)
    if path.is_dir() or (MINARI_ID.fullmatch(source) and not path.exists()):
        return read_minari(source)
    if path.exists():
        raise UserError(f"{source}: unknown suffix {path.suffix!r}; a data file is .hdf5, .h5, .npz or .zarr")
    raise UserError(
        f"{source}: no such file, and no Minari id (such as mujoco/hopper/medium-v0); "
        "name a .hdf5, .h5 or .npz file, a Minari dataset, or builtin"
    )
