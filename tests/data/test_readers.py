from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from diffcps.data import load_dataset
from diffcps.types import EnvironmentSpec


def as_lists(dataset):
    return {
        "observation": dataset.observation[:, 0].tolist(),
        "reward": dataset.reward.tolist(),
        "next": dataset.next_observation[:, 0].tolist(),
        "terminal": np.flatnonzero(dataset.terminal).tolist(),
        "timeout": np.flatnonzero(dataset.timeout).tolist(),
    }


def chained(rows):
    """The same eight steps with the next observations that the environment would have given."""
    following = rows["observations"] + [1, 10]
    following[2], following[5] = 77, 88  # where episodes end, the next row is another episode's
    return {**rows, "next_observations": following}


def test_without_next_observation_the_rule_is_d4rls(rows, write_hdf5):
    dataset = load_dataset(write_hdf5(rows))
    assert as_lists(dataset) == {
        "observation": [0, 1, 2, 3, 4, 6],  # row 5 is a timeout, row 7 the last of the file
        "reward": [1, 2, 3, 4, 5, 7],
        "next": [1, 2, 3, 4, 5, 7],
        "terminal": [2],
        "timeout": [4, 5],  # the rows before the dropped ones end their episodes
    }
    np.testing.assert_allclose(dataset.action[:, 0], [0, 0.1, 0.2, 0.3, 0.4, 0.6], rtol=1e-6)


def test_a_row_that_is_terminal_and_timeout_is_terminal(rows, write_hdf5):
    """D4RL's function drops it, and with it the termination (deviation 1 of docs/data.md)."""
    rows["timeouts"][2] = True
    dataset = load_dataset(write_hdf5(rows))
    found = as_lists(dataset)
    assert found["observation"] == [0, 1, 2, 3, 4, 6]
    assert (found["terminal"], found["timeout"]) == ([2], [4, 5])
    assert any("1 rows are flagged both" in note for note in dataset.info.account.notes)


def test_d4rl_rule_a_terminal_before_a_dropped_row_stays_terminal_only(rows, write_hdf5):
    rows["timeouts"][3] = True  # an episode of one row
    found = as_lists(load_dataset(write_hdf5(rows)))
    assert found["observation"] == [0, 1, 2, 4, 6]
    assert found["terminal"] == [2]
    assert found["timeout"] == [3, 4]


def test_next_observation_keeps_every_row(rows, write_hdf5):
    assert as_lists(load_dataset(write_hdf5(chained(rows)))) == {
        "observation": [0, 1, 2, 3, 4, 5, 6, 7],
        "reward": [1, 2, 3, 4, 5, 6, 7, 8],
        "next": [1, 2, 77, 4, 5, 88, 7, 8],
        "terminal": [2],
        "timeout": [5, 7],  # the end of the file is an end
    }


def test_without_timeouts_ends_are_where_the_chain_breaks(rows, write_hdf5):
    fields = chained(rows)
    del fields["timeouts"]
    found = as_lists(load_dataset(write_hdf5(fields)))
    assert (found["terminal"], found["timeout"]) == ([2], [5, 7])


def test_without_timeouts_and_next_observation_ends_must_be_terminal(rows, write_hdf5, refusal):
    del rows["timeouts"]
    assert "the ends of the episodes are unknown" in refusal(write_hdf5(rows))
    rows["terminals"][7] = True
    found = as_lists(load_dataset(write_hdf5(rows)))
    assert found["observation"] == [0, 1, 2, 3, 4, 5, 6, 7]  # a terminal row needs no next observation
    assert (found["terminal"], found["timeout"]) == ([2, 7], [])


def test_a_file_of_dropped_rows_only(rows, write_hdf5, refusal):
    rows["timeouts"][:], rows["terminals"][:] = True, False
    assert "no transition is left" in refusal(write_hdf5(rows))


def test_types_and_hash(rows, write_hdf5):
    path = write_hdf5(rows)
    dataset = load_dataset(str(path))
    for field in ("observation", "action", "reward", "next_observation"):
        assert getattr(dataset, field).dtype == np.float32
    assert dataset.terminal.dtype == dataset.timeout.dtype == bool
    assert dataset.info.source == str(path)
    assert dataset.info.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    hash(dataset.info)


@pytest.mark.parametrize(
    "attributes",
    [
        {"env_id": "Hopper-v5", "ref_min_score": np.float64(-20.5), "ref_max_score": np.float32(3234.5)},
        {"env_id": np.bytes_(b"Hopper-v5"), "ref_min_score": np.array([-20.5]), "ref_max_score": b"3234.5"},
    ],
)
def test_attributes(rows, write_hdf5, attributes):
    info = load_dataset(write_hdf5(rows, attributes)).info
    assert (info.environment, info.reference_min, info.reference_max) == (EnvironmentSpec("Hopper-v5"), -20.5, 3234.5)


def test_attributes_may_be_absent_and_environment_may_be_given(rows, write_hdf5):
    info = load_dataset(write_hdf5(rows)).info
    assert (info.environment, info.reference_min, info.reference_max) == (None, None, None)
    assert (info.action_low, info.action_high) == ((-1.0,), (1.0,))
    path = write_hdf5(rows, {"env_id": "Hopper-v5"})
    assert load_dataset(path, environment="Walker2d-v5").info.environment == EnvironmentSpec("Walker2d-v5")


@pytest.mark.parametrize(
    ("attributes", "part"),
    [
        ({"ref_min_score": "low"}, "attribute `ref_min_score` is 'low'; it must be one finite number"),
        ({"ref_max_score": np.nan}, "attribute `ref_max_score` is np.float64(nan); it must be one finite number"),
        ({"env_id": 5}, "attribute `env_id` is np.int64(5); it must be one text"),
        ({"action_low": "x"}, "`action_low` must be numbers"),
    ],
)
def test_bad_attributes(rows, write_hdf5, refusal, attributes, part):
    assert part in refusal(write_hdf5(rows, attributes))


@pytest.mark.parametrize("plural", [True, False])
def test_npz_has_the_same_meaning(rows, write_hdf5, tmp_path, plural):
    for fields in (rows, chained(rows)):
        names = fields if plural else {name.removesuffix("s"): value for name, value in fields.items()}
        np.savez(tmp_path / "data.npz", **names, env_id="Hopper-v5", ref_min_score=1.5)
        dataset = load_dataset(tmp_path / "data.npz")
        assert as_lists(dataset) == as_lists(load_dataset(write_hdf5(fields)))
        assert (dataset.info.environment, dataset.info.reference_min) == (EnvironmentSpec("Hopper-v5"), 1.5)


def test_npz_with_both_spellings(rows, tmp_path, refusal):
    np.savez(tmp_path / "data.npz", **rows, reward=rows["rewards"])
    assert "both `rewards` and `reward` are there" in refusal(tmp_path / "data.npz")


def test_npz_that_needs_pickle(rows, tmp_path, refusal):
    rows["rewards"] = np.array([None] * 8, dtype=object)
    np.savez(tmp_path / "data.npz", **rows)
    assert "`rewards` can only be read with pickle" in refusal(tmp_path / "data.npz")


def test_npz_damaged(rows, tmp_path, refusal):
    path = tmp_path / "data.npz"
    np.savez_compressed(path, **rows)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert "not a complete npz archive" in refusal(path)
    position = content.index(b"observations.npy") + 60
    path.write_bytes(content[:position] + bytes(20) + content[position + 20 :])
    assert "damaged npz archive at `observations`" in refusal(path)
    path.write_bytes(b"")
    assert "not a complete npz archive" in refusal(path)


def test_hdf5_that_is_none(rows, write_hdf5, refusal, tmp_path):
    path = write_hdf5({**rows, "padding": np.arange(10_000.0)})
    path.write_bytes(path.read_bytes()[:-4000])
    assert "not a complete HDF5 file" in refusal(path)
    assert "truncated" in refusal(path)
    (tmp_path / "text.hdf5").write_text("observations,actions\n1,2\n")
    assert "not a complete HDF5 file" in refusal(tmp_path / "text.hdf5")
    (tmp_path / "empty.hdf5").write_bytes(b"")
    assert "not a complete HDF5 file" in refusal(tmp_path / "empty.hdf5")


def test_hdf5_with_a_group_in_place_of_an_array(rows, write_hdf5, refusal):
    path = write_hdf5(rows)
    with h5py.File(path, "a") as file:
        del file["actions"]
        file.create_group("actions")
    assert "`actions` must be an array with one row per step" in refusal(path)


def test_missing_field_lists_names(rows, write_hdf5, refusal):
    del rows["actions"]
    message = refusal(write_hdf5({**rows, "moves": np.zeros(8)}))
    assert "no field `actions` (or `action`)" in message
    assert "the file has moves, observations, rewards, terminals, timeouts" in message


def test_sources_that_are_nothing(tmp_path, refusal):
    assert "no such file" in refusal(tmp_path / "absent.hdf5")
    assert "no such file" in refusal(tmp_path / "absent.npz")
    assert "no such file, and no Minari id" in refusal("hopper")
    (tmp_path / "data.csv").write_text("1,2\n")
    assert "the first line holds numbers" in refusal(tmp_path / "data.csv")
    (tmp_path / "data.pkl").write_bytes(b"")
    assert "unknown suffix '.pkl'" in refusal(tmp_path / "data.pkl")
    (tmp_path / "empty").mkdir()
    assert "no data file" in refusal(tmp_path / "empty")
    (tmp_path / "folder.hdf5").mkdir()
    assert "cannot be read" in refusal(tmp_path / "folder.hdf5")


def test_builtin():
    dataset = load_dataset("builtin")
    assert dataset.observation.shape == (139_631, 11)
    assert dataset.action.shape == (139_631, 3)
    assert dataset.info.source == "builtin"
    assert dataset.info.environment == EnvironmentSpec("Hopper-v5")
    assert (dataset.info.reference_min, dataset.info.reference_max) == (-20.272305, 3234.3)
    inside = ~(dataset.terminal | dataset.timeout)[:-1]
    np.testing.assert_array_equal(dataset.next_observation[:-1][inside], dataset.observation[1:][inside])


def test_import_is_light():
    code = (
        "import sys, diffcps.data, diffcps.data.summary, diffcps.data.picture;"
        "print([m for m in ('gymnasium', 'minari', 'matplotlib', 'zarr', 'lmdb') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ------------------------------------------------------------------------------------------------------ Minari

OBSERVATION = np.array([[0.0, 5.0], [1.0, 5.0], [2.0, 5.0], [3.0, 5.0]])


def make_minari(root: Path, monkeypatch: pytest.MonkeyPatch, dataset_id: str = "toy/walk-v0"):
    """Episodes of 2 steps (terminated), 3 (truncated) and 1 (cut without a mark); actions in [-2, 2]."""
    import gymnasium
    import minari
    from minari.data_collector import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    episodes = []
    for start, length, terminated, truncated in ((0, 2, True, False), (10, 3, False, True), (20, 1, False, False)):
        episodes.append(
            EpisodeBuffer(
                observations=list(OBSERVATION[: length + 1] + start),
                actions=[np.array([float(i - 1)]) for i in range(length)],
                rewards=[float(start + i) for i in range(length)],
                terminations=[False] * (length - 1) + [terminated],
                truncations=[False] * (length - 1) + [truncated],
            )
        )
    return minari.create_dataset_from_buffers(
        dataset_id,
        episodes,
        env=gymnasium.spec("Pendulum-v1"),
        eval_env=gymnasium.spec("Pendulum-v1"),
        observation_space=gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64),
        action_space=gymnasium.spaces.Box(-2.0, 2.0, (1,), np.float64),
        ref_min_score=-10.0,
        ref_max_score=30.0,
        algorithm_name="by hand",
        author="nobody",
        author_email="nobody@example.org",
        code_permalink="https://example.org",
        description="three episodes",
    )


def test_minari_by_id_and_by_folder(tmp_path, monkeypatch):
    make_minari(tmp_path, monkeypatch)
    dataset = load_dataset("toy/walk-v0")
    assert as_lists(dataset) == {
        "observation": [0, 1, 10, 11, 12, 20],
        "reward": [0, 1, 10, 11, 12, 20],
        "next": [1, 2, 11, 12, 13, 21],
        "terminal": [1],
        "timeout": [4, 5],
    }
    assert dataset.action[:, 0].tolist() == [-0.5, 0, -0.5, 0, 0.5, -0.5]  # the box [-2, 2] onto [-1, 1]
    info = dataset.info
    assert (info.source, info.environment) == ("toy/walk-v0", EnvironmentSpec("Pendulum-v1"))
    assert (info.reference_min, info.reference_max) == (-10.0, 30.0)
    assert (info.action_low, info.action_high) == ((-2.0,), (2.0,))

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "elsewhere"))
    for folder in (tmp_path / "toy" / "walk-v0", tmp_path / "toy" / "walk-v0" / "data"):
        again = load_dataset(folder)
        assert as_lists(again) == as_lists(dataset)
        assert again.info.sha256 == info.sha256


def test_minari_hash_follows_the_data(tmp_path, monkeypatch):
    make_minari(tmp_path, monkeypatch, "toy/walk-v0")
    first = load_dataset("toy/walk-v0").info.sha256
    monkeypatch.setitem(globals(), "OBSERVATION", OBSERVATION + 1.0)
    make_minari(tmp_path, monkeypatch, "toy/walk-v1")
    assert load_dataset("toy/walk-v1").info.sha256 != first


def test_minari_observations_that_are_not_boxes_are_refused(tmp_path, monkeypatch, refusal):
    make_minari(tmp_path, monkeypatch)
    path = tmp_path / "toy" / "walk-v0" / "data" / "metadata.json"
    metadata = json.loads(path.read_text())
    box, phase = json.loads(metadata["observation_space"]), {"type": "Discrete", "dtype": "int64", "start": 0, "n": 3}
    metadata["observation_space"] = json.dumps({"type": "Dict", "subspaces": {"position": box, "phase": phase}})
    path.write_text(json.dumps(metadata))
    assert "observation `phase` is a Discrete; only boxes can be flattened" in refusal("toy/walk-v0")


def test_minari_damaged(tmp_path, monkeypatch, refusal):
    make_minari(tmp_path, monkeypatch)
    path = tmp_path / "toy" / "walk-v0" / "data" / "main_data.hdf5"
    path.write_bytes(path.read_bytes()[:1000])
    assert "not a readable Minari dataset" in refusal("toy/walk-v0")


@pytest.mark.parametrize(
    "error", [ConnectionError("no route\nto host"), ValueError("no version of toy/absent"), ImportError("no hub")]
)
def test_minari_that_cannot_be_fetched(tmp_path, monkeypatch, refusal, error):
    import minari

    def fail(dataset_id):
        raise error

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    monkeypatch.setattr(minari, "download_dataset", fail)
    assert f"downloading it failed ({str(error).splitlines()[0]})" in refusal("toy/absent-v0")


def test_minari_is_downloaded_when_absent(tmp_path, monkeypatch):
    import minari

    asked = []

    def download(dataset_id):
        asked.append(dataset_id)
        make_minari(tmp_path, monkeypatch, dataset_id)

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    monkeypatch.setattr(minari, "download_dataset", download)
    assert load_dataset("toy/far-v0").size == load_dataset("toy/far-v0").size == 6
    assert asked == ["toy/far-v0"]
