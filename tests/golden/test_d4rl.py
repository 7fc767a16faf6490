"""Our reader against what D4RL's `qlearning_dataset` made of the same files (landed/README.md)."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from diffcps.data import load_dataset
from tests.conftest import load_golden

ARRAYS = load_golden("landed/d4rl_qlearning_dataset")
IN_FILE = ("observations", "actions", "rewards", "terminals", "timeouts")


@pytest.mark.parametrize("number", [0, 1])
def test_the_transitions_of_a_file_are_d4rls(number, tmp_path):
    path = tmp_path / "recorded.hdf5"
    with h5py.File(path, "w") as file:
        for name in IN_FILE:
            file[name] = ARRAYS[f"file_{number}/{name}"]
    dataset = load_dataset(path)
    for ours, name in (
        (dataset.observation, "observations"),
        (dataset.action, "actions"),
        (dataset.next_observation, "next_observations"),
        (dataset.reward, "rewards"),
        (dataset.terminal, "terminals"),
    ):
        np.testing.assert_array_equal(ours, ARRAYS[f"file_{number}/result/{name}"], err_msg=name)
    assert dataset.size < len(ARRAYS[f"file_{number}/rewards"]) - 3  # rows were dropped
