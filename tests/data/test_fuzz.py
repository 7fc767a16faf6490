"""Small files made at random: each loads with an account that is true, or is refused in one line (`-m slow`)."""

from __future__ import annotations

import itertools
import math
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import diffcps
from diffcps.algorithms import bc, td3_bc
from diffcps.data import load_dataset
from diffcps.data.summary import describe
from diffcps.types import Dataset, UserError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compilation")]
SIZES = (2, 1)


PARTS = 5
"""Each of a fifth of the files, with draws of its own: they can run side by side."""
EXAMPLES = itertools.count(1)


class Recipe(NamedTuple):
    """How a file is made."""

    lengths: list[int]
    """Of the episodes."""
    falls: list[bool]
    """Which of them end by a terminal; the others are cut."""
    last_file_episode_is_cut_short: bool
    fields: frozenset[str]
    """What is left out, of rewards, terminals, timeouts and next_observations."""
    flags: str
    """apart: a fall is terminal only; both: timeouts mark every last row; ids: episodes are numbered instead."""
    order: str
    """in order, shuffled, or two environments side by side."""
    filler: str
    """Next observations at cuts: real, reset, itself, zeros or nan."""
    dtype: str
    scale: float
    offset: float
    form: str
    """npz, hdf5 or csv."""
    columns: bool
    """Rewards and flags as (n, 1)."""
    outside: bool
    """Some actions lie outside [-1, 1]."""


RECIPES = st.builds(
    Recipe,
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    falls=st.lists(st.booleans(), min_size=8, max_size=8),
    last_file_episode_is_cut_short=st.booleans(),
    fields=st.frozensets(st.sampled_from(["rewards", "terminals", "timeouts", "next_observations"]), max_size=2),
    flags=st.sampled_from(["apart", "both", "ids"]),
    order=st.sampled_from(["in order", "in order", "in order", "shuffled", "side by side"]),
    filler=st.sampled_from(["real", "real", "reset", "itself", "zeros", "nan"]),
    dtype=st.sampled_from(["float16", "float32", "float64"]),
    scale=st.sampled_from([1.0, 1.0, 1e-6, 1e5]),
    offset=st.sampled_from([0.0, 0.0, 1e3]),
    form=st.sampled_from(["npz", "hdf5", "csv"]),
    columns=st.booleans(),
    outside=st.booleans(),
)


def rows_of(recipe: Recipe) -> dict[str, np.ndarray]:
    """A walk in the plane, row by row, in the order of time."""
    random = np.random.default_rng(sum(recipe.lengths) + len(recipe.lengths))
    rows: dict[str, list[Any]] = {
        name: [] for name in ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts", "ids")
    }
    for number, length in enumerate(recipe.lengths):
        state = random.normal(size=2) * 5
        for step in range(length):
            following = state + random.normal(size=2)
            last = step == length - 1
            fall = last and recipe.falls[number]
            values = (state, random.uniform(-1, 1, 1), random.normal(), following, fall, last and not fall, number)
            for name, value in zip(rows, values, strict=True):
                rows[name].append(value)
            state = following
    arrays = {name: np.asarray(value) for name, value in rows.items()}
    if recipe.last_file_episode_is_cut_short:
        arrays["timeouts"][-1] = False
    return arrays


def matrix(value: np.ndarray) -> np.ndarray:
    """A row for each row, also where there is none."""
    return value.reshape(len(value), math.prod(value.shape[1:]))


def write(recipe: Recipe, folder: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """The file, and its rows in the order of time."""
    arrays = rows_of(recipe)
    cut = arrays["timeouts"]
    following, observation = arrays["next_observations"], arrays["observations"]
    match recipe.filler:
        case "reset":
            following[:-1][cut[:-1]] = observation[1:][cut[:-1]]
        case "itself":
            following[cut] = observation[cut]
        case "zeros":
            following[cut] = 0.0
        case "nan":
            following[cut] = np.nan
        case _:
            pass
    for name in ("observations", "next_observations"):  # what float16 cannot hold becomes infinite, and is refused
        with np.errstate(over="ignore"):
            arrays[name] = (arrays[name] * recipe.scale + recipe.offset * recipe.scale).astype(recipe.dtype)
    if recipe.outside:
        arrays["actions"][::7] *= 3
    truth = {name: value.copy() for name, value in arrays.items()}
    if recipe.flags == "both":
        arrays["timeouts"] = arrays["timeouts"] | arrays["terminals"]
    number = arrays.pop("ids")
    if recipe.flags == "ids":
        arrays.pop("timeouts")
        arrays["episode_id"] = number
    size = len(number)
    order = np.arange(size)
    if recipe.order == "shuffled":
        order = np.random.default_rng(0).permutation(size)
    elif recipe.order == "side by side":
        order = np.arange(size - size % 2).reshape(2, -1).T.ravel()
    arrays = {name: value[order] for name, value in arrays.items() if name not in recipe.fields}
    if recipe.columns:
        arrays = {name: value if name == "episode_id" else matrix(value) for name, value in arrays.items()}
    path = folder / f"data.{recipe.form}"
    match recipe.form:
        case "npz":
            np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]
        case "hdf5":
            with h5py.File(path, "w") as file:
                for name, value in arrays.items():
                    file[name] = value
        case _:
            names, columns = [], []
            for name, value in arrays.items():
                columns.append(matrix(value).astype(np.float64))
                vector = name in ("observations", "next_observations", "actions")
                names += [f"{name}_{i}" if vector else name for i in range(columns[-1].shape[1])]
            np.savetxt(path, np.hstack(columns), delimiter=",", header=",".join(names), comments="", fmt="%.17g")
    return path, truth


def check_true(dataset: Dataset, recipe: Recipe, truth: dict[str, np.ndarray]) -> None:
    """The account of a file that was loaded, against how the file was made."""
    account = dataset.info.account
    size = len(truth["rewards"]) - (len(truth["rewards"]) % 2 if recipe.order == "side by side" else 0)
    assert account.rows == size
    assert account.kept == dataset.size == account.rows - sum(count for _, count in account.dropped)
    end = np.asarray(dataset.terminal) | np.asarray(dataset.timeout)
    assert sum(count for _, count in account.ends) == int(end.sum())
    assert ("reward" in account.absent) == ("rewards" in recipe.fields)
    assert ("terminal" in account.absent) == ("terminals" in recipe.fields)
    if "terminals" not in recipe.fields:
        assert dataset.terminal.sum() == truth["terminals"][:size].sum()  # no terminal row is lost
    assert np.isfinite(dataset.next_observation).all()
    if np.abs(truth["actions"][:size]).max() > 1.0:
        assert any("were cut off" in note for note in account.notes)
    if recipe.order == "in order" and "next_observations" not in recipe.fields and recipe.filler == "real":
        assert not account.dropped
        np.testing.assert_array_equal(dataset.next_observation, truth["next_observations"].astype(np.float32))


@pytest.mark.parametrize("part", range(PARTS))
@settings(max_examples=500 // PARTS, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(recipe=RECIPES)
def test_small_files_load_with_a_true_account_or_are_refused_in_one_line(part, recipe):
    if next(EXAMPLES) % 20 == 0:
        jax.clear_caches()  # every file has programs of its own: what JAX keeps of 500 is 14 GB, and ends the process
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path, truth = write(recipe, folder)
        try:
            dataset = load_dataset(path, clip_actions=recipe.outside)
        except UserError as error:
            assert "\n" not in str(error) and str(error).startswith(str(path))
            return
        check_true(dataset, recipe, truth)
        describe(dataset)
        fit = diffcps.Settings(env="none", updates=10, eval_every=10, log_every=10)
        clone = "reward" in dataset.info.account.absent or "terminal" in dataset.info.account.absent
        config = bc.Config(width=4, depth=1, batch_size=4) if clone else td3_bc.Config(width=4, depth=1, batch_size=4)
        try:
            summary = diffcps.train(config, dataset, fit, out=folder / "run")
        except UserError as error:  # observations of 1e5, as they are: the line leads on
            assert "\n" not in str(error) and "diverged" in str(error) and "try --normalise-observation" in str(error)
            assert recipe.scale > 1000.0
            dataset = load_dataset(path, clip_actions=recipe.outside, normalise_observation=True)
            summary = diffcps.train(config, dataset, fit, out=folder / "normalised")
        assert summary.members[0].selected is not None
