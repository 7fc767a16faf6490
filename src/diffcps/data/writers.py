"""Writers of data files: HDF5 in D4RL's layout, npz with the same names, and Minari datasets.

Whatever is written is written as a whole or not at all: what was there before stands until the new one is complete.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from diffcps.storage import replaced, write_atomically

if TYPE_CHECKING:
    from gymnasium.envs.registration import EnvSpec
    from minari.data_collector import EpisodeBuffer

Arrays: TypeAlias = Mapping[str, np.ndarray]
"""One row per step, under D4RL's names: observations, actions, ..., infos/qpos."""
Attribute: TypeAlias = str | int | float | np.ndarray
"""What a file says beside its rows: env_id, ref_min_score, action_low, ..."""

CHUNK_ROWS = 2**14


def write_hdf5(path: Path, arrays: Arrays, attributes: Mapping[str, Attribute]) -> None:
    """Writes arrays (n, ...) of equal length and attributes in D4RL's layout, compressed (gzip); makes the folder.

    The same arguments give the same bytes. A name with a slash, such as infos/qpos, lies in a group.
    Reference: D4RL (arXiv:2004.07219), file layout.
    """
    import h5py

    length = {name: len(array) for name, array in arrays.items()}
    assert len(set(length.values())) == 1, length
    content = io.BytesIO()  # writing to a full disk, HDF5 crashes the process instead of raising
    with h5py.File(content, "w") as file:
        for name, array in arrays.items():
            chunk = (min(len(array), CHUNK_ROWS), *array.shape[1:])
            file.create_dataset(
                name, data=array, chunks=chunk, compression="gzip", compression_opts=4, shuffle=True, track_times=False
            )
        for name, value in sorted(attributes.items()):
            file.attrs[name] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content.getvalue())


def write_npz(path: Path, arrays: Arrays, attributes: Mapping[str, Attribute]) -> None:
    """Writes arrays, and attributes as entries beside them, without compression; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = {**arrays, **{name: np.asarray(value) for name, value in attributes.items()}}
    with replaced(path) as file:
        np.savez(file, allow_pickle=False, **entries)


def write_minari(
    dataset_id: str, arrays: Arrays, attributes: Mapping[str, Attribute], environment_spec: EnvSpec | None
) -> None:
    """Writes transitions as the local Minari dataset of this id.

    `arrays` are observations and next_observations (n, obs), actions (n, act), rewards, terminals and timeouts (n,).
    Of the attributes it needs action_low and action_high (act,), and keeps the reference scores; the others become the
    description. An episode also ends where the next observation is not exactly the following row's.
    Reference: https://minari.farama.org/content/dataset_standards/
    """
    import minari
    from gymnasium.spaces import Box
    from minari.dataset.minari_dataset import parse_dataset_id
    from minari.dataset.minari_storage import MinariStorage
    from minari.namespace import create_namespace, list_local_namespaces

    from minari.storage import get_dataset_path  # isort: skip

    described = ("converted_by", "source", "source_sha256")
    metadata = {
        "dataset_id": dataset_id,
        "minari_version": minari.__version__,
        "description": "; ".join(f"{name}: {attributes[name]}" for name in described if name in attributes),
        **{name: attributes[name] for name in ("ref_min_score", "ref_max_score") if name in attributes},
    }
    low, high = np.asarray(attributes["action_low"]), np.asarray(attributes["action_high"])
    path = get_dataset_path(dataset_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".diffcps-", dir=get_dataset_path()) as temporary:
        new = Path(temporary) / "new"
        new.mkdir()
        storage = MinariStorage.new(
            new / "data",
            observation_space=Box(-np.inf, np.inf, arrays["observations"].shape[1:], np.float32),
            action_space=Box(low, high, dtype=np.float32),
            env_spec=environment_spec,
        )
        storage.update_metadata(metadata)
        storage.update_episodes(_minari_episodes(arrays))
        namespace = parse_dataset_id(dataset_id)[0]
        if namespace is not None and namespace not in list_local_namespaces():
            create_namespace(namespace)
        _replace_folder(new, path, Path(temporary) / "old")


def _minari_episodes(arrays: Arrays) -> Iterator[EpisodeBuffer]:
    """Minari's episodes: one observation more than actions."""
    from minari.data_collector import EpisodeBuffer

    observation, following = arrays["observations"], arrays["next_observations"]
    # As bits: 0.0 equals -0.0 and is not the same number.
    joined = np.append((following[:-1].view(np.int32) == observation[1:].view(np.int32)).all(axis=1), False)
    ends = np.flatnonzero(arrays["terminals"] | arrays["timeouts"] | ~joined) + 1
    for start, stop in zip(np.append(0, ends[:-1]), ends, strict=True):
        episode: dict[str, Any] = {  # arrays, where Minari's annotations say lists: several times faster
            "observations": np.concatenate([observation[start:stop], following[stop - 1 : stop]]),
            "actions": arrays["actions"][start:stop],
            "rewards": arrays["rewards"][start:stop],
            "terminations": arrays["terminals"][start:stop],
            "truncations": arrays["timeouts"][start:stop],
        }
        yield EpisodeBuffer(**episode)


def _replace_folder(new: Path, path: Path, old: Path) -> None:
    """Puts the folder `new` in the place of `path`; what was there goes to `old`, and back where that fails."""
    if path.exists():
        os.replace(path, old)
    try:
        os.replace(new, path)
    except OSError:
        if old.exists():
            os.replace(old, path)
        raise
