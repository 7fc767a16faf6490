import dataclasses
import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from diffcps.algorithms import diffcps, diffusion_bc
from diffcps.records.record import Evaluation, Measurement, Played, RunRecord
from diffcps.records.settings import Settings
from diffcps.run import progress
from diffcps.run.progress import Live, Silent
from tests.run.test_folder import record_of

REFERENCE = (0.0, 4000.0)


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


def record(updates: int, seeds: int = 1, kappas: tuple[float, ...] = (), reference=None, **changes: Any) -> RunRecord:
    settings = Settings(updates=updates, seeds=tuple(range(seeds)))
    sweep = {"kappa": kappas} if kappas else {}
    return record_of(**({"settings": settings, "sweep": sweep, "reference": reference} | changes))


DIFFCPS = {"actor/bc_loss": 0.0478, "dual/multiplier": 1.25, "critic/q": 231.4, "critic/loss": 3.07}


def metrics(run: RunRecord, update: int, *members: int, rate: float = 50.0) -> list[Measurement]:
    return [Measurement(update, run.members[index], DIFFCPS, rate) for index in members]


def scores(run: RunRecord, update: int, *values: float | None) -> list[Evaluation]:
    """One for each of the first members."""
    rows = zip(run.members, values, strict=False)
    return [Evaluation(update, member, value, (), (), {"selection/loss": 0.0625}) for member, value in rows]


def frame(live: Live, width: int = 120) -> list[str]:
    """What is on the screen now, with single spaces."""
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(live._render())
    return [" ".join(line.split()) for line in console.export_text().splitlines()]


def terminal() -> Console:
    return Console(force_terminal=True, force_interactive=True, width=120, height=40, file=io.StringIO())


def log() -> Console:
    return Console(force_terminal=False, force_interactive=False, file=io.StringIO())


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_what_a_stage_computes_before_its_first_update_is_named(clock: Clock) -> None:
    console, run = log(), record(100)
    with Live(console) as live:
        live.start(run, 0, {})
        clock.now = 2 * progress.LINE_SECONDS
        live.preparing(2, 5, 0, 0)
        for done in (0, 100, 200):
            clock.now += 100.0
            live.preparing(3, 5, done, 1000)
        clock.now *= 2
        live.waiting()
    told = written(console)
    assert "before stage 3 of 5, what it needs is computed for 1,000 rows, 0 done" in told
    assert "200 done, 0:13:20 left" in told  # a row a second
    assert "0 of 100 updates; before stage 2 of 5, what it needs is computed for all rows" in told
    assert told.rstrip().endswith("0 of 100 updates; compiling")


def test_silent_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    display, run = Silent(), record(10)
    display.start(run, 0, {})
    display.waiting()
    display.logged(1, metrics(run, 1, 0))
    display.evaluating(0, 1)
    display.evaluated(1, scores(run, 1, 2.0))
    display.note("hello")
    assert capsys.readouterr() == ("", "")


def test_table_of_members() -> None:
    run = record(10_000, 2, reference=REFERENCE, config=diffcps.Config(kappa=0.05))
    with Live(terminal()) as live:
        live.start(run, 0, {})
        live.logged(1000, metrics(run, 1000, 0, 1))
        live.evaluated(1000, scores(run, 1000, 3000.0, 1000.0))
        live.evaluated(2000, scores(run, 2000, 2000.0, 1200.0))
        lines = frame(live)
    assert "2,000 of 10,000 updates, 50 updates/s" in lines[0]
    assert "seed 0 2000 (50.0) 3000 (75.0) 0.0478 1.25 231 3.07" in lines
    assert "seed 1 1200 (30.0) 1200 (30.0) 0.0478 1.25 231 3.07" in lines
    assert any("(≤ 0.05)" in line for line in lines)


def test_further_rules_are_seen(clock: Clock) -> None:
    run = record(10_000, reference=REFERENCE)
    (plain,) = scores(run, 1000, 3000.0)
    rows = [dataclasses.replace(plain, also={"sample": Played(1000.0, (), ()), "argmax_q": Played(400.0, (), ())})]
    console = log()
    with Live(terminal()) as live, Live(console) as lines:
        for display in (live, lines):
            display.start(run, 0, {})
            display.logged(1000, metrics(run, 1000, 0))
            display.evaluated(1000, rows)
        table = frame(live)
    assert "member score best by sample by argmax_q" in [
        line[: len("member score best by sample by argmax_q")] for line in table
    ]
    assert any(line.startswith("seed 0 3000 (75.0) 3000 (75.0) 1000 (25.0) 400 (10.0) ") for line in table)
    assert written(console).endswith("; seed 0: 3000 (75.0), by sample 1000 (25.0), by argmax_q 400 (10.0)\n")


def test_swept_bound_is_each_members_own() -> None:
    run = record(100, 1, (0.02, 0.1))
    with Live(terminal()) as live:
        live.start(run, 0, {})
        live.logged(10, metrics(run, 10, 0, 1))
        lines = frame(live)
    assert any(line.startswith("seed 0, kappa 0.02 0.0478 / 0.02 ") for line in lines)
    assert any(line.startswith("seed 0, kappa 0.1 0.0478 / 0.1 ") for line in lines)


def test_columns_only_for_what_is_measured() -> None:
    run = record(100, algorithm="diffusion_bc", config=diffusion_bc.Config())
    with Live(terminal()) as live:
        live.start(run, 0, {})
        live.logged(10, [Measurement(10, run.members[0], {"actor/bc_loss": None}, 1.0)])
        live.evaluated(10, scores(run, 10, None))
        lines = frame(live)
    assert "member selection/loss L_d" in lines
    assert "seed 0 0.0625 –" in lines


def test_members_beyond_twelve_are_counted() -> None:
    run = record(100, 15)
    with Live(terminal()) as live:
        live.start(run, 0, {})
        live.logged(10, metrics(run, 10, *range(15)))
        lines = frame(live)
    assert any(line.startswith("seed 11 ") for line in lines)
    assert not any(line.startswith("seed 12 ") for line in lines)
    assert "... and 3 more" in lines


def test_member_that_left_is_marked() -> None:
    run = record(100, 2)
    with Live(terminal()) as live:
        live.start(run, 0, {})
        live.logged(10, metrics(run, 10, 0, 1))
        live.logged(20, metrics(run, 20, 1))
        lines = frame(live)
    assert any(line.startswith("seed 0 (stopped) 0.0478") for line in lines)
    assert any(line.startswith("seed 1 0.0478") for line in lines)


def test_the_best_of_before_a_resume_is_remembered() -> None:
    run = record(100)
    with Live(terminal()) as live:
        live.start(run, 50, {0: 777.0})
        live.logged(60, metrics(run, 60, 0))
        live.evaluated(60, scores(run, 60, 5.0))
        assert any("777" in line for line in frame(live))


def test_running_evaluation_is_seen() -> None:
    with Live(terminal()) as live:
        live.start(record(100), 0, {})
        assert "compiling" in frame(live)
        for step, alive in ((0, 40), (301, 17)):
            live.evaluating(step, alive)
        assert "evaluating, step 301, 17 of 40 episodes running" in frame(live)
        live.evaluating(0, 30)
        assert "evaluating, step 0, 30 of 30 episodes running" in frame(live)


def test_time_left_counts_evaluations_but_not_compilation(clock: Clock) -> None:
    run, live = record(1000), Live(log())
    live.start(run, 0, {})
    clock.now = 500.0  # compilation
    live.logged(100, metrics(run, 100, 0))
    assert live._words() == "100 of 1,000 updates, 50 updates/s, 0:00:18 left"  # 900 updates at the rate of 50
    clock.now = 510.0
    live.logged(200, metrics(run, 200, 0))
    assert live._words() == "200 of 1,000 updates, 50 updates/s, 0:01:20 left"  # 800 at 100 per 10 s by the clock
    live.logged(1000, metrics(run, 1000, 0))
    assert live._words() == "1,000 of 1,000 updates, 50 updates/s"


def test_note_stands_above_and_terminal_is_left_clean_after_an_interrupt() -> None:
    console = terminal()
    with pytest.raises(KeyboardInterrupt), Live(console) as live:
        live.start(record(100), 0, {})
        live.note("member 0 [seed 0] diverged")
        raise KeyboardInterrupt
    text = written(console)
    assert "member 0 [seed 0] diverged" in text
    assert text.rindex("diverged") < text.rindex("0 of 100 updates")
    assert "stopped" in text[text.rindex("0 of 100 updates") :]
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor was hidden and is back


def test_log_has_a_line_per_evaluation_and_nothing_between(clock: Clock) -> None:
    console, run = log(), record(10_000, 2, (0.05,), REFERENCE)
    with Live(console) as live:
        live.start(run, 0, {})
        for update in (1000, 2000):
            clock.now += 25.0
            live.waiting()
            live.logged(update, metrics(run, update, 0, 1))
            live.evaluating(0, 20)
        live.evaluated(2000, scores(run, 2000, 3000.0, 1000.0))
    assert written(console) == (
        "2,000 of 10,000 updates, 50 updates/s, 0:03:20 left; "
        "seed 0, kappa 0.05: 3000 (75.0); seed 1, kappa 0.05: 1000 (25.0)\n"
    )


def test_log_is_never_silent_for_more_than_a_minute(clock: Clock) -> None:
    console, run = log(), record(10_000)
    with Live(console) as live:
        live.start(run, 0, {})
        for second in range(0, 121, 10):  # compiling
            clock.now = float(second)
            live.waiting()
        live.logged(100, metrics(run, 100, 0))
        clock.now = 185.0
        live.evaluating(12, 9)
        live.note("member 0 diverged")
    assert written(console).splitlines() == [
        "0 of 10,000 updates; compiling",
        "0 of 10,000 updates; compiling",
        "100 of 10,000 updates, 50 updates/s, 0:03:18 left; evaluating, step 12, 9 of 9 episodes running",
        "member 0 diverged",
    ]


def test_log_line_without_environment_and_with_many_members() -> None:
    console, run = log(), record(100, 14)
    with Live(console) as live:
        live.start(run, 0, {})
        live.logged(50, metrics(run, 50, *range(14)))
        live.evaluated(50, scores(run, 50, *[None] * 14))
    (line,) = written(console).splitlines()
    assert "; seed 0: selection/loss 0.0625; " in line
    assert line.endswith("seed 11: selection/loss 0.0625; ... and 2 more")
