from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from diffcps.data import load_dataset
from diffcps.data.suspicions import find_warnings
from diffcps.types import Dataset, DatasetInfo, Reading


def change(field, position, value):
    def apply(rows):
        rows[field][position] = value

    return apply


def put(field, value):
    def apply(rows):
        rows[field] = np.asarray(value)

    return apply


REFUSALS = [
    (change("rewards", 3, np.nan), "`rewards` is NaN or infinite (in float32) at row 3, and at 1 of 8 rows"),
    (change("observations", (slice(5, 7), 1), np.inf), "`observations` is NaN or infinite (in float32) at row 5, and"),
    (change("rewards", 4, 1e300), "`rewards` is NaN or infinite (in float32) at row 4"),
    (change("actions", (6, 0), -np.inf), "`actions` is NaN or infinite (in float32) at row 6"),
    (change("actions", (6, 0), 1.5), "`actions` at row 6, dimension 0 is 1.5, outside [-1, 1], as in 1 of 8 rows"),
    (change("actions", (slice(2, None), 0), -1.001), "`actions` at row 2, dimension 0 is -1.001, outside [-1, 1], as"),
    (put("rewards", np.zeros(7)), "`rewards` has 7 rows and `observations` has 8"),
    (put("timeouts", np.zeros(9, bool)), "`timeouts` has 9 rows and `observations` has 8"),
    (put("rewards", np.zeros((8, 2))), "`rewards` has shape (8, 2); it must be (rows,)"),
    (put("observations", np.zeros((8, 4, 4))), "`observations` has shape (8, 4, 4); it must be (rows, size)"),
    (put("actions", np.zeros((8, 0))), "`actions` has shape (8, 0); each row needs at least one number"),
    (put("actions", [[b"left"]] * 8), "`actions` has type |S4; it must be a numeric array"),
    (put("rewards", np.zeros(8, complex)), "`rewards` has type complex128; it must be a numeric array"),
    (put("terminals", [0, 0, 2, 0, 0, 0, 0, 0]), "`terminals` at row 2 is 2; it must be False/True or 0/1"),
    (put("timeouts", [0, 0.5, 0, 0, 0, 0, 0, 0]), "`timeouts` at row 1 is 0.5; it must be False/True or 0/1"),
    (put("next_observations", np.zeros((8, 3))), "`next_observations` has shape (8, 3) and `observations` has (8, 2)"),
    (
        put("next_observations", np.full((8, 2), np.nan)),
        "the next observation of row 0 is NaN or infinite, and of",
    ),
]


@pytest.mark.parametrize(("break_rows", "part"), REFUSALS, ids=[part[:40] for _, part in REFUSALS])
def test_refusals(rows, write_hdf5, refusal, break_rows, part):
    break_rows(rows)
    assert part in refusal(write_hdf5(rows))


def test_no_rows(rows, write_hdf5, refusal):
    assert "`observations` has no rows; the file is empty" in refusal(
        write_hdf5({name: value[:0] for name, value in rows.items()})
    )


def test_messages_use_the_names_of_the_file(rows, tmp_path, refusal):
    rows["rewards"][3] = np.nan
    np.savez(tmp_path / "data.npz", **{name.removesuffix("s"): value for name, value in rows.items()})
    assert "`reward` is NaN" in refusal(tmp_path / "data.npz")


def test_rounding_at_the_bounds_is_allowed_and_cut(rows, write_hdf5):
    rows["actions"][:2, 0] = 1 + 5e-6, -1 - 5e-6
    assert load_dataset(write_hdf5(rows)).action[:2, 0].tolist() == [1, -1]


def test_whole_numbers_are_numbers(rows, write_hdf5):
    rows["rewards"] = np.arange(8)
    rows["terminals"] = rows["terminals"].astype(np.int64)
    rows["timeouts"] = rows["timeouts"].astype(np.float32)
    dataset = load_dataset(write_hdf5(rows))
    assert dataset.reward.tolist() == [0, 1, 2, 3, 4, 6]
    assert np.flatnonzero(dataset.terminal).tolist() == [2]


def test_box_of_the_file(rows, write_hdf5, refusal):
    rows["actions"] = np.stack([np.linspace(-2, 2, 8), np.linspace(0, 10, 8)], axis=1)
    path = write_hdf5(rows, {"action_low": [-2.0, 0.0], "action_high": [2.0, 10.0]})
    dataset = load_dataset(path)
    np.testing.assert_allclose(dataset.action[0], [-1, -1], atol=1e-6)
    np.testing.assert_allclose(dataset.action[1], [-5 / 7, -5 / 7], atol=1e-6)  # 1/7 of the way from -1 to 1
    assert (dataset.info.action_low, dataset.info.action_high) == ((-2.0, 0.0), (2.0, 10.0))

    assert "dimension 1 is 10, outside [0, 9]" in refusal(
        write_hdf5(rows, {"action_low": [-2.0, 0.0], "action_high": [2.0, 9.0]})
    )
    assert "`action_high` has 3 numbers for 2 action dimensions" in refusal(
        write_hdf5(rows, {"action_low": -2.0, "action_high": [1.0, 1.0, 1.0]})
    )
    assert "`action_high` of dimension 1 is not finite" in refusal(
        write_hdf5(rows, {"action_low": -2.0, "action_high": [2.0, np.inf]})
    )
    assert "`action_low` is above `action_high` in dimension 0 (2, 1)" in refusal(
        write_hdf5(rows, {"action_low": 2.0, "action_high": 1.0})
    )
    assert "names `action_low` and no `action_high`" in refusal(write_hdf5(rows, {"action_low": 2.0}))


# ---------------------------------------------------------------------------------------------------- warnings


@pytest.fixture
def sound() -> Dataset:
    """Three episodes of 250 steps: terminal, timeout, terminal after 150 steps; nothing to complain about."""
    step = np.arange(651, dtype=np.float32)
    terminal, timeout = np.zeros(650, bool), np.zeros(650, bool)
    terminal[[249, 649]], timeout[499] = True, True
    return build(
        observation=step[:-1, None],
        action=np.zeros((650, 1), np.float32),
        reward=np.sin(step[:-1]),
        next_observation=step[1:, None],
        terminal=terminal,
        timeout=timeout,
    )


def build(**arrays: Any) -> Dataset:
    return Dataset(**arrays, info=DatasetInfo(source="by hand", sha256=""))


def only(dataset) -> str:
    found = find_warnings(dataset)
    assert len(found) == 1, found
    assert "\n" not in found[0]
    return found[0]


def test_nothing_to_warn_of(sound):
    assert find_warnings(sound) == []


def test_constant_rewards(sound):
    assert only(replace(sound, reward=np.zeros(650, np.float32))).startswith("every reward is zero")
    assert only(replace(sound, reward=np.full(650, -1, np.float32))).startswith("every reward is the same (-1)")


def test_terminal_at_the_time_limit(sound):
    terminal = np.zeros(650, bool)
    terminal[[249, 499]] = True
    end_of_file = np.arange(650) == 649
    suspicious = replace(sound, terminal=terminal, timeout=end_of_file)
    assert only(suspicious).startswith(
        "2 of 2 terminal episodes have the greatest length, 250 steps: terminal seems to mark the time limit"
    )
    terminal = (np.arange(650) + 1) % 10 == 0  # shorter than any usual limit
    assert find_warnings(replace(sound, terminal=terminal, timeout=~terminal & False)) == []


def test_no_episode_end(sound):
    nothing = np.zeros(650, bool)
    whole = replace(sound, terminal=nothing, timeout=np.arange(650) == 649)
    assert only(whole).startswith("no episode end is marked: all 650 rows count as one episode")


def test_repeated_rows(sound):
    fields = ("observation", "action", "reward", "next_observation", "terminal", "timeout")
    doubled = build(**{field: np.concatenate([getattr(sound, field)] * 2) for field in fields})
    doubled = replace(doubled, terminal=doubled.terminal & (np.arange(1300) > 249))
    assert only(doubled).startswith("650 rows repeat the observation and action of another row")


def test_terminal_at_the_time_limit_in_a_file(tmp_path):
    """Two episodes of 300 steps that end at the time limit, flagged as terminal, as in some files made by others."""
    step = np.arange(600.0)
    following = step + 1
    following[299] = 1e3
    np.savez(
        tmp_path / "data.npz",
        observation=step[:, None],
        action=np.zeros((600, 1)),
        reward=step,
        next_observation=following[:, None],
        terminal=(step == 299) | (step == 599),
    )
    dataset = load_dataset(tmp_path / "data.npz")
    assert not dataset.timeout.any()
    assert only(dataset).startswith("2 of 2 terminal episodes have the greatest length, 300 steps")


def test_observations_in_units_that_networks_do_not_learn_from(sound):
    for scale in (1e-6, 1e6):
        changed = replace(
            sound,
            observation=(sound.observation * scale).astype(np.float32),
            next_observation=(sound.next_observation * scale).astype(np.float32),
        )
        assert "add --normalise-observation" in only(changed)
        reading = Reading(normalise_observation=True)
        assert find_warnings(replace(changed, info=replace(changed.info, reading=reading))) == []
