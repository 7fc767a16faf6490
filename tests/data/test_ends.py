"""Which rows are transitions and where episodes end, in files as people record them."""

from __future__ import annotations

from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from diffcps.data import load_dataset
from diffcps.types import Dataset, UserError

FIELDS = ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts")
Arrays = dict[str, np.ndarray]


def saved(folder: Path, arrays: Arrays, *without: str, **others: object) -> Path:
    path = folder / "data.npz"
    np.savez(path, **{name: value for name, value in arrays.items() if name not in without}, **others)  # pyright: ignore
    return path


def dropped(dataset: Dataset) -> dict[str, int]:
    """What the account says was dropped, by the first words of the reason."""
    return {why.split()[0]: count for why, count in dataset.info.account.dropped}


def lengths_of(dataset: Dataset) -> np.ndarray:
    """Of its episodes."""
    return np.diff(np.flatnonzero(np.asarray(dataset.terminal) | np.asarray(dataset.timeout)), prepend=-1)


# --- Both flags on one row ---


def line_walk() -> Arrays:
    """A walk on a line in 40 episodes: the goal at 1 pays 1 and ends the task, 30 steps are the limit. Each last row is
    marked as the last of its episode, whatever ended it."""
    random = np.random.default_rng(0)
    rows: dict[str, list[object]] = {name: [] for name in FIELDS}
    for _ in range(40):
        x = random.uniform(-0.5, 0.5)
        for step in range(30):
            action = random.uniform(-1, 1)
            y = x + 0.3 * action + 0.05
            done = y >= 1
            values = ([x, step / 30], [action], float(done), [y, (step + 1) / 30], done, done or step == 29)
            for name, value in zip(FIELDS, values, strict=True):
                rows[name].append(value)
            x = y
            if done:
                break
    return {name: np.asarray(value) for name, value in rows.items()}


@pytest.mark.parametrize("without", [(), ("next_observations",)], ids=["with next", "without"])
@pytest.mark.parametrize("reversed_episodes", [False, True], ids=["ends cut", "ends at the goal"])
def test_no_terminal_row_is_lost(tmp_path, without, reversed_episodes):
    arrays = line_walk()
    if reversed_episodes:  # so that the last row of the file is a terminal one
        last = int(np.flatnonzero(arrays["terminals"])[-1]) + 1
        arrays = {name: value[:last] for name, value in arrays.items()}
    dataset = load_dataset(saved(tmp_path, arrays, *without))
    assert dataset.terminal.sum() == arrays["terminals"].sum() > 10
    assert dataset.reward.sum() == arrays["rewards"].sum()
    assert not (dataset.terminal & dataset.timeout).any()
    cut = int((arrays["timeouts"] & ~arrays["terminals"]).sum())
    assert dataset.size == len(arrays["rewards"]) - (cut if without else 0)
    assert dropped(dataset) == ({"time-outs:": cut} if without and cut else {})
    assert dataset.info.account.kept == dataset.size
    assert dataset.info.account.rows == len(arrays["rewards"])


def test_one_row_that_is_terminal(tmp_path):
    arrays = {
        "observations": np.ones((1, 2)),
        "actions": np.zeros((1, 1)),
        "rewards": np.ones(1),
        "terminals": np.ones(1, bool),
    }
    dataset = load_dataset(saved(tmp_path, arrays))
    assert (dataset.size, dataset.terminal.tolist(), dataset.next_observation.tolist()) == (1, [True], [[1, 1]])


def test_a_terminal_row_without_a_next_observation(tmp_path):
    """Recorders write NaN where nothing comes next; nothing reads it, and no NaN reaches a network."""
    arrays = line_walk()
    arrays["next_observations"][arrays["terminals"]] = np.nan
    dataset = load_dataset(saved(tmp_path, arrays))
    assert dataset.terminal.sum() == arrays["terminals"].sum()
    assert np.isfinite(dataset.next_observation).all()


# --- Vector environments, which reset by themselves ---


def recorded(env_id: str, mode: AutoresetMode, steps: int) -> Arrays:
    env = SyncVectorEnv([lambda: gymnasium.make(env_id)], autoreset_mode=mode)
    env.action_space.seed(0)
    observation, _ = env.reset(seed=0)
    rows: dict[str, list[np.ndarray]] = {name: [] for name in FIELDS}
    for _ in range(steps):
        action = env.action_space.sample()
        following, reward, terminal, timeout, _ = env.step(action)
        for name, value in zip(FIELDS, (observation, action, reward, following, terminal, timeout), strict=True):
            rows[name].append(value[0])
        observation = following
    return {name: np.asarray(value) for name, value in rows.items()}


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "MountainCarContinuous-v0", "InvertedPendulum-v5"])
@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP], ids=lambda mode: mode.name)
@pytest.mark.parametrize("without", [(), ("next_observations",)], ids=["with next", "without"])
def test_autoreset(tmp_path, env_id, mode, without):
    """No transition leads from one episode into another, and no reset is taken for a step."""
    arrays = recorded(env_id, mode, 2100)
    end = arrays["terminals"] | arrays["timeouts"]
    time_outs = int((arrays["timeouts"] & ~arrays["terminals"]).sum())
    dataset = load_dataset(saved(tmp_path, arrays, *without, action_low=-3.0, action_high=3.0))
    assert dataset.terminal.sum() == arrays["terminals"].sum()
    follower = np.append(dataset.observation[1:], dataset.observation[:1] + 1, axis=0)
    glued = (dataset.next_observation == follower).all(axis=1)
    assert not (glued & dataset.timeout).any() or without  # without, the end is the row before the time-out
    if mode == AutoresetMode.NEXT_STEP:
        resets = int(end[:-1].sum()) - int(bool(without) and end[-2])
        assert dropped(dataset)["only"] == resets
        assert time_outs == 0 or without or dataset.timeout.sum() >= time_outs
    elif time_outs:
        assert dropped(dataset)["time-outs" if not without else "time-outs:"] == time_outs
    else:
        assert "only" not in dropped(dataset)
    longest = lengths_of(dataset).max()
    assert longest <= np.diff(np.flatnonzero(end), prepend=-1, append=len(end)).max()


@pytest.mark.parametrize("filler", ["itself", "zeros", "nan", "constant", "reset"])
def test_fillers_of_time_outs_are_no_next_observations(tmp_path, filler):
    """The row before a filler becomes the last of its episode, as in D4RL's rule."""
    arrays = recorded("Pendulum-v1", AutoresetMode.SAME_STEP, 1000)
    last = arrays["timeouts"]
    assert last.sum() == 5
    following = arrays["next_observations"]
    following[last] = {
        "itself": arrays["observations"][last],
        "zeros": 0.0,
        "nan": np.nan,
        "constant": np.array([1.0, 0.0, 0.5]),
        "reset": following[last],
    }[filler]
    dataset = load_dataset(saved(tmp_path, arrays, action_low=-2.0, action_high=2.0))
    assert dropped(dataset) == {"time-outs": 5}
    assert (dataset.size, dataset.timeout.sum()) == (995, 5)
    assert np.flatnonzero(dataset.timeout).tolist() == [198, 397, 596, 795, 994]


def test_a_trajectory_that_goes_on_after_a_cut(tmp_path):
    """Time-outs without a reset (a goal was reached, a log was split) have real next observations."""
    state = np.random.default_rng(0).normal(size=(401, 2)).cumsum(axis=0)
    arrays = {
        "observations": state[:-1],
        "next_observations": state[1:],
        "actions": np.zeros((400, 1)),
        "rewards": np.ones(400),
        "terminals": np.zeros(400, bool),
        "timeouts": np.arange(400) % 40 == 39,
    }
    dataset = load_dataset(saved(tmp_path, arrays))
    assert (dataset.size, dataset.timeout.sum(), dropped(dataset)) == (400, 10, {})
    assert load_dataset(saved(tmp_path, arrays), timeout_next="none").size == 390


def test_a_last_row_that_nobody_marked_is_no_time_out(tmp_path):
    state = np.random.default_rng(0).normal(size=(101, 2)).cumsum(axis=0)
    arrays = {
        "observations": state[:-1],
        "next_observations": state[1:],
        "actions": np.zeros((100, 1)),
        "rewards": np.ones(100),
        "terminals": np.zeros(100, bool),
        "timeouts": np.arange(100) % 30 == 29,
    }
    dataset = load_dataset(saved(tmp_path, arrays), timeout_next="none")
    assert (dataset.size, dropped(dataset)) == (97, {"time-outs": 3})
    assert dataset.info.account.ends == (("timeout, marked", 3), ("last row of the source", 1))


def test_time_outs_that_cannot_be_told_are_asked_for(tmp_path):
    state = np.random.default_rng(0).normal(size=(401, 2)).cumsum(axis=0)
    state[200:] += 100 * (np.arange(201) // 40)[:, None]  # a jump at some of the cuts
    arrays = {
        "observations": state[:-1],
        "next_observations": state[1:],
        "actions": np.zeros((400, 1)),
        "rewards": np.ones(400),
        "terminals": np.zeros(400, bool),
        "timeouts": np.arange(400) % 20 == 19,
    }
    with pytest.raises(UserError, match="add --timeout-next none if the environment was reset there"):
        load_dataset(saved(tmp_path, arrays))
    assert load_dataset(saved(tmp_path, arrays), timeout_next="real").size == 400
    assert load_dataset(saved(tmp_path, arrays), timeout_next="none").size == 380


# --- The order of the rows ---


def side_by_side(environments: int = 4, steps: int = 600) -> tuple[Arrays, Arrays]:
    """The same episodes of 200 steps: step 0 of all environments, step 1 of all, ...; and one after the other."""
    each = [recorded_plain(seed, steps) for seed in range(environments)]
    one = {name: np.concatenate([arrays[name] for arrays in each]) for name in FIELDS}
    side = {name: np.stack([arrays[name] for arrays in each], axis=1).reshape(one[name].shape) for name in FIELDS}
    return side, one


def recorded_plain(seed: int, steps: int) -> Arrays:
    env = gymnasium.make("Pendulum-v1")
    env.action_space.seed(seed)
    rows: dict[str, list[object]] = {name: [] for name in FIELDS}
    observation = None
    for step in range(steps):
        if step % 200 == 0:
            observation, _ = env.reset(seed=1000 * seed + step)
        action = env.action_space.sample() / 2
        following, reward, terminal, timeout, _ = env.step(2 * action)
        for name, value in zip(FIELDS, (observation, action, reward, following, terminal, timeout), strict=True):
            rows[name].append(value)
        observation = following
    return {name: np.asarray(value) for name, value in rows.items()}


def shuffled(arrays: Arrays) -> Arrays:
    order = np.random.default_rng(0).permutation(len(arrays["rewards"]))
    return {name: value[order] for name, value in arrays.items()}


def share_of_right(dataset: Dataset, one: Arrays) -> float:
    """How many transitions have the next observation that they had in the environment."""
    truth = {
        np.float32(o).tobytes(): np.float32(n)
        for o, n in zip(one["observations"], one["next_observations"], strict=True)
    }
    pairs = zip(np.asarray(dataset.observation), np.asarray(dataset.next_observation), strict=True)
    return float(np.mean([np.allclose(truth[o.tobytes()], n, atol=1e-5) for o, n in pairs]))


def test_environments_side_by_side(tmp_path):
    side, one = side_by_side()
    with pytest.raises(UserError, match="add --environments 4 to put them one after the other"):
        load_dataset(saved(tmp_path, side, "next_observations"))  # else every next observation would be wrong
    dataset = load_dataset(saved(tmp_path, side, "next_observations"), environments=4)
    assert share_of_right(dataset, one) == 1
    assert (dataset.size, dataset.timeout.sum()) == (2400 - 12, 12)

    for without in ((), ("timeouts",)):
        found = load_dataset(saved(tmp_path, side, *without))
        assert not found.info.account.ordered
        assert "rows of 4 environments lie side by side; add --environments 4" in found.info.account.warnings[0]
        assert share_of_right(found, one) == 1
        mended = load_dataset(saved(tmp_path, side, *without), environments=4)
        assert mended.info.account.ordered and mended.info.account.warnings == ()
        assert lengths_of(mended).tolist() == [200] * 12
        np.testing.assert_array_equal(mended.reward, one["rewards"].astype(np.float32))

    with pytest.raises(UserError, match="2400 rows are not the same number of steps of 7 environments"):
        load_dataset(saved(tmp_path, side), environments=7)


def test_shuffled_rows(tmp_path):
    _, one = side_by_side()
    mixed = shuffled(one)
    dataset = load_dataset(saved(tmp_path, mixed, "timeouts"))
    assert not dataset.info.account.ordered
    assert "the rows seem shuffled" in dataset.info.account.warnings[0]
    assert share_of_right(dataset, one) == 1
    with pytest.raises(UserError, match="as if the rows were shuffled"):
        load_dataset(saved(tmp_path, mixed, "next_observations"))
    assert load_dataset(saved(tmp_path, mixed, "next_observations"), environments=1).size == 2400 - 13


@pytest.mark.parametrize("without", [(), ("timeouts",), ("next_observations",)])
def test_rows_in_order_are_left_alone(tmp_path, without):
    _, one = side_by_side()
    dataset = load_dataset(saved(tmp_path, one, *without))
    assert dataset.info.account.ordered
    assert dataset.info.account.warnings == ()
    assert share_of_right(dataset, one) == 1


# --- Names that may say how episodes end ---


def test_ends_under_names_of_certain_meaning(tmp_path):
    arrays = line_walk()
    expected = load_dataset(saved(tmp_path, arrays))
    gymnasiums = {**arrays, "terminated": arrays["terminals"], "truncated": arrays["timeouts"]}
    found = load_dataset(saved(tmp_path, gymnasiums, "terminals", "timeouts"))
    np.testing.assert_array_equal(found.terminal, expected.terminal)
    np.testing.assert_array_equal(found.timeout, expected.timeout)

    numbered = {**arrays, "episode_id": np.append(0, np.cumsum(arrays["timeouts"])[:-1])}
    found = load_dataset(saved(tmp_path, numbered, "timeouts"))
    np.testing.assert_array_equal(found.terminal, expected.terminal)
    np.testing.assert_array_equal(found.timeout, expected.timeout)


@pytest.mark.parametrize("name", ["dones", "done", "is_last", "episode_ends", "episode_terminals", "masks", "is_first"])
def test_ends_under_uncertain_names_are_asked_for(tmp_path, name):
    arrays = line_walk()
    path = saved(tmp_path, {**arrays, name: arrays["timeouts"]}, "timeouts")
    with pytest.raises(UserError, match=f"`{name}` may say how episodes end"):
        load_dataset(path)
    expected = load_dataset(saved(tmp_path, arrays))
    path = saved(tmp_path, {**arrays, name: arrays["timeouts"]}, "timeouts")
    found = load_dataset(path, columns=[f"timeout={name}"])
    np.testing.assert_array_equal(found.timeout, expected.timeout)
    assert load_dataset(path, columns=["timeout=none"]).info.account.ignored == (name,)


def test_what_is_settled_is_not_asked_for(tmp_path):
    arrays = line_walk()
    found = load_dataset(saved(tmp_path, {**arrays, "dones": arrays["timeouts"], "notes": np.zeros(3)}))
    assert found.info.account.ignored == ("dones", "notes")


def test_done_that_holds_limits_as_well_as_falls(tmp_path):
    """`done` of the old Gym API, stored as terminals."""
    random = np.random.default_rng(0)
    lengths = [100] * 5 + random.integers(20, 99, size=15).tolist()
    state = [random.normal(size=(length + 1, 3)) for length in lengths]
    arrays = {
        "observations": np.concatenate([x[:-1] for x in state]),
        "next_observations": np.concatenate([x[1:] for x in state]),
        "actions": np.zeros((sum(lengths), 1)),
        "rewards": random.normal(size=sum(lengths)),
        "terminals": np.concatenate([np.arange(length) == length - 1 for length in lengths]),
    }
    (warning,) = load_dataset(saved(tmp_path, arrays)).info.account.warnings
    assert "5 of 20 terminal episodes have the greatest length, 100 steps" in warning
