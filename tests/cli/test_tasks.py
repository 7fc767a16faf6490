"""Tasks on the command line: list, get, convert, and training by a task's name."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from diffcps.cli.main import main
from diffcps.data import load_dataset
from diffcps.readers.hashes import sha256_of_file
from diffcps.tasks.catalogue import catalogue, find_task
from diffcps.types import EnvironmentSpec
from tests.data.files import hopper_bytes

ROWS = 40
SMALL = ("--updates", "4", "--eval-every", "2", "--log-every", "2", "--width", "8", "--depth", "1", "--episodes", "1")


def write_d4rl(path: Path, seed: int = 0) -> Path:
    """As D4RL's: neither environment nor reference scores."""
    path.write_bytes(hopper_bytes(ROWS, seed))
    return path


@pytest.fixture
def published(tmp_path, monkeypatch) -> Path:
    """A small file, which the catalogue takes for that of hopper-medium-v2; the data folder is empty."""
    path = write_d4rl(tmp_path / "hopper_medium-v2.hdf5")
    facts = {"bytes": path.stat().st_size, "sha256": sha256_of_file(path, "")}
    tasks = {**catalogue(), "hopper-medium-v2": replace(find_task("hopper-medium-v2"), **facts)}
    for module in ("diffcps.tasks.catalogue", "diffcps.data.load"):
        monkeypatch.setattr(f"{module}.catalogue", lambda: tasks)
    monkeypatch.setenv("DIFFCPS_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)
    return path


@pytest.fixture
def no_updates(monkeypatch):
    """Runs are resolved, checked, and written down, and make neither an update nor a picture."""
    monkeypatch.setattr("diffcps.run.train._fit", lambda *arguments: None)
    monkeypatch.setattr("diffcps.run.curves.save_curves", lambda *arguments: None)


@pytest.fixture
def run(capsys, published):
    """Runs a command; its code, output and error."""

    def command(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        if code:
            assert code == 2 and captured.out == ""
            assert re.fullmatch(r"diffcps: error: [^\n]+\n", captured.err), captured.err
        return code, captured.out, captured.err

    return command


def config(out: Path) -> dict:
    return json.loads((out / "config.json").read_text())


def test_list(run):
    code, out, _ = run("data", "list")
    assert code == 0 and "hopper-medium-v2" in out and "trifinger-cube-lift-sim-expert-v0" in out
    code, out, _ = run("data", "list", "--family", "maze2d")
    assert code == 0 and "maze2d-umaze-v1" in out and "hopper" not in out
    assert "no family maze; there are gym, antmaze, maze2d" in run("data", "list", "--family", "maze")[2]


def test_get_from_a_file(run, published, tmp_path):
    code, out, _ = run("data", "get", "hopper-medium-v2", "--from", published)
    assert code == 0 and "size and SHA-256 are the published ones" in out and "train ALGORITHM --task" in out
    _, out, _ = run("data", "list", "--family", "gym")
    assert re.search(r"hopper-medium-v2 +yes ", out) and re.search(r"hopper-random-v2 +no ", out)
    wrong = write_d4rl(tmp_path / "wrong.hdf5", seed=1)
    assert "is not that of the published file" in run("data", "get", "hopper-medium-v2", "--from", wrong)[2]
    assert "did you mean hopper-medium-v2?" in run("data", "get", "hopper-medum-v2")[2]
    assert "not allowed with argument --from" in run("data", "get", "x", "--from", wrong, "--minari")[2]


def test_get_offline(run, published, tmp_path):
    line = run("data", "get", "hopper-medium-v2", "--url", "http://127.0.0.1:9/hopper.hdf5")[2]
    assert "no connection" in line and "--from FILE" in line
    assert not list((tmp_path / "cache").iterdir())


def test_convert(run, published, tmp_path):
    code, out, _ = run("data", "convert", published, "new.npz", "--task", "hopper-medium-v2")
    assert code == 0 and out == "written: new.npz\n"
    assert load_dataset(tmp_path / "new.npz").info.environment == EnvironmentSpec("Hopper-v4")
    assert "--overwrite" in run("data", "convert", published, "new.npz")[2]
    assert run("data", "convert", published, "new.npz", "--overwrite")[0] == 0
    assert "name a .hdf5, .h5 or .npz file" in run("data", "convert", published, "new.csv")[2]


@pytest.mark.filterwarnings("ignore:.*Hopper-v4 is out of date")
def test_convert_to_minari_names_the_environment(run, published, tmp_path, monkeypatch):
    import minari

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    assert run("data", "convert", published, "toy/hopper-v0", "--task", "hopper-medium-v2")[0] == 0
    spec = minari.load_dataset("toy/hopper-v0").env_spec
    assert spec is not None and spec.id == "Hopper-v4"


@pytest.mark.filterwarnings("ignore:.*Hopper-v4 is out of date")
def test_train_by_task(run, published, tmp_path, no_updates):
    train = ("train", "diffusion_bc", "--task", "hopper-medium-v2")
    line = run(*train, *SMALL)[2]
    assert "the data are not here; fetch them with `diffcps data get hopper-medium-v2`" in line
    assert not (tmp_path / "runs").exists()

    run("data", "get", "hopper-medium-v2", "--from", published)
    assert run(*train, *SMALL)[0] == 0
    out = tmp_path / "runs" / "diffusion_bc-hopper-medium-v2"
    record = config(out)
    assert (record["env"], record["reference"]) == ("Hopper-v4", [-20.272305, 3234.3])
    assert (record["dataset"]["source"], record["dataset"]["task"]) == ("hopper-medium-v2", "hopper-medium-v2")

    for resumed in (
        ("train", "diffusion_bc", "--out", out, "--resume", "--updates", "6"),
        (*train, "--resume", "--updates", "8"),
        (*train, "--dataset", published, "--out", out, "--resume", "--updates", "10"),
    ):
        assert run(*resumed)[0] == 0
        assert config(out)["updates"] == int(resumed[-1])
    other = ("train", "diffusion_bc", "--task", "hopper-random-v2", "--out", out, "--resume")
    assert "holds a run on hopper-medium-v2, not on hopper-random-v2" in run(*other)[2]


def test_a_task_sets_the_preset_and_flags_override(run, published, tmp_path, no_updates):
    run("data", "get", "hopper-medium-v2", "--from", published)
    train = ("train", "diffcps", "--task", "hopper-medium-v2", "--env", "none", *SMALL)
    assert run(*train, "--out", "one")[0] == 0
    record = config(tmp_path / "one")
    assert (record["config"]["kappa"], record["config"]["max_grad_norm"]) == (0.05, 9.0)
    assert (record["env"], record["reference"]) == (None, None)

    assert run(*train, "--out", "two", "--preset", "hopper-medium-expert", "--max-grad-norm", "4")[0] == 0
    record = config(tmp_path / "two")
    assert (record["config"]["kappa"], record["config"]["max_grad_norm"]) == (0.03, 4.0)


@pytest.mark.filterwarnings("ignore:.*Hopper-v4 is out of date")
def test_own_data_for_a_task(run, published, tmp_path, no_updates):
    own = write_d4rl(tmp_path / "own.hdf5", seed=1)
    train = ("train", "diffusion_bc", "--task", "hopper-medium-v2", "--dataset", own, "--out", "own")
    assert run(*train, *SMALL)[0] == 0
    record = config(tmp_path / "own")
    assert (record["env"], record["reference"], record["dataset"]["source"]) == (
        "Hopper-v4", [-20.272305, 3234.3], str(own)
    )  # fmt: skip
    assert run("train", "diffusion_bc", "--out", "own", "--resume", "--updates", "6")[0] == 0
    assert run("train", "diffusion_bc", "--task", "hopper-medium-v2", "--out", "own", "--resume")[0] == 0
    assert "17 and 6" in run("train", "diffusion_bc", "--task", "walker2d-medium-v2", "--dataset", own)[2]
