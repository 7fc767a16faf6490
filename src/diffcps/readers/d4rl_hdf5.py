"""HDF5 files in D4RL's layout; observations may be groups of named parts."""

from __future__ import annotations

from pathlib import Path

from diffcps.readers.hashes import sha256_of_file
from diffcps.readers.layout import ATTRIBUTES, find_fields, raw_rows
from diffcps.readers.parts import beside, open_hdf5, read_group
from diffcps.readers.rows import RawRows, Values
from diffcps.types import Reading, UserError


def read_hdf5(path: Path, source: str, reading: Reading = Reading()) -> RawRows:  # noqa: B008 (it is immutable)
    """The rows of a D4RL-layout HDF5 file, which are left there. `source` is how messages call it.

    Raises `UserError` where the file is missing, is not HDF5, is truncated, or lacks a field.
    Reference: D4RL (arXiv:2004.07219), file layout.
    """
    import h5py

    sha256 = sha256_of_file(path, source)
    notes: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    with open_hdf5(path, source) as file:
        found = sorted(file)
        names = find_fields(found, reading.columns, source)
        arrays: dict[str, Values] = {}
        keys = reading.observation_keys
        for field, name in names.items():
            item = file[name]
            if isinstance(item, h5py.Group) and field in ("observation", "next_observation"):
                arrays[name], parts = read_group(item, path, source, keys)
                keys, notes = parts.keys, notes or parts.notes
                unread += tuple(f"{name}/{key}" for key in parts.ignored)
            else:
                arrays[name] = beside(file, [(name,)], path, source)
        if keys and not any(isinstance(file[name], h5py.Group) for name in names.values()):
            raise UserError(f"{source}: its observations have no named parts: leave --observation-keys out")
        attributes = {name: file.attrs[name] for name in ATTRIBUTES if name in file.attrs}
    raw = raw_rows(arrays, names, attributes, found, sha256, source)
    return raw._replace(notes=notes, ignored=(*raw.ignored, *unread))
