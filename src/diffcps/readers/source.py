"""The reader that a source needs, told by its name and contents."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path

from diffcps.readers.d3rlpy import is_d3rlpy, read_d3rlpy
from diffcps.readers.d4rl_hdf5 import read_hdf5
from diffcps.readers.minari import is_minari, read_minari
from diffcps.readers.npz import read_npz
from diffcps.readers.robomimic import is_robomimic, read_robomimic
from diffcps.readers.rows import RawRows
from diffcps.readers.shards import SUFFIXES, find_shards, join
from diffcps.readers.tables import read_table
from diffcps.readers.trifinger import read_trifinger
from diffcps.types import Reading, UserError

BUILTIN = "builtin"
"""Names the dataset that comes with the package: half of a Hopper replay buffer."""
MINARI_ID = re.compile(r"[-\w]+(/[-\w]+)*-v\d+")


def read_source(source: str, reading: Reading = Reading()) -> RawRows:  # noqa: B008 (it is immutable)
    """What files hold, row by row and unchecked: fields are found and named, nothing else.

    `source` is a file, several with commas between them, a folder of files, a Minari dataset, or the word `builtin`.
    Raises `UserError` for one that is missing, damaged or of no known kind, and for words of `reading` without a use.
    """
    if source == BUILTIN:
        refuse_words(reading, source, "the built-in data")
        with as_file(files("diffcps.data") / "builtin" / "hopper-replay.hdf5") as path:
            return read_hdf5(path, source)
    path = Path(source)
    if "," in source and not path.exists():
        names = source.split(",")
        return join([_read_file(Path(name), name, reading) for name in names], names)
    if path.suffix.lower() in (".zarr", ".mdb"):
        refuse_words(reading, source, "a TriFinger dataset")
        return read_trifinger(path, source)
    if is_minari(path) or (MINARI_ID.fullmatch(source) and not path.exists()):
        refuse_words(reading, source, "a Minari dataset")
        return read_minari(source)
    if path.is_dir() and path.suffix.lower() not in SUFFIXES:
        shards = find_shards(path, source)
        names = [str(file) for file in shards.files]
        raw = join([_read_file(file, str(file), reading) for file in shards.files], names)
        return raw._replace(ignored=(*raw.ignored, *shards.ignored))
    return _read_file(path, source, reading)


def _read_file(path: Path, source: str, reading: Reading) -> RawRows:
    match path.suffix.lower():
        case ".hdf5" | ".h5" if is_d3rlpy(path):
            refuse_words(reading, source, "a file of d3rlpy")
            return read_d3rlpy(path, source)
        case ".hdf5" | ".h5" if is_robomimic(path):
            refuse_words(replace(reading, observation_keys=()), source, "a file of robomimic")
            return read_robomimic(path, source, reading.observation_keys)
        case ".hdf5" | ".h5":
            return read_hdf5(path, source, reading)
        case ".npz":
            refuse_words(replace(reading, columns=()), source, "an npz file")
            return read_npz(path, source, reading)
        case ".csv" | ".parquet":
            return read_table(path, source, reading.columns, reading.observation_keys)
    if path.exists():
        raise UserError(f"{source}: unknown suffix {path.suffix!r}; a data file is {', '.join(SUFFIXES)} or .zarr")
    raise UserError(
        f"{source}: no such file, and no Minari id (such as mujoco/hopper/medium-v0); "
        f"name a file ({', '.join(SUFFIXES)}), a folder of them, a Minari dataset, a task (`diffcps data list`), or "
        "builtin"
    )


def refuse_words(reading: Reading, source: str, kind: str) -> None:
    """Raises `UserError` for words about fields where a source has nothing that they could choose."""
    for flag, words in (("--columns", reading.columns), ("--observation-keys", reading.observation_keys)):
        if words:
            raise UserError(f"{source}: {kind} has its fields where they belong: leave {flag} {' '.join(words)} out")
