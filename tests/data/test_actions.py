"""Which box actions lie in, and which one a policy acts in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from diffcps.data.actions import Box
from diffcps.data.load import load, load_dataset
from diffcps.data.scaling import Scaling
from diffcps.types import Dataset, EnvironmentSpec, NetAction, Reading, UserError

TORQUE = np.linspace(-1, 1, 21)[:, None]
"""Actions that fill [-1, 1]."""


def saved(folder: Path, action: np.ndarray, **facts: object) -> str:
    rows = np.arange(len(action), dtype=float)
    np.savez(
        folder / "data.npz",
        observations=rows[:, None],
        next_observations=rows[:, None] + 1,
        actions=action,
        rewards=rows,
        terminals=np.zeros(len(action), bool),
        **facts,  # pyright: ignore[reportArgumentType]
    )
    return str(folder / "data.npz")


def in_environment(source: str, low: float, high: float, **words: object) -> Dataset:
    """Loaded for an environment with this box."""

    def box_of(_: EnvironmentSpec | None) -> tuple[str, Box]:
        return "Plant-v0", Box(np.array([low], np.float32), np.array([high], np.float32))

    return load(source, Reading(**words), box_of=box_of)  # pyright: ignore[reportArgumentType]


def unscaled(dataset: Dataset) -> np.ndarray:
    """What a policy that clones the data exactly gives the environment."""
    return Scaling.of(dataset.info).action(NetAction(np.asarray(dataset.action)))


def test_equal_boxes(tmp_path):
    dataset = in_environment(saved(tmp_path, 2 * TORQUE, action_low=-2.0, action_high=2.0), -2, 2)
    np.testing.assert_allclose(dataset.action, TORQUE, atol=1e-6)
    np.testing.assert_allclose(unscaled(dataset), 2 * TORQUE, atol=1e-6)
    assert "actions in [-2, 2], the box of Plant-v0" in dataset.info.account.notes


def test_a_box_that_only_the_environment_names(tmp_path):
    dataset = in_environment(saved(tmp_path, 2 * TORQUE), -2, 2)
    np.testing.assert_allclose(unscaled(dataset), 2 * TORQUE, atol=1e-6)
    assert "no box is named: actions in [-2, 2], the box of Plant-v0" in dataset.info.account.notes


@pytest.mark.parametrize(("low", "high"), [(-2, 2), (0, 1), (-1, 3)])
def test_units_that_cannot_be_told_are_asked_for(tmp_path, low, high):
    action = TORQUE if low < 0 else (TORQUE + 1) / 2
    source = saved(tmp_path, action)
    with pytest.raises(UserError) as caught:
        in_environment(source, low, high)
    message = str(caught.value)
    assert f"[{low}, {high}]" in message and "--action-units environment" in message and "\n" not in message
    as_they_are = in_environment(source, low, high, action_units="environment")
    np.testing.assert_allclose(unscaled(as_they_are), action, atol=1e-6)
    stretched = in_environment(source, low, high, action_units="scaled")
    np.testing.assert_allclose(unscaled(stretched), low + (action + 1) / 2 * (high - low), atol=1e-6)


def test_boxes_that_differ_are_refused_naming_both(tmp_path):
    source = saved(tmp_path, TORQUE, action_low=-1.0, action_high=1.0)
    with pytest.raises(UserError, match=r"actions lie in \[-1, 1\] and Plant-v0 takes \[-0.4, 0.4\]"):
        in_environment(source, -0.4, 0.4)
    np.testing.assert_allclose(
        unscaled(in_environment(source, -0.4, 0.4, action_units="scaled")), 0.4 * TORQUE, atol=1e-6
    )
    with pytest.raises(UserError, match=r"outside \[-0.4, 0.4\]"):
        in_environment(source, -0.4, 0.4, action_units="environment")
    cut = in_environment(source, -0.4, 0.4, action_units="environment", clip_actions=True)
    np.testing.assert_allclose(unscaled(cut), np.clip(TORQUE, -0.4, 0.4), atol=1e-6)


def test_actions_outside_their_box(tmp_path):
    source = saved(tmp_path, 1.5 * TORQUE)
    with pytest.raises(UserError) as caught:
        load_dataset(source)
    message = str(caught.value)
    assert "--clip-actions" in message and "--action-low -1.5 --action-high 1.5" in message
    cut = load_dataset(source, clip_actions=True)
    np.testing.assert_allclose(cut.action, np.clip(1.5 * TORQUE, -1, 1), atol=1e-6)
    outside = int((np.abs(1.5 * TORQUE) > 1 + 1e-5).sum())
    assert f"{outside} of 21 entries of actions lay outside [-1, 1] and were cut off" in cut.info.account.notes
    named = load_dataset(source, action_low=-1.5, action_high=1.5)
    np.testing.assert_allclose(named.action, TORQUE, atol=1e-6)


def test_the_box_of_the_hint_holds_every_action(tmp_path):
    action = np.hstack([1.0002 * TORQUE, 1.25 * TORQUE])
    with pytest.raises(UserError, match=r"--action-low -1.25 --action-high 1.25"):
        load_dataset(saved(tmp_path, action))
    with pytest.raises(UserError, match=r"--action-low -1.001 --action-high 1.001"):
        load_dataset(saved(tmp_path, action[:, :1]))
    assert load_dataset(saved(tmp_path, action[:, :1]), action_low=-1.001, action_high=1.001).size == 21


def test_a_frozen_dimension(tmp_path):
    action = np.hstack([TORQUE, np.full_like(TORQUE, 0.25)])
    dataset = load_dataset(saved(tmp_path, action, action_low=[-1.0, 0.25], action_high=[1.0, 0.25]))
    assert dataset.action[:, 1].tolist() == [0] * 21
    np.testing.assert_allclose(unscaled(dataset), action, atol=1e-6)


@pytest.mark.parametrize("bounds", [(-np.inf, np.inf), (0.0, np.inf)])
def test_a_box_without_bounds(tmp_path, bounds):
    source = saved(tmp_path, TORQUE + 1, action_low=bounds[0], action_high=bounds[1])
    with pytest.raises(UserError, match="name one with --action-low X and --action-high X"):
        load_dataset(source)
    assert load_dataset(source, action_low=0, action_high=2).info.action_high == (2.0,)


@pytest.mark.parametrize("kind", [np.int64, np.int8, bool])
def test_whole_numbers_name_actions_unless_told_otherwise(tmp_path, kind):
    for action in (np.arange(20) % 2, (np.arange(20) % 2)[:, None], np.eye(2)[np.arange(20) % 2]):
        source = saved(tmp_path, action.astype(kind))
        with pytest.raises(UserError, match="add --continuous-actions if the numbers are amounts"):
            load_dataset(source)
        assert load_dataset(source, continuous_actions=True).action.max() == 1


def test_columns_of_one_number(tmp_path):
    """(n, 1) rewards and flags, (n,) actions: one meaning, so taken, and said."""
    rows = np.arange(20.0)
    np.savez(
        tmp_path / "data.npz",
        observations=rows,
        next_observations=rows + 1,
        actions=rows / 20,
        rewards=rows[:, None],
        terminals=np.zeros((20, 1), bool),
        timeouts=rows[:, None] == 9,
    )
    dataset = load_dataset(tmp_path / "data.npz")
    assert dataset.observation.shape == (20, 1) and dataset.action.shape == (20, 1) and dataset.reward.shape == (20,)
    assert dataset.timeout.sum() == 2
    said = " ".join(dataset.info.account.notes)
    assert "`rewards` has shape (20, 1): taken as (20,)" in said and "`actions` has one number in a row" in said


def test_a_cast_that_merges_values_is_said(tmp_path):
    stamp = 1.7e9 + np.arange(500.0)  # seconds since 1970
    arrays = {
        "observations": np.stack([stamp, np.arange(500.0)], axis=1),
        "actions": np.zeros((500, 1)),
        "rewards": np.arange(500.0),
        "terminals": np.arange(500) % 50 == 49,
    }
    np.savez(tmp_path / "data.npz", **arrays)
    notes = load_dataset(tmp_path / "data.npz").info.account.notes
    assert any("`observations`, column 0: 500 different numbers" in note and "only 5" in note for note in notes), notes
    normalised = load_dataset(tmp_path / "data.npz", normalise_observation=True)
    assert len(np.unique(normalised.observation[:, 0])) == 500
    assert not any("different numbers" in note for note in normalised.info.account.notes)


def test_files_of_float64_are_read_in_pieces(tmp_path):
    """At most 1.3 times the arrays that are kept, at any moment."""
    import tracemalloc

    rows = 120_000
    random = np.random.default_rng(0)
    state = random.normal(size=(rows + 1, 30)).cumsum(axis=0)
    np.savez(
        tmp_path / "data.npz",
        observations=state[:-1],
        next_observations=state[1:],
        actions=random.uniform(-1, 1, (rows, 6)),
        rewards=random.normal(size=rows),
        terminals=np.zeros(rows, bool),
        timeouts=np.arange(rows) % 500 == 499,
    )
    del state
    for normalise in (False, True):
        tracemalloc.start()
        dataset = load_dataset(tmp_path / "data.npz", normalise_observation=normalise)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        fields = (dataset.observation, dataset.action, dataset.reward, dataset.next_observation, dataset.terminal)
        kept = sum(np.asarray(array).nbytes for array in (*fields, dataset.timeout))
        assert peak <= 1.3 * kept, peak / kept
