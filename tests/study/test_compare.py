"""The tables of a study against arithmetic done by hand, and what they say where a number is missing."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from diffcps.records.record import Measurement
from diffcps.study.aggregate import aggregates_of, held_at_best
from diffcps.study.compare import (
    DATA_LABEL,
    Column,
    Entry,
    Row,
    ScoreTable,
    Trial,
    columns_of,
    labels_of,
    protocols_of,
    table_of,
    trials_of,
)
from diffcps.study.course import Bound, cost_of, metric_curves, score_curves
from diffcps.study.formats import caption, comma_separated, deviation_text, in_latex, latex, markdown, score_text
from diffcps.study.plan import Study, study_of, value_text
from diffcps.study.results import Origin, Result
from diffcps.study.run import State, Work
from diffcps.tasks.catalogue import catalogue
from diffcps.training.members import expand
from diffcps.types import UserError

PLAN = """
[study]
seeds = [0, 1, 2]
updates = 100
eval_every = 20
log_every = 10

[final]
episodes = 3
also_act = ["sample"]

[data.one]
dataset = "one.npz"

[data.two]
dataset = "two.npz"

[methods.diffcps]
kappa = [0.02, 0.04]

[methods.bc]
"""


def plan(text: str = PLAN) -> Study:
    return study_of(tomllib.loads(text), "study")


def origin(study: Study, run: str, **changes: Any) -> Origin:
    cell = study.cell(run)
    facts: dict[str, Any] = {
        "study": study.name,
        "data": cell.data,
        "entry": cell.entry,
        "run": run,
        "method": cell.request.method,
        "preset": None,
        "task": None,
        "environment": "Hopper-v5",
        "dataset": "one.npz",
        "dataset_sha256": "abc",
        "data_return": 400.0,
        "data_normalised": 40.0,
        "updates": 100,
        "device": "cpu x 2",
        "commit": None,
        "version": "0.1.0",
        "command": "",
    }
    return Origin(**(facts | changes))


def rows(
    study: Study,
    run: str,
    scores: Mapping[int, Sequence[float | None]],
    losses: Sequence[float | None] | None = None,
    final: Mapping[int, float] | None = None,
    acting: str | None = None,
    factor: float | None = 0.1,
    **changes: Any,
) -> list[Result]:
    """Evaluations of members every 20 updates, and new episodes; the normalised score is `factor` times the score."""
    of = origin(study, run, **changes)
    cell = study.cell(run)
    seeds = {member.index: member.seed for member in expand(cell.request.settings.seeds, cell.request.sweep)}

    def result(protocol: Any, member: int, update: int, score: float | None, loss: float | None, how: Any) -> Result:
        score = None if score is None else float(score)
        normalised = None if score is None or factor is None else factor * score
        failure = "it broke" if score is None else None
        facts = of, seeds[member], member, {}, protocol, None, how, update, score, normalised
        return Result(*facts, (), None, None, loss, failure, None, None)

    found = [
        result("training", member, 20 * number, score, (losses or [1.0] * len(own))[number - 1], acting)
        for member, own in scores.items()
        for number, score in enumerate(own, 1)
    ]
    return found + [result("final", member, 100, score, None, acting) for member, score in (final or {}).items()]


def works(study: Study, state: State = "done") -> list[Work]:
    return [Work(cell, state) for cell in study.cells]


def table(study: Study, results: list[Result], protocol: str, work: list[Work] | None = None) -> ScoreTable:
    trials = trials_of(work or works(study), results)
    (found,) = (each for each in protocols_of(study) if each.name == protocol)
    return table_of(found, trials, columns_of(trials, found.kind), study.published)


def row(of: ScoreTable, label: str) -> Row:
    (found,) = (each for each in of.rows if each.label == label)
    return found


def numbers(entry: Entry) -> tuple[float | None, float | None]:
    def near(value: float | None) -> float | None:
        return None if value is None else round(value, 6)

    return near(entry.mean), near(entry.deviation)


BC = {0: [100, 200, 300, 400, 500], 1: [100, 100, 900, 100, 700], 2: [100, 100, 100, 100, 600]}
ONE = PLAN.replace('[data.two]\ndataset = "two.npz"\n', "")


def test_training_protocols_by_hand():
    study = plan(ONE)
    losses = [5.0, 1.0, 2.0, 3.0, 4.0]
    results = rows(study, "one/bc", BC, losses)
    # in normalised scores, a tenth of the returns: last 50 70 60, best 50 90 60, means 30 38 20, lowest loss 20 10 10
    expected = {
        "last": (60.0, np.std([50, 70, 60])),
        "best": (200 / 3, np.std([50, 90, 60])),
        "mean_of_last": (88 / 3, np.std([30, 38, 20])),
        "offline_selected": (40 / 3, np.std([20, 10, 10])),
    }
    for protocol, numbers_by_hand in expected.items():
        (entry,) = row(table(study, results, protocol), "bc").entries
        assert (entry.mean, entry.deviation) == pytest.approx(numbers_by_hand)
        assert entry.notes == () and entry.planned == len(entry.scores) == 3


def test_the_mean_of_the_last_five_leaves_earlier_ones_out():
    study = plan(ONE.replace("updates = 100", "updates = 140"))
    results = rows(study, "one/bc", {0: [9e9, 9e9, 1, 2, 3, 4, 5], 1: [9e9, 9e9, 1, 1, 1, 1, 1]})
    (entry,) = row(table(study, results, "mean_of_last"), "bc").entries
    assert entry.scores == pytest.approx({0: 0.3, 1: 0.1})


def test_swept_values_and_variants_are_rows_with_their_values_in_the_name():
    study = plan(ONE.replace("[methods.bc]", "num_steps = [3, 5]\n[methods.bc]"))
    assert labels_of(trials_of(works(study), [])) == [
        *("diffcps kappa=0.02 num_steps=3", "diffcps kappa=0.04 num_steps=3"),
        *("diffcps kappa=0.02 num_steps=5", "diffcps kappa=0.04 num_steps=5", "bc"),
    ]
    scores = {index: [10.0 * index] * 5 for index in range(6)}  # seeds vary fastest
    results = rows(study, "one/diffcps-num_steps-3", scores)
    of = table(study, results, "last")
    assert row(of, "diffcps kappa=0.02 num_steps=3").entries[0].scores == {0: 0.0, 1: 1.0, 2: 2.0}
    assert row(of, "diffcps kappa=0.04 num_steps=3").entries[0].scores == {0: 3.0, 1: 4.0, 2: 5.0}


def test_a_value_of_one_set_of_data_is_a_row_of_its_own_there():
    study = plan(PLAN + "[methods.diffcps.on.two]\nkappa = 0.3\n")
    of = table(study, [], "last", works(study, "waiting"))
    assert [each.label for each in of.rows[1:]] == ["diffcps kappa=0.02", "diffcps kappa=0.04", "diffcps", "bc"]
    assert row(of, "diffcps").entries[0].notes == ("not in the plan",)
    assert row(of, "diffcps kappa=0.02").entries[1].notes == ("not in the plan",)


def test_values_that_differ_have_other_names():
    values = 0.1234567, 0.12345671, 1e-5, 0.5, (1, 2), "sample", True
    assert [value_text(value) for value in values] == [
        *("0.1234567", "0.12345671", "1e-05", "0.5", "1x2", "sample", "True"),
    ]


def test_two_rows_of_one_name_are_refused():
    study = plan(ONE + '[methods."diffcps kappa=0.02"]\nmethod = "bc"\n')
    with pytest.raises(UserError, match=r"two rows of one would have the name diffcps kappa=0\.02: give"):
        trials_of(works(study), [])


def both(study: Study, one: float = 500.0, two: float = 700.0) -> list[Result]:
    """bc at `one` and `two`, seeds a hundred apart; diffcps a little worse (0.02) and much worse (0.04)."""
    results: list[Result] = []
    for data, score in (("one", one), ("two", two)):
        of_bc = {seed: [score + 100 * seed] * 5 for seed in range(3)}
        kappas = {0: 0.98, 1: 0.5}
        of_diffcps = {
            3 * number + seed: [factor * (score + 100 * seed)] * 5
            for number, factor in kappas.items()
            for seed in range(3)
        }
        results += rows(study, f"{data}/bc", of_bc, final={seed: score for seed in range(3)})
        final = dict.fromkeys(range(6), score)
        results += rows(study, f"{data}/diffcps", of_diffcps, final=final, acting="softmax_q")
    return results


def test_averages_by_hand():
    study = plan()
    (average,) = row(table(study, both(study), "last"), "bc").averages
    # means 60 and 80; the seeds' averages are 60, 70, 80
    assert (average.mean, average.deviation) == pytest.approx((70.0, np.std([60, 70, 80])))
    assert (average.columns, average.notes) == (2, ())


def test_bold_is_within_three_percent_of_the_best():
    of = table(plan(), both(plan()), "last")
    assert [[entry.is_bold for entry in each.entries] for each in of.rows] == [
        *([False, False], [True, True], [False, False], [True, True]),  # the data, 98 %, 50 %, the best
    ]
    assert [each.averages[0].is_bold for each in of.rows] == [False, True, False, True]


@pytest.mark.parametrize(
    ("best", "other", "is_bold"), [(100, 97, True), (100, 96.9, False), (-100, -103, True), (-100, -104, False)]
)
def test_the_border_of_bold(best, other, is_bold):
    """Of returns below zero, too, where 97 % of the best would be better than the best."""
    study = plan(ONE.replace("kappa = [0.02, 0.04]", ""))
    results = rows(study, "one/bc", {seed: [best] * 5 for seed in range(3)}, factor=None)
    results += rows(study, "one/diffcps", {seed: [other] * 5 for seed in range(3)}, factor=None)
    of = table(study, results, "last")
    assert row(of, "bc").entries[0].is_bold
    assert row(of, "diffcps").entries[0].is_bold == is_bold


def test_one_number_alone_is_not_bold():
    study = plan(ONE)
    of = table(study, rows(study, "one/bc", BC), "last")
    assert not row(of, "bc").entries[0].is_bold


def test_the_data_are_a_row_that_takes_no_part():
    of = table(plan(), both(plan(), one=100.0, two=100.0), "last")
    first = of.rows[0]
    assert first.label == DATA_LABEL and not first.is_compared and first.seeds == ""
    assert [entry.mean for entry in first.entries] == [40.0, 40.0]  # above all methods, and not bold
    assert not any(entry.is_bold for entry in first.entries)
    assert first.averages[0].mean == 40.0
    assert row(of, "bc").entries[0].is_bold


def test_the_data_are_known_where_one_run_knows_them():
    """A method whose preset transforms the rewards does not."""
    study = plan(ONE)
    results = rows(study, "one/diffcps", {0: [1.0] * 5}, data_return=None, data_normalised=None)
    assert table(study, results, "last").rows[0].entries[0].notes == ("not known",)
    results += rows(study, "one/bc", BC)
    assert table(study, results, "last").rows[0].entries[0].mean == 40.0
    results += rows(study, "one/bc", BC, data_return=500.0, data_normalised=50.0)
    assert table(study, results, "last").rows[0].entries[0].notes == ("differs between runs",)


def test_what_is_not_finished_has_no_number():
    study = plan()
    results = rows(study, "one/bc", BC) + rows(study, "two/bc", {seed: [900.0] * 2 for seed in range(3)})
    work = [
        Work(cell, state)
        for cell, state in zip(study.cells, ("failed", "done", "waiting", "begun"), strict=True)
    ]  # fmt: skip
    assert [one.cell.name for one in work] == ["one/diffcps", "one/bc", "two/diffcps", "two/bc"]
    of = table(study, results, "last", work)
    diffcps, bc = row(of, "diffcps kappa=0.02"), row(of, "bc")
    assert [entry.notes for entry in diffcps.entries] == [("failed",), ("not begun",)]
    assert bc.entries[1].notes == ("unfinished: 40 of 100 updates",)
    assert [entry.mean for entry in (*diffcps.entries, bc.entries[1])] == [None] * 3
    assert bc.averages[0].notes == ("1 of 2 data",)
    assert bc.averages[0].mean == pytest.approx(60.0) and not bc.averages[0].is_bold
    assert diffcps.averages[0].mean is None
    assert table(study, results, "final", work).rows[-1].entries[0].notes == ("no new episodes yet",)


def test_an_average_over_some_of_the_data_is_neither_bold_nor_the_best():
    study = plan()
    results = [each for each in both(study) if each.origin.run != "one/bc"]
    of = table(study, results, "last", works(study, "done"))
    bc, near, far = (row(of, label).averages[0] for label in ("bc", "diffcps kappa=0.02", "diffcps kappa=0.04"))
    assert bc and near and far
    assert bc.mean is not None and near.mean is not None and bc.mean > near.mean
    assert [each.is_bold for each in (bc, near, far)] == [False, True, False]


def test_fewer_seeds_are_told():
    study = plan()
    results = [each for each in both(study) if (each.origin.run, each.seed) != ("one/bc", 1)]
    bc = row(table(study, results, "last"), "bc")
    assert bc.entries[0].notes == ("2 of 3 seeds",)
    assert numbers(bc.entries[0]) == (60.0, 10.0)
    assert bc.averages[0].notes == ("fewer seeds",) and bc.averages[0].deviation is None


def test_seeds_that_were_stopped_are_told():
    study = plan(ONE)
    results = rows(study, "one/bc", {0: [1.0] * 5, 1: [1.0] * 3, 2: [1.0, 1.0, 1.0, 3.0, None]})
    results += rows(study, "one/bc", {}, final={0: 1.0, 1: 1.0, 2: 1.0})
    (entry,) = row(table(study, results, "last"), "bc").entries
    assert entry.notes == ("seed 1 stopped after 60 updates", "seed 2 has no score after 80 updates")
    assert entry.scores == pytest.approx({0: 0.1, 1: 0.1, 2: 0.3})
    (best,) = row(table(study, results, "best"), "bc").entries
    (final,) = row(table(study, results, "final"), "bc").entries
    assert best.notes == final.notes == ("seed 1 stopped after 60 updates",)
    without = [each for each in results if each.protocol == "final" or each.seed != 2]
    (final,) = row(table(study, without, "final"), "bc").entries
    assert final.notes[-1] == "seed 2 stopped before its first evaluation"


def test_a_bound_that_was_not_met_is_told_beside_every_score():
    study = plan()
    unmet = sorted(study.cell("one/diffcps").rows[0].members)[:2]
    results = [
        dataclasses.replace(each, unmet_bound="kappa 0.02")
        if each.origin.run == "one/diffcps" and each.member in unmet
        else each
        for each in both(study)
    ]
    for protocol in ("last", "best", "final"):
        of = table(study, results, protocol)
        assert row(of, "diffcps kappa=0.02").entries[0].notes == ("kappa 0.02 not met by 2 of 3 seeds",)
        assert row(of, "diffcps kappa=0.04").entries[0].notes == ()


def test_a_single_seed_has_no_deviation():
    study = plan(ONE.replace("seeds = [0, 1, 2]", "seeds = [7]"))
    of = table(study, rows(study, "one/bc", {0: [500.0] * 5}), "last")
    assert numbers(row(of, "bc").entries[0]) == (50.0, None)
    assert row(of, "bc").seeds == "1"
    assert "| bc | 1 | 50.0 |" in markdown("s", [of])


def test_no_score_has_a_reason():
    study = plan(ONE)
    none = rows(study, "one/bc", {seed: [None] * 5 for seed in range(3)})
    assert row(table(study, none, "last"), "bc").entries[0].notes == ("the episodes could not be played",)
    nowhere = rows(study, "one/bc", {seed: [None] * 5 for seed in range(3)}, environment=None)
    assert row(table(study, nowhere, "last"), "bc").entries[0].notes == ("no environment",)
    infinite = rows(study, "one/bc", BC, [None] * 5)
    assert row(table(study, infinite, "offline_selected"), "bc").entries[0].notes == ("no finite selection/loss",)


def test_new_episodes_by_acting_rule():
    study = plan(ONE.replace("kappa = [0.02, 0.04]", ""))
    results = rows(study, "one/bc", BC, final={0: 100, 1: 200, 2: 300})
    results += rows(study, "one/diffcps", BC, final={0: 400, 1: 500, 2: 600}, acting="softmax_q")
    results += rows(study, "one/diffcps", {}, final={0: 40, 1: 50, 2: 60}, acting="sample")
    own = table(study, results, "final")
    assert [row(own, name).entries[0].mean for name in ("diffcps", "bc")] == pytest.approx([50.0, 20.0])
    assert own.remarks[-1] == "Own rules: softmax_q: diffcps; one way to act: bc."
    by_sample = table(study, results, "final-sample")
    assert [each.label for each in by_sample.rows] == [DATA_LABEL, "diffcps"]
    assert row(by_sample, "diffcps").entries[0].mean == pytest.approx(5.0)
    assert by_sample.remarks[-1] == "Methods with one way to act are not in this table: bc."
    assert "3 new episodes per seed, from start seeds 1000 to 1002, with the last checkpoint" in caption(own)


def test_units():
    """Of one set of data all numbers have one unit; without normalised scores there is no average."""
    study = plan()
    results = rows(study, "one/bc", BC, factor=None) + rows(study, "two/bc", BC)
    results += rows(study, "two/diffcps", {0: [800.0] * 5}, factor=None)
    of = table(study, results, "last")
    assert of.columns == (Column("one", "return"), Column("two", "return"))
    assert row(of, "bc").entries[0].mean == 600.0
    assert [each.mean for each in of.rows[0].entries] == [400.0, 400.0]
    assert of.groups == row(of, "bc").averages == ()
    assert of.remarks[0].startswith("There is no average over the data")
    three = plan(PLAN + '[data.three]\ndataset = "three.npz"\n')
    results = rows(three, "one/bc", BC, factor=None) + rows(three, "two/bc", BC)
    of = table(three, results, "last")
    assert [column.unit for column in of.columns] == ["return", "normalised", "normalised"]  # of three nothing is known
    assert of.remarks == ("The average is over two, three: the other data have no normalised scores.",)
    (average,) = row(of, "bc").averages
    assert (average.mean, average.notes) == (pytest.approx(60.0), ("1 of 2 data",))


def test_texts_of_scores():
    assert [deviation_text(value, "return") for value in (12345.6, 12.3456, 0.0)] == ["12346", "12.3", "0"]
    assert [score_text(value, "normalised") for value in (12.34, -0.04, -0.06)] == ["12.3", "0.0", "-0.1"]
    assert [score_text(value, "return") for value in (12345.6, 0.123456, -3.0)] == ["12346", "0.1235", "-3"]


# --- What others have published ---

GROUPED = PLAN.replace('dataset = "one.npz"', 'dataset = "one.npz"\ngroup = "A"').replace(
    'dataset = "two.npz"', 'dataset = "two.npz"\ngroup = "A"'
)
PUBLISHED = """
[data.three]
dataset = "three.npz"
group = "B"

[published]
source = "a paper"
protocol = "best of all"

[published.scores.bc]
one = 70.0
two = [75.0, 1.5]

[published.averages.bc]
A = [64.0, 0.5]
B = 1.0
"""


def test_published_numbers_stand_beside_ours():
    study = plan(GROUPED + PUBLISHED)
    of = table(study, both(study), "last")
    bc = row(of, "bc")
    one, two, three = (entry.published for entry in bc.entries)
    assert one is not None and one.number == (70.0, None) and one.difference is not None
    assert two is not None and two.number == (75.0, 1.5) and two.difference is not None and three is None
    # 50, 60, 70 against 70: the mean is 10 below; the interval of a mean of three, 4.3027 x 10 / sqrt(3)
    assert one.difference.value == pytest.approx(-10.0) and one.difference.interval is not None
    assert one.difference.interval == pytest.approx((-10 - 24.841, -10 + 24.841), abs=1e-3)
    assert of.groups == ("A",)  # of B there is one set of data
    (average,) = bc.averages
    assert average.mean == pytest.approx(70.0) and average.published is not None
    assert average.published.difference is not None and average.published.difference.value == pytest.approx(6.0)
    assert average.published.difference.interval == pytest.approx((6 - 24.841, 6 + 24.841), abs=1e-3)
    assert all(entry.published is None for entry in row(of, "diffcps kappa=0.02").entries)
    text = markdown("s", [of])
    assert "(published 75.0 ± 1.5; difference +5.0 (-19.8 to +29.8))" in text
    assert "average of A (normalised score)" in text and "Published: a paper (best of all)." in text
    assert "A: one, two." in of.remarks
    whole = plan(GROUPED)
    assert "A: one, two." not in table(whole, both(whole), "last").remarks  # all data: nothing is left to be said
    line = next(line for line in comma_separated([of]).splitlines() if line.startswith("last,bc,one"))
    assert [round(float(x), 3) if x else None for x in line.split(",")[10:15]] == [70.0, None, -10.0, -34.841, 14.841]


def test_a_published_number_without_one_of_ours():
    study = plan(GROUPED + PUBLISHED)
    results = [each for each in both(study) if each.origin.run != "one/bc"]
    bc = row(table(study, results, "last"), "bc")
    assert bc.entries[0].mean is None and bc.entries[0].published == ((70.0, None), None)
    # ours is over two alone, theirs over both
    assert bc.averages[0].published is not None and bc.averages[0].published.difference is None
    assert "published 70.0" in markdown("s", [table(study, results, "last")])


def test_published_numbers_of_another_unit_are_left_out():
    study = plan(
        ONE.replace("kappa = [0.02, 0.04]", "")
        + PUBLISHED.split("[published.averages")[0].replace("two = [75.0, 1.5]\n", "")
    )
    of = table(study, rows(study, "one/bc", BC, factor=None), "last")
    assert of.columns[0].unit == "return" and row(of, "bc").entries[0].published is None


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("one = 70.0", "onee = 70.0", r"published\.scores\.bc: .*onee.*one"),
        ("[published.scores.bc]", "[published.scores.bcq]", r"published\.scores: .*bcq.*bc"),
        ("one = 70.0", 'one = "70"', r"published\.scores\.bc\.one: is '70', and must be a mean or"),
        ("one = 70.0", "one = true", r"is True, and must be a mean or"),
        ("one = 70.0", "one = [1, 2, 3]", r"must be a mean or \[mean, deviation\]"),
        ('source = "a paper"', "", r"published\.source: must be text"),
        ("A = [64.0, 0.5]", "C = 64.0", r"published\.averages\.bc: .*C"),
        ('protocol = "best', 'unit = "points"\nprotocol = "best', r"published\.unit: .*points"),
        ('protocol = "best', 'units = "success"\nprotocol = "best', r"published: .*units.*unit"),
    ],
)
def test_a_fault_in_what_is_published_is_one_line(old, new, line):
    with pytest.raises(UserError, match=line):
        plan((GROUPED + PUBLISHED).replace(old, new, 1))


def test_new_episodes_may_be_scored_by_success():
    text = ONE.replace("kappa = [0.02, 0.04]", "").replace(
        'dataset = "one.npz"', 'dataset = "one.npz"\nscore = "success"'
    )
    text += '[published]\nsource = "s"\nprotocol = "p"\nunit = "success"\n[published.scores.bc]\none = [0.9, 0.01]\n'
    study = plan(text)
    results = [
        replace(each, success_at_last_step=0.25 * each.seed if each.protocol == "final" else None)
        for each in rows(study, "one/bc", BC, final={0: 1.0, 1: 1.0, 2: 1.0})
    ]
    entry = row(table(study, results, "final"), "bc").entries[0]
    assert numbers(entry) == pytest.approx((0.25, np.std([0, 0.25, 0.5])))
    assert entry.published is not None and entry.published.difference is not None
    assert entry.published.difference.value == pytest.approx(-0.65)
    assert "0.250 ± 0.204" in markdown("s", [table(study, results, "final")])
    last = table(study, results, "last")
    assert last.columns[0].unit == "normalised" and row(last, "bc").entries[0].published is None


def test_other_files_than_the_benchmarks_are_told():
    """Their numbers must not pass for those of the task."""
    text = ONE.replace('dataset = "one.npz"', 'task = "hopper-medium-v2"\ndataset = "mine/one.hdf5"')
    study = plan(text)
    of = table(study, rows(study, "one/bc", BC, dataset="mine/one.hdf5", dataset_sha256="0123456789abcdef"), "last")
    assert of.columns[0].stand_in == "hopper-medium-v2"
    told = "Not the benchmark's data, but own files, with their SHA-256: one for hopper-medium-v2: "
    assert of.remarks[0] == f"{told}one.hdf5 (0123456789ab)." and of.remarks[0] in markdown("s", [of])
    assert "one for hopper-medium-v2: no run has read it yet." in table(study, [], "last").remarks[0]
    assert "| one, own file (normalised score) |" in markdown("s", [of])
    of = table(study, rows(study, "one/bc", BC, dataset_sha256=catalogue()["hopper-medium-v2"].sha256), "last")
    assert of.columns[0].stand_in is None  # the benchmark's own file under another name
    study = plan(text.replace('dataset = "mine/one.hdf5"', ""))
    assert table(study, rows(study, "one/bc", BC), "last").columns[0].stand_in is None


# --- Files ---


def test_markdown_latex_and_csv():
    study = plan()
    results = [each for each in both(study) if (each.origin.run, each.seed) != ("two/bc", 1)]
    of = table(study, results, "last")
    text = markdown("a *study*", [of])
    assert text.startswith("# a \\*study\\*\n\n## Last\n")
    assert "|  | seeds | one (normalised score) | two (normalised score) | average (normalised score) |" in text
    assert "| bc | 3 | **60.0** ± 8.2 | **80.0** ± 10.0 (2 of 3 seeds) | **70.0** (fewer seeds) |" in text
    assert f"| {DATA_LABEL} | – | 40.0 | 40.0 | 40.0 |" in text
    latex_text = latex("a study", [of])
    assert r"bc & 3 & \textbf{60.0} $\pm$ 8.2 & \textbf{80.0} $\pm$ 10.0 (2 of 3 seeds) & \textbf{70.0}" in latex_text
    assert r"diffcps kappa=0.04 & 3 & 30.0 $\pm$ 4.1 &" in latex_text
    for word in (r"\toprule", r"\midrule", r"\bottomrule", r"\begin{tabular}{lrrrr}", "within 3\\% of the best mean"):
        assert word in latex_text
    lines = [line.split(",") for line in comma_separated([of]).splitlines()]
    assert lines[0][:5] == ["protocol", "row", "data", "unit", "mean"]
    assert ["last", "bc", "one", "normalised", "60.0"] in [line[:5] for line in lines]
    (average,) = (line for line in lines if line[:3] == ["last", "bc", "average"])
    assert average[4:10] == ["70.0", "", "2", "3", "yes", "fewer seeds"]
    (of_data,) = (line for line in lines if line[1:3] == [DATA_LABEL, "one"])
    assert of_data[4:8] == ["40.0", "", "", ""]


def test_nothing_of_a_name_is_read_as_latex():
    assert in_latex(r"<b>&_x 50% #1 {a} $y$ ~ ^ \z [k] – ±") == (
        r"\textless{}b\textgreater{}\&\_x 50\% \#1 \{a\} \$y\$ \textasciitilde{} \textasciicircum{} "
        r"\textbackslash{}z {[}k{]} -- $\pm$"
    )


def test_nothing_of_a_name_is_read_as_markdown():
    study = plan(ONE + '[methods."<b>&|_*"]\nmethod = "bc"\n')
    text = markdown("s", [table(study, [], "last", works(study, "waiting"))])
    assert r"| \<b\>\&\|\_\* | 3 | – (not begun) |" in text


# --- Over all data ---


def test_aggregates_by_hand():
    study = plan()
    results = [each for each in both(study) if each.origin.run != "two/bc"]
    results += rows(study, "two/bc", {0: [700] * 5, 1: [800] * 5, 2: [1500] * 5})
    found = aggregates_of(table(study, results, "last"))
    assert [each.label for each in found.rows] == ["diffcps kappa=0.02", "diffcps kappa=0.04", "bc"]
    assert (found.reference, found.seeds, found.fewest_seeds, found.remarks) == ("diffcps kappa=0.02", "3", 3, ())
    bc = found.rows[2]
    assert bc.mean.value == pytest.approx((50 + 60 + 70 + 70 + 80 + 150) / 6)
    assert bc.interquartile_mean.value == pytest.approx((60 + 70 + 70 + 80) / 4)
    # on each of the data: 3 x 3 pairs, of which 50 > 49, 60 > 49 58.8, 70 > all, so 6 of 9; likewise of 70 80 150
    assert bc.improvement is not None and bc.improvement.value == pytest.approx(6 / 9)
    assert found.rows[0].improvement is None
    assert bc.mean.interval is not None and 60 <= bc.mean.interval.low < 80 < bc.mean.interval.high <= 110
    assert found.thresholds[-1] == 150.0 and bc.profile.share[0] == 1.0 and bc.profile.share[-1] == 0.0


def test_the_method_to_compare_with_is_a_row():
    study = plan()
    of = table(study, both(study), "last")
    found = aggregates_of(of, "bc")
    assert found.reference == "bc" and found.rows[2].improvement is None
    assert found.rows[0].improvement is not None and found.rows[0].improvement.value == pytest.approx(3 / 9)
    with pytest.raises(UserError, match=r"no row td3_bc to compare with; its rows are diffcps kappa=0\.02, "):
        aggregates_of(of, "td3_bc")


def test_who_has_no_aggregates_is_told():
    study = plan()
    some = [each for each in both(study) if each.origin.run != "one/bc"]
    found = aggregates_of(table(study, some, "last"), "bc")
    assert [each.label for each in found.rows] == ["diffcps kappa=0.02", "diffcps kappa=0.04"]
    assert found.remarks == ("bc (without a score on one)",)
    assert found.reference is None and all(each.improvement is None for each in found.rows)
    two_seeds = [each for each in both(study) if each.seed < 2]
    found = aggregates_of(table(study, two_seeds, "last"))
    assert found.rows == ()
    assert found.remarks == (
        "diffcps kappa=0.02, diffcps kappa=0.04, bc (with 2 seeds on one, two, where intervals need 3)",
    )
    without = rows(study, "one/bc", BC, factor=None)
    found = aggregates_of(table(study, without, "last"))
    assert found.rows == () and "no data have normalised scores" in found.remarks[0]


def test_how_narrow_intervals_are():
    assert [round(held_at_best(seeds), 2) for seeds in (3, 5)] == [0.89, 0.92]  # as evaluation/statistics.py has it


# --- Over the updates ---


def test_learning_curves_are_means_as_long_as_all_seeds_are_there():
    study = plan(ONE)
    results = rows(study, "one/bc", {0: [100, 200, 300], 1: [300, None, 500], 2: [200, 0]})
    (curve,) = score_curves(trials_of(works(study), results), "one", "normalised")
    assert (curve.label, curve.updates, curve.mean, curve.ended) == ("bc", (20,), (20.0,), 20)
    assert curve.deviation == pytest.approx((np.std([10, 30, 20]),))
    (curve,) = score_curves(trials_of(works(study), rows(study, "one/bc", BC)), "one", "return")
    assert curve.updates == (20, 40, 60, 80, 100) and curve.ended is None
    assert curve.mean == pytest.approx((100, 400 / 3, 1300 / 3, 200, 600))


def measured(trials: list[Trial], run: str, count: int = 4) -> list[Measurement]:
    """A log in which L_c is the update over 100, plus 10 for each member."""
    cell = next(trial.cell for trial in trials if trial.cell.name == run)
    members = expand(cell.request.settings.seeds, cell.request.sweep)
    found: list[Measurement] = []
    for number in range(1, count + 1):
        for member in members:
            metrics = {"actor/bc_loss": number / 10 + 10 * member.index, "dual/multiplier": 2.0}
            found.append(Measurement(10 * number, member, metrics, 5.0))
    return found


def test_constraints_and_their_bounds():
    study = plan(ONE)
    trials = trials_of(works(study), [])
    loss, multiplier = metric_curves(trials, {"one/diffcps": measured(trials, "one/diffcps")})
    assert (loss.data, loss.method, loss.name) == ("one", "diffcps", "actor/bc_loss")
    assert loss.bounds == (Bound("diffcps kappa=0.02", 0.02), Bound("diffcps kappa=0.04", 0.04))
    assert [curve.mean for curve in loss.curves] == [  # members 0 1 2 and 3 4 5
        pytest.approx((10.1, 10.2, 10.3, 10.4)),
        pytest.approx((40.1, 40.2, 40.3, 40.4)),
    ]
    assert loss.is_logarithmic and loss.curves[0].deviation == pytest.approx([np.std([0, 10, 20])] * 4)
    assert (multiplier.name, multiplier.bounds) == ("dual/multiplier", ())


def test_one_bound_of_all_rows_is_one_line():
    study = plan(ONE.replace("kappa = [0.02, 0.04]", "max_grad_norm = [1.0, 2.0]"))
    trials = trials_of(works(study), [])
    loss, _ = metric_curves(trials, {"one/diffcps": measured(trials, "one/diffcps")})
    assert loss.bounds == (Bound(None, 0.05),)  # the default


def test_long_logs_are_averaged_in_blocks():
    study = plan(ONE)
    trials = trials_of(works(study), [])
    loss, _ = metric_curves(trials, {"one/diffcps": measured(trials, "one/diffcps", 301)})
    curve = loss.curves[0]
    assert curve.updates[:2] == (30, 60) and curve.updates[-1] == 3010 and len(curve.updates) == 101
    assert curve.mean[0] == pytest.approx(10 + np.mean([0.1, 0.2, 0.3]))
    assert curve.mean[-1] == pytest.approx(10 + 30.1)


def test_what_a_run_took():
    trials = trials_of(works(plan(ONE)), [])
    (member, *_) = expand((0,), {})
    log = [Measurement(update, member, {}, rate) for update, rate in ((100, 10.0), (200, 50.0), (250, 50.0))]
    cost = cost_of([*log, *log])
    assert cost is not None and cost.updates_per_second == 50.0
    assert cost.hours == pytest.approx((100 / 10 + 100 / 50 + 50 / 50) / 3600)
    assert cost_of([]) is None and trials
