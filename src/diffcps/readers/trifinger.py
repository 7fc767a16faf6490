"""The TriFinger datasets as their own package stores them: an LMDB file `data.mdb` with a zarr group (format 2) in it.

One row per step: observations, actions (joint torques), rewards and timeouts; no episode terminates, and there are no
next observations. Pictures, which some of the files hold too, are not read.

Reference: arXiv:2307.15690; the package `trifinger-rl-datasets`, `dataset_env.py`, `TriFingerDatasetEnv.get_dataset`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from diffcps.readers.hashes import sha256_of_arrays
from diffcps.readers.layout import first_line
from diffcps.readers.rows import RawRows
from diffcps.tasks.catalogue import catalogue
from diffcps.types import EnvironmentSpec, UserError

if TYPE_CHECKING:
    import lmdb

ARRAYS = ("observations", "actions", "rewards", "timeouts")
TORQUE = 0.397
"""Bound of every action, in N m: that of the package's action space (the robot stops at 0.396)."""


def read_trifinger(path: Path, source: str) -> RawRows:
    """The rows of a folder TASK.zarr, or of the file data.mdb in it. `source` is how messages call it.

    Observations are those of the package's `flatten_obs=True`, cut to the box of its observation space as it does (97
    numbers for push, 139 for lift); actions (n, 9) are torques in N m. The environment is the simulated one, also for
    what real robots recorded.

    Raises `UserError` where the extra `trifinger` is missing, the file is missing, damaged or truncated, lacks an
    array, or needs pickle.
    """
    path = path / "data.mdb" if path.suffix != ".mdb" else path
    arrays = _read_arrays(path, source)
    observation = arrays["observations"]
    kind = {(97,): "push", (139,): "lift"}.get(observation.shape[1:])
    if kind is None or observation.dtype.kind != "f":
        raise UserError(
            f"{source}: `observations` has shape {observation.shape} and type {observation.dtype}; push has 97 real "
            "numbers in a row, and lift 139"
        )
    environment = f"diffcps/TriFinger{kind.capitalize()}-v0"
    task = next(task for task in catalogue().values() if task.environment == environment)
    return RawRows(
        observation=np.clip(observation, *observation_box(kind)),
        action=arrays["actions"],
        reward=arrays["rewards"],
        terminal=np.zeros(len(observation), bool),
        timeout=arrays["timeouts"],
        next_observation=None,
        names={field: f"{field}s" for field in ("observation", "action", "reward", "terminal", "timeout")},
        sha256=sha256_of_arrays(arrays.values()),  # the file may be a sparse one of a tebibyte
        environment=EnvironmentSpec(environment),
        reference_min=task.reference_min,
        reference_max=task.reference_max,
        action_low=np.full(9, -TORQUE, np.float32),
        action_high=np.full(9, TORQUE, np.float32),
    )


def observation_box(task: str) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bounds (size,) of the flat observation of `push` (97 numbers) or `lift` (139), in its order."""
    position = ((-0.3, -0.3, 0.0), (0.3, 0.3, 0.3), 1)
    keypoints = ((-0.6, -0.6, 0.0), (0.6, 0.6, 0.3), 8)
    torque = ((-TORQUE,), (TORQUE,), 9)
    goal = position if task == "push" else keypoints
    parts = (
        goal,  # achieved
        torque,  # the action before
        ((0.0,), (1.0,), 1),  # the camera's confidence
        ((0.0,), (0.3,), 1),  # its delay, in s
        keypoints,  # the corners of the cube
        ((-1.0,), (1.0,), 4),  # its orientation
        position,
        goal,  # desired
        ((0.0,), (1.0,), 3),  # force at the fingertips
        ((-0.6, -0.6, 0.0), (0.6, 0.6, 0.6), 3),  # their positions
        ((-5.0,), (5.0,), 9),  # their velocities
        ((-0.33, 0.0, -2.7), (1.0, 1.57, 0.0), 3),  # joint angles
        ((0.0,), (20.0,), 1),  # which robot; 0 is the simulated one
        torque,
        ((-10.0,), (10.0,), 9),  # joint velocities
    )
    low, high = (np.concatenate([np.tile(part[side], part[2]) for part in parts]) for side in (0, 1))
    return low.astype(np.float32), high.astype(np.float32)


def _read_arrays(path: Path, source: str) -> dict[str, np.ndarray]:
    """`ARRAYS` of the file data.mdb."""
    try:
        import lmdb
        import zarr  # noqa: F401 (asked for here, where there is one message for both)
    except ImportError as error:
        raise UserError(
            f"{source}: TriFinger data need the extra `trifinger`: pip install 'diffcps[trifinger]'"
        ) from error

    if not path.is_file():
        raise UserError(
            f"{source}: there is no {path.name} in {path.parent}; docs/trifinger.md says where data are from"
        )
    try:
        with lmdb.open(str(path), subdir=False, readonly=True, lock=False) as store:
            # LMDB maps the file into memory: what a truncated one lacks would kill the process when it is read.
            if (store.info()["last_pgno"] + 1) * store.stat()["psize"] > path.stat().st_size:
                raise UserError(f"{source}: {path.name} is truncated; download it again")
            return {name: _array(store, name, source) for name in ARRAYS}
    except UserError:
        raise
    except Exception as error:  # whatever LMDB, zarr, its codecs or JSON make of a damaged file
        raise UserError(
            f"{source}: not a readable TriFinger dataset ({first_line(error)}); download it again"
        ) from error


def _array(store: lmdb.Environment, name: str, source: str) -> np.ndarray:
    """One array of the zarr group, its compressed chunks copied out of LMDB: zarr 3 reads no LMDB by itself."""
    import zarr
    from zarr.buffer import cpu
    from zarr.storage import MemoryStore

    prefix = f"{name}/"
    with store.begin() as transaction:
        metadata = transaction.get(f"{prefix}.zarray".encode())
        if metadata is None:
            raise UserError(f"{source}: no array `{name}`; a TriFinger dataset has {', '.join(ARRAYS)}")
        description = json.loads(metadata)
        codecs = {codec["id"] for codec in (*(description["filters"] or ()), description["compressor"]) if codec}
        if "O" in description["dtype"] or "pickle" in codecs:
            raise UserError(f"{source}: `{name}` needs pickle, which may run any code; it must be an array of numbers")
        files = {}
        cursor = transaction.cursor()
        cursor.set_range(prefix.encode())
        for key, value in cursor:
            if not key.startswith(prefix.encode()):
                break
            files[key.decode()] = cpu.Buffer.from_bytes(value)
    return np.asarray(zarr.open_array(MemoryStore(files), path=name, mode="r", zarr_format=2)[:])
