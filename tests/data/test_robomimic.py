"""robomimic's layout, written as `dataset_states_to_obs.py` writes it, and flat files with groups of observations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from diffcps.readers.parts import group_at, open_hdf5, read_group
from diffcps.readers.robomimic import is_robomimic, read_robomimic
from tests.data.rows import kept, peak_over_kept, refused

Demo = dict[str, np.ndarray]
SIZES = {"object": 10, "robot0_eef_pos": 3, "robot0_eef_quat": 4}


def demonstration(number: int, steps: int, done: tuple[int, ...], reward: tuple[int, ...]) -> Demo:
    """Done and rewarded (1, sparse) at the given steps, counted from the end: -1 is the last."""
    rng = np.random.default_rng(number)
    demo = {
        "actions": rng.uniform(-1, 1, (steps, 7)),
        "rewards": np.zeros(steps),
        "dones": np.zeros(steps, np.int64),
        "states": rng.normal(size=(steps, 20)),
    }
    demo["dones"][list(done)] = 1
    demo["rewards"][list(reward)] = 1
    for key, size in SIZES.items():
        vectors = rng.normal(size=(steps + 1, size))
        demo[f"obs/{key}"], demo[f"next_obs/{key}"] = vectors[:-1], vectors[1:]
    return demo


@pytest.fixture
def demos() -> dict[str, Demo]:
    """Three successful demonstrations, done at the end, in another order than that of their names as text."""
    return {f"demo_{i}": demonstration(i, 4 + i, (-1,), (-1,)) for i in (0, 10, 2)}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(demos: dict[str, Demo], name: str = "demo.hdf5", masks: tuple[str, ...] = ()) -> Path:
        path = tmp_path / name
        with h5py.File(path, "w") as file:
            data = file.create_group("data")
            data.attrs["total"] = sum(len(demo["actions"]) for demo in demos.values())
            data.attrs["env_args"] = '{"env_name": "Lift", "type": 1, "env_kwargs": {}}'
            for demo, arrays in demos.items():
                for array, value in arrays.items():
                    data[f"{demo}/{array}"] = value
                data[demo].attrs["num_samples"] = len(arrays["actions"])
            for mask in masks:
                file[f"mask/{mask}"] = np.array([b"demo_0"])
        return path

    return write


def test_demonstrations_follow_their_numbers(demos, write):
    raw = read_robomimic(write(demos), "demo", ())
    order = [demos["demo_0"], demos["demo_2"], demos["demo_10"]]
    for values, name in ((raw.action, "actions"), (raw.reward, "rewards")):
        np.testing.assert_array_equal(kept(values), np.concatenate([demo[name] for demo in order]).astype(np.float32))
    for values, group in ((raw.observation, "obs"), (raw.next_observation, "next_obs")):
        rows = [np.concatenate([demo[f"{group}/{key}"] for key in SIZES], axis=1) for demo in order]
        np.testing.assert_array_equal(kept(values), np.concatenate(rows).astype(np.float32))
    assert raw.episode is not None
    np.testing.assert_array_equal(kept(raw.episode), np.repeat([0, 1, 2], [4, 6, 14]))
    assert raw.timeout is None and raw.environment is None and raw.action_low is None


def test_keys_are_concatenated_as_given(demos, write):
    raw = read_robomimic(write(demos), "demo", ("robot0_eef_quat", "object"))
    rows = np.concatenate([demos["demo_0"]["obs/robot0_eef_quat"], demos["demo_0"]["obs/object"]], axis=1)
    np.testing.assert_array_equal(kept(raw.observation)[:4], rows.astype(np.float32))
    assert raw.next_observation is not None and raw.next_observation.shape == (24, 14)
    assert "obs/robot0_eef_pos" in raw.ignored


def test_what_is_decided_and_ignored_is_said(demos, write):
    raw = read_robomimic(write(demos, masks=("train", "valid")), "demo", ())
    assert raw.ignored == ("mask", "states")
    said = "; ".join(raw.notes)
    assert "object (10), robot0_eef_pos (3), robot0_eef_quat (4) of `obs`" in said
    assert "Lift" in said and "`mask` (`train` and `valid`)" in said


def test_pictures_are_left_out_only_by_name(demos, write):
    for demo in demos.values():
        demo["obs/agentview_image"] = np.zeros((len(demo["actions"]), 8, 8, 3), np.uint8)
    path = write(demos)
    message = refused(lambda: read_robomimic(path, "demo", ()), "demo")
    assert "`agentview_image`" in message and "--observation-keys object robot0_eef_pos robot0_eef_quat" in message
    assert "object (10)" in message
    raw = read_robomimic(path, "demo", ("object",))
    assert raw.observation.shape == (24, 10) and "obs/agentview_image" in raw.ignored
    assert "no vector" in refused(lambda: read_robomimic(path, "demo", ("agentview_image",)), "demo")


def test_wrong_keys(demos, write):
    path = write(demos)
    assert "did you mean `object`?" in refused(lambda: read_robomimic(path, "demo", ("objekt",)), "demo")
    assert "twice" in refused(lambda: read_robomimic(path, "demo", ("object", "object")), "demo")


# --- dones ---


def terminals(write: Callable[..., Path], *demos: Demo) -> tuple[list[int], str]:
    raw = read_robomimic(write({f"demo_{i}": demo for i, demo in enumerate(demos)}), "demo", ())
    return np.flatnonzero(kept(raw.terminal)).tolist(), "; ".join(raw.notes)


def test_done_at_success_is_terminal(write):
    """--done_mode 0: the second demonstration fails, and ends without it."""
    rows, said = terminals(write, demonstration(0, 5, (-1,), (-1,)), demonstration(1, 5, (), ()))
    assert rows == [4] and "marks success" in said


def test_done_at_every_end_is_terminal_where_the_reward_shows_success(write):
    """--done_mode 1 or 2, sparse rewards: the second demonstration fails."""
    rows, said = terminals(write, demonstration(0, 5, (-1,), (-1,)), demonstration(1, 5, (-1,), ()))
    assert rows == [4] and "1 of 2 end as terminal" in said


def test_done_at_every_end_is_a_cut_where_nothing_shows_success(write):
    dense = [demonstration(i, 5, (-1,), ()) for i in range(2)]
    for demo in dense:
        demo["rewards"] = np.linspace(0.1, 0.9, 5)
    rows, said = terminals(write, *dense)
    assert rows == [] and "0 of 2 end as terminal" in said


def test_success_that_lasts(write):
    """--done_mode 2, dense rewards: success at the last three steps, each of which is terminal."""
    lasting = demonstration(0, 6, (-3, -2, -1), ())
    lasting["rewards"] = np.linspace(0.1, 0.9, 6)
    failed = demonstration(1, 5, (-1,), ())
    failed["rewards"] = np.linspace(0.1, 0.9, 5)
    rows, said = terminals(write, lasting, failed)
    assert rows == [3, 4, 5] and "2 rows come after a terminal row" in said


def test_without_rewards_dones_or_next_observations(demos, write):
    for demo in demos.values():
        for name in [name for name in demo if name in ("rewards", "dones") or name.startswith("next_obs")]:
            del demo[name]
    raw = read_robomimic(write(demos), "demo", ())
    assert raw.reward is None and raw.terminal is None and raw.next_observation is None
    assert set(raw.names) == {"observation", "action"}


# --- Damage ---


@pytest.mark.parametrize("name", ["rewards", "dones", "obs/object", "next_obs/object"])
def test_one_demonstration_lacks_what_others_have(demos, write, name):
    del demos["demo_2"][name]
    path = write(demos)
    assert f"`data/demo_2` has no `{name}`" in refused(lambda: read_robomimic(path, "demo", ()), "demo")


def test_next_observations_in_other_parts(demos, write):
    for demo in demos.values():
        del demo["next_obs/object"]
    path = write(demos)
    assert "no `next_obs/object`" in refused(lambda: read_robomimic(path, "demo", ()), "demo")
    assert read_robomimic(path, "demo", ("robot0_eef_pos",)).next_observation is not None


@pytest.mark.parametrize("name", ["rewards", "obs/object", "next_obs/robot0_eef_pos"])
def test_rows_differ(demos, write, name):
    demos["demo_2"][name] = demos["demo_2"][name][1:]
    path = write(demos)
    assert f"data/demo_2/{name}" in refused(lambda: read_robomimic(path, "demo", ()), "demo")


def test_sizes_differ(demos, write):
    demos["demo_2"]["actions"] = demos["demo_2"]["actions"][:, 1:]
    path = write(demos)
    assert "rows of shape (6,)" in refused(lambda: read_robomimic(path, "demo", ()), "demo")


def test_flags_of_other_values(demos, write):
    demos["demo_0"]["dones"][1] = 3
    path = write(demos)
    assert "`dones` at row 1 is 3" in refused(lambda: read_robomimic(path, "demo", ()), "demo")


def test_states_without_observations(demos, write):
    raw_recording = {"demo_0": {name: demos["demo_0"][name] for name in ("actions", "states")}}
    path = write(raw_recording)
    assert "dataset_states_to_obs.py" in refused(lambda: read_robomimic(path, "demo", ()), "demo")


def test_empty_demonstrations_are_named(demos, write):
    demos["demo_7"] = {name: value[:0] for name, value in demos["demo_0"].items()}
    raw = read_robomimic(write(demos), "demo", ())
    assert raw.observation.shape == (24, 17) and "data/demo_7" in raw.ignored


def test_array_in_the_place_of_a_group(demos, write):
    demos["demo_0"]["obs"] = np.zeros((4, 3))
    for key in SIZES:
        del demos["demo_0"][f"obs/{key}"]
    path = write(demos)
    assert "`obs` must be a group" in refused(lambda: read_robomimic(path, "demo", ()), "demo")


def test_truncated_and_recognised(demos, write, tmp_path):
    path = write(demos)
    assert is_robomimic(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert not is_robomimic(path)
    assert "not a complete HDF5 file" in refused(lambda: read_robomimic(path, "demo", ()), "demo")
    flat = tmp_path / "flat.hdf5"
    with h5py.File(flat, "w") as file:
        file["actions"] = np.zeros((3, 1))
    assert not is_robomimic(flat) and not is_robomimic(tmp_path / "nothing.hdf5")


def test_memory(tmp_path):
    """float64 in twenty demonstrations: no array is there twice."""
    path = tmp_path / "large.hdf5"
    with h5py.File(path, "w") as file:
        for i in range(20):
            for name in ("obs/a", "obs/b", "next_obs/a", "next_obs/b", "actions"):
                file[f"data/demo_{i}/{name}"] = np.zeros((5000, 16))
            file[f"data/demo_{i}/rewards"] = np.zeros(5000)
            file[f"data/demo_{i}/dones"] = np.arange(5000) == 4999
    assert peak_over_kept(lambda: read_robomimic(path, "large", ())) < 1.3


# --- Groups of observations in files that are flat otherwise ---


@pytest.fixture
def groups(tmp_path: Path) -> Path:
    path = tmp_path / "groups.hdf5"
    with h5py.File(path, "w") as file:
        for group, start in (("observations", 0), ("next_observations", 1)):
            for key, size in (("velocity", 2), ("position", 3)):
                file[f"{group}/{key}"] = start + np.arange(5.0 * size).reshape(5, size)
            file[f"{group}/time"] = np.arange(5.0)
    return path


def test_group_of_observations(groups):
    with open_hdf5(groups, "groups") as file:
        column, parts = read_group(group_at(file, "observations", "groups"), groups, "groups", ())
        following, _ = read_group(group_at(file, "next_observations", "groups"), groups, "groups", parts.keys)
    assert parts.keys == ("position", "time", "velocity")
    step = np.arange(5.0)
    position = [3 * step, 3 * step + 1, 3 * step + 2]
    np.testing.assert_array_equal(kept(column), np.stack([*position, step, 2 * step, 2 * step + 1], axis=1))
    assert following.shape == (5, 6) and kept(following)[0].tolist() == [1, 2, 3, 0, 1, 2]


def test_group_of_observations_with_keys(groups):
    with open_hdf5(groups, "groups") as file:
        column, parts = read_group(group_at(file, "observations", "groups"), groups, "groups", ("time",))
    assert parts.ignored == ("position", "velocity") and column.shape == (5,)
