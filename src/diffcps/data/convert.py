"""From any readable dataset to a file in D4RL's layout, an npz file, or a Minari dataset.

Loading the result gives the same transitions bit for bit (float32) with the same ends, except that in a Minari dataset
an episode also ends where the next observation is not exactly the following row's: Minari stores each state once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from diffcps.data.actions import action_boxes, cut_off
from diffcps.data.load import read, transitions
from diffcps.data.writers import Attribute, write_hdf5, write_minari, write_npz
from diffcps.readers.source import MINARI_ID
from diffcps.types import Dataset, DatasetInfo, EnvironmentSpec, Reading, UserError

if TYPE_CHECKING:
    from gymnasium.envs.registration import EnvSpec


def convert(
    source: str,
    target: str,
    reading: Reading = Reading(),  # noqa: B008 (it is immutable)
    *,
    task: str | None = None,
    spec_of: Callable[[EnvironmentSpec], EnvSpec | None] | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes the transitions of `source` (what `load_dataset` takes) to `target`, and returns the file or folder.

    `target` is a file (.hdf5, .h5 or .npz, with next observations, timeouts, action box, environment id, reference
    scores and where it all came from) or a Minari id such as name/of/set-v0, which goes to Minari's local datasets,
    with the specification that `spec_of` gives for the environment. Only transitions are carried over, nothing else
    that the source holds. What is there already is replaced with `overwrite` only, and not before the new one is
    complete.

    Raises `UserError` for a source that cannot be read and a target that cannot be written.
    """
    path = _place_of(target)
    if path.exists() and not overwrite:
        raise UserError(f"{target}: is there already ({path}); choose another name, or replace it with --overwrite")
    if reading != replace(reading, top_episodes=1.0, reward="none", reward_scale=1.0, normalise_observation=False):
        raise UserError(
            f"{source}: all episodes are converted, rewards and observations as they are: leave --top-episodes, "
            "--reward, --reward-scale and --normalise-observation for the training"
        )
    raw, rows, ends, task = read(source, reading, task)
    info = DatasetInfo(source, raw.sha256, raw.environment, raw.reference_min, raw.reference_max, task=task)
    box = action_boxes(raw, rows.action, reading, None, "", source).data
    cut_off(rows.action, box)
    arrays = _arrays(transitions(rows, ends, info), rows.absent)
    said: dict[str, Attribute | None] = {
        "action_low": box.low,
        "action_high": box.high,
        "env_id": None if info.environment is None else info.environment.id,
        "env_spec": None if info.environment is None else info.environment.recorded,
        "ref_min_score": info.reference_min,
        "ref_max_score": info.reference_max,
        "source": info.source,
        "source_sha256": info.sha256,
        "task": task,
        "converted_by": f"diffcps {version('diffcps')}",
    }
    attributes = {name: value for name, value in said.items() if value is not None}
    match path.suffix.lower():
        case ".hdf5" | ".h5":
            write_hdf5(path, arrays, attributes)
        case ".npz":
            write_npz(path, arrays, attributes)
        case _:
            if rows.absent:
                raise UserError(f"{source}: has no {rows.absent[0]}s, which a Minari dataset needs; name a file")
            spec = spec_of(info.environment) if spec_of is not None and info.environment is not None else None
            write_minari(target, arrays, attributes, spec)
    return path


def _place_of(target: str) -> Path:
    """The file or folder that a target names. Raises `UserError` where it is neither a file's name nor an id."""
    if (path := Path(target)).suffix.lower() in (".hdf5", ".h5", ".npz"):
        return path
    if not MINARI_ID.fullmatch(target):
        raise UserError(f"{target}: name a .hdf5, .h5 or .npz file, or a Minari id such as name/of/set-v0")
    from minari.storage import get_dataset_path

    return get_dataset_path(target)


def _arrays(dataset: Dataset, absent: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The transitions under D4RL's names, without the fields that the source does not have."""
    arrays = {
        "observations": np.asarray(dataset.observation),
        "actions": np.asarray(dataset.action),
        "rewards": np.asarray(dataset.reward),
        "next_observations": np.asarray(dataset.next_observation),
        "terminals": np.asarray(dataset.terminal),
        "timeouts": np.asarray(dataset.timeout),
    }
    return {name: array for name, array in arrays.items() if name.removesuffix("s") not in absent}
