"""`load_dataset`: all data come in through it, whatever their format."""

from __future__ import annotations

import re
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np

from diffcps.data import transforms
from diffcps.data.checks import check_rows
from diffcps.data.download import data_file, where_from
from diffcps.data.readers.d4rl_hdf5 import read_hdf5
from diffcps.data.readers.minari import read_minari
from diffcps.data.readers.npz import read_npz
from diffcps.data.readers.ogbench import read_ogbench
from diffcps.data.readers.trifinger import read_trifinger
from diffcps.data.rows import RawRows, to_dataset
from diffcps.data.scaling import Scaling
from diffcps.data.transforms import RewardTransform
from diffcps.tasks.catalogue import Task, catalogue, find_task
from diffcps.types import Dataset, DatasetInfo, EnvAction, EnvironmentSpec, UserError

BUILTIN = "builtin"
"""Names the dataset that comes with the package: half of a Hopper replay buffer."""
MINARI_ID = re.compile(r"[-\w]+(/[-\w]+)*-v\d+")


def load_dataset(
    source: str | Path,
    *,
    reward: RewardTransform = "none",
    normalise_observation: bool = False,
    environment: EnvironmentSpec | str | None = None,
    task: str | None = None,
) -> Dataset:
    """Read, check and transform logged transitions into numpy arrays (float32, flags bool).

    `source` is a task of the catalogue whose data are here (`diffcps data list`), a D4RL-layout file (.hdf5, .h5,
    .npz), a Minari dataset (local folder, or id, which is downloaded when absent), a TriFinger dataset (folder
    TASK.zarr), or the word `builtin`. Actions are scaled from the box of the environment to [-1, 1]; the box is
    Minari's action space, `action_low` and `action_high` in the file, the TriFinger's torque limits, or [-1, 1].

    `task` names the task that the data are used for; by default it is `source`, where that is one. The environment id
    and the reference scores are then the task's, as far as it has any, and otherwise those that the file names;
    `environment`, an id or a specification, overrides it.

    Raises `UserError`, one line, for whatever is wrong with the source or its contents.
    """
    name = str(source)
    raw, task = read(name, task)
    low, high = np.asarray(raw.action_low), np.asarray(raw.action_high)
    info = DatasetInfo(
        source=name,
        sha256=raw.sha256,
        environment=EnvironmentSpec(environment) if isinstance(environment, str) else environment or raw.environment,
        reference_min=raw.reference_min,
        reference_max=raw.reference_max,
        action_low=tuple(low.tolist()),
        action_high=tuple(high.tolist()),
        reward_transform=reward,
        task=task,
    )
    dataset = to_dataset(raw._replace(action=Scaling.of(info).scaled_action(EnvAction(raw.action))), info)
    if normalise_observation:
        dataset = transforms.normalise_observation(dataset)
    return transforms.transform_reward(dataset, reward)


def read(source: str, task: str | None = None) -> tuple[RawRows, str | None]:
    """The checked rows of a source, in its own units, and the task that they are used for. As in `load_dataset`."""
    if task is None and source in catalogue():
        task = source
    purpose = None if task is None else find_task(task)
    raw = check_rows(read_raw(source), source)
    if purpose is None:
        return raw, None
    sizes, expected = (raw.observation.shape[1], raw.action.shape[1]), (purpose.observation_size, purpose.action_size)
    if sizes != expected:
        raise UserError(
            f"{source}: observations have {sizes[0]} and actions {sizes[1]} numbers, those of task {task} "
            f"{expected[0]} and {expected[1]}; name the task that the data belong to"
        )
    raw = raw._replace(environment=EnvironmentSpec(purpose.environment))
    if purpose.reference_max is not None:
        raw = raw._replace(reference_min=purpose.reference_min, reference_max=purpose.reference_max)
    return raw, task


def read_raw(source: str | Path) -> RawRows:
    """What a source holds, row by row and unchecked: fields are found and named, nothing else. Errors as above."""
    source = str(source)
    if source in catalogue():
        return _read_task(find_task(source))
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
        "name a .hdf5, .h5 or .npz file, a Minari dataset, a task (`diffcps data list`), or builtin"
    )


def _read_task(task: Task) -> RawRows:
    path = data_file(task)
    if not path.exists():
        raise UserError(
            f"{task.id}: the data are not here; fetch them with `diffcps data get {task.id}`, or {where_from(task)}"
        )
    raw = read_ogbench(path, task) if task.family == "ogbench" else read_raw(str(path))
    if task.sha256 is not None and raw.sha256 != task.sha256:
        raise UserError(f"{path}: not the published file of {task.id} (another SHA-256); remove it and get it again")
    return raw
