"""`diffcps ope` from its words to its files: which policies, what they do, stops and resumes, what is refused."""

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

import diffcps
from diffcps.cli.main import main
from diffcps.cli.ope import Bar
from diffcps.envs.toy import STITCHING, stitching
from diffcps.ope import fqe
from diffcps.ope.choice import choices, save_choices
from diffcps.ope.estimate import Estimated, Judgement, Terms, first_rows, judge, scale_of
from diffcps.ope.policies import Judged, Source, act_in, judged_of, sources_of
from diffcps.ope.report import lines, markdown, ope_figure, ranking, regret
from diffcps.records.folder import RunFolder
from diffcps.run import progress
from diffcps.run.policy import load_run
from diffcps.training import checkpoint
from diffcps.training.loop import Interrupted
from diffcps.types import EnvObservation, UserError
from tests.problems import dataset_of

SMALL = ["--width", "8", "--depth", "1", "--batch-size", "16", "--learning-rate", "1e-3"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Logged steps of the stitching problem, in a file."""
    rows = stitching()
    path = tmp_path_factory.mktemp("data") / "logs.npz"
    np.savez(
        path,
        observations=np.asarray(rows.observation) + 5.0,
        actions=np.asarray(rows.action),
        rewards=np.asarray(rows.reward),
        next_observations=np.asarray(rows.next_observation) + 5.0,
        terminals=np.asarray(rows.terminal),
        timeouts=np.asarray(rows.timeout),
    )
    return path


def trained(out: Path, data: Path, *more: str, method: str = "bc") -> Path:
    words = ["--updates", "60", "--eval-every", "20", "--log-every", "20", "--width", "8", "--depth", "1"]
    assert main(["train", method, "--dataset", str(data), "--env", "none", *words, "--out", str(out), *more]) == 0
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory, data) -> Path:
    return trained(tmp_path_factory.mktemp("runs") / "bc", data, "--keep", "2", "--seeds", "0", "1")


@pytest.fixture(scope="module")
def normalised(tmp_path_factory, data) -> Path:
    return trained(tmp_path_factory.mktemp("runs") / "scaled", data, "--normalise-observation", "--reward-scale", "3")


class Quiet:
    """Counts what is told."""

    def __init__(self):
        self.done, self.notes = 0, list[str]()

    def begin(self, words, total):
        self.done = 0

    def advance(self, count):
        self.done += count

    def note(self, words):
        self.notes.append(words)


CONFIG = fqe.Config(width=8, depth=1, batch_size=16, learning_rate=1e-3)
SETTINGS = Terms(fit_updates=50)


# --- Which policies ---


def test_all_are_the_kept_ones_and_the_last(run, normalised):
    assert sources_of([run], ["all"]) == [Source(run, "40"), Source(run, "60")]  # the last one was kept
    assert sources_of([normalised], ["all"]) == [Source(normalised, "last")]
    assert sources_of([run], ["20", "best"]) == [Source(run, "20"), Source(run, "best")]


def test_a_last_checkpoint_of_after_the_last_kept_one_is_judged_too(run, tmp_path):
    """A run that was stopped between two evaluations."""
    copy = RunFolder(shutil.copytree(run, tmp_path / "run"))
    checkpoint.save(copy.last, load_run(run, "last").state, {"update": 70, "stopped": {}})
    assert [source.checkpoint for source in sources_of([copy.path], ["all"])] == ["40", "60", "last"]


def test_a_member_that_has_gone_is_not_judged(run, tmp_path):
    loaded = load_run(run, 40)
    assert [policy.member for policy in judged_of(Source(run, "40"), loaded)] == [0, 1]
    rows = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    folder = RunFolder(tmp_path)
    folder.evaluations.write_text(
        "".join(json.dumps(row) + "\n" for row in rows if (row["update"], row["member"]) != (40, 1))
    )
    assert [policy.member for policy in judged_of(Source(run, "40"), loaded._replace(folder=folder))] == [0]


def test_they_act_as_the_loaded_policy_does(normalised, data):
    """Deterministic cloning: the same actions as `load_policy` in the environment's units, whatever the chunk."""
    loaded = load_run(normalised, "last")
    observation = np.random.default_rng(0).normal(5.0, 1.0, size=(1500, 2))
    seen = loaded.scaling.observation(EnvObservation(observation))
    found = act_in(loaded, seen, 0, lambda count: None)
    wanted = diffcps.load_policy(normalised, "last")(observation)
    assert found.shape == (1, 1500, wanted.shape[-1])
    np.testing.assert_allclose(loaded.scaling.action(found[0]), wanted, atol=1e-6)


# --- The data ---


def test_first_rows_and_units():
    """Two episodes of rewards 1, 1 | 0, 1 at discount 0.5: 1.5, 1 | 0.5, 1."""
    ends = np.array([False, True, False, True])
    zeros = np.zeros((4, 1), np.float32)
    dataset = dataset_of(zeros, zeros, np.array([1.0, 1.0, 0.0, 1.0]), zeros, ends)
    first = first_rows(dataset)
    assert first.tolist() == [0, 2]
    scale, logged = scale_of(dataset, first, 0.5)
    assert logged == pytest.approx((1.5 + 0.5) / 2)
    assert scale.mean == pytest.approx(1.0) and scale.std == pytest.approx(np.std([1.5, 1.0, 0.5, 1.0]))
    assert (scale.least, scale.greatest) == (0.0, 2.0)


# --- The whole ---


def test_the_checkpoint_with_the_highest_estimates(run, data, tmp_path):
    """Each member's own; it plays, is evaluated and judged like every other."""
    copy = Path(shutil.copytree(run, tmp_path / "bc"))
    with pytest.raises(UserError, match=r"has no checkpoint fqe: diffcps ope .*/bc chooses it among"):
        load_run(copy, "fqe")
    policies = [policy for name in ("40", "60") for policy in judged_of(Source(copy, name), load_run(copy, int(name)))]
    assert [(policy.updates, policy.member) for policy in policies] == [(40, 0), (40, 1), (60, 0), (60, 1)]
    estimates = [
        Estimated(policy, value, value, value, ()) for policy, value in zip(policies, (2.0, 1.0, 1.5, 3.0), strict=True)
    ]
    assert save_choices(choices(estimates)) == [copy]
    chosen, first, second = (load_run(copy, which) for which in ("fqe", 40, 60))
    assert chosen.updates == [40, 60]
    leaves = zip(*map(jax.tree.leaves, (chosen.state, first.state, second.state)), strict=True)
    for own, at_40, at_60 in leaves:
        np.testing.assert_array_equal(own[0], at_40[0])
        np.testing.assert_array_equal(own[1], at_60[1])
    observation = np.full((3, 2), 5.0)
    for member, kept in ((0, 40), (1, 60)):
        action = diffcps.load_policy(copy, "fqe", member=member)(observation)
        np.testing.assert_array_equal(action, diffcps.load_policy(copy, kept, member=member)(observation))
        assert not np.array_equal(action, diffcps.load_policy(copy, 100 - kept, member=member)(observation))
    words = ["evaluate", str(copy), "--checkpoint", "fqe", "--env", STITCHING, "--episodes", "2"]
    assert main(words) == 0
    assert sources_of([copy], ["fqe"]) == [Source(copy, "fqe")]


def test_a_member_without_a_choice_stays_as_the_run_ended(run, tmp_path):
    copy = Path(shutil.copytree(run, tmp_path / "bc"))
    policies = [judged_of(Source(copy, name), load_run(copy, int(name)))[0] for name in ("40", "60")]
    save_choices(choices([Estimated(policies[0], 2.0, 2.0, 2.0, ()), Estimated(policies[1], 1.0, 1.0, 1.0, ())]))
    assert load_run(copy, "fqe").updates == [40, 60]


def test_from_words_to_files(run, normalised, tmp_path, capsys):
    out = tmp_path / "ope"
    words = ["ope", str(run), str(normalised), "--out", str(out), "--fit-updates", "50", *SMALL]
    assert main(words) == 0
    said = capsys.readouterr().out
    found = json.loads((out / "ope.json").read_text())
    assert [one["policy"]["updates"] for one in found["estimates"]] == [40, 40, 60, 60, 60]
    assert all(one["low"] <= one["value"] <= one["high"] for one in found["estimates"])
    assert all(
        len(one["course"]) == 5 and one["course"][-1] == pytest.approx(one["value"]) for one in found["estimates"]
    )
    assert "by the estimate" in said and "not of the error of Q" in said
    assert (out / "ope.md").read_text().count("\n| ") >= 5 and (out / "ope.png").stat().st_size > 1000
    before = (out / "ope.json").read_bytes()
    assert main(words) == 0  # nothing is left to do
    assert (out / "ope.json").read_bytes() == before


def test_the_runs_rewards_do_not_matter(normalised, tmp_path):
    """It was trained on three times the rewards; the values are in those of the file."""
    found = judge([normalised], tmp_path / "a", settings=SETTINGS, config=CONFIG, progress=Quiet())
    rows = diffcps.load_dataset(found.source)
    assert found.logged_value == pytest.approx(scale_of(rows, first_rows(rows), 0.99)[1], rel=1e-5)


def test_some_rows_are_drawn_once(run, tmp_path):
    settings = dataclasses.replace(SETTINGS, rows=100, checkpoints=("last",))
    found = judge([run], tmp_path / "a", settings=settings, config=CONFIG, progress=Quiet())
    assert found.transitions == 100 < found.of_transitions
    assert any(line.startswith("Fitted on 100 of ") for line in lines(found))
    again = judge([run], tmp_path / "b", settings=settings, config=CONFIG, progress=Quiet())
    assert again == found == Judgement.read(tmp_path / "b" / "ope.json")


@pytest.mark.parametrize("part", ["acting in logged states", "fitting 4 values"])
def test_a_stop_changes_nothing(run, tmp_path, part):
    whole = judge([run], tmp_path / "whole", settings=SETTINGS, config=CONFIG, progress=Quiet())

    class Stopping(Quiet):
        def begin(self, words, total):
            super().begin(words, total)
            self.words = words

        def advance(self, count):
            super().advance(count)
            if self.words == part and self.done >= 10:
                os.kill(os.getpid(), signal.SIGINT)
                self.words = ""

    with pytest.raises(Interrupted):
        judge([run], tmp_path / "stopped", settings=SETTINGS, config=CONFIG, progress=Stopping())
    assert not (tmp_path / "stopped" / "ope.json").exists()
    assert judge([run], tmp_path / "stopped", settings=SETTINGS, config=CONFIG, progress=Quiet()) == whole


def test_where_there_is_no_terminal_a_line_a_minute_says_how_far_it_is(capsys, monkeypatch):
    def said() -> list[str]:
        with Bar() as bar:
            bar.begin("acting", 2000)
            bar.advance(500)
            bar.advance(500)
            bar.begin("fitting", 10)
        return capsys.readouterr().err.splitlines()

    assert said() == ["acting: 0 of 2,000", "fitting: 0 of 10"]  # all within the minute
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    acting, _, further, fitting = said()
    assert (acting, fitting) == ("acting: 0 of 2,000", "fitting: 0 of 10")
    assert further.startswith("acting: 1,000 of 2,000, 0:00:0") and further.endswith(" left")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["RUN", "RUN"], "is named twice"),
        (["RUN", "--checkpoints", "30"], "kept no weights after 30 updates"),
        (["RUN", "--checkpoints", "worst"], "there is no checkpoint 'worst'"),
        (["RUN", "--checkpoints", "40", "40"], "checkpoint 40 is named twice"),
        (["RUN", "--discount", "1"], "discount is 1"),
        (["RUN", "--fit-updates", "4"], "fit_updates is 4"),
        (["RUN", "--target-rate", "0"], "target_rate is 0"),
        (["RUN", "--action-choice", "argmax_q"], "has one way to act"),
        (["RUN", "--dataset", "builtin"], "name data of their task"),
        (["nowhere"], "not a run folder"),
    ],
)
def test_bad_input_is_one_line(run, tmp_path, capsys, words, line):
    words = [str(run) if word == "RUN" else word for word in words]
    assert main(["ope", *words, "--out", str(tmp_path / "ope")]) == 2
    errors = capsys.readouterr().err
    assert line in errors and errors.count("\n") == 1 and "Traceback" not in errors


def test_another_evaluation_is_not_written_over(run, tmp_path, capsys):
    judge([run], tmp_path, settings=SETTINGS, config=CONFIG, progress=Quiet())
    before = (tmp_path / "ope.json").read_bytes()
    with pytest.raises(UserError, match=r"another fit_updates \(50, asked for 60\)"):
        judge([run], tmp_path, settings=dataclasses.replace(SETTINGS, fit_updates=60), config=CONFIG, progress=Quiet())
    assert (tmp_path / "ope.json").read_bytes() == before


def test_runs_that_mean_other_things_are_not_compared(run, data, tmp_path):
    scaled = trained(tmp_path / "scaled", data, "--clip-actions")
    with pytest.raises(UserError, match="another clip_actions"):
        judge([run, scaled], tmp_path / "out", settings=SETTINGS, config=CONFIG, progress=Quiet())


# --- What is said ---


def estimated(run: str, updates: int, value: float | None, score: float | None, loss: float | None = None) -> Estimated:
    policy = Judged(run, "bc", str(updates), 0, "seed 0", updates, score, loss)
    return Estimated(policy, value, value, value, () if value is None else (value - 1.0, value))


def judgement(*estimates: Estimated) -> Judgement:
    return Judgement("a file", "0", 10, 10, 2, 100.0, Terms(), fqe.Config(), estimates)


def test_ranking_by_hand():
    """Ranks 3 2 1 4 against 4 2 1 3: d = 1, 0, 0, 1, so rho = 1 - 6 x 2 / (4 x 15) = 0.8."""
    rows = [("a", 3.0, 90.0), ("b", 2.0, 20.0), ("c", 1.0, 10.0), ("d", 4.0, 50.0)]
    order = ranking([estimated(run, 1, value, score) for run, value, score in rows] + [estimated("e", 1, None, 5.0)])
    assert order is not None and order.policies == 4 and order.correlation == pytest.approx(0.8)
    assert dict(order.regret)[1] == pytest.approx((90 - 50) / 80) and dict(order.regret)[3] == 0.0
    assert regret(np.array([1.0, 2.0]), np.array([5.0, 7.0]), 1) == 0.0


def test_two_policies_have_no_order():
    assert ranking([estimated("a", 1, 1.0, 1.0), estimated("b", 1, 2.0, 2.0)]) is None
    assert ranking([estimated(run, 1, float(i), 7.0) for i, run in enumerate("abc")]) is None


def test_the_choice_of_a_checkpoint():
    rows = [("a", 1, 5.0, 30.0, 0.5), ("a", 2, 9.0, 10.0, 0.1), ("a", 3, 7.0, 20.0, 0.1), ("b", 1, 1.0, None, None)]
    (choice,) = choices([estimated(*row) for row in rows])
    assert choice.by_value.policy.updates == 2 and choice.last.policy.updates == 3
    assert choice.by_loss is not None and choice.by_loss.policy.updates == 3  # the last of equals
    assert choice.best is not None and choice.best.policy.updates == 1


def test_runs_go_by_their_last_names_where_these_differ():
    short = markdown(judgement(estimated("runs/a", 1, 1.0, None), estimated("runs/b", 1, 2.0, None)))
    assert "| a |" in short and "runs/a" not in short
    assert "| runs/a |" in markdown(judgement(estimated("runs/a", 1, 1.0, None), estimated("more/a", 1, 2.0, None)))


def test_values_that_still_move_or_ran_away_are_named():
    still = judgement(estimated("a", 1, 50.0, None), estimated("b", 1, 90.0, None))
    assert not still.moves
    moving = judgement(estimated("a", 1, 50.0, None), estimated("b", 1, 51.0, None))
    moving = dataclasses.replace(moving, logged_value=1.0)
    assert moving.moves and any("still moved" in line for line in lines(moving))
    gone = judgement(estimated("a", 1, None, 3.0), estimated("b", 1, 50.0, 4.0))
    assert any("1 policies ran away" in line or "1 policy ran away" in line for line in lines(gone))
    assert "| ran away |" in markdown(gone)
    assert len(ope_figure(gone).axes) == 2 and len(ope_figure(still).axes) == 1
