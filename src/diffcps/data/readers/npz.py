"""NumPy archives with D4RL's names."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from diffcps.data.hashes import sha256_of_file
from diffcps.data.readers.layout import ARRAYS, ATTRIBUTES, first_line, raw_rows
from diffcps.data.rows import RawRows
from diffcps.types import UserError


def read_npz(path: Path, source: str) -> RawRows:
    """The rows of an npz file with D4RL's field names, singular or plural. `source` is how messages call it.

    Raises `UserError` where the file is missing, is no npz archive, is truncated, needs pickle, or lacks a field.
    """
    sha256 = sha256_of_file(path, source)
    if not zipfile.is_zipfile(path):
        raise UserError(
            f"{source}: not a complete npz archive; it may be truncated or of another format, write it with numpy.savez"
        )
    entry, values = "", {}
    try:
        with np.load(path, allow_pickle=False) as file:
            found = sorted(file.files)
            for entry in found:
                if entry in ARRAYS or entry in ATTRIBUTES:
                    values[entry] = file[entry]
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        if "allow_pickle" in str(error):
            raise UserError(
                f"{source}: `{entry}` can only be read with pickle, which may run any code; store it as a plain array"
            ) from error
        raise UserError(f"{source}: damaged npz archive at `{entry}` ({first_line(error)}); write it again") from error
    attributes = {name: values.pop(name) for name in ATTRIBUTES if name in values}
    return raw_rows(values, attributes, found, sha256, source)
