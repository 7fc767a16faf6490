from __future__ import annotations

import h5py
import numpy as np
import pytest

from diffcps.data.writers import write_hdf5, write_npz


@pytest.fixture
def arrays(rows) -> dict[str, np.ndarray]:
    return {**rows, "infos/qpos": np.linspace(0, 1, 40).reshape(8, 5)}


def test_hdf5_holds_what_was_given_compressed(arrays, tmp_path):
    path = tmp_path / "new" / "data.hdf5"
    attributes = {"env_id": "Toy-v0", "seed": 3, "ref_min_score": -1.5, "action_low": np.array([-2.0, -1.0])}
    write_hdf5(path, arrays, attributes)
    with h5py.File(path) as file:
        for name, array in arrays.items():
            stored = file[name]
            assert isinstance(stored, h5py.Dataset) and stored.dtype == array.dtype
            assert (stored.compression, stored.compression_opts, stored.shuffle) == ("gzip", 4, True)
            np.testing.assert_array_equal(stored[()], array)
        assert list(file["infos"]) == ["qpos"]  # pyright: ignore[reportArgumentType]
        assert dict(file.attrs).keys() == attributes.keys()
        assert (file.attrs["env_id"], file.attrs["seed"], file.attrs["ref_min_score"]) == ("Toy-v0", 3, -1.5)
    assert [entry.name for entry in path.parent.iterdir()] == ["data.hdf5"]


def test_the_same_rows_give_the_same_bytes(arrays, tmp_path):
    for write, suffix in ((write_hdf5, "hdf5"), (write_npz, "npz")):
        contents = []
        for name, attributes in (("one", {"b": 1, "a": "x"}), ("two", {"a": "x", "b": 1})):
            write(tmp_path / f"{name}.{suffix}", arrays, attributes if suffix == "hdf5" else {"b": 1, "a": "x"})
            contents.append((tmp_path / f"{name}.{suffix}").read_bytes())
        assert contents[0] == contents[1]


def test_columns_of_unequal_length_are_not_written(arrays, tmp_path):
    with pytest.raises(AssertionError):
        write_hdf5(tmp_path / "data.hdf5", arrays | {"rewards": np.zeros(7)}, {})
    assert list(tmp_path.iterdir()) == []
