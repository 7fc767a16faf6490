"""Outputs: named by the whole source, and never over a file that is not ours."""

import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from diffcps.cli.main import main
from diffcps.cli.train import default_folder
from diffcps.plots import save_figure
from diffcps.storage import check_ours, plain_name
from diffcps.types import UserError


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("builtin", "builtin"),
        ("a.npz", "a.npz"),
        ("a.hdf5", "a.hdf5"),
        ("logs/2026 05/a.npz", "logs-2026-05-a.npz"),
        ("mujoco/hopper/medium-v0", "mujoco-hopper-medium-v0"),
        ("shaky:Shaky-v0", "shaky-Shaky-v0"),
        ("../.hidden", "hidden"),
        ("/", "unnamed"),
    ],
)
def test_names_are_whole_and_readable(source, name):
    assert plain_name(source) == name


def test_long_names_stay_apart_and_fit_a_file_system():
    one, other = (plain_name("x/" * 300 + first + "y" * 200 + "/a.npz") for first in ("a", "b"))
    assert one != other and one.endswith("y-a.npz") and max(len(one), len(other)) <= 120


def test_runs_are_named_by_all_that_was_said_of_the_data():
    assert default_folder("bc", None, None) == Path("runs/bc-builtin")
    assert default_folder("bc", "hopper-medium-v2", None) == Path("runs/bc-hopper-medium-v2")
    assert default_folder("bc", "hopper-medium-v2", "data/a.npz") == Path("runs/bc-hopper-medium-v2-data-a.npz")


@pytest.mark.parametrize("suffix", [".png", ".pdf"])
def test_a_picture_replaces_one_of_ours_only(tmp_path, suffix):
    ours, foreign = tmp_path / f"ours{suffix}", tmp_path / f"foreign{suffix}"
    save_figure(Figure(), ours)
    save_figure(Figure(), ours)
    Figure().savefig(foreign)  # a picture of somebody's own Matplotlib
    before = foreign.read_bytes()
    with pytest.raises(UserError, match=f"{foreign}: is there already and was not written by diffcps; name another"):
        save_figure(Figure(), foreign)
    assert foreign.read_bytes() == before
    save_figure(Figure(), foreign, within_run=True)
    save_figure(Figure(), foreign)  # now it is ours


def test_other_files_are_known_by_their_marks(tmp_path):
    report, text, folder = tmp_path / "report.json", tmp_path / "notes.txt", tmp_path / "folder.png"
    report.write_text(json.dumps({"software": "diffcps"}, indent=2))
    check_ours(report)
    check_ours(tmp_path / "absent.json")
    report.write_text('{"mine": 1}')
    text.write_text("diffcps")
    folder.mkdir()
    for path in (report, text, folder):
        with pytest.raises(UserError, match="was not written by diffcps"):
            check_ours(path)


def test_data_show_leaves_a_file_of_its_default_name_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("builtin.png").write_bytes(b"a picture of mine")
    assert main(["data", "show", "builtin"]) == 2
    assert "builtin.png: is there already" in capsys.readouterr().err
    assert Path("builtin.png").read_bytes() == b"a picture of mine"
    assert main(["data", "show", "builtin", "--out", "other.png"]) == 0  # the way out
    assert main(["data", "show", "builtin", "--out", "other.png"]) == 0
