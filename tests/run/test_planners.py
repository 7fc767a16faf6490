"""Runs of planners: windows, a memory in the course of an episode, what is refused before anything is written."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import diffcps
from diffcps.algorithms import diffuser
from diffcps.envs.toy import stitching
from diffcps.records.folder import RunFolder
from diffcps.run import evaluate
from diffcps.types import EnvironmentSpec, UserError

pytestmark = pytest.mark.usefixtures("quick_compilation")

SMALL: dict[str, Any] = {"horizon": 4, "num_steps": 2, "width": 8, "multipliers": (1,), "batch_size": 8}
ONCE = diffuser.Config(**SMALL, plans=1, guide_steps=0, replan_every=0, padded_below=0)


def settings(updates: int = 8, env: str = "diffcps/Stitching-v0") -> diffcps.Settings:
    return diffcps.Settings(env=env, updates=updates, eval_every=4, log_every=4, episodes=2)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planner") / "run"
    diffcps.train(ONCE, stitching(20), settings(), out=folder)
    return folder


def test_one_plan_is_followed_through_the_episode(run):
    policy = diffcps.load_policy(run, "last")
    follow, observation = policy.episode(), np.zeros(2)
    actions = np.array([follow(observation) for _ in range(7)])
    assert len(np.unique(actions[:4], axis=0)) == 4  # its four steps
    np.testing.assert_array_equal(actions[4:], np.tile(actions[3], (3, 1)))  # and its end is held
    again = policy.episode()
    assert not np.array_equal(again(observation), actions[0])  # another episode has another plan
    assert not np.array_equal(policy(observation), policy(observation))  # without one, each call plans anew


def test_several_episodes_are_followed_at_once(run):
    follow = diffcps.load_policy(run, "last").episode()
    actions = np.stack([follow(np.zeros((3, 2))) for _ in range(6)])
    assert actions.shape == (6, 3, 2)
    np.testing.assert_array_equal(actions[4], actions[5])
    assert len(np.unique(actions[0], axis=0)) == 3


def test_a_film_shows_one_plan(run, tmp_path, monkeypatch):
    def play(act, environment, path, *, seed) -> float:
        actions = np.stack([act(np.zeros((1, 1, 2)), step) for step in range(6)])
        assert len(np.unique(actions[:4], axis=0)) == 4
        np.testing.assert_array_equal(actions[4], actions[5])
        return 1.0

    monkeypatch.setattr(evaluate, "record_video", play)
    where = EnvironmentSpec("diffcps/Stitching-v0")
    assert evaluate.film(run, tmp_path / "film.mp4", "last", member=0, seed=0, environment=where) == 1.0


@pytest.mark.slow  # tests/run/test_resume.py does it without windows
def test_a_run_that_was_stopped_goes_on_bit_for_bit(run, tmp_path):
    out = tmp_path / "run"
    diffcps.train(ONCE, stitching(20), settings(4), out=out)
    diffcps.train(ONCE, stitching(20), settings(), out=out, resume=True)

    def digest(folder: Path) -> str:
        return hashlib.sha256(RunFolder(folder).last.read_bytes()).hexdigest()

    assert digest(out) == digest(run)
    assert (out / "evaluations.jsonl").read_text() == (run / "evaluations.jsonl").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"horizon": 32},
            "longest of its episodes has 30 steps, and the windows of diffuser need 33: take a shorter",
        ),
        ({"control": "waypoints"}, "an observation has 2 numbers: take control actions"),
    ],
)
def test_what_cannot_be_planned_is_refused_before_a_folder_is_made(changes, message, tmp_path):
    config = diffuser.Config(**{**vars(ONCE), **changes})
    with pytest.raises(UserError, match=message):
        diffcps.train(config, stitching(20), settings(), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_rewards_show_where_the_goal_is(tmp_path):
    config, dataset = diffuser.Config(**{**vars(ONCE), "goal": "rewarded"}), stitching(20)
    without = dataclasses.replace(dataset, reward=np.zeros_like(dataset.reward))
    with pytest.raises(UserError, match="has no positive reward, which would show where the goal is: take goal none"):
        diffcps.train(config, without, settings(), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
