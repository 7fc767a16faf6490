"""A run that is killed or interrupted, and resumed, ends with the bytes of a run that was not."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import diffcps
from diffcps.algorithms import bc
from diffcps.envs.toy import stitching
from diffcps.records.folder import RunFolder
from diffcps.run.progress import Display, Silent
from diffcps.training.loop import Interrupted

UPDATES = 400
COMMAND = (
    *("--dataset", "builtin", "--seeds", "0", "1", "--episodes", "1"),
    *("--updates", str(UPDATES), "--eval-every", "100", "--log-every", "20", "--width", "16", "--depth", "1"),
    *("--keep", "2", "--keep-every", "200"),
)
METHODS = {"td3_bc": (), "diffcps": ("--num-steps", "2", "--num-candidates", "2", "--ema-start", "10")}
"""The first compiles soon; a state of DiffCPS has more in it."""


@pytest.fixture(scope="module", params=["td3_bc", pytest.param("diffcps", marks=pytest.mark.slow)])
def method(request) -> str:
    return request.param


def start(method: str, out: Path, *more: str) -> subprocess.Popen[str]:
    words = ["train", method, *COMMAND, *METHODS[method], "--out", str(out), *more]
    command = [sys.executable, "-m", "diffcps.cli.main", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str], code: int) -> str:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == code, errors
    return errors


def wait_for_rows(process: subprocess.Popen[str], out: Path, count: int) -> None:
    deadline = time.monotonic() + 300
    path = out / "metrics.jsonl"
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and path.read_text().count("\n") >= count:
            return
        time.sleep(0.005)
    raise AssertionError(f"no {count} rows in {path} before the run ended")


def results(out: Path) -> dict[str, object]:
    """Everything that must not depend on interruptions: checkpoints, scores and metrics, but no clock."""
    found: dict[str, object] = {path.name: path.read_bytes() for path in sorted((out / "checkpoints").iterdir())}
    found["evaluations"] = (out / "evaluations.jsonl").read_text()
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    found["metrics"] = [{name: value for name, value in row.items() if name != "updates_per_second"} for row in rows]
    found["summary"] = RunFolder(out).read_summary()
    return found


@pytest.fixture(scope="module")
def uninterrupted(method, tmp_path_factory) -> dict[str, object]:
    out = tmp_path_factory.mktemp("uninterrupted") / "run"
    finish(start(method, out), 0)
    device = json.loads((out / "config.json").read_text())["device"]
    assert device == f"cpu x {len(os.sched_getaffinity(0))}", "members train side by side, a core each"
    found = results(out)
    assert set(found) >= {f"{name}.safetensors" for name in ("last", "best", 200, 300, 400)}
    assert len(found["metrics"]) == 2 * UPDATES // 20  # pyright: ignore[reportArgumentType]
    return found


def test_kill_9_at_a_random_moment(method, uninterrupted, tmp_path):
    rows = random.Random().randrange(2, 2 * UPDATES // 20 - 2)
    print(f"killed after {rows} rows")  # shown when the test fails
    process = start(method, tmp_path / "run")
    wait_for_rows(process, tmp_path / "run", rows)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    finish(start(method, tmp_path / "run", "--resume"), 0)
    assert results(tmp_path / "run") == uninterrupted


def test_ctrl_c_saves_and_says_how_to_go_on(method, uninterrupted, tmp_path):
    process = start(method, tmp_path / "run")
    wait_for_rows(process, tmp_path / "run", 6)
    process.send_signal(signal.SIGINT)
    line = finish(process, 130)
    assert "and saved; go on with the same command and --resume" in line and "Traceback" not in line
    assert (tmp_path / "run" / "checkpoints" / "last.safetensors").exists()
    before = (tmp_path / "run" / "metrics.jsonl").read_text().count("\n")
    assert before < 2 * UPDATES // 20, "the run had ended before Ctrl-C came"
    assert (tmp_path / "run" / "summary.json").exists() and (tmp_path / "run" / "curves.png").exists()
    finish(start(method, tmp_path / "run", "--resume"), 0)
    assert results(tmp_path / "run") == uninterrupted


class StopsWhilePlaying(Silent):
    """Presses Ctrl-C at a step of the second evaluation."""

    def __init__(self):
        self.evaluations = 0
        self.steps = 0

    def evaluating(self, step: int, alive: int) -> None:
        self.evaluations += step == 0
        if self.evaluations == 2:
            self.steps += 1
            if step == 3:
                signal.raise_signal(signal.SIGINT)


def test_an_evaluation_is_broken_off_by_ctrl_c_and_made_when_the_run_goes_on(tmp_path):
    config = bc.Config(width=8, depth=1, batch_size=8)
    settings = diffcps.Settings(env="diffcps/Stitching-v0", updates=8, eval_every=4, log_every=2, episodes=2)

    def train(out: Path, resume: bool = False, display: Display | None = None) -> str:
        diffcps.train(config, stitching(20), settings, out=out, resume=resume, display=display)
        return (out / "evaluations.jsonl").read_text()

    undisturbed, display = train(tmp_path / "undisturbed"), StopsWhilePlaying()
    with pytest.raises(Interrupted, match="stopped after 8 updates"):
        train(tmp_path / "run", display=display)
    assert display.steps == 4  # of 30
    assert len((tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()) == 1
    assert train(tmp_path / "run", resume=True) == undisturbed
