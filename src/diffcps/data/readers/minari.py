"""Minari datasets: local folders, or ids, which are downloaded when absent."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from diffcps.data.hashes import sha256_of_arrays
from diffcps.data.readers.layout import first_line, number
from diffcps.data.rows import FIELDS, RawRows
from diffcps.types import UserError

if TYPE_CHECKING:
    from gymnasium.spaces import Box, Space

NAMES = ("observations", "actions", "rewards", "terminations", "truncations", "observations")
"""What Minari calls each of `FIELDS`."""


class _Episode(NamedTuple):
    id: int
    observations: np.ndarray
    """(steps + 1, obs)"""
    actions: np.ndarray
    """(steps, act)"""
    rewards: np.ndarray
    terminations: np.ndarray
    truncations: np.ndarray


def read_minari(source: str) -> RawRows:
    """All episodes of a Minari dataset: `source` is a local dataset folder, or an id, local first, else downloaded.

    Every episode stores one observation more than actions, so nothing has to be dropped. Flat Box observations and
    actions only. Raises `UserError` where the dataset is unknown, cannot be fetched, or has other spaces.
    Reference: https://minari.farama.org/content/dataset_standards/
    """
    import minari

    try:
        stored = minari.MinariDataset(minari_folder(source))
        _flat_box(stored.observation_space, "observation", source)
        action_box = _flat_box(stored.action_space, "action", source)
        episodes = [
            _Episode(each.id, each.observations, each.actions, each.rewards, each.terminations, each.truncations)
            for each in stored.iterate_episodes()
        ]
        metadata = stored.storage.metadata
    except UserError:
        raise
    except Exception as error:  # whatever Minari, JSON, HDF5 or Arrow make of a damaged folder
        raise UserError(
            f"{source}: not a readable Minari dataset ({first_line(error)}); download or write it again"
        ) from error
    arrays = _joined(episodes, source)
    return RawRows(
        *arrays,
        names=dict(zip(FIELDS, NAMES, strict=True)),
        sha256=sha256_of_arrays(arrays),
        environment=_environment_of(metadata.get("env_spec")),
        reference_min=number(metadata, "ref_min_score", source),
        reference_max=number(metadata, "ref_max_score", source),
        action_low=action_box.low,
        action_high=action_box.high,
    )


def _joined(episodes: Sequence[_Episode], source: str) -> tuple[np.ndarray, ...]:
    """The episodes one after another, as `FIELDS`. Raises `UserError` where there is none or one is incomplete."""
    if not episodes:
        raise UserError(f"{source}: no episode in this Minari dataset; it needs at least one")
    for episode in episodes:
        if len(episode.observations) != len(episode.actions) + 1:
            raise UserError(
                f"{source}: episode {episode.id} has {len(episode.observations)} observations and "
                f"{len(episode.actions)} actions; Minari stores one observation more than actions, write the dataset "
                "again"
            )
    _, observations, actions, rewards, terminations, truncations = zip(*episodes, strict=True)
    terminal, timeout = np.concatenate(terminations), np.concatenate(truncations)
    last = np.cumsum([len(action) for action in actions]) - 1
    timeout[last] |= ~terminal[last]  # an episode that was cut without a mark
    return (
        np.concatenate([observation[:-1] for observation in observations]),
        np.concatenate(actions),
        np.concatenate(rewards),
        terminal,
        timeout,
        np.concatenate([observation[1:] for observation in observations]),
    )


def is_minari(path: Path) -> bool:
    """Whether this is the folder of a Minari dataset."""
    return any((folder / "metadata.json").is_file() for folder in (path / "data", path))


def minari_folder(source: str) -> Path:
    """The folder that holds metadata.json: a path, else the local copy of an id, else a fresh download of it."""
    import minari
    from minari.storage import get_dataset_path

    for folder in (Path(source) / "data", Path(source), get_dataset_path(source) / "data"):
        if (folder / "metadata.json").is_file():
            return folder
    try:
        minari.download_dataset(source)
    except Exception as error:  # the network, the host, a missing package, an unknown id: each raises its own type
        raise UserError(
            f"{source}: neither a file nor a local Minari dataset, and downloading it failed ({first_line(error)}); "
            "check the id and the network, or run `minari download` elsewhere and copy the folder"
        ) from error
    return get_dataset_path(source) / "data"


def _flat_box(space: Space, what: str, source: str) -> Box:
    """The space, which must be a box of vectors. Raises `UserError` for any other."""
    from gymnasium.spaces import Box

    if isinstance(space, Box) and len(space.shape) == 1:
        return space
    shape = f" of shape {space.shape}" if space.shape else ""
    raise UserError(
        f"{source}: the {what} space is a {type(space).__name__}{shape}; only a flat Box is supported, "
        "flatten it into a new dataset first (gymnasium.wrappers.FlattenObservation for observations)"
    )


def _environment_of(env_spec: object) -> str | None:
    """The id in Minari's environment specification, which is JSON."""
    return json.loads(env_spec).get("id") if isinstance(env_spec, str) else None
