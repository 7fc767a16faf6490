"""Chosen checkpoints: which of equal evaluations stays, and that a resumed run knows them."""

import numpy as np
import pytest

from diffcps.records.folder import RunFolder
from diffcps.records.record import Evaluation
from diffcps.run.chosen import BY_LOSS, BY_SCORE, Chosen, Rule
from diffcps.training import checkpoint
from diffcps.training.members import expand

MEMBERS = expand([0, 1], {})


def evaluations(update: int, *scores: float | None, loss: float | None = 0.0) -> list[Evaluation]:
    rows = zip(MEMBERS, scores, strict=True)
    return [Evaluation(update, member, score, (), (), {"selection/loss": loss}) for member, score in rows]


def state(value: float) -> dict[str, np.ndarray]:
    return {"weight": np.full((2, 3), value, np.float32)}


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    with folder.locked():
        return folder


def chosen(folder: RunFolder, rows: list[Evaluation], rule: Rule = BY_SCORE) -> Chosen:
    return Chosen.of(folder.best, rule, len(MEMBERS), rows, state(0.0))


def saved(folder: RunFolder) -> tuple[list[float], object]:
    tree, information = checkpoint.load(folder.best, state(0.0))
    return tree["weight"][:, 0].tolist(), information["update"]


def test_each_member_keeps_its_own_best_state(folder):
    best = chosen(folder, [])
    assert best.known == {}
    best.update(evaluations(10, 1.0, 5.0), state(10.0))
    assert saved(folder) == ([10.0, 10.0], [10, 10])
    best.update(evaluations(20, 2.0, 4.0), state(20.0))
    assert saved(folder) == ([20.0, 10.0], [20, 10])
    assert best.known == {0: 2.0, 1: 5.0}


def test_of_equal_scores_the_first_stays(folder):
    best = chosen(folder, [])
    best.update(evaluations(10, 1.0, 5.0), state(10.0))
    best.update(evaluations(20, 1.0, 6.0), state(20.0))
    assert saved(folder) == ([10.0, 20.0], [10, 20])


def test_the_lowest_loss_is_chosen_and_of_equal_ones_the_last(folder):
    selected = chosen(folder, [], BY_LOSS)
    for update, loss, expected in ((10, 0.5, 10), (20, None, 10), (30, 0.5, 30), (40, 0.6, 30), (50, -0.1, 50)):
        selected.update(evaluations(update, None, None, loss=loss), state(float(update)))
        assert saved(folder) == ([float(expected)] * 2, [expected] * 2)


def test_a_resumed_run_knows_the_best_of_before(folder):
    first, rows = chosen(folder, []), evaluations(10, 3.0, 5.0)
    first.update(rows, state(10.0))
    again = chosen(folder, rows)
    assert again.known == {0: 3.0, 1: 5.0}
    again.update(evaluations(20, 3.0, 7.0), state(20.0))
    assert saved(folder) == ([10.0, 20.0], [10, 20])


def test_what_is_told_again_after_a_kill_changes_nothing(folder):
    """The kill came between the log and the checkpoint, or after both."""
    earlier, now = evaluations(10, 3.0, 5.0), evaluations(20, 4.0, 1.0)
    best = chosen(folder, [])
    best.update(earlier, state(10.0))
    for _ in range(2):
        chosen(folder, earlier).update(now, state(20.0))
        assert saved(folder) == ([20.0, 10.0], [20, 10])


def test_without_its_file_nothing_is_chosen_yet(folder):
    """A run of a version that did not save it: what was chosen before is not there."""
    assert chosen(folder, evaluations(10, 3.0, 5.0)).known == {}


def test_without_scores_nothing_is_saved(folder):
    best = chosen(folder, [])
    best.update(evaluations(10, None, None), state(10.0))
    assert not folder.best.exists() and best.known == {}
