"""Studies as they run: cells in processes, what fails, what is killed, what is asked to stop; and their results."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from diffcps.envs.toy import stitching
from diffcps.records.folder import RunFolder
from diffcps.records.record import UnmetBound
from diffcps.study.plan import read_study
from diffcps.study.results import results_of, write_results
from diffcps.study.run import Work, ended, log_of, run_study, standing_of
from diffcps.types import UserError

PLAN = """
[study]
seeds = [0, 1]
updates = 40
eval_every = 20
log_every = 10
episodes = 2

[final]
episodes = 3
also_act = ["sample"]

[data.cross]
dataset = "cross.npz"
env = "diffcps/Stitching-v0"

[methods.bc]
width = 16
depth = 1

[methods.diffusion_ql]
width = 16
depth = 1
batch_size = 16
num_steps = 2
num_candidates = 2
q_weight = [0.5, 1.0]
"""
REFUSED = """
[methods.diffuser]
horizon = 64
padded_below = 0
"""


def written(folder: Path, text: str = PLAN) -> Path:
    """The plan in a file, with its data beside it."""
    data = stitching(40)
    names = {"observations": "observation", "actions": "action", "rewards": "reward", "terminals": "terminal"}
    arrays = {name: np.asarray(getattr(data, field)) for name, field in names.items()}
    arrays |= {"timeouts": np.asarray(data.timeout), "next_observations": np.asarray(data.next_observation)}
    np.savez(folder / "cross.npz", **arrays)  # pyright: ignore[reportArgumentType]
    path = folder / "plan.toml"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[Work]]:
    """A study with a method that these data are too short for: its plan, its folder, what became of it."""
    folder = tmp_path_factory.mktemp("study")
    plan = written(folder, PLAN + REFUSED)
    return plan, folder / "out", run_study(plan, folder / "out", workers=min(2, len(os.sched_getaffinity(0))))


def test_a_cell_that_fails_is_recorded_and_the_others_go_on(made):
    _, out, work = made
    states = {one.cell.name: one.state for one in work}
    assert states == {"cross/bc": "done", "cross/diffusion_ql": "done", "cross/diffuser": "failed"}
    failed = work[2]
    assert "longest of its episodes has 30 steps, and the windows of diffuser need 65" in failed.line
    assert failed.line in log_of(failed.cell, out).read_text()
    command = RunFolder(out / "cross" / "bc").read_record().command
    assert command == f"diffcps study run study.toml --out {out}"
    assert [(one.state, one.line) for one in standing_of(out)] == [("done", ""), ("done", ""), ("failed", failed.line)]


def test_what_is_done_is_not_done_again(made):
    plan, out, _ = made
    logs = {path: path.read_bytes() for path in out.rglob("*.jsonl")}
    changed = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    seen: list[Sequence[Work]] = []
    work = run_study(plan, out, watch=seen.append)
    assert [one.state for one in work] == ["done", "done", "failed"]
    assert [one.state for one in seen[0]][:2] == ["done", "done"]
    assert {path: path.read_bytes() for path in out.rglob("*.jsonl")} == logs
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")} == changed


def test_what_is_missing_is_left_to_do(made, tmp_path):
    _, out, _ = made
    shutil.copytree(out, tmp_path / "out")
    RunFolder(tmp_path / "out" / "cross" / "bc").forget_after(20)
    (played,) = (tmp_path / "out" / "cross" / "diffusion_ql" / "evaluations").glob("*-sample.json")
    played.unlink()
    assert [one.state for one in standing_of(tmp_path / "out")] == ["begun", "begun", "failed"]


def test_a_folder_belongs_to_one_plan(made, tmp_path):
    _, out, _ = made
    with pytest.raises(UserError, match="holds the study of another plan"):
        run_study(written(tmp_path), out)
    with pytest.raises(UserError, match="1000 workers: take one or more"):
        run_study(written(tmp_path), tmp_path / "out", workers=1000)
    with pytest.raises(UserError, match=r"is no folder of a study \(it has no study\.toml\)"):
        standing_of(tmp_path)


def test_a_cell_that_was_stopped_before_it_listened_is_left_to_do(made):
    _, out, work = made
    assert [ended(work[0].cell, code, out).state for code in (0, 130, -signal.SIGINT)] == ["done", "waiting", "waiting"]


def test_results_are_a_row_for_each_evaluation_and_member(made, tmp_path):
    plan, out, _ = made
    results = results_of(read_study(plan), out)
    training = [row for row in results if row.protocol == "training"]
    final = [row for row in results if row.protocol == "final"]
    assert len(training) == 2 * 2 + 2 * 4  # evaluations x members
    assert [(row.origin.method, row.acting) for row in final[:2]] == [("bc", None)] * 2
    assert [row.acting for row in final[2:]] == ["softmax_q"] * 4 + ["sample"] * 4
    assert all(row.update == 40 and row.checkpoint == "last" and len(row.returns) == 3 for row in final)
    assert [row.config["q_weight"] for row in final[2:6]] == [0.5, 0.5, 1.0, 1.0]
    assert [row.seed for row in final[2:6]] == [0, 1, 0, 1]
    for row in results:
        assert row.score == pytest.approx(np.mean(row.returns))
    path = tmp_path / "results.parquet"
    write_results(results, path)
    table = pyarrow.parquet.read_table(path)
    assert table.num_rows == len(results)
    assert str(table.schema.field("returns").type) == "list<element: double>"
    assert str(table.schema.field("failure").type) == "string"
    assert table["config.q_weight"].to_pylist()[-1] == 1.0 and table["config.q_weight"].to_pylist()[0] is None
    assert table["dataset_sha256"].to_pylist()[0] == results[0].origin.dataset_sha256 != ""
    assert str(table.schema.field("unmet_bound").type) == "string"


def test_a_bound_that_a_member_did_not_meet_stands_in_its_results(made, tmp_path):
    plan, made_out, _ = made
    out = tmp_path / "out"
    shutil.copytree(made_out, out)
    folder = RunFolder(out / "cross" / "diffusion_ql")
    member = folder.read_record().members[1]
    unmet = UnmetBound(member, "actor/bc_loss", "kappa", 0.05, 0.11, 1.6)
    folder.write_summary(dataclasses.replace(folder.read_summary(), unmet_bounds=(unmet,)))
    results = results_of(read_study(plan), out)
    told = {(row.origin.method, row.member, row.protocol) for row in results if row.unmet_bound == "kappa 0.05"}
    assert told == {("diffusion_ql", 1, "training"), ("diffusion_ql", 1, "final")}
    assert {row.unmet_bound for row in results} == {None, "kappa 0.05"}


# --- Kills ---


def started(plan: Path, out: Path, *words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "diffcps.cli.main", "study", "run", str(plan), "--out", str(out), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for(what: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited for nothing"
        time.sleep(0.05)


def logs(out: Path) -> dict[str, str]:
    """What the runs have logged, but for the times."""
    return {str(path.relative_to(out)): path.read_text() for path in sorted(out.rglob("evaluations.jsonl"))}


LONG = PLAN.replace("updates = 40", "updates = 2000").replace("[methods.bc]", "[methods.bc]\nbatch_size = 16")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("undisturbed")
    run_study(written(folder, LONG), folder / "out")
    return logs(folder / "out")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_study_that_was_stopped_ends_with_the_same_numbers(number, tmp_path, undisturbed):
    plan, out = written(tmp_path, LONG), tmp_path / "out"
    rows = out / "cross" / "bc" / "evaluations.jsonl"
    with started(plan, out) as process:
        wait_for(lambda: rows.exists() and len(rows.read_text().splitlines()) > 3)
        process.send_signal(number)
        _, said = process.communicate(timeout=120)
    if number == signal.SIGKILL:
        wait_for(lambda: "interrupted, and saved" in (out / "cross" / "bc.log").read_text())
    else:
        assert process.returncode == 130, said
        assert b"stopped, and saved; the same command goes on" in said
    assert "2000" not in rows.read_text().splitlines()[-1][:20]
    with started(plan, out) as again:
        said, _ = again.communicate(timeout=300)
    assert again.returncode == 0
    assert b"2 of 2 runs done" in said
    assert logs(out) == undisturbed


@pytest.mark.slow
def test_a_worker_that_is_killed_is_a_failure_and_goes_on_with_the_next_call(tmp_path, undisturbed):
    plan, out = written(tmp_path, LONG), tmp_path / "out"
    killed = False

    def kill(work: Sequence[Work]) -> None:
        nonlocal killed
        rows = out / "cross" / "bc" / "evaluations.jsonl"
        if not killed and rows.exists() and len(rows.read_text().splitlines()) > 3:
            subprocess.run(["pkill", "-KILL", "-f", f"diffcps.study.worker {out} {plan.parent} cross/bc"], check=True)
            killed = True

    work = run_study(plan, out, watch=kill)
    assert killed
    assert [one.state for one in work] == ["failed", "done"]
    assert work[0].line == "ended with exit status -9 and without a word"
    assert [one.state for one in run_study(plan, out)] == ["done", "done"]
    assert logs(out) == undisturbed
