import dataclasses
import io

from rich.console import Console

from diffcps.evaluation.scores import Score, Scores
from diffcps.records.record import MemberEpisodes, MemberScores, RunEvaluation, Selected, Summary
from diffcps.run.table import evaluation_table, run_table
from diffcps.training.members import Member
from diffcps.types import EnvironmentSpec

REFERENCE = (0.0, 4000.0)


def score(value: float, *updates: int) -> Score:
    return Score(updates, value, value / 40)


def member(index: int, seed: int, value: float, **swept: float) -> MemberScores:
    scores = Scores(
        last=score(value, 6000),
        best=score(value + 400, 4500),
        mean_of_last=score(value - 100, 4500, 5250, 6000),
        offline_selected=score(value - 200, 5250),
    )
    return MemberScores(Member(index, seed, swept), scores)


def summary(*members: MemberScores) -> Summary:
    return Summary("diffcps", "Hopper-v5", 6000, None, REFERENCE, members)


def printed(summary: Summary) -> list[str]:
    """The lines printed, with single spaces."""
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(run_table(summary))
    return [" ".join(line.split()) for line in console.export_text().splitlines()]


def test_four_scores_raw_and_normalised() -> None:
    lines = printed(summary(member(0, 7, 2000.0)))
    assert lines[0] == "diffcps on Hopper-v5, 6,000 updates"
    assert "7 2000 (50.0) 2400 (60.0) 4.5k 1900 (47.5) 1800 (45.0) 5250" in lines
    assert "seed last best at last 3 selected at" in lines
    assert not any("mean ± std" in line for line in lines)  # one seed has no spread


def test_the_data_stand_in_the_title() -> None:
    lines = printed(dataclasses.replace(summary(member(0, 7, 2000.0)), data_return=466.0))
    assert "; mean return of the data: 466 (11.7)" in " ".join(lines)


def test_mean_and_std_over_seeds() -> None:
    lines = printed(summary(member(0, 0, 2000.0), member(1, 1, 2400.0)))
    # by hand: 2000 and 2400 are 2200 ± 200 and, normalised, 50 and 60: 55 ± 5
    row = lines.index("mean ± std 2200 ± 200 2600 ± 200 2100 ± 200 2000 ± 200")
    assert lines[row + 1] == "(55.0 ± 5.0) (65.0 ± 5.0) (52.5 ± 5.0) (50.0 ± 5.0)"


def test_a_mean_per_combination() -> None:
    members = [member(i, i % 2, 1000.0 * (i + 1), kappa=(0.02, 0.1)[i // 2]) for i in range(4)]
    lines = printed(summary(*members))
    assert any(line.startswith("0.02 1 2000 (50.0)") for line in lines)
    assert any(line.startswith("0.02 mean ± std 1500 ± 500 ") for line in lines)
    assert any(line.startswith("0.1 mean ± std 3500 ± 500 ") for line in lines)


def test_further_rules_have_columns_for_what_is_not_chosen() -> None:
    rows = [member(i, i, 2000.0 + 400 * i) for i in (0, 1)]
    by_sample = [member(i, i, 1000.0 + 200 * i).scores for i in (0, 1)]
    further = [
        dataclasses.replace(row, also={"sample": scores})
        for row, scores in zip(rows, by_sample, strict=True)
        if scores is not None
    ]
    lines = printed(summary(*further))
    assert "0 2000 (50.0) 2400 (60.0) 4.5k 1900 (47.5) 1800 (45.0) 5250 1000 (25.0) 900 (22.5)" in lines
    assert any(
        line.startswith("mean ± std 2200 ± 200 2600 ± 200 2100 ± 200 2000 ± 200 1100 ± 100 1000 ± 100")
        for line in lines
    )
    assert any(line.endswith("sample sample") for line in lines)
    assert "the same evaluations by further rules" in " ".join(lines)
    assert "further rules" not in " ".join(printed(summary(*rows)))


def test_without_reference_only_raw_numbers() -> None:
    def raw(row: MemberScores) -> MemberScores:
        assert row.scores is not None
        found = {kind: score and score._replace(normalised=None) for kind, score in row.scores._asdict().items()}
        return MemberScores(row.member, row.scores._replace(**found))

    rows = [raw(member(i, i, 0.25 + 0.5 * i)) for i in (0, 1)]
    lines = printed(dataclasses.replace(summary(*rows), reference=None))
    assert any(line.startswith("0 0.25 400.2 4.5k ") for line in lines)
    assert any(line.startswith("mean ± std 0.5 ± 0.25 ") for line in lines)


def test_members_that_stopped_early_are_told() -> None:
    whole = member(0, 0, 2000.0)
    assert whole.scores is not None
    early = MemberScores(whole.member, whole.scores._replace(last=score(2000.0, 3000), offline_selected=None))
    never = MemberScores(Member(1, 1, {}), None)
    lines = printed(summary(early, never, member(2, 2, 2400.0)))
    assert any(line.startswith("0 2000 (50.0) at 3k ") for line in lines)
    assert any(line.startswith("1 – – – –") for line in lines)
    assert "2 of 3 seeds 2 of 3 seeds 2 of 3 seeds 1 of 3 seeds" in lines


def test_run_without_environment() -> None:
    rows = (MemberScores(Member(0, 5, {}), None),)
    lines = printed(Summary("diffusion_bc", None, 100, None, None, rows))
    assert lines[0] == "diffusion_bc on no environment, 100 updates"
    assert "5" in lines
    assert "No scores: the run has no environment, or was not evaluated." in lines


def test_without_scores_the_selected_checkpoint_is_told() -> None:
    rows = tuple(MemberScores(Member(i, i, {}), None, Selected(1500 * (i + 1), 0.25 + 0.5 * i)) for i in (0, 1))
    lines = printed(Summary("diffusion_bc", None, 3000, None, None, rows))
    assert "seed selection/loss at" in lines
    assert "0 0.25 1.5k" in lines and "1 0.75 3k" in lines and "mean ± std 0.5 ± 0.25" in lines
    assert "saved as checkpoint selected" in " ".join(lines)


def test_evaluation_tells_both_success_rates_where_there_are_some() -> None:
    for successes, heading, cells in (
        ((None, None), "seed updates return episodes normalised", "3 6,000 512 20 68.3"),
        ((0.875, 1.0), "seed updates return episodes normalised last step any step", "3 6,000 512 20 68.3 0.875 1.000"),
    ):
        row = MemberEpisodes(Member(0, 3, {}), 6000, 512.0, 20.0, 68.27, *successes, (512.0,), (10,))
        environment = EnvironmentSpec("Push-v0", max_episode_steps=9)
        console = Console(width=120, file=io.StringIO(), record=True)
        console.print(evaluation_table(RunEvaluation("diffcps", "best", environment, 8, 1000, None, (row,))))
        lines = [" ".join(line.split()) for line in console.export_text().splitlines()]
        assert lines[0].startswith("diffcps in Push-v0, 9 steps, checkpoint best")
        assert heading in lines and cells in lines
        explained = "a success at the last step, and at any step" in " ".join(lines)
        assert explained == (successes[0] is not None)
