"""CSV and Parquet: which columns are which field, missing values, damage, memory."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from diffcps.readers.rows import whole
from diffcps.readers.tables import read_table
from tests.data.rows import kept, peak_over_kept, refused

pyarrow = pytest.importorskip("pyarrow")
arrow_csv = pytest.importorskip("pyarrow.csv")
parquet = pytest.importorskip("pyarrow.parquet")

Table = dict[str, object]


@pytest.fixture
def table() -> Table:
    """Twenty steps: twelve observations, so that names as text are in another order, and two actions."""
    rng = np.random.default_rng(0)
    observations = {f"observation_{i}": i + rng.normal(size=20) for i in reversed(range(12))}
    return {
        **observations,
        "action_0": rng.uniform(-1, 1, 20),
        "action_1": rng.uniform(-1, 1, 20),
        "reward": rng.normal(size=20),
        "terminal": np.arange(20) % 10 == 9,
        "time": np.arange(20.0),
    }


@pytest.fixture(params=["csv", "parquet"])
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Table], Path]:
    def write(table: Table) -> Path:
        path = tmp_path / f"data.{request.param}"
        content = pyarrow.table(table)
        if request.param == "csv":
            arrow_csv.write_csv(content, path)
        else:
            parquet.write_table(content, path, row_group_size=7)
        return path

    return write


@pytest.fixture
def write_parquet(tmp_path: Path) -> Callable[[Table], Path]:
    def write(table: Table) -> Path:
        path = tmp_path / "data.parquet"
        parquet.write_table(pyarrow.table(table), path)
        return path

    return write


@pytest.fixture
def write_text(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "data.csv"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_numbered_columns(table, write):
    raw = read_table(write(table), "data")
    expected = np.stack([table[f"observation_{i}"] for i in range(12)], axis=1)
    np.testing.assert_array_equal(kept(raw.observation), expected.astype(np.float32))
    np.testing.assert_array_equal(kept(raw.action)[:, 1], np.asarray(table["action_1"], np.float32))
    np.testing.assert_array_equal(kept(raw.reward), np.asarray(table["reward"], np.float32))
    np.testing.assert_array_equal(kept(raw.terminal), table["terminal"])
    assert raw.timeout is None and raw.next_observation is None and raw.episode is None
    assert raw.ignored == ("time",)
    assert raw.names["observation"] == "observation_0, ..., observation_11" and raw.names["reward"] == "reward"
    assert raw.observation.dtype == np.float64 and raw.terminal is not None and raw.terminal.dtype == np.bool_


@pytest.mark.parametrize("name", ["observations_{}", "obs_{}", "obs[{}]", "obs.{}", "obs{}", "observation.{}"])
def test_spellings_of_numbered_columns(write, name):
    columns = {name.format(i): np.full(3, i) for i in (10, *range(1, 10))} | {"actions_0": np.zeros(3)}
    observation = kept(read_table(write(columns), "data").observation)
    assert observation[0].tolist() == list(range(1, 11))


def test_all_fields_and_single_columns(write):
    fields = ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")
    raw = read_table(write({name: np.arange(4.0) for name in fields} | {"episode_id": [3, 3, 1, 1]}), "data")
    assert raw.observation.shape == raw.action.shape == (4, 1)
    for values in (raw.reward, raw.terminal, raw.timeout):
        assert values is not None and values.shape == (4,)
    assert raw.next_observation is not None and raw.next_observation.shape == (4, 1)
    assert raw.episode is not None and whole(raw.episode).tolist() == [0, 0, 1, 1]


def test_episodes_named_by_text(write):
    raw = read_table(
        write({"obs": np.arange(3.0), "action": np.zeros(3), "episode": ["run-a", "run-b", "run-a"]}), "data"
    )
    assert raw.episode is not None and whole(raw.episode).tolist() == [0, 1, 0]


def test_episode_missing(write):
    path = write({"obs": np.arange(3.0), "action": np.zeros(3), "episode": pyarrow.array([1, None, 2])})
    assert "`episode` is missing at row 1" in refused(lambda: read_table(path, "data"), "data")


def test_uncertain_ends_are_not_read(write):
    ends = {name: np.array([False, True]) for name in ("done", "is_last", "next.done")}
    path = write({"obs": np.arange(2.0), "action": np.zeros(2)} | ends)
    assert "`done` may say how episodes end" in refused(lambda: read_table(path, "data"), "data")
    raw = read_table(path, "data", ("terminal=none", "timeout=none"))
    assert raw.terminal is None and raw.timeout is None and raw.ignored == ("done", "is_last", "next.done")
    raw = read_table(path, "data", ("terminal=done", "timeout=is_last"))
    assert raw.names["terminal"] == "done" and raw.names["timeout"] == "is_last"


def test_named_columns(write):
    table = {name: np.full(2, i) for i, name in enumerate(("speed_10", "x", "speed_2", "y", "steer", "done", "obs[0]"))}
    columns = ("observation = x, speed_*,obs[0]", "action=steer", "terminal=done")
    raw = read_table(write(table), "data", columns)
    assert kept(raw.observation)[0].tolist() == [1, 2, 0, 6] and kept(raw.action)[0].tolist() == [4]
    assert kept(raw.terminal).tolist() == [5, 5] and raw.ignored == ("y",)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (("observation=speeed",), "no column `speeed` for `observation`; did you mean `speed`?"),
        (("observation=q*",), "no column `q*`"),
        (("observations=speed",), "no field `observations`; did you mean `observation`"),
        (("observation",), "must be FIELD=COLUMNS"),
        (("observation=speed", "observation=obs_0"), "twice"),
        (("reward=speed,name",), "is of type string"),
        (("terminal=speed,action",), "no columns of `action`"),
        (("action=action", "reward=speed,action"), "it must be one number"),
        (("reward=name",), "is of type string; `reward` needs numbers"),
    ],
)
def test_wrong_columns(write, columns, said):
    path = write({"obs_0": np.zeros(2), "action": np.zeros(2), "speed": np.zeros(2), "name": ["a", "b"]})
    assert said in refused(lambda: read_table(path, "data", columns), "data")


def test_columns_that_cannot_be_assigned(write):
    zeros = np.zeros(2)
    path = write({"obs_0": zeros, "observation_0": zeros, "action": zeros})
    assert "both `observation_0` and `obs_0`" in refused(lambda: read_table(path, "data"), "data")
    write({"obs_1": zeros, "obs_01": zeros, "action": zeros})
    assert "`obs_1` and `obs_01` have one number" in refused(lambda: read_table(path, "data"), "data")
    write({"obs": zeros, "obs1": zeros, "action": zeros})
    assert "both `obs` and `obs1`" in refused(lambda: read_table(path, "data"), "data")
    write({"obs_0": zeros, "obs_2": zeros, "action": zeros})
    assert "lack number 1" in refused(lambda: read_table(path, "data"), "data")
    write({"obs_0": zeros, "steer": zeros})
    message = refused(lambda: read_table(path, "data"), "data")
    assert "no columns of `action`" in message and "`steer`" in message and "--columns action=" in message
    write({"x": zeros, "action": zeros})
    assert "no columns of `observation`" in refused(lambda: read_table(path, "data"), "data")


def test_missing_values_are_nan(write):
    flags = pyarrow.array([True, None, False])
    raw = read_table(
        write({"obs_0": pyarrow.array([1, None, 3]), "action": [0.5, 0.25, None], "terminal": flags}), "data"
    )
    np.testing.assert_array_equal(kept(raw.observation)[:, 0], [1, np.nan, 3])
    np.testing.assert_array_equal(kept(raw.action)[:, 0], [0.5, 0.25, np.nan])
    np.testing.assert_array_equal(kept(raw.terminal), [1, np.nan, 0])


def test_whole_numbers_keep_their_kind(write):
    raw = read_table(write({"obs": np.arange(3.0) / 2, "action": np.array([0, 3, 1]), "reward": [1, 2, 3]}), "data")
    assert raw.action.dtype == np.int64 and whole(raw.action).ravel().tolist() == [0, 3, 1]
    assert whole(raw.action).dtype == np.int64


def test_empty(write):
    path = write({"obs": np.zeros(0), "action": np.zeros(0)})
    assert "no rows" in refused(lambda: read_table(path, "data"), "data")


def test_missing_extra(table, write, monkeypatch):
    path = write(table)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install 'diffcps[parquet]'" in refused(lambda: read_table(path, "data"), "data")


def test_missing_file(tmp_path):
    assert "no such file" in refused(lambda: read_table(tmp_path / "nothing.csv", "nothing.csv"), "nothing.csv")


# --- CSV ---


def test_csv_without_header(tmp_path):
    path = tmp_path / "data.csv"
    np.savetxt(path, np.random.default_rng(0).normal(size=(5, 4)), delimiter=",")
    assert "holds numbers" in refused(lambda: read_table(path, "data"), "data")


def test_csv_as_numpy_writes_a_header(tmp_path):
    path = tmp_path / "data.csv"
    np.savetxt(path, np.arange(6).reshape(2, 3), delimiter=",", header="obs_0, obs_1, action")
    raw = read_table(path, "data")
    assert kept(raw.observation).tolist() == [[0, 1], [3, 4]] and kept(raw.action).tolist() == [[2], [5]]


def test_csv_of_spreadsheets(write_text):
    """Byte order mark, semicolons, an index column without a name, Windows line ends."""
    raw = read_table(write_text("\ufeff;obs_0;action\r\n0;0.5;1\r\n1;1.5;0\r\n"), "data")
    assert kept(raw.observation).ravel().tolist() == [0.5, 1.5] and raw.ignored == ("(column 0)",)


def test_csv_types_are_those_of_all_rows(write_text):
    """The first block is of whole numbers, a later one is not."""
    count = 400_000
    rows = "\n".join(f"{i % 7},1" for i in range(count))
    raw = read_table(write_text(f"obs_0,action\n{rows}\n0.5,1\n"), "data")
    assert raw.observation.dtype == np.float64 and raw.action.dtype == np.int64
    assert raw.observation.shape == (count + 1, 1) and kept(raw.observation)[-1] == 0.5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        ("obs_0,action\n", "no rows"),
        ("obs_0,action\n1,2\n3\n", "Expected 2 columns, got 1"),
        ("obs_0,action\n1,2\nx,3\n", "is of type string"),
        ("obs_0,obs_0,action\n1,2,3\n", "two columns are called `obs_0`"),
    ],
)
def test_csv_damaged(write_text, text, said):
    path = write_text(text)
    assert said in refused(lambda: read_table(path, "data"), "data")


def test_csv_with_a_text_far_below(write_text):
    path = write_text("obs_0,action\n" + "1,2\n" * 400_000 + "x,3\n")
    assert "invalid value 'x'" in refused(lambda: read_table(path, "data"), "data")


def test_csv_of_bytes(tmp_path):
    path = tmp_path / "data.csv"
    path.write_bytes(b"\xff\xfe\x00obs" * 100)
    assert "not a readable table" in refused(lambda: read_table(path, "data"), "data")


# --- Parquet ---


def test_lists(write_parquet):
    table = {
        "observations": pyarrow.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], pyarrow.list_(pyarrow.float64())),
        "actions": pyarrow.array([[1], [2], [3]], pyarrow.list_(pyarrow.float32(), 1)),
        "next_observations": pyarrow.array([[3.0, 4.0], [5.0, None], None], pyarrow.list_(pyarrow.float64())),
    }
    raw = read_table(write_parquet(table), "data")
    assert kept(raw.observation).tolist() == [[1, 2], [3, 4], [5, 6]] and kept(raw.action).tolist() == [[1], [2], [3]]
    np.testing.assert_array_equal(kept(raw.next_observation), [[3, 4], [5, np.nan], [np.nan, np.nan]])


def test_lists_of_different_lengths(write_parquet):
    path = write_parquet({"obs": [[1.0, 2.0], [3.0]], "action": [0.0, 1.0]})
    assert "lists of 2 numbers and of 1" in refused(lambda: read_table(path, "data"), "data")


def lerobot(episodes: list[int], pictures: bool = False) -> Table:
    rows = len(episodes)
    table: Table = {
        "observation.state": [[float(i), 0.0] for i in range(rows)],
        "observation.environment_state": [[1.0, 2.0, 3.0]] * rows,
        "action": [[0.5, -0.5]] * rows,
        "episode_index": episodes,
        "frame_index": np.arange(rows),
        "timestamp": np.arange(rows) / 10,
        "next.reward": np.arange(rows, dtype=np.float32),
        "next.done": np.append(np.diff(episodes) > 0, True),
        "index": np.arange(rows),
        "task_index": np.zeros(rows, int),
    }
    return table | ({"observation.image": [{"bytes": b"png", "path": "a.png"}] * rows} if pictures else {})


def test_lerobot(write_parquet):
    raw = read_table(write_parquet(lerobot([4, 4, 5])), "data", ("terminal=none",))
    assert kept(raw.observation).tolist() == [[1, 2, 3, i, 0] for i in range(3)]
    assert kept(raw.reward).tolist() == [0, 1, 2] and raw.names["reward"] == "next.reward"
    assert raw.episode is not None and whole(raw.episode).tolist() == [0, 0, 1]
    assert raw.terminal is None and "next.done" in raw.ignored and "frame_index" in raw.ignored
    assert raw.notes == (
        "observations are environment_state (3), state (2) of `observation`, side by side in this order",
    )


def test_lerobot_with_keys(write_parquet):
    path = write_parquet(lerobot([0, 0], pictures=True))
    assert "--observation-keys environment_state state" in refused(lambda: read_table(path, "data"), "data")
    assert "`next.done` may say" in refused(lambda: read_table(path, "data", observation_keys=("state",)), "data")
    raw = read_table(path, "data", ("terminal=none",), ("state",))
    assert raw.observation.shape == (2, 2) and "observation.image" in raw.ignored
    assert "no part `stat`" in refused(lambda: read_table(path, "data", observation_keys=("stat",)), "data")
    both = refused(lambda: read_table(path, "data", ("observation=action",), ("state",)), "data")
    assert "give one of them" in both


def test_keys_without_columns_to_choose_from(table, write):
    path = write(table)
    assert "there are none" in refused(lambda: read_table(path, "data", observation_keys=("time",)), "data")


@pytest.mark.parametrize("size", [0, 4, 100, 3000])
def test_parquet_truncated(table, tmp_path, size):
    path = tmp_path / "data.parquet"
    parquet.write_table(pyarrow.table(table), path)
    path.write_bytes(path.read_bytes()[:size])
    assert "not a readable table" in refused(lambda: read_table(path, "data"), "data")


def test_parquet_damaged_inside(table, tmp_path):
    path = tmp_path / "data.parquet"
    parquet.write_table(pyarrow.table(table), path)
    content = bytearray(path.read_bytes())
    content[4:400] = bytes(396)
    path.write_bytes(content)
    assert "not a readable table" in refused(lambda: read_table(path, "data"), "data")


POOLS = [pyarrow.default_memory_pool()]
"""Kept for the whole process: what Arrow allocates from a pool must not outlive it."""


def test_parquet_memory(tmp_path):
    """float64 columns in one row group: NumPy holds what is kept and a piece, Arrow about a page of each column."""
    rows, size, path = 200_000, 16, tmp_path / "large.parquet"
    rng = np.random.default_rng(0)
    table = {f"observation_{i}": rng.normal(size=rows) for i in range(size)}
    table |= {f"next_observation_{i}": rng.normal(size=rows) for i in range(size)}
    table |= {"action_0": rng.uniform(size=rows), "reward": rng.normal(size=rows), "terminal": rng.random(rows) < 0.01}
    parquet.write_table(pyarrow.table(table), path, row_group_size=rows)
    POOLS.append(pyarrow.proxy_memory_pool(POOLS[0]))
    pyarrow.set_memory_pool(POOLS[-1])
    try:
        assert peak_over_kept(lambda: read_table(path, "large")) < 1.3
    finally:
        pyarrow.set_memory_pool(POOLS[0])
    assert POOLS[-1].max_memory() < size * 2**21, "whatever the number of rows (a page of a column is 1 MiB)"


def test_csv_memory(tmp_path):
    rows, path = 200_000, tmp_path / "large.csv"
    rng = np.random.default_rng(0)
    table = {f"observation_{i}": rng.normal(size=rows) for i in range(8)} | {"action_0": rng.uniform(size=rows)}
    arrow_csv.write_csv(pyarrow.table(table), path)
    assert peak_over_kept(lambda: read_table(path, "large")) < 1.4, "a block of 1 MiB on top of 7 MB"
