"""SHA-256 of data: by it a run knows that it goes on with what it began with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from diffcps.types import UserError


def sha256_of_file(path: Path, source: str) -> str:
    """SHA-256 of a file, read in pieces of 1 MiB. Raises `UserError` where it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    except FileNotFoundError as error:
        raise UserError(f"{source}: no such file; check the path") from error
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error.strerror}); check its permissions") from error
    return digest.hexdigest()


def sha256_of_arrays(arrays: Iterable[np.ndarray]) -> str:
    """SHA-256 of the types, shapes and bytes of arrays, for data that lies in several files."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
