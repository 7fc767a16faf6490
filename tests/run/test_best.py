"""The best checkpoint: the first of equal evaluations stays, and a resumed run knows it."""

import math

import numpy as np
import pytest

from diffcps.run.best import Best
from diffcps.run.folder import RunFolder
from diffcps.run.record import Evaluation
from diffcps.training import checkpoint
from diffcps.training.members import expand

MEMBERS = expand([0, 1], {})


def evaluations(update: int, *scores: float | None) -> list[Evaluation]:
    rows = zip(MEMBERS, scores, strict=True)
    return [Evaluation(update, member, score, (), (), {"selection/loss": 0.0}) for member, score in rows]


def state(value: float) -> dict[str, np.ndarray]:
    return {"weight": np.full((2, 3), value, np.float32)}


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    with folder.locked():
        return folder


def saved(folder: RunFolder) -> tuple[list[float], object]:
    tree, information = checkpoint.load(folder.best, state(0.0))
    return tree["weight"][:, 0].tolist(), information["update"]


def test_each_member_keeps_its_own_best_state(folder):
    best = Best.of(folder, MEMBERS, state(0.0))
    assert best.known == {}
    best.update(evaluations(10, 1.0, 5.0), state(10.0))
    assert saved(folder) == ([10.0, 10.0], [10, 10])
    best.update(evaluations(20, 2.0, 4.0), state(20.0))
    assert saved(folder) == ([20.0, 10.0], [20, 10])
    assert best.known == {0: 2.0, 1: 5.0}


def test_a_tie_leaves_the_first(folder):
    best = Best.of(folder, MEMBERS, state(0.0))
    best.update(evaluations(10, 1.0, 5.0), state(10.0))
    best.update(evaluations(20, 1.0, 6.0), state(20.0))
    assert saved(folder) == ([10.0, 20.0], [10, 20])


def test_a_resumed_run_knows_the_best_of_before(folder):
    first = Best.of(folder, MEMBERS, state(0.0))
    rows = evaluations(10, 3.0, 5.0)
    folder.append_evaluations(rows)
    first.update(rows, state(10.0))
    again = Best.of(folder, MEMBERS, state(0.0))
    assert again.known == {0: 3.0, 1: 5.0}
    again.update(evaluations(20, 3.0, 7.0), state(20.0))
    assert saved(folder) == ([10.0, 20.0], [10, 20])


def test_without_scores_nothing_is_saved(folder):
    best = Best.of(folder, MEMBERS, state(0.0))
    best.update(evaluations(10, None, None), state(10.0))
    assert not folder.best.exists() and best.scores == [-math.inf, -math.inf]
