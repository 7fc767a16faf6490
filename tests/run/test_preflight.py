"""What is tried before update 0. Every case leaves no folder, and names what is wrong in one line."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box
from gymnasium.wrappers import TimeLimit

import diffcps
from diffcps.algorithms import bc
from diffcps.types import Dataset, DatasetInfo, UserError

SETTINGS = diffcps.Settings(updates=2, eval_every=2, log_every=2, episodes=2)
CONFIG = bc.Config(batch_size=4, width=4)


def data(**facts: float) -> Dataset:
    random = np.random.default_rng(0)
    observation = random.normal(size=(20, 2)).astype(np.float32)
    info = DatasetInfo("logs.npz", "0", action_low=(-1.0,), action_high=(1.0,), **facts)  # type: ignore[arg-type]
    ends = np.arange(20) % 5 == 4
    action = random.uniform(-1, 1, (20, 1)).astype(np.float32)
    return Dataset(observation, action, np.ones(20, np.float32), observation, ends, np.zeros(20, bool), info)


class Good(gymnasium.Env):
    """Two numbers, one action, three steps."""

    def __init__(self):
        self.observation_space, self.action_space = Box(-np.inf, np.inf, (2,)), Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        self.time = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.time += 1
        return np.zeros(2, np.float32), 1.0, self.time == 3, False, {}


class Old(Good):
    def reset(self):  # type: ignore[override]
        return super().reset()[0]

    def step(self, action):  # type: ignore[override]
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated or truncated, info


class OldStep(Old):
    def reset(self, *, seed=None, options=None):  # type: ignore[override]
        return Good.reset(self)


class OldReset(Good):
    def reset(self, *, seed=None, options=None):  # type: ignore[override]
        return super().reset()[0]


class RaisesInReset(Good):
    def reset(self, *, seed=None, options=None):
        raise ConnectionError("no answer\nfrom the plant.")


class RaisesInStep(Good):
    def step(self, action):
        raise ZeroDivisionError("division by zero")


class GivesNaN(Good):
    def step(self, action):
        return np.array([0, np.nan]), 1.0, False, False, {}


class GivesThree(Good):
    def reset(self, *, seed=None, options=None):
        return np.zeros(3), {}


class PaysNothing(Good):
    def step(self, action):
        return np.zeros(2), None, False, False, {}


class EndsInWords(Good):
    def step(self, action):
        return np.zeros(2), 1.0, "no", "no", {}


class TellsNothing(Good):
    def step(self, action):
        return np.zeros(2), 1.0, False, False, None


def train(make: Callable[[], gymnasium.Env] | None, settings: diffcps.Settings = SETTINGS, **facts: float) -> None:
    environment = "none" if make is None else make
    diffcps.train(CONFIG, data(**facts), settings, out="run", environment=environment)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def line(make: Callable[[], gymnasium.Env] | None, settings: diffcps.Settings = SETTINGS, **facts: float) -> str:
    with pytest.raises(UserError) as caught:
        train(make, settings, **facts)
    assert not Path("run").exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Old, "its reset takes no seed; write it for Gymnasium: reset(self, *, seed=None, options=None)"),
        (OldReset, "its reset does not return (observation, info); write it for Gymnasium"),
        (OldStep, "its step does not return five values; write it for Gymnasium"),
        (RaisesInReset, "fails in its first reset (ConnectionError: no answer from the plant)"),
        (RaisesInStep, "fails in its first step (ZeroDivisionError: division by zero)"),
        (GivesNaN, "its step gives an observation that is not all finite numbers"),
        (GivesThree, "its reset gives an observation of shape (3,), where the data have 2 numbers"),
        (PaysNothing, "its step gives the reward None, which is not a finite number"),
        (EndsInWords, "where `terminated` and `truncated` are true or false"),
        (TellsNothing, "its step gives no dictionary as info, but NoneType"),
    ],
)
@pytest.mark.parametrize("wrapped", [True, False])
def test_an_environment_that_does_not_work(kind: type[gymnasium.Env], expected: str, wrapped: bool) -> None:
    def make() -> gymnasium.Env:
        made = kind()
        if wrapped:
            return TimeLimit(made, 5)
        made.spec = EnvSpec("Own-v0", max_episode_steps=5)
        return made

    assert expected in line(make)


def test_one_that_works_is_closed_and_scored() -> None:
    train(lambda: TimeLimit(Good(), 5))
    assert Path("run", "summary.json").exists()


def test_without_a_time_limit() -> None:
    assert "--max-episode-steps N" in line(Good)


def test_a_success_that_cannot_be_read_is_told_before_the_training() -> None:
    class Graded(Good):
        def step(self, action):
            return (*super().step(action)[:4], {"success": 0.25})

    with pytest.warns(UserWarning, match="its `success` is neither true nor false"):
        train(lambda: TimeLimit(Graded(), 5))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (replace(SETTINGS, seeds=(0, 2**32)), "seeds: seed 4294967296 is too large"),
        (replace(SETTINGS, eval_seed=2**32 - 1), "eval_seed plus episodes: seed 4294967296 is too large"),
    ],
)
def test_seeds_that_are_too_large(settings: diffcps.Settings, expected: str) -> None:
    assert expected in line(None, settings)


def test_references_that_give_no_score() -> None:
    environment = lambda: TimeLimit(Good(), 5)  # noqa: E731
    assert "logs.npz: reference scores must be (min, max)" in line(environment, reference_min=5.0, reference_max=5.0)
    train(environment, reference_min=4.0, reference_max=5.0)


def test_a_disk_without_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    assert "checkpoints need" in line(None) and "choose another --out" in line(None)


def test_evaluate_tries_it_too() -> None:
    train(None)
    for kind in (Old, RaisesInStep):
        with pytest.raises(UserError, match=r"its reset takes no seed|fails in its first step"):
            diffcps.evaluate("run", "last", environment=lambda kind=kind: TimeLimit(kind(), 5))
    with pytest.raises(UserError, match="seed plus episodes"):
        diffcps.evaluate("run", "last", seed=2**32, environment=lambda: TimeLimit(Good(), 5))
