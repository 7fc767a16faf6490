"""The shipped plans: what the paper's tables say, how they are narrowed, and what stands for the benchmark's data."""

from __future__ import annotations

import sys
import tomllib
from importlib.resources import files
from pathlib import Path

import h5py
import numpy as np
import pytest

from diffcps.cli.main import main
from diffcps.paper import COMPARISONS, runtime
from diffcps.paper.comparisons import Narrowing, plan_text, reproduce_comparison
from diffcps.study.plan import Study, study_of
from diffcps.training.timing import ROWS, StageTiming
from diffcps.types import UserError


def plan(item: str, wanted: Narrowing = Narrowing()) -> Study:  # noqa: B008 (it is immutable)
    return study_of(tomllib.loads(plan_text(item, wanted)), item)


def write_file(path: Path) -> None:
    """Two episodes of Hopper's sizes, which name their environment."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for name, width in (("observations", 11), ("actions", 3), ("next_observations", 11)):
            file[name] = rng.uniform(-0.9, 0.9, (20, width)).astype(np.float32)
        file["rewards"] = rng.normal(size=20).astype(np.float32)
        file["terminals"], file["timeouts"] = np.zeros(20, bool), np.arange(20) % 10 == 9
        file.attrs["env_id"] = "Hopper-v5"


@pytest.mark.parametrize("item", COMPARISONS)
def test_every_plan_is_read_as_it_is(item):
    shipped = tomllib.loads((files("diffcps.paper") / "plans" / f"{item}.toml").read_text("utf-8"))
    study = study_of(shipped, item)
    assert plan(item) == study and study.cells  # and comes through as text


def test_table_1_is_the_papers():
    """Its own averages, which were typed apart from the numbers, are those of its numbers but for their rounding."""
    study = plan("table1")
    published = study.published
    assert published is not None and len(study.cells) == 15 * 8 + 2 * 9
    groups = {cell.data: cell.of_data.group for cell in study.cells}
    assert sorted(published.scores) == sorted({cell.entry for cell in study.cells} - {"bc"})
    for row, averages in published.averages.items():
        for group, average in averages.items():
            own = [number.mean for data, number in published.scores[row].items() if groups[data] == group]
            assert average.mean == pytest.approx(np.mean(own), abs=0.12), (row, group)
    settings = {cell.data: cell.request.settings for cell in study.cells}
    assert settings["hopper-medium"].updates == 2_000_000 and settings["antmaze-umaze"].updates == 1_000_000
    assert (settings["hopper-medium"].episodes, settings["antmaze-umaze"].episodes) == (10, 100)
    (diffcps,) = (cell for cell in study.cells if cell.name == "hopper-medium/diffcps")
    assert diffcps.request.preset == "hopper-medium" and diffcps.request.settings.seeds == (0, 1, 2, 3, 4)


def test_a_plan_is_narrowed():
    study = plan("table1", Narrowing(0.01, ("hopper-medium", "AntMaze"), ("diffcps", "bc"), seeds=(7,)))
    assert {cell.data for cell in study.cells} >= {"hopper-medium", "antmaze-large-play"} and len(study.cells) == 14
    (cell,) = (cell for cell in study.cells if cell.name == "hopper-medium/diffcps")
    assert (cell.request.settings.updates, cell.request.settings.eval_every) == (20_000, 1_000)
    assert cell.request.settings.seeds == (7,) and "0.01 of the paper's updates" in study.name
    assert study.published is not None
    # one task of nine has another average than nine
    assert {row: set(table) for row, table in study.published.averages.items()} == {"diffcps": {"AntMaze"}}
    assert set(study.published.scores) == {"diffcps"} and "hopper-medium" in study.published.scores["diffcps"]
    without = plan("table1", Narrowing(tasks=("antmaze-umaze",)))
    assert "diffuser" not in {cell.entry for cell in without.cells}  # the paper has no number of it there
    assert study.final is not None and study.final.also_act == ("sample",)
    alone = plan("table1", Narrowing(methods=("iql", "bc")))
    assert alone.final is not None and alone.final.also_act == ()  # they have one way to act


@pytest.mark.parametrize(
    ("wanted", "line"),
    [
        (Narrowing(tasks=("hopper-medum",)), "--tasks: unknown task hopper-medum: did you mean hopper-medium"),
        (Narrowing(methods=("td3_bc",)), "--methods: unknown method of this item td3_bc"),
        (Narrowing(scale=0.0), "--scale is 0; it must be above 0"),
        (Narrowing(scale=2.0), "--scale is 2; it must be above 0"),
    ],
)
def test_what_is_not_there_is_one_line(wanted, line):
    with pytest.raises(UserError, match=line):
        plan_text("table1", wanted)


def test_files_stand_for_tasks(tmp_path):
    for name in ("hopper-medium", "hopper-expert"):
        write_file(tmp_path / f"{name}.hdf5")
    with pytest.raises(UserError) as error:
        plan_text("table1", Narrowing(tasks=("hopper-medium", "hopper-medium-replay"), data_dir=tmp_path))
    assert "has no file for hopper-medium-replay (" in str(error.value)
    assert "--tasks hopper-medium takes those that are there" in str(error.value)
    wanted = Narrowing(tasks=("hopper-medium", "hopper-medium-expert"), methods=("bc",), data_dir=tmp_path)
    expert, medium = plan("table1", wanted).cells
    assert (expert.data, medium.data) == ("hopper-medium-expert", "hopper-medium")  # the order of the plan
    assert medium.request.source == str(tmp_path / "hopper-medium.hdf5")
    assert expert.request.source == f"{tmp_path / 'hopper-medium.hdf5'},{tmp_path / 'hopper-expert.hdf5'}"
    assert medium.request.task == "hopper-medium-v2" and medium.request.settings.env == "Hopper-v5"
    assert expert.request.load().size == 40


def test_data_that_are_not_here_are_told_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFCPS_DATA", str(tmp_path / "none"))
    with pytest.raises(UserError, match="the data of hopper-medium-v2 are not here: `diffcps data get hop"):
        reproduce_comparison("table1", Narrowing(tasks=("hopper-medium",)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_belongs_to_one_set_of_words(tmp_path):
    write_file(tmp_path / "hopper-medium.hdf5")
    wanted = Narrowing(0.1, ("hopper-medium",), ("bc",), data_dir=tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "study.toml").write_text(plan_text("table1", wanted))
    with pytest.raises(UserError, match="holds a study with other words"):
        reproduce_comparison("table1", Narrowing(0.2, ("hopper-medium",), ("bc",), data_dir=tmp_path), tmp_path / "out")


def test_a_comparison_is_given_to_a_cluster(tmp_path, monkeypatch, capsys):
    write_file(tmp_path / "hopper-medium.hdf5")
    monkeypatch.setitem(sys.modules, "ray", None)
    data = ["--tasks", "hopper-medium", "--methods", "bc", "--data-dir", str(tmp_path)]
    assert main(["reproduce", "table1", *data, "--ray", "auto", "--out", str(tmp_path / "out")]) == 2
    assert "--ray needs Ray: pip install 'diffcps[distributed]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["table1", "--fast"], "--fast belongs to the toy figures: --scale X"),
        (["figure1", "--scale", "0.5", "--data-dir", "x"], "--scale, --data-dir: figure1 compares nothing on tasks"),
        (["table5", "--ray", "auto"], "--ray: table5 compares nothing on tasks"),
        (["table5", "--seeds", "1"], "table5 times three methods with one seed"),
        (["table1", "--data-dir", "no/where", "--tasks", "hopper-medium"], "no/where: has no file for hopper-medium"),
    ],
)
def test_flags_that_do_not_belong_are_refused(words, line, capsys):
    assert main(["reproduce", *words]) == 2
    (told,) = capsys.readouterr().err.strip().splitlines()
    assert line in told


@pytest.mark.slow
def test_a_figure_is_trained_reported_and_drawn(tmp_path):
    write_file(tmp_path / "halfcheetah-medium.hdf5")
    with h5py.File(tmp_path / "halfcheetah-medium.hdf5", "a") as file:
        for name, width in (("observations", 17), ("actions", 6), ("next_observations", 17)):
            del file[name]
            file[name] = np.random.default_rng(0).uniform(-0.9, 0.9, (20, width)).astype(np.float32)
        file.attrs["env_id"] = "HalfCheetah-v5"
    wanted = Narrowing(1e-5, ("halfcheetah-medium",), seeds=(0,), data_dir=tmp_path)
    work, paths = reproduce_comparison("figure2", wanted, tmp_path / "out")
    assert [one.state for one in work] == ["done"] * 3
    assert [path.name for path in paths] == ["report.html", "figure2.png"] and all(path.exists() for path in paths)
    report = paths[0].read_text()
    assert "halfcheetah-medium, own file" in report
    assert "halfcheetah-medium for halfcheetah-medium-v2: halfcheetah-medium.hdf5 (" in report


def test_table_5_has_the_papers_numbers_beside_ours(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "_seconds", lambda name, task_id: 0.001 * len(name) + 0.01 * ("antmaze" in task_id))
    paths = runtime.table5(tmp_path / "new" / "folder", lambda text: None)
    table = paths[0].read_text()
    assert "| diffcps | Locomotion | 7.00 | 7.68 |" in table and "| sfbc | AntMaze | 14.00 | 10.53 |" in table
    assert "RTX 3050" in table and paths[1].read_text().count("\n") == 7


def test_a_time_is_one_of_the_named_sizes_and_steps(monkeypatch):
    seen = []

    def fake(program):
        seen.append(program)
        return [StageTiming(1.0, 1, 0.0, 0.0, 0.25)], ()

    monkeypatch.setattr(runtime, "time_stages", fake)
    monkeypatch.setattr(runtime, "Program", lambda make, members, data: (make({}), data))
    assert runtime._seconds("diffcps", "antmaze-large-play-v0") == 0.25
    ((_, data),) = seen
    assert data.observation.shape == (ROWS, 29) and data.action.shape[1] == 8
