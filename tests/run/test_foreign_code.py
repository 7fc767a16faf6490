"""An environment that fails costs a score and nothing else; a kill in it costs nothing."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box

import diffcps
from diffcps.algorithms import bc
from diffcps.cli.main import main
from diffcps.records.folder import RunFolder
from diffcps.records.record import Summary
from diffcps.run.progress import Silent
from diffcps.run.train import train
from tests.problems import random_dataset

pytestmark = pytest.mark.usefixtures("quick_compilation")
ENVIRONMENT = "Shaky-v0"
CONFIG = bc.Config(width=8, batch_size=8)
NO_FAILURE: Mapping[int, BaseException] = {}
SETTINGS = diffcps.Settings(env=ENVIRONMENT, updates=8, eval_every=2, log_every=2, episodes=1, seeds=(0, 1))


class Shaky(gymnasium.Env):
    """Pays what is acted; while it steps at one of the update counts in `fails`, it raises."""

    observation_space = Box(-1, 1, (3,), np.float32)
    action_space = Box(-1, 1, (2,), np.float32)
    fails: ClassVar[Mapping[int, BaseException]] = {}
    update = 0
    patience = 0
    """Steps that work even so."""

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(3, np.float32), {}

    def step(self, action):
        Shaky.patience -= 1
        if Shaky.update in Shaky.fails and Shaky.patience < 0:
            raise Shaky.fails[Shaky.update]
        return np.zeros(3, np.float32), float(action.sum()), False, False, {}


gymnasium.register(ENVIRONMENT, lambda **_: Shaky(), max_episode_steps=2)


class Notes(Silent):
    """Tells the environment which update it is, and keeps the notes."""

    def __init__(self):
        self.lines: list[str] = []

    def logged(self, update, rows):
        Shaky.update = update

    def note(self, text):
        self.lines.append(text)


def run(out: Path, resume: bool = False, fails: Mapping[int, BaseException] = NO_FAILURE) -> tuple[Summary, list[str]]:
    Shaky.fails, Shaky.update, notes = fails, 0, Notes()
    return train(CONFIG, random_dataset(), SETTINGS, out=out, resume=resume, display=notes), notes.lines


def results(out: Path) -> dict[str, object]:
    found: dict[str, object] = {path.name: path.read_bytes() for path in sorted((out / "checkpoints").iterdir())}
    return found | {"evaluations": (out / "evaluations.jsonl").read_text(), "summary": RunFolder(out).read_summary()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    run(out)
    assert {path.name for path in (out / "checkpoints").iterdir()} == {
        *("best.safetensors", "selected.safetensors", "last.safetensors")
    }
    return results(out)


def test_a_failed_evaluation_costs_its_score(whole, tmp_path):
    summary, notes = run(tmp_path / "run", fails={4: ConnectionError("the simulator\nis restarting")})
    (note,) = notes
    assert "after update 4" in note and f"{ENVIRONMENT} could not be played" in note
    assert "ConnectionError: the simulator is restarting" in note
    folder = RunFolder(tmp_path / "run")
    rows = folder.read_evaluations(folder.read_record().members)
    assert [(row.update, row.score is None, row.failure) for row in rows[::2]] == [
        (2, False, None),
        (4, True, "ConnectionError: the simulator is restarting"),
        (6, False, None),
        (8, False, None),
    ]
    assert all(row.selection_loss is not None for row in rows)
    assert summary.failed_evaluations == 1 and folder.read_summary() == summary
    for row in summary.members:
        assert row.scores is not None and row.scores.mean_of_last.updates == (2, 6, 8)
    now = results(tmp_path / "run")
    assert now["last.safetensors"] == whole["last.safetensors"]  # not a bit of the training
    assert now["selected.safetensors"] == whole["selected.safetensors"]


def test_the_command_says_so_at_the_end(tmp_path, capsys, monkeypatch):
    dataset = random_dataset()
    data = tmp_path / "data.npz"
    np.savez(
        data, observations=dataset.observation, actions=dataset.action, rewards=dataset.reward,
        next_observations=dataset.next_observation, terminals=dataset.terminal, timeouts=dataset.timeout,
    )  # fmt: skip
    out = tmp_path / "run"
    command = ["train", "bc", "--dataset", str(data), "--env", ENVIRONMENT, "--width", "8", "--out", str(out)]
    command += ["--updates", "2", "--eval-every", "2", "--log-every", "2", "--episodes", "1"]
    Shaky.update, Shaky.fails = 2, {2: ValueError("broken")}
    Shaky.patience = 1  # the step before update 0 works
    with pytest.raises(SystemExit) as stop:
        main(command)
    said = capsys.readouterr()
    assert stop.value.code == 1 and "ValueError: broken" in said.out
    (line,) = said.err.splitlines()
    assert "1 evaluation could not be played" in line and line.endswith(f"evaluate {out} --checkpoint selected")
    Shaky.fails = {}
    assert main(["evaluate", str(out), "--checkpoint", "selected", "--episodes", "1"]) == 0  # the line's way out
    assert main([*command, "--resume"]) == 0  # the evaluation of the checkpoint is made again


@pytest.mark.parametrize("at", [2, 6, 8])
def test_a_kill_in_an_environment_costs_nothing(whole, tmp_path, at):
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(out, fails={at: KeyboardInterrupt()})
    assert json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["update"] == at
    run(out, resume=True)
    assert results(out) == whole


@pytest.mark.parametrize("at", [4, 8])
def test_a_kill_between_an_evaluation_and_its_checkpoints_costs_nothing(whole, tmp_path, at, monkeypatch):
    out = tmp_path / "run"
    append = RunFolder.append_evaluations

    def killed(folder, rows):
        append(folder, rows)
        if rows[0].update == at:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunFolder, "append_evaluations", killed)
        run(out)
    run(out, resume=True)
    assert results(out) == whole


def test_half_an_evaluation_in_the_log_is_made_whole(whole, tmp_path):
    out = tmp_path / "run"
    run(out)
    rows = (out / "evaluations.jsonl").read_text()
    (out / "evaluations.jsonl").write_text(rows[: rows.rindex("{")] + '{"upd')
    run(out, resume=True)
    assert results(out) == whole


def test_the_failed_evaluation_of_the_last_update_is_made_when_the_run_goes_on(whole, tmp_path):
    out = tmp_path / "run"
    assert run(out, fails={8: OSError("gone")})[0].failed_evaluations == 1
    assert run(out, resume=True)[0].failed_evaluations == 0
    assert results(out) == whole
