"""Weights of evaluations that are kept, to be loaded by their update."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import diffcps
from diffcps.algorithms import diffcps as method
from diffcps.cli.main import main
from diffcps.envs.toy import stitching
from diffcps.records.folder import RunFolder
from diffcps.records.settings import Settings
from diffcps.run.preflight import check_disk
from diffcps.training import checkpoint

CONFIG = method.Config(width=8, depth=1, num_steps=2, num_candidates=2, batch_size=8)
EVALUATED = (2, 4, 6, 8, 10, 11)


def trained(out: Path, updates: int = 11, keep: int = 0, keep_every: int = 0) -> RunFolder:
    settings = Settings(
        updates=updates, eval_every=2, log_every=2, episodes=1, seeds=(0, 1), keep=keep, keep_every=keep_every
    )
    diffcps.train(CONFIG, stitching(), settings, out=out)
    return RunFolder(out)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> RunFolder:
    return trained(tmp_path_factory.mktemp("kept") / "run", keep=2, keep_every=4)


@pytest.mark.parametrize(
    ("keep", "keep_every", "kept"),
    [(0, 0, []), (1, 0, [11]), (2, 0, [10, 11]), (9, 0, list(EVALUATED)), (0, 4, [4, 8]), (2, 4, [4, 8, 10, 11])],
)
def test_which_are_kept(keep, keep_every, kept):
    assert Settings(keep=keep, keep_every=keep_every).kept(EVALUATED) == kept


def test_a_run_keeps_them_and_no_others(folder):
    assert folder.kept_updates() == [4, 8, 10, 11]


def test_they_are_weights_alone(folder):
    assert folder.kept(8).stat().st_size < 0.7 * folder.last.stat().st_size
    assert checkpoint.information(folder.kept(8))["update"] == 8


def test_they_act_as_a_run_that_ended_there(folder, tmp_path):
    shorter = trained(tmp_path / "run", updates=8)
    observation = np.zeros((5, 2))
    for member in (0, 1):
        kept = diffcps.load_policy(folder.path, 8, member=member)(observation)
        np.testing.assert_array_equal(kept, diffcps.load_policy(shorter.path, "last", member=member)(observation))
        assert np.any(kept != diffcps.load_policy(folder.path, 10, member=member)(observation))


def test_they_are_evaluated_under_their_number(folder, capsys):
    assert main(["evaluate", str(folder.path), "--checkpoint", "8", "--episodes", "1"]) == 0
    assert "checkpoint 8" in " ".join(capsys.readouterr().out.split())
    (found,) = (folder.path / "evaluations").glob("*-8-seed1000.json")
    assert '"updates": 8' in found.read_text()


@pytest.mark.parametrize(
    ("which", "line"),
    [
        ("6", "kept no weights after 6 updates: take one of 4, 8, 10, 11"),
        ("first", "argument --checkpoint: first is neither best, selected, fqe, last nor the number"),
    ],
)
def test_others_are_refused_with_those_that_there_are(folder, which, line, capsys):
    assert main(["evaluate", str(folder.path), "--checkpoint", which]) == 2
    (told,) = capsys.readouterr().err.strip().splitlines()
    assert line in told


def test_a_run_that_keeps_nothing_says_how(tmp_path, capsys):
    folder = trained(tmp_path / "run", updates=2)
    assert folder.kept_updates() == []
    assert main(["evaluate", str(folder.path), "--checkpoint", "2"]) == 2
    assert "--keep and --keep-every keep more" in capsys.readouterr().err


def test_weights_are_kept_at_evaluations(tmp_path):
    with pytest.raises(diffcps.UserError, match="keep_every = 3 is no multiple of eval_every = 2"):
        trained(tmp_path / "run", keep_every=3)
    assert not (tmp_path / "run").exists()


def test_the_disk_must_hold_them(folder, monkeypatch, tmp_path):
    from diffcps.run.policy import load_run

    program = load_run(folder.path, "last").program
    room = 4.5 * folder.last.stat().st_size
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=room))
    new = RunFolder(tmp_path / "new")
    check_disk(program, new, Settings(updates=20, eval_every=2))
    with pytest.raises(diffcps.UserError, match="the checkpoints need"):
        check_disk(program, new, Settings(updates=20, eval_every=2, keep=3))


def test_what_was_kept_after_the_state_that_a_run_goes_on_from_is_made_again(folder, tmp_path):
    again = RunFolder(tmp_path)
    again.last.parent.mkdir()
    for update in (4, 8, 10):
        again.kept(update).write_bytes(b"")
    again.forget_after(8)
    assert again.kept_updates() == [4, 8]
