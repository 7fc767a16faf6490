"""Evaluations by further rules: what they play, that they change nothing else, and that a run goes on with them."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

import diffcps
from diffcps.algorithms import idql
from diffcps.envs.toy import stitching
from diffcps.evaluation.rollout import roll_out
from diffcps.records.folder import RunFolder
from diffcps.records.record import Summary
from diffcps.run.policy import load_run
from diffcps.run.progress import Display, Silent
from diffcps.run.table import markdown
from diffcps.storage import read_rows
from diffcps.training.loop import Interrupted

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = idql.Config(
    width=8, depth=1, actor_width=8, num_blocks=1, time_size=8, num_steps=2, num_candidates=3, batch_size=8
)
RULES = ("sample", "implicit")


def train(out: Path, also_act: tuple[str, ...], resume: bool = False, display: Display | None = None) -> Summary:
    settings = diffcps.Settings(
        env="diffcps/Stitching-v0", updates=8, eval_every=4, log_every=2, episodes=2, also_act=also_act
    )
    return diffcps.train(CONFIG, stitching(20), settings, out=out, resume=resume, display=display)


@pytest.fixture(scope="module")
def made(tmp_path_factory, quick_compilation) -> tuple[Path, Summary]:
    out = tmp_path_factory.mktemp("also") / "run"
    return out, train(out, RULES)


@pytest.mark.parametrize("rule", RULES)
def test_the_same_start_seeds_are_played_by_each_rule(made, rule):
    out, _ = made
    record = RunFolder(out).read_record()
    evaluation = RunFolder(out).read_evaluations(record.members)[-1]
    assert list(evaluation.also) == list(RULES)
    loaded = load_run(out, "last", rule)
    assert record.environment is not None
    played = roll_out(loaded.policies(8), record.environment, 1, 2, seed=record.settings.eval_seed)
    further = evaluation.also[rule]
    assert (further.returns, further.lengths) == (tuple(played.returns[0].tolist()), tuple(played.lengths[0].tolist()))
    assert further.score == np.mean(further.returns) and further.returns != evaluation.returns


def test_summary_and_table_have_the_scores(made):
    out, summary = made
    (row,), folder = summary.members, RunFolder(out)
    evaluations = folder.read_evaluations(folder.read_record().members)
    assert folder.read_summary() == summary and row.scores is not None
    for rule in RULES:
        by_update = {each.update: each.also[rule].score for each in evaluations}
        assert row.also[rule].last.score == by_update[8]
        assert row.also[rule].mean_of_last.score == pytest.approx(np.mean([by_update[4], by_update[8]]))
        assert row.also[rule].best.score == by_update[row.scores.best.updates[0]]
    text = markdown([folder])
    assert text.splitlines()[0].startswith("| updates | members | return (normalised) | by sample | by implicit | ")
    assert f"- last by sample: {row.also['sample'].last.score:.0f}" in text
    of_several = markdown([folder, folder]).splitlines()
    assert [line.split(" | ")[0] for line in of_several[2:5]] == [*("| idql", "| idql, sample", "| idql, implicit")]


@pytest.mark.slow
def test_nothing_else_changes(made, tmp_path):
    out, _ = made
    train(tmp_path / "run", ())
    for name in ("best", "last", "selected"):
        path = f"checkpoints/{name}.safetensors"
        assert (out / path).read_bytes() == (tmp_path / "run" / path).read_bytes()
    own, both = (read_rows(run / "evaluations.jsonl") for run in (tmp_path / "run", out))
    assert [{name: value for name, value in row.items() if name != "also"} for row in both] == own


class Plays(Silent):
    """Presses Ctrl-C, or fails as an environment may, in the episodes by the first further rule."""

    def __init__(self, fails: bool = False) -> None:
        self.begun, self.fails = 0, fails

    def evaluating(self, step: int, alive: int) -> None:
        self.begun += step == 0
        if self.begun == 2 and step == 3:
            if self.fails:
                raise RuntimeError("the arm is stuck")
            signal.raise_signal(signal.SIGINT)


@pytest.mark.slow
def test_an_evaluation_that_failed_or_was_broken_off_is_made_again_by_all_rules(made, tmp_path):
    out, _ = made
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(out, folder.path)
    folder.forget_evaluation(8)  # as after a kill in the evaluation
    summary = train(folder.path, RULES, resume=True, display=Plays(fails=True))
    _, failed = read_rows(folder.evaluations)
    assert "the arm is stuck" in str(failed["failure"]) and failed["score"] is None and "also" not in failed
    assert summary.failed_evaluations == 1 and summary.members[0].also["sample"].last.updates == (4,)
    with pytest.raises(Interrupted, match="stopped after 8 updates"):
        train(folder.path, RULES, resume=True, display=Plays())
    assert len(read_rows(folder.evaluations)) == 1
    with pytest.raises(diffcps.UserError, match="another also_act: the run has"):
        train(folder.path, ("sample",), resume=True)
    train(folder.path, RULES, resume=True)
    assert folder.evaluations.read_bytes() == RunFolder(out).evaluations.read_bytes()
    assert folder.read_summary() == RunFolder(out).read_summary()
