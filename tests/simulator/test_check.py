"""The check of data against a simulator: clean data are called clean, and every planted fault is named."""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np
import pytest

from diffcps.envs.make import make_environment
from diffcps.simulator.check import check_simulator
from diffcps.simulator.probe import probe
from diffcps.simulator.report import Findings, Report
from diffcps.types import UserError

ROWS = 1500

pytestmark = pytest.mark.filterwarnings("ignore:The environment .* is out of date")


def rolled(environment_id, rows=ROWS, seed=0, limit=200, infos="", friction=1.0):
    """Rows of random episodes in the form of a D4RL file; with `infos` at high speed, with the state before or after
    each step. `friction` multiplies the simulator's."""
    rng = np.random.default_rng(seed)
    environment: Any = make_environment(environment_id)
    environment.unwrapped.model.geom_friction[:] *= friction
    box = environment.action_space
    columns = {
        name: [] for name in ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts")
    }
    states, length = [], 0

    def reset(**options):
        observation, _ = environment.reset(**options)
        if infos:
            inner = environment.unwrapped
            inner.set_state(inner.data.qpos, rng.normal(0, 8, inner.model.nv))
            observation = inner._get_obs()
        return observation

    observation = reset(seed=seed)
    for _ in range(rows):
        action = rng.uniform(box.low, box.high).astype(np.float32)
        data = environment.unwrapped.data
        before = data.qpos.copy(), data.qvel.copy()
        after, reward, terminated, truncated, _ = environment.step(action)
        states.append(before if infos == "before" else (data.qpos.copy(), data.qvel.copy()))
        length += 1
        timeout = not terminated and (truncated or length == limit)
        for column, value in zip(
            columns.values(), (observation, action, reward, after, terminated, timeout), strict=True
        ):
            column.append(value)
        observation = after
        if terminated or timeout:
            observation, length = reset(), 0
    environment.close()
    data = {name: np.asarray(value, bool if name[0] == "t" else np.float32) for name, value in columns.items()}
    if infos:
        data |= {
            f"infos/{name}": np.asarray(value)
            for name, value in zip(("qpos", "qvel"), zip(*states, strict=True), strict=True)
        }
    return data


@pytest.fixture(scope="module")
def hopper():
    return rolled("Hopper-v5")


@pytest.fixture(scope="module")
def walker():
    return rolled("Walker2d-v5")


@pytest.fixture
def checked(tmp_path):
    """Writes rows as a file and checks it."""

    def run(data, environment_id="Hopper-v5", steps=100):
        path = tmp_path / "data.npz"
        np.savez(path, **data)
        return check_simulator(path, environment_id, steps=steps)

    return run


def findings(report: Report) -> Findings:
    assert report.findings is not None, report.verdict
    return report.findings


def test_clean_data_fit(hopper, checked):
    report = checked(hopper)
    assert report.fits is True
    assert report.faults == []
    assert findings(report).step.agree >= 0.99 and findings(report).reward.agree >= 0.99
    assert findings(report).terminal.confirmed == findings(report).terminal.stored > 10
    assert report.verdict.startswith("The data fit Hopper-v5")
    assert findings(report).comparison.error.shape == (report.sample.judged, 11)


def test_other_contacts_are_told_from_other_dynamics(checked):
    report = checked(rolled("Hopper-v5", friction=0.3))
    found = findings(report).comparison
    assert report.fits is False
    assert found.contact.any() and not found.contact.all()
    assert found.agree[~found.contact].all()
    assert "steps in which nothing touches come within a thousandth" in report.verdict


def shifted(data):
    move = np.float32(0.3) * (np.arange(11) == 3)
    return {"observations": data["observations"] + move, "next_observations": data["next_observations"] + move}


def shifted_first(data):
    return {"observations": data["observations"] + np.float32(0.3) * (np.arange(11) == 3)}


def shifted_next(data):
    return {"next_observations": data["next_observations"] + np.float32(0.3) * (np.arange(11) == 3)}


FAULTS = {
    "both observations": (shifted, "both observations are shifted: entry 3 (position leg_joint) by +0.3"),
    "observation": (shifted_first, "observations are shifted: entry 3 (position leg_joint) by +0.3"),
    "next observation": (shifted_next, "next observations are shifted: entry 3 (position leg_joint) by +0.3"),
    "normalised": (
        lambda d: {
            name: (d[name] - d["observations"].mean(0)) / d["observations"].std(0)
            for name in ("observations", "next_observations")
        },
        "observations are normalised",
    ),
    "scaled reward": (lambda d: {"rewards": 0.1 * d["rewards"]}, "rewards are multiplied by 0.1, measured"),
    "moved reward": (lambda d: {"rewards": d["rewards"] - 1}, "rewards are shifted by -1, measured"),
    "both": (lambda d: {"rewards": 4 * (d["rewards"] - 0.5)}, "rewards are multiplied by 4 and shifted by -2"),
    "no reward": (lambda d: {"rewards": 0 * d["rewards"]}, "rewards are all the same (0)"),
    "late reward": (lambda d: {"rewards": np.roll(d["rewards"], 1)}, "rewards are off by one"),
    "swapped": (lambda d: {"actions": d["actions"][:, [2, 1, 0]]}, "actions are swapped: dimensions 0 and 2"),
    "negated": (lambda d: {"actions": d["actions"] * [1, -1, 1]}, "actions are negated in dimension 1"),
    "late action": (lambda d: {"actions": np.roll(d["actions"], 1, axis=0)}, "actions are off by one"),
    "two on": (
        lambda d: {"next_observations": np.roll(d["next_observations"], -1, axis=0)},
        "next observations are off by one: each row holds that of the row after it",
    ),
    "not on": (
        lambda d: {"next_observations": d["observations"]},
        "next observations are off by one: each row holds that of the row before it",
    ),
}


OF_A_KIND = {"observation", "both observations", "both", "late reward", "negated", "late action", "not on"}
"""Faults whose like is checked in every run; they are checked on request."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in OF_A_KIND else name for name in FAULTS]
)
def test_planted_faults_are_named(hopper, checked, name):
    fault, words = FAULTS[name]
    report = checked(hopper | fault(hopper), steps=300 if name == "both observations" else 100)
    assert report.fits is False
    assert [found for found in report.faults if found.startswith(words)], report.faults
    assert len(report.faults) == 1, report.faults
    assert words in report.verdict


def test_two_faults_are_named_one_after_the_other(hopper, checked):
    report = checked(hopper | {"actions": hopper["actions"][:, [1, 0, 2]], "rewards": 2 * hopper["rewards"]})
    assert [found.split(":")[0].split(",")[0] for found in report.faults] == [
        "actions are swapped",
        "rewards are multiplied by 2",
    ]


def test_noise_is_no_known_fault(hopper, checked):
    rng = np.random.default_rng(0)
    names = ("observations", "next_observations")
    noisy = {name: hopper[name] + rng.normal(0, 0.05, hopper[name].shape).astype(np.float32) for name in names}
    report = checked(hopper | noisy)
    assert report.fits is False and findings(report).step.agree < 0.01
    assert "No fault that is known here explains it" in report.verdict


@pytest.mark.slow
def test_versions_are_told_apart(hopper, walker, checked):
    report = checked(walker, "Walker2d-v5", steps=300)
    assert report.fits is True
    report = checked(walker, "Walker2d-v4", steps=300)  # its right foot has half the friction
    assert report.fits is False
    assert report.faults[0] == "the data are from another version of the environment, Walker2d-v5"
    report = checked(hopper, "Hopper-v4", steps=300)  # the same physics, but it pays for the terminal step
    assert report.fits is False and findings(report).step.agree >= 0.99
    assert "terminal rows differ from the simulator's by -1" in report.faults[0]
    assert "All of it fits Hopper-v5" in report.verdict


def test_another_frame_skip_is_named(checked, monkeypatch):
    import diffcps.envs.make as make

    made = make.make_environment("HalfCheetah-v5")
    made.unwrapped.frame_skip = 3  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(globals(), "make_environment", lambda _: made)
    data = rolled("HalfCheetah-v5", rows=400)
    monkeypatch.undo()
    report = checked(data, "HalfCheetah-v5")
    assert report.faults[0] == "the data were recorded with a frame skip of 3, and the environment has 5"


def test_time_limits_as_terminals_are_found(checked):
    data = rolled("HalfCheetah-v5", rows=2000, limit=1000)
    report = checked(data | {"terminals": data["timeouts"], "timeouts": data["terminals"]}, "HalfCheetah-v5")
    assert "2 of 2 terminals looked at stand at the time limit of 1000 steps" in report.faults[0]


def test_actions_outside_the_box_are_taken_and_remarked(hopper, checked):
    report = checked(hopper | {"actions": np.where(hopper["actions"] > 0.9, 3.0, hopper["actions"])})
    assert any("actions lie outside the environment's box" in found for found in report.faults)


def test_files_without_next_observations(hopper, checked):
    names = ("observations", "actions", "rewards", "terminals", "timeouts")
    report = checked({name: hopper[name] for name in names})
    assert report.fits is True
    assert not report.file.has_next_observations


@pytest.mark.slow
def test_velocities_at_the_clip_are_not_judged_unless_the_state_is_stored(hopper, checked, tmp_path):
    data = rolled("Hopper-v5", infos="before")
    cut = (np.abs(data["observations"]) >= 10).any(axis=1)
    bare = {name: value for name, value in data.items() if "/" not in name}
    report = checked(bare, steps=ROWS)
    assert report.sample.not_judged == {"velocity at its clip": cut.sum()} and cut.sum() > 0

    with h5py.File(tmp_path / "full.hdf5", "w") as file:
        for name, value in data.items():
            file[name] = value
    report = check_simulator(tmp_path / "full.hdf5", "Hopper-v5", steps=ROWS)
    assert report.sample.not_judged == {} and report.sample.judged == ROWS and report.fits is True
    assert "recorded before the step" in report.sample.state


def test_states_recorded_after_the_step_are_recognised(checked):
    report = checked(rolled("Hopper-v5", infos="after"), steps=ROWS)
    assert "recorded after the step" in report.sample.state and report.fits is True


@pytest.mark.parametrize("factor", [pytest.param(1.0, marks=pytest.mark.slow), 10.0])
def test_antmaze_rewards_are_judged_for_the_goal_of_the_file(checked, factor):
    environment: Any = make_environment("diffcps/AntMaze-umaze-v2")
    environment.reset(seed=0)
    ant, rng, rows = environment.unwrapped, np.random.default_rng(0), []
    ant.goal = np.array([1.3, 8.2])
    for _ in range(ROWS):
        position = ant.init_qpos.copy()
        position[:2] = ant.goal + rng.uniform(-1, 1, 2)
        ant.set_state(position, rng.normal(0, 0.1, 14))
        action, before = rng.uniform(-1, 1, 8).astype(np.float32), ant.state_vector()
        after, reward, terminal, *_ = ant.step(action)
        rows.append((before, action, factor * reward, after, terminal, not terminal))
    environment.close()
    names = ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts")
    data = {name: np.asarray(column, np.float32) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
    report = checked(data | {"rewards": 0 * data["rewards"]}, "diffcps/AntMaze-umaze-v2", steps=300)
    assert report.sample.goal is None  # no step is rewarded
    report = checked(data, "diffcps/AntMaze-umaze-v2", steps=300)
    np.testing.assert_allclose(report.sample.goal, ant.goal, atol=0.02)
    assert findings(report).terminal.confirmed == findings(report).terminal.stored > 50
    if factor == 1.0:
        assert report.fits is True and findings(report).reward.agree == 1.0
    else:
        assert "rewards of terminal rows differ from the simulator's by +9" in report.verdict


@pytest.mark.parametrize(
    "environment_id",
    ["Ant-v5", "Ant-v4", "Swimmer-v5", "Humanoid-v5", "InvertedDoublePendulum-v5", "Reacher-v5", "Pendulum-v1"],
)
def test_simulators_are_put_back_into_their_observations(environment_id):
    environment = make_environment(environment_id)
    assert probe(environment).reproduced >= 0.99
    environment.close()


def test_what_an_observation_leaves_out_is_found():
    environment = make_environment("Pusher-v5")
    simulator = probe(environment)
    environment.close()
    assert simulator.reproduced < 0.5
    assert "velocity obj_slidex" in simulator.hidden_names()


def test_what_cannot_be_judged_is_said(checked):
    report = checked(rolled("Pusher-v5", rows=100, limit=50), "Pusher-v5")
    assert report.fits is None and report.findings is None
    assert "the observation of Pusher-v5 does not tell its state" in report.verdict
    assert "obj_slide" in report.verdict


def test_wrong_sizes_name_the_environment(hopper, checked):
    with pytest.raises(UserError, match="observations have 11 numbers, but 17 in environment HalfCheetah-v5"):
        checked(hopper, "HalfCheetah-v5")
    with pytest.raises(UserError, match="--steps 3"):
        checked(hopper, steps=3)


def test_environments_without_a_state_are_refused(checked):
    zeros = np.zeros((100, 2), np.float32)
    data = {"observations": zeros, "actions": zeros, "rewards": zeros[:, 0], "next_observations": zeros}
    data |= {"terminals": np.zeros(100, bool), "timeouts": np.arange(100) % 20 == 19}
    with pytest.raises(UserError, match="no state that could be set"):
        checked(data, "diffcps.envs.toy:diffcps/Stitching-v0")


def test_a_door_stands_where_the_file_says(checked):
    pytest.importorskip("gymnasium_robotics")
    name = "gymnasium_robotics:AdroitHandDoor-v1"
    environment: Any = make_environment(name)
    rng, rows = np.random.default_rng(0), []
    for episode in range(2):
        observation, _ = environment.reset(seed=episode)
        for step in range(60):
            action = rng.uniform(-1, 1, 28).astype(np.float32)
            state = environment.unwrapped.get_env_state()
            after, reward, *_ = environment.step(action)
            rows.append((observation, action, reward, after, False, step == 59, *state.values()))
            observation = after
    environment.close()
    names = ["observations", "actions", "rewards", "next_observations", "terminals", "timeouts"]
    data = dict(
        zip([*names, *(f"infos/{key}" for key in state)], map(np.asarray, zip(*rows, strict=True)), strict=True)
    )
    report = checked(data, name, steps=100)
    assert report.fits is True

    report = checked({key: data[key] for key in names}, name, steps=100)
    assert report.fits is None and "velocity" in report.verdict
