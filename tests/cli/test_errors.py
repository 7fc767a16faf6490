"""Bad input: one clear line on stderr, exit code 2, no traceback, and nothing left behind."""

import errno
import os
import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from diffcps.cli.main import main
from diffcps.records.folder import RunFolder
from diffcps.storage import read_rows

ROWS = 40


def write_dataset(path, **changes):
    rng = np.random.default_rng(0)
    fields = {
        "observations": rng.normal(size=(ROWS, 11)).astype(np.float32),
        "actions": rng.uniform(-1, 1, size=(ROWS, 3)).astype(np.float32),
        "rewards": rng.normal(size=ROWS).astype(np.float32),
        "next_observations": rng.normal(size=(ROWS, 11)).astype(np.float32),
        "terminals": np.arange(ROWS) % 10 == 9,
        "timeouts": np.zeros(ROWS, bool),
    } | changes
    with h5py.File(path, "w") as file:
        for name, value in fields.items():
            if value is not None:
                file[name] = value
    return str(path)


@pytest.fixture
def fails(capsys, tmp_path):
    """Runs a command that must fail and returns its one line."""

    def run(*arguments) -> str:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert code == 2, captured
        assert captured.out == ""
        assert re.fullmatch(r"diffcps: error: [^\n]+\n", captured.err), captured.err
        return captured.err

    return run


@pytest.fixture
def train_fails(fails, tmp_path):
    def run(*arguments) -> str:
        line = fails("train", "diffusion_bc", "--out", tmp_path / "run", *arguments)
        assert not (tmp_path / "run" / "config.json").exists()
        return line

    return run


def test_data_that_cannot_be_read(train_fails, tmp_path):
    missing = tmp_path / "missing.hdf5"
    assert f"{missing}: no such file" in train_fails("--dataset", missing)

    text = tmp_path / "text.hdf5"
    text.write_text("observations, actions, rewards\n")
    assert str(text) in (line := train_fails("--dataset", text)) and "HDF5" in line

    whole = write_dataset(tmp_path / "whole.hdf5")
    cut = tmp_path / "cut.hdf5"
    cut.write_bytes(Path(whole).read_bytes()[:3000])
    assert str(cut) in (line := train_fails("--dataset", cut)) and "truncated" in line


def test_data_that_is_wrong(train_fails, tmp_path):
    path = tmp_path / "data.hdf5"
    line = train_fails("--dataset", write_dataset(path, actions=None))
    assert "actions" in line and "observations" in line and "terminals" in line  # the accepted names

    line = train_fails("--dataset", write_dataset(path, actions=np.zeros((ROWS - 1, 3), np.float32)))
    assert "actions" in line and str(ROWS - 1) in line and str(ROWS) in line

    observations = np.zeros((ROWS, 11), np.float32)
    observations[17, 2] = np.nan
    line = train_fails("--dataset", write_dataset(path, observations=observations))
    assert "observation" in line and "row 17" in line

    actions = np.zeros((ROWS, 3), np.float32)
    actions[5, 1] = 1.5
    line = train_fails("--dataset", write_dataset(path, actions=actions))
    assert "row 5" in line and "1.5" in line and "[-1, 1]" in line


def test_environments(train_fails, tmp_path):
    path = write_dataset(tmp_path / "data.hdf5")
    assert "Hopper-v5" in train_fails("--dataset", path, "--env", "Hoper-v5")  # the nearest is suggested
    line = train_fails("--dataset", path, "--env", "HalfCheetah-v5")
    assert "11" in line and "17" in line and path in line and "HalfCheetah-v5" in line


def test_configurations(train_fails, fails):
    assert "unknown flag --learning-rat: did you mean --learning-rate?" in train_fails("--learning-rat", "1e-3")
    assert "argument --width: invalid int value: 'wide'" in train_fails("--width", "wide")
    assert "width is 0: it must be 1 or more" in train_fails("--width", "0")
    assert "learning_rate is nan" in train_fails("--learning-rate", "nan")
    assert "learning_rate is swept over" in train_fails("--learning-rate", "1e-3", "1e-3")
    assert "seeds names 3 twice" in train_fails("--seeds", "3", "1", "3")
    assert "did you mean hopper-medium?" in train_fails("--preset", "hoper-medium")
    assert "invalid choice: 'diffcsp'" in fails("train", "diffcsp")
    assert "argument --schedule: invalid choice: 'vpp' (choose from" in train_fails("--schedule", "vpp")


def test_runs_that_cannot_be_evaluated(fails, tmp_path):
    assert "not a run folder" in fails("evaluate", tmp_path)
    assert "no such file" in fails("data", "show", tmp_path / "missing.npz")


SMALL = ("--env", "none", "--updates", "4", "--eval-every", "2", "--log-every", "2", "--width", "8", "--depth", "1")


@pytest.fixture
def small_run(tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["train", "diffusion_bc", "--out", str(out), *SMALL]) == 0
    capsys.readouterr()
    return out


def test_a_folder_that_holds_a_run(small_run, fails):
    before = {path: path.read_bytes() for path in small_run.rglob("*") if path.is_file()}
    again = ("train", "diffusion_bc", "--out", small_run)
    assert "holds a run already; add --resume" in fails(*again, *SMALL)
    assert "another width: the run has 8, you gave 9" in fails(*again, "--resume", "--width", "9")
    assert "another seeds: the run has [0], you gave [0, 1]" in fails(*again, "--resume", "--seeds", "0", "1")
    assert "another updates: the run has 4, you gave 2" in fails(*again, "--resume", "--updates", "2")
    assert "holds a run of diffusion_bc, not of diffcps" in fails("train", "diffcps", "--out", small_run, "--resume")
    with RunFolder(small_run).locked():
        assert "another process is writing this run" in fails(*again, "--resume")
    assert "was trained without an environment" in fails("evaluate", small_run, "--checkpoint", "last")
    assert "has no checkpoint best (it has no scores, so none is best): take selected or last" in fails(
        "evaluate", small_run
    )
    assert {path: path.read_bytes() for path in small_run.rglob("*") if path.is_file()} == before


def test_a_full_disk(small_run, fails, monkeypatch):
    """The checkpoint of before stands, and the run goes on from it when there is room again."""
    last = small_run / "checkpoints" / "last.safetensors"
    before = last.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    longer = ("train", "diffusion_bc", "--out", small_run, "--resume", "--updates", "6")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert "No space left on device; nothing that was saved before is lost" in fails(*longer)
    assert last.read_bytes() == before
    assert not list(small_run.rglob("*.tmp"))
    assert main([str(word) for word in longer]) == 0
    assert read_rows(small_run / "metrics.jsonl")[-1]["update"] == 6


def test_a_warning_is_one_line_without_the_place_in_the_code(monkeypatch, capsys):
    def command(options):
        print(warnings.formatwarning("old\nversion", UserWarning, "make.py", 81))

    parser = SimpleNamespace(parse_known_args=lambda arguments: (SimpleNamespace(command=command), []))
    monkeypatch.setattr("diffcps.cli.main._parser", lambda: parser)
    usual = warnings.formatwarning
    assert main([]) == 0
    assert capsys.readouterr().out == "diffcps: warning: old version\n\n"
    assert warnings.formatwarning is usual
