"""The floor of kappa: measured by clones, written down, and taken by a run on the same rows with the same denoiser."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffcps.algorithms import diffcps as algorithm
from diffcps.algorithms import diffusion_bc
from diffcps.cli.main import main
from diffcps.data.load import load
from diffcps.records.folder import RunFolder
from diffcps.records.record import MemberScores, Summary
from diffcps.run.floor import Floor, Floors, Least, Network, bound_on_loss, read_floors, rows_seen
from diffcps.run.kappa import floor_of, floors_table, lines
from diffcps.run.resolve import Request
from diffcps.training.members import Member
from diffcps.types import Reading, UserError

pytestmark = pytest.mark.usefixtures("quick_compilation")

SMALL = ("--width", "8", "--depth", "1")
CLONE = ("--steps", "2", "--updates", "20", "--seeds", "0", "1", *SMALL)
RUN = ("--updates", "4", "--eval-every", "4", "--log-every", "2", "--env", "none", "--num-steps", "2", *SMALL)


def write_data(path: Path, seed: int = 0) -> str:
    random = np.random.default_rng(seed)
    fields = {
        "observations": random.normal(size=(200, 3)),
        "actions": random.uniform(-1, 1, (200, 2)),
        "rewards": random.normal(size=200),
        "next_observations": random.normal(size=(200, 3)),
        "terminals": np.arange(200) % 20 == 19,
        "timeouts": np.zeros(200, bool),
    }
    np.savez(path, **fields)
    return str(path)


@pytest.fixture(scope="module")
def measured(tmp_path_factory, quick_compilation) -> tuple[str, Path]:
    """Data, and the folder in which their floor was measured."""
    folder = tmp_path_factory.mktemp("kappa")
    data = write_data(folder / "data.npz")
    assert main(["kappa", data, *CLONE, "--out", str(folder / "floor")]) == 0
    return data, folder / "floor"


def test_the_least_losses_are_those_of_the_clones_logs(measured):
    data, folder = measured
    floors, file = read_floors(folder, "")
    assert file == folder / "kappa.json" and json.loads(file.read_text())["software"] == "diffcps"
    assert (floors.source, floors.updates, floors.seeds, floors.validation) == (data, 20, (0, 1), 0.1)
    assert floors.network == Network(width=8, depth=1)
    (floor,) = floors.floors
    record = RunFolder(folder / "T2").read_record()
    assert (record.algorithm, record.held_out, record.settings.validation) == ("diffusion_bc", 20, 0.1)
    folder_of_clones = RunFolder(folder / "T2")
    for clone in floor.clones:
        measured_rows = folder_of_clones.read_measurements(record.members)
        logged = [row.metrics["actor/bc_loss"] or np.inf for row in measured_rows if row.member.seed == clone.seed]
        scored = [
            (row.selection_loss or np.inf, row.update)
            for row in folder_of_clones.read_evaluations(record.members)
            if row.member.seed == clone.seed
        ]
        assert len(logged) == len(scored) == 10
        assert (clone.training, clone.held_out, clone.update) == (min(logged), *min(scored))
    assert_allclose(floor.value, np.mean([clone.held_out for clone in floor.clones]))


def test_the_same_command_goes_on_and_another_is_refused(measured, tmp_path, capsys):
    data, folder = measured
    shutil.copytree(folder, tmp_path / "floor")
    written = (tmp_path / "floor" / "kappa.json").read_bytes()
    (tmp_path / "floor" / "kappa.json").unlink()
    assert main(["kappa", data, *CLONE, "--out", str(tmp_path / "floor")]) == 0
    assert (tmp_path / "floor" / "kappa.json").read_bytes() == written
    capsys.readouterr()
    assert main(["kappa", data, *CLONE, "--out", str(tmp_path / "floor"), "--width", "9"]) == 2
    assert "cannot resume with another width: the run has 8, you gave 9" in capsys.readouterr().err


@pytest.fixture
def asked(monkeypatch) -> list[Request]:
    """What `train` is asked to run; nothing is trained."""
    requests: list[Request] = []

    def run(request: Request, *_: object, **__: object) -> Summary:
        requests.append(request)
        return Summary(request.method, None, 4, None, None, (MemberScores(Member(0, 0, {}), None),))

    monkeypatch.setattr("diffcps.run.train.run", run)
    return requests


def test_a_run_takes_its_bound_from_the_floor(measured, asked, capsys):
    data, folder = measured
    words = ["train", "diffcps", "--dataset", data, *RUN, "--preset", "hopper-medium", "--floor-from", str(folder)]
    assert main([*words, "--kappa-above-floor", "0.25"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("kappa ")]
    (request,) = asked
    assert isinstance(request.config, algorithm.Config)
    kappa = float(f"{1.25 * read_floors(folder, '')[0].floors[0].value:.4g}")
    assert request.config.kappa == kappa and request.config.max_grad_norm == 9.0
    assert line.startswith(f"kappa {kappa:g}: 25 % above the floor ") and str(folder / "kappa.json") in line


def test_by_default_the_floor_lies_where_the_command_leaves_it(measured, asked, tmp_path, monkeypatch, capsys):
    data, folder = measured
    monkeypatch.chdir(tmp_path)
    shutil.copy(data, "own.npz")
    words = ["train", "diffcps", "--dataset", "own.npz", *RUN, "--kappa-above-floor", "0.1"]
    assert main(words) == 2
    said = capsys.readouterr().err.strip()
    assert "runs/kappa-own.npz: there is no kappa.json, which has the floor; measure it: " in said
    assert said.endswith(": diffcps kappa own.npz --steps 2 --width 8 --depth 1")
    shutil.copytree(folder, "runs/kappa-own.npz")
    assert main(words) == 0
    assert len(asked) == 1


@pytest.mark.slow
def test_hint_floor_run_and_its_continuation(measured, tmp_path, monkeypatch, capsys):
    data, _ = measured
    monkeypatch.chdir(tmp_path)
    shutil.copy(data, "own.npz")
    words = ["train", "diffcps", "--dataset", "own.npz", *RUN, "--kappa-above-floor", "0.1"]
    assert main(words) == 2
    hint = capsys.readouterr().err.strip().split("measure it: ")[1]
    assert main([*hint.split()[1:], "--updates", "20", "--seeds", "0"]) == 0
    assert main(words) == 0
    stored = json.loads(Path("runs/diffcps-own.npz/config.json").read_text())
    assert stored["config"]["kappa"] == read_floors(Path("runs/kappa-own.npz"), "")[0].floors[0].above(0.1)
    assert main([*words, "--resume"]) == 0
    assert main([*words[:-1], "0.5", "--resume"]) == 2
    assert "cannot resume with another kappa" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--kappa-above-floor", "0.1", "--kappa", "0.05"), "--kappa and --kappa-above-floor both say what kappa is"),
        (("--kappa-above-floor", "-0.1"), "--kappa-above-floor is -0.1: it must be 0 or more"),
        (("--kappa-above-floor", "nan"), "--kappa-above-floor is nan: it must be 0 or more"),
        ((), "--floor-from says where --kappa-above-floor takes the floor from: add that one, or leave it out"),
        (("--kappa-above-floor", "0.1", "--num-steps", "3"), "is of 2 diffusion steps, and this run has 3; measure"),
        (("--kappa-above-floor", "0.1", "--width", "9"), "is of width 8, and this run has 9; measure it for this run"),
        (("--kappa-above-floor", "0.1", "--normalise-observation"), "is of other rows than"),
    ],
)
def test_a_floor_that_does_not_fit_is_refused(measured, tmp_path, capsys, words, says):
    data, folder = measured
    command = ["train", "diffcps", "--dataset", data, *RUN, "--out", str(tmp_path / "run"), "--floor-from", str(folder)]
    assert main([*command, *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert not (tmp_path / "run").exists()


def test_other_data_and_other_files_are_refused(measured, tmp_path, capsys):
    _, folder = measured
    command = ["train", "diffcps", *RUN, "--out", str(tmp_path / "run"), "--kappa-above-floor", "0.1", "--dataset"]
    other = write_data(tmp_path / "other.npz", seed=1)
    assert main([*command, other, "--floor-from", str(folder)]) == 2
    assert "is of other rows than" in capsys.readouterr().err
    (tmp_path / "foreign.json").write_text('{"floor": 0.1}')
    assert main([*command, other, "--floor-from", str(tmp_path / "foreign.json")]) == 2
    assert "has no floors that can be read" in capsys.readouterr().err
    (tmp_path / "floor").mkdir()
    shutil.copy(tmp_path / "foreign.json", tmp_path / "floor" / "kappa.json")
    assert main(["kappa", other, *CLONE, "--out", str(tmp_path / "floor")]) == 2
    assert "is there already and was not written by diffcps" in capsys.readouterr().err
    assert not (tmp_path / "floor" / "T2").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--validation", "0"), "the floor is the loss on held-out rows; take a share above 0"),
        (("--validation", "1"), "validation is 1.0: it must be below 1"),
        (("--validation", "0.99"), "none is left to train on"),
        (("--steps", "0"), "num_steps is 0: it must be 1 or more"),
        (("--steps", "2", "2"), "steps names 2 twice"),
        (("--updates", "0"), "updates is 0: it must be 1 or more"),
        (("--seeds", "1", "1"), "seeds names 1 twice"),
        (("--schedule", "vpp"), "schedule is 'vpp': it must be one of vp, linear"),
        (("--task", "hoper-medium-v2"), "did you mean hopper-medium-v2?"),
    ],
)
def test_bad_words_leave_nothing_behind(measured, tmp_path, capsys, words, says):
    data, _ = measured
    assert main(["kappa", data, *CLONE, "--out", str(tmp_path / "floor"), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert not list(tmp_path.rglob("*.json*"))


def test_methods_without_such_a_bound_have_no_such_flag(capsys):
    assert [name for name in ("diffcps", "bear", "cql", "diffusion_bc", "bc") if bound_on_loss(name)] == ["diffcps"]
    assert main(["train", "diffusion_bc", "--kappa-above-floor", "0.1"]) == 2
    assert "unknown flag --kappa-above-floor" in capsys.readouterr().err


def test_rows_are_what_the_networks_see(measured):
    data, _ = measured

    def seen(**words) -> str:
        return rows_seen(load(data, Reading(**words)))

    assert seen() == seen(reward="standardise", reward_scale=2.0)  # which a clone does not read
    assert len({seen(), seen(normalise_observation=True), seen(action_high=(2.0,), action_low=(-2.0,))}) == 3


def test_what_a_person_reads(measured):
    clones = (Least(0, 0.09, 0.1, 500), Least(1, 0.11, 0.12, 1000))
    floors = Floors("a.npz", "hopper-medium-v2", "", Network(), 1000, (0, 1), 0.1, (Floor(5, clones),))
    assert floors.floors[0].value == pytest.approx(0.11) and floors.floors[0].above(0.1) == 0.121
    table = floors_table(floors)
    cells = [next(iter(column.cells)) for column in table.columns]
    assert cells == ["5", "0.1 ± 0.01", "0.11 ± 0.01", "500 to 1,000", "0.121"]
    assert lines(floors)[-1] == (
        "The paper's kappa for hopper-medium is 0.05 at T = 5: not above the floor of 0.11 here."
    )
    assert not any("more --updates" in line for line in lines(floors))
    late = Floors("a.npz", None, "", Network(), 500, (0,), 0.1, (Floor(5, clones[:1]), Floor(9, clones[1:])))
    assert any(line.startswith("At T = 5 the least loss is that of the last evaluation") for line in lines(late))
    assert not any("paper" in line for line in lines(late))
    trifinger = Floors("a", "hopper-medium-v2", "", Network(), 500, (0,), 0.1, (Floor(9, clones[:1]),))
    assert lines(trifinger)[-1].endswith("0.05 at T = 5, which was not measured here.")


def test_the_least_loss_may_come_before_the_last_and_a_clone_that_diverged_at_once_has_none(measured, tmp_path):
    _, folder = measured
    shutil.copytree(folder / "T2", tmp_path / "T2")
    run = RunFolder(tmp_path / "T2")
    members = run.read_record().members
    evaluations = [row for row in run.read_evaluations(members) if row.member.seed == 1]
    run.evaluations.unlink()
    run.append_evaluations(
        replace(row, diagnosis={"actor/bc_loss": {6: 0.25, 8: None}.get(row.update, 0.5)}) for row in evaluations
    )
    (clone,) = floor_of(run).clones
    assert (clone.seed, clone.held_out, clone.update) == (1, 0.25, 6)


def test_a_denoiser_of_diffcps_is_the_clones():
    assert Network.of(algorithm.Config()) == Network() == Network.of(diffusion_bc.Config())
    with pytest.raises(UserError, match="there is no kappa"):
        read_floors(Path("nowhere"), "")
