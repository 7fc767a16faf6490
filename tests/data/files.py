"""Small data files for the tests of several rooms."""

from __future__ import annotations

import io

import h5py
import numpy as np


def hopper_bytes(rows: int, seed: int = 0, observation_size: int = 11) -> bytes:
    """An HDF5 file as D4RL's of Hopper: random rows, an end every ten; neither environment nor reference scores."""
    rng = np.random.default_rng(seed)
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file["observations"] = rng.normal(size=(rows, observation_size)).astype(np.float32)
        file["next_observations"] = rng.normal(size=(rows, observation_size)).astype(np.float32)
        file["actions"] = rng.uniform(-1, 1, size=(rows, 3)).astype(np.float32)
        file["rewards"] = rng.normal(size=rows).astype(np.float32)
        file["terminals"] = np.arange(rows) % 10 == 9
        file["timeouts"] = np.zeros(rows, bool)
    return content.getvalue()
