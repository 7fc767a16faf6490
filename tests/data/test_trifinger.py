"""The reader on small files in the format of the TriFinger package: an LMDB file with a zarr group of format 2."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
import zarr
from zarr.storage import MemoryStore

from diffcps.data import load_dataset
from diffcps.readers.rows import whole
from diffcps.readers.trifinger import TORQUE, observation_box, read_trifinger
from diffcps.types import EnvironmentSpec

PUSH, LIFT = 97, 139


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    """Ten steps of push: episodes of four and of six. Everything lies inside its box."""
    rng = np.random.default_rng(0)
    low, high = observation_box("push")
    return {
        "observations": rng.uniform(low, high, (10, PUSH)).astype(np.float32),
        "actions": rng.uniform(-TORQUE, TORQUE, (10, 9)).astype(np.float32),
        "rewards": rng.uniform(0, 1, 10).astype(np.float32),
        "timeouts": np.isin(np.arange(10), (3, 9)),
        "episode_ends": np.array([3, 9]),  # in the package's files, and not needed
    }


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(
        arrays: Mapping[str, np.ndarray],
        task: str = "trifinger-cube-push-sim-expert-v0",
        replaced: Mapping[str, bytes] | None = None,
        **options: Any,
    ) -> Path:
        """The folder TASK.zarr. Chunks of three rows, the last one cut; `replaced` keys of the store come last."""
        files: dict[str, Any] = {}
        group = zarr.open_group(MemoryStore(files), mode="w", zarr_format=2)
        for name, value in arrays.items():
            group.create_array(name, data=value, chunks=(3, *value.shape[1:]), **options)
        folder = tmp_path / f"{task}.zarr"
        folder.mkdir(parents=True)
        with lmdb.open(str(folder), map_size=1 << 24) as store, store.begin(write=True) as transaction:
            for key, value in ({key: value.to_bytes() for key, value in files.items()} | dict(replaced or {})).items():
                transaction.put(key.encode(), value)
        return folder

    return write


def test_arrays_are_read_as_they_are_stored(arrays, write):
    raw = read_trifinger(write(arrays), "data")
    for name, value in (("observations", raw.observation), ("actions", raw.action), ("rewards", raw.reward)):
        np.testing.assert_array_equal(value, arrays[name])
    np.testing.assert_array_equal(raw.timeout, arrays["timeouts"])
    assert isinstance(raw.terminal, np.ndarray) and not raw.terminal.any() and raw.next_observation is None


def test_dataset_follows_the_rule_for_files_without_next_observations(arrays, write):
    dataset = load_dataset(write(arrays))
    kept = [0, 1, 2, 4, 5, 6, 7, 8]  # rows 3 and 9 are timeouts, whose next observation nobody stored
    np.testing.assert_array_equal(dataset.observation, arrays["observations"][kept])
    np.testing.assert_array_equal(dataset.next_observation, arrays["observations"][[1, 2, 3, 5, 6, 7, 8, 9]])
    np.testing.assert_allclose(dataset.action, arrays["actions"][kept] / TORQUE, rtol=0, atol=1e-6)
    assert np.flatnonzero(dataset.timeout).tolist() == [2, 7]
    assert not dataset.terminal.any()
    assert dataset.info.environment == EnvironmentSpec("diffcps/TriFingerPush-v0")
    assert (dataset.info.reference_min, dataset.info.reference_max) == (0, 750)


@pytest.mark.parametrize("compressors", [None, "auto"])
def test_hash_is_of_the_numbers(arrays, write, compressors, tmp_path):
    """However the chunks are compressed, and where the file lies."""
    first = load_dataset(write(arrays)).info.sha256
    assert load_dataset(write(arrays, "other", compressors=compressors)).info.sha256 == first
    arrays["rewards"][4] += 0.5
    assert load_dataset(write(arrays, "changed")).info.sha256 != first


def test_lift_has_its_own_sizes(arrays, write):
    arrays["observations"] = np.zeros((10, LIFT), np.float32)
    info = load_dataset(write(arrays, "trifinger-cube-lift-sim-mixed-v0")).info
    assert (info.environment, info.reference_max) == (EnvironmentSpec("diffcps/TriFingerLift-v0"), 1500)


def test_folder_and_file_are_the_same_data(arrays, write):
    folder = write(arrays)
    assert load_dataset(folder / "data.mdb").info.sha256 == load_dataset(folder).info.sha256


def test_outliers_are_cut_to_the_observation_space(arrays, write):
    arrays["observations"][2, 0] = 7.0  # achieved position, x: at most 0.3
    arrays["observations"][5, PUSH - 1] = -11.0  # last joint velocity: at least -10
    found = whole(read_trifinger(write(arrays), "data").observation)
    assert found[2, 0] == np.float32(0.3) and found[5, PUSH - 1] == -10
    found[2, 0], found[5, PUSH - 1] = 7, -11
    np.testing.assert_array_equal(found, arrays["observations"])


def test_reading_leaves_the_folder_as_it_was(arrays, write):
    folder = write(arrays)
    (folder / "lock.mdb").unlink()
    os.chmod(folder / "data.mdb", 0o444)
    before = (folder / "data.mdb").read_bytes()
    load_dataset(folder)
    assert [path.name for path in folder.iterdir()] == ["data.mdb"]
    assert (folder / "data.mdb").read_bytes() == before


def test_truncated(arrays, write, refusal):
    """LMDB would read beyond the end of the mapped file: a bus error, not an exception."""
    folder = write(arrays)
    whole = (folder / "data.mdb").read_bytes()
    for size in (0, 100, 9000, len(whole) - 4096):
        (folder / "data.mdb").write_bytes(whole[:size])
        assert "download it again" in refusal(folder)


def test_not_lmdb(arrays, write, refusal):
    folder = write(arrays)
    (folder / "data.mdb").write_bytes(b"not a database" * 1000)
    assert "not a readable TriFinger dataset" in refusal(folder)


def test_missing_array(arrays, write, refusal):
    del arrays["rewards"]
    assert "no array `rewards`" in refusal(write(arrays))


def test_damaged_metadata_and_chunk(arrays, write, refusal):
    assert "not a readable" in refusal(write(arrays, "metadata", {"actions/.zarray": b'{"zarr_format": 2'}))
    assert "not a readable" in refusal(write(arrays, "chunk", {"actions/1.0": b"\x02\x01\x21\x04garbage of a chunk"}))


def test_observations_of_another_kind(arrays, write, refusal):
    stored = arrays["observations"]
    for name, wrong in (("width", stored[:, 1:]), ("flat", stored.ravel()), ("text", stored.astype("S4"))):
        assert "push has 97 real numbers" in refusal(write(arrays | {"observations": wrong}, name))


def test_action_beyond_the_torque_limit(arrays, write, refusal):
    arrays["actions"][4, 2] = 0.5
    assert "`actions` at row 4, dimension 2 is 0.5" in refusal(write(arrays))


@pytest.mark.parametrize("changed", [{"filters": [{"id": "pickle"}], "dtype": "|O"}, {"filters": [{"id": "pickle"}]}])
def test_pickle_is_refused_before_anything_is_read(arrays, write, refusal, tmp_path, changed):
    description = {
        "zarr_format": 2, "shape": [10], "chunks": [10], "dtype": "<f4", "compressor": None, "fill_value": None,
        "order": "C",
    } | changed  # fmt: skip
    payload = f"cos\nmkdir\n(V{tmp_path / 'sprung'}\ntR.".encode()  # unpickled, it would make a folder
    replaced = {"rewards/.zarray": json.dumps(description).encode(), "rewards/0": payload}
    assert "needs pickle" in refusal(write(arrays, "trap", replaced))
    assert not (tmp_path / "sprung").exists()


def test_missing_file(tmp_path, refusal):
    assert "there is no data.mdb" in refusal(tmp_path / "trifinger-cube-push-sim-expert-v0.zarr")


def test_missing_extra(arrays, write, refusal, monkeypatch):
    folder = write(arrays)
    monkeypatch.setitem(sys.modules, "lmdb", None)
    assert "pip install 'diffcps[trifinger]'" in refusal(folder)
