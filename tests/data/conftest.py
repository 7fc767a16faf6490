"""Small files that the tests of this folder write, and what they expect of a refusal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from diffcps.data import load_dataset
from diffcps.types import UserError


@pytest.fixture
def rows() -> dict[str, np.ndarray]:
    """Eight steps: a terminal at row 2, a timeout at row 5, an unfinished episode of two. No next observations."""
    step = np.arange(8.0)
    return {
        "observations": np.stack([step, 10 * step], axis=1),
        "actions": (step / 10)[:, None],
        "rewards": step + 1,
        "terminals": step == 2,
        "timeouts": step == 5,
    }


@pytest.fixture
def write_hdf5(tmp_path: Path) -> Callable[..., Path]:
    def write(fields: dict[str, np.ndarray], attributes: dict[str, object] | None = None) -> Path:
        path = tmp_path / "data.hdf5"
        with h5py.File(path, "w") as file:
            for name, value in fields.items():
                file[name] = value
            for name, value in (attributes or {}).items():
                file.attrs[name] = value
        return path

    return write


@pytest.fixture
def refusal() -> Callable[[Path | str], str]:
    """Load a source that must be refused; the message, which is one line and starts with the source."""

    def load(source: Path | str) -> str:
        with pytest.raises(UserError) as caught:
            load_dataset(source)
        message = str(caught.value)
        assert "\n" not in message
        assert message.startswith(f"{source}: ")
        return message

    return load
