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
    theirs = ARRAYS[f"file_{number}/result/rewards"].shape[0]
    kept_last = int(ARRAYS[f"file_{number}/terminals"][-1])  # deviation 2 of docs/data.md: it needs no next observation
    assert dataset.size == theirs + kept_last < len(ARRAYS[f"file_{number}/rewards"]) - 2  # rows were dropped
    for ours, name in (
        (dataset.observation, "observations"),
        (dataset.action, "actions"),
        (dataset.next_observation, "next_observations"),
        (dataset.reward, "rewards"),
        (dataset.terminal, "terminals"),
    ):
        np.testing.assert_array_equal(ours[:theirs], ARRAYS[f"file_{number}/result/{name}"], err_msg=name)


def test_rows_with_both_flags_are_kept_as_terminal(tmp_path):
    """D4RL drops them, and with them the termination (deviation 1 of docs/data.md)."""
    path = tmp_path / "recorded.hdf5"
    with h5py.File(path, "w") as file:
        for name in IN_FILE:
            file[name] = ARRAYS[f"file_2/{name}"]
    dataset = load_dataset(path)
    terminal, timeout = ARRAYS["file_2/terminals"] == 1, ARRAYS["file_2/timeouts"] == 1
    assert (terminal & timeout).sum() > 0
    assert dataset.terminal.sum() == terminal.sum() > ARRAYS["file_2/result/terminals"].sum()
    cut = (timeout | (np.arange(len(terminal)) == len(terminal) - 1)) & ~terminal
    np.testing.assert_array_equal(dataset.observation, ARRAYS["file_2/observations"][~cut])
