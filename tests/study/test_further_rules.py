"""Evaluations by further rules are rows of the results, and of no table."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet
import pytest

from diffcps.study.plan import Cell, read_study
from diffcps.study.report import write_report
from diffcps.study.results import Result, results_of
from diffcps.training.members import Member
from tests.study.fakes import Fake, write_study

PLAN = """
[study]
seeds = [0, 1]
updates = 60
eval_every = 20
log_every = 10
ALSO

[data.hopper]
dataset = "hopper.hdf5"
env = "Hopper-v5"

[methods.diffcps]
kappa = [0.02, 0.04]

[methods.bc]
"""


def score(cell: Cell, member: Member, update: int) -> float:
    return 5.0 * update + 10.0 * member.seed


def where(row: Result) -> tuple[str, int, int]:
    return row.origin.run, row.member, row.update


def written(out: Path, also: str) -> Path:
    write_study(out, PLAN.replace("ALSO", also), lambda cell: Fake(score))
    write_report(out)
    return out


def test_results_have_them_and_tables_do_not(tmp_path):
    plain, further = written(tmp_path / "a" / "out", ""), written(tmp_path / "b" / "out", 'also_act = ["sample"]')
    for name in ("tables.md", "tables.csv"):
        assert (plain / name).read_text() == (further / name).read_text()
    drawn = [(out / "report.html").read_text().count("<svg") for out in (plain, further)]
    assert drawn[0] == drawn[1] > 1
    own, both = (results_of(read_study(out / "study.toml"), out) for out in (plain, further))
    added = [row for row in both if row.acting == "sample"]
    assert [row for row in both if row.acting != "sample"] == own
    assert len(added) == 3 * 4 and {row.origin.method for row in added} == {"diffcps"}
    for row in added:
        (beside,) = [each for each in own if where(each) == where(row)]
        assert beside.acting == "softmax_q" and beside.score is not None
        assert (row.score, row.returns) == (beside.score - 50, (beside.score - 50,))
        assert row.normalised == pytest.approx((beside.score - 50) / 10)
        assert (row.protocol, row.selection_loss, row.config) == ("training", beside.selection_loss, beside.config)
    acting = pyarrow.parquet.read_table(further / "results.parquet")["acting"].to_pylist()
    assert sorted(set(map(str, acting))) == ["None", "sample", "softmax_q"] and acting.count("sample") == 12
