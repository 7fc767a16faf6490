"""HDF5 files in D4RL's layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from diffcps.data.hashes import sha256_of_file
from diffcps.data.readers.layout import ARRAYS, ATTRIBUTES, first_line, raw_rows
from diffcps.data.rows import RawRows
from diffcps.types import UserError


def read_hdf5(path: Path, source: str) -> RawRows:
    """The rows of a D4RL-layout HDF5 file. `source` is how messages call it.

    Raises `UserError` where the file is missing, is not HDF5, is truncated, or lacks a field.
    Reference: D4RL (arXiv:2004.07219), file layout.
    """
    import h5py

    sha256 = sha256_of_file(path, source)
    try:
        with h5py.File(path, "r") as file:
            found = sorted(file)
            arrays: dict[str, np.ndarray] = {}
            for name in ARRAYS.intersection(found):
                item = file[name]
                if not isinstance(item, h5py.Dataset):
                    raise UserError(f"{source}: `{name}` is a group; it must be an array with one row per step")
                arrays[name] = np.asarray(item[()])
            attributes = {name: file.attrs[name] for name in ATTRIBUTES if name in file.attrs}
    except (OSError, RuntimeError, KeyError) as error:
        raise UserError(
            f"{source}: not a complete HDF5 file ({first_line(error)}); it may be truncated or of another format, "
            "copy or download it again"
        ) from error
    return raw_rows(arrays, attributes, found, sha256, source)
