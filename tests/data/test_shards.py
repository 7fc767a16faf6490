"""Several files as one dataset: their order, what must be alike, and that nothing continues from one into the next."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from diffcps.readers.rows import RawRows, whole
from diffcps.readers.shards import find_shards, join
from diffcps.types import UserError
from tests.data.rows import kept


def part(start: int, rows: int = 3, **change: object) -> RawRows:
    step = start + np.arange(float(rows))
    raw = RawRows(
        observation=np.stack([step, -step], axis=1),
        action=step[:, None],
        reward=step,
        terminal=np.zeros(rows, bool),
        timeout=None,
        next_observation=None,
        names={"observation": "obs", "action": "acts", "reward": "rews", "terminal": "terms"},
        sha256=f"{start}",
        action_low=np.array([-9.0]),
        action_high=np.array([9.0]),
    )
    return raw._replace(**change)


def differ(*parts: RawRows) -> str:
    names = ["a.npz", "b.npz", "c.npz"][: len(parts)]
    with pytest.raises(UserError) as caught:
        join(parts, names)
    message = str(caught.value)
    assert "\n" not in message and message.split(": ")[0] in names
    return message


def test_rows_of_one_file_after_the_other():
    raw = join([part(0), part(10, 4), part(20, 2)], ["a.npz", "b.npz", "c.npz"])
    steps = [0, 1, 2, 10, 11, 12, 13, 20, 21]
    assert kept(raw.reward).tolist() == steps and kept(raw.action).ravel().tolist() == steps
    assert kept(raw.observation).tolist() == [[step, -step] for step in steps]
    assert raw.file_rows == (3, 4, 2) and raw.timeout is None and raw.episode is None
    assert raw.sha256 == hashlib.sha256(b"0\n10\n20").hexdigest()


def test_the_hash_knows_the_order():
    assert join([part(0), part(9)], ["a", "b"]).sha256 != join([part(9), part(0)], ["a", "b"]).sha256


def test_one_file_is_itself():
    alone = part(0)
    assert join([alone], ["a.npz"]) is alone


def test_episodes_of_different_files_are_different():
    """Both count from 0, and the second file begins with the number that the first one ends with."""
    raw = join([part(0, episode=np.array([0, 1, 1])), part(10, episode=np.array([1, 0, 0]))], ["a", "b"])
    assert raw.episode is not None and whole(raw.episode).tolist() == [0, 1, 1, 3, 2, 2]


def test_what_was_ignored_and_decided_is_said_once():
    first = part(0, ignored=("time", "mask"), notes=("dones were read",))
    raw = join([first, first._replace(ignored=("time", "step"))], ["a", "b"])
    assert raw.ignored == ("time", "mask", "step") and raw.notes == ("dones were read",)


def test_files_must_be_alike():
    first = part(0)
    assert "no field `rews`, which a.npz has" in differ(first, part(10, reward=None))
    assert differ(part(0, reward=None), part(10)).startswith("a.npz: no field `rews`, which b.npz has")
    assert "no field `episode`" in differ(part(0, episode=np.zeros(3)), part(10))
    wide = differ(first, part(10), part(20, observation=np.zeros((3, 5))))
    assert wide.startswith("c.npz: `obs` has rows of shape (5,), in a.npz of (2,)")
    assert "`action_high`" in differ(first, part(10, action_high=np.array([1.0])))
    assert "`action_low`" in differ(first, part(10, action_low=None))
    assert "environment (Hopper-v5) than a.npz (None)" in differ(first, part(10, environment="Hopper-v5"))
    assert "reference score" in differ(first, part(10, reference_min=1.0))


def test_rows_missing_in_one_file_are_not_made_up_for_by_another():
    short, long = part(0, reward=np.zeros(2)), part(10, reward=np.zeros(4))
    assert differ(short, long).startswith("a.npz: `rews` has 2 rows and `obs` has 3")


# --- Folders ---


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_files_of_a_folder_in_natural_order(tmp_path):
    make(tmp_path, "part-10.npz", "part-2.npz", "part-1.HDF5", "readme.txt", "a.csv", "more/part-3.npz", ".hidden.npz")
    found = find_shards(tmp_path, "folder")
    assert [path.name for path in found.files] == ["a.csv", "part-1.HDF5", "part-2.npz", "part-10.npz"]
    assert found.ignored == (".hidden.npz", "more", "readme.txt")


def test_lerobot_folder(tmp_path):
    names = [f"data/chunk-{chunk:03}/episode_{episode:06}.parquet" for chunk, episode in ((0, 0), (0, 1), (1, 2))]
    make(tmp_path, *reversed(names), "meta/info.json", "meta/episodes/chunk-000/file-000.parquet", "videos/x.mp4")
    for folder in (tmp_path, tmp_path / "data"):
        found = find_shards(folder, "folder")
        assert [path.relative_to(tmp_path).as_posix() for path in found.files] == names
    assert find_shards(tmp_path, "folder").ignored == ("meta", "videos")


def test_folder_without_data(tmp_path):
    make(tmp_path, "readme.txt")
    with pytest.raises(UserError, match=r"^folder: no data file"):
        find_shards(tmp_path, "folder")
