"""What the tests of the readers do with the rows that they return."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from diffcps.readers.rows import FIELDS, PIECE_ROWS, RawRows, Values, pieces
from diffcps.types import UserError


def kept(values: Values | None) -> np.ndarray:
    """An array as it is kept: float32, filled a piece after the other."""
    assert values is not None
    found = np.full(values.shape, np.nan, np.float32)
    start = 0
    for piece in pieces(values):
        assert 0 < len(piece) <= PIECE_ROWS
        found[start : start + len(piece)] = piece
        start += len(piece)
    assert start == len(found)
    return found


def refused(read: Callable[[], RawRows], source: Path | str) -> str:
    """The message of a reading that must fail, at once or when its pieces are read: one line, the source first."""
    with pytest.raises(UserError) as caught:
        raw = read()
        for field in FIELDS:
            if (values := getattr(raw, field)) is not None:
                kept(values)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{source}: ")
    return message


def peak_over_kept(read: Callable[[], RawRows]) -> float:
    """Highest memory of NumPy and Python while the fields are read, over that of the fields as they are kept."""
    tracemalloc.start()
    try:
        raw = read()
        fields = [kept(values) for field in FIELDS if (values := getattr(raw, field)) is not None]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    return peak / sum(field.nbytes for field in fields)
