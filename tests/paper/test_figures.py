"""The toy figures end to end at smoke size: what is written, that a second call only draws, and the exact denoiser."""

import csv
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from diffcps import UserError
from diffcps.algorithms import ALGORITHMS
from diffcps.cli.main import main
from diffcps.data.scaling import Scaling
from diffcps.envs import toy
from diffcps.paper import ITEMS, job, toy_runs
from diffcps.paper.job import FAST, Job, Plan
from diffcps.paper.methods import METHODS
from diffcps.paper.reproduce import reproduce
from diffcps.paper.ring import ring_scores
from diffcps.paper.table import write_markdown
from diffcps.paper.toy_runs import PathRow, RingRow, config_of, exact_denoiser_actions
from diffcps.records.fields import values_of
from diffcps.training.members import Member, Program

pytestmark = pytest.mark.usefixtures("quick_compilation")
SMOKE = dataclasses.replace(FAST, updates=8, num_steps=(2,), num_actions=50, episodes=2)


@pytest.fixture(autouse=True)
def smoke(monkeypatch):
    monkeypatch.setattr(job, "FAST", SMOKE)


def test_the_command_line_knows_every_item(capsys):
    assert main(["reproduce", "figure10"]) == 2
    told = capsys.readouterr().err
    assert "figure10" in told and all(item in told for item in ITEMS)


def test_knowing_the_items_imports_nothing_that_draws_or_simulates():
    program = (
        "import sys, diffcps.paper; print([n for n in ('gymnasium', 'matplotlib', 'scipy', 'jax') if n in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300)
    assert answer.stdout.strip() == "['jax']"  # which shows that the question is heard


def test_a_figure_is_trained_once_and_drawn_again(tmp_path, monkeypatch):
    paths = reproduce("figure8", tmp_path, fast=True)
    assert [path.name for path in paths] == [f"figure8.{kind}" for kind in ("png", "pdf", "csv", "json", "md")]
    assert paths[0].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and paths[1].read_bytes()[:5] == b"%PDF-"
    with paths[2].open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["num_steps"], row["seed"]) for row in rows] == [
        ("diffusion_bc", "2", "0"),
        ("diffusion_bc", "2", "1"),
    ]
    content = json.loads(paths[3].read_text())
    assert content["plan"]["updates"] == 8
    assert [{name: "" if x is None else str(x) for name, x in row.items()} for row in content["rows"]] == rows
    before = [path.read_bytes() for path in paths[2:]]

    def no_training(*arguments, **options):
        raise AssertionError("trained a second time")

    monkeypatch.setattr(toy_runs, "train", no_training)
    assert reproduce("figure8", tmp_path, fast=True) == paths
    assert [path.read_bytes() for path in paths[2:]] == before
    with pytest.raises(AssertionError, match="second time"):  # negative control: another folder has no run
        reproduce("figure8", tmp_path / "elsewhere", fast=True)


@pytest.mark.slow
def test_figures_with_methods_of_all_kinds_share_runs(tmp_path, monkeypatch):
    paths = reproduce("figure1", tmp_path, fast=True, methods=["awr", "sfbc"], seeds=[3])
    first = json.loads(paths[3].read_text())["rows"]
    assert [(row["method"], row["num_steps"], row["seed"]) for row in first] == [("awr", None, 3), ("sfbc", 2, 3)]

    monkeypatch.setattr(toy_runs, "train", None)  # figure 5 shows what figure 1 has trained
    paths = reproduce("figure5", tmp_path, fast=True, methods=["awr", "sfbc"], seeds=[3])
    content = json.loads(paths[3].read_text())
    assert [(row["method"], row["num_steps"], row["seed"]) for row in content["rows"]] == [
        ("sfbc", 2, 3),
        ("awr", None, 3),
        ("exact denoiser", 2, None),
        ("data drawn anew", None, None),
    ]
    assert content["rows"][:2] == first[::-1]
    shares = ("on_data", "covered_data", "on_ring", "inside", "covered_angles")
    assert all(0 <= row[share] <= 1 for row in content["rows"] for share in shares)
    assert list(content["curves"]) == ["SfBC", "AWR", "exact denoiser", "data drawn anew"]
    assert all(len(curve) == len(content["distances"]) for curve in content["curves"].values())
    assert content["curves_num_steps"] == 2


def test_the_stitching_figure_reports_returns(tmp_path):
    paths = reproduce("figure9", tmp_path, fast=True, methods=["bc"])
    rows = json.loads(paths[3].read_text())["rows"]
    assert [(row["method"], row["seed"], row["episodes"]) for row in rows] == [
        ("data", None, 200),
        ("bc", 0, 2),
        ("bc", 1, 2),
    ]
    assert rows[0]["reached_goal"] < 0.6 < 2 < rows[0]["return_mean"]


@pytest.mark.parametrize(
    ("figure", "options", "says"),
    [("figure2", {}, "unknown item 'figure2'"), ("figure8", {"methods": ["awr"]}, "it shows diffusion_bc")],
)
def test_bad_wishes_are_refused(tmp_path, figure, options, says):
    with pytest.raises(UserError, match=says):
        reproduce(figure, tmp_path, fast=True, **options)
    assert not list(tmp_path.iterdir())


def test_the_table_of_methods_names_what_there_is():
    assert set(METHODS) <= set(ALGORITHMS)
    assert {figure for method in METHODS.values() for figure in method.figures} == set(ITEMS) - {"theory"}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_config_for_the_problems(name):
    method = METHODS[name]
    for changes in (method.circle, method.stitching):
        values = values_of(config_of(Job("figure5", Path(), fast=True), name, changes))
        assert values["width"] == SMOKE.width
        assert values.get("action_choice", "sample") == "sample" and values.get("stochastic", True) is True
        assert values.items() >= changes.items()


@pytest.mark.parametrize(("fast", "plan"), [(True, FAST), (False, Plan())])
@pytest.mark.parametrize("name", METHODS)
def test_every_stage_has_updates(name, fast, plan, monkeypatch):
    monkeypatch.setattr(job, "FAST", FAST)
    data, kind = toy.noisy_circle(5), ALGORITHMS[name]
    config = config_of(Job("figure5", Path(), fast=fast), name, METHODS[name].circle)
    program = Program(lambda swept: kind.make(config, data.spec), [Member(0, 0, {})], None)
    assert len(program.starts(plan.updates)) == program.num_stages
    if name == "awr":
        assert program.num_stages == (2 if fast else 80)


def test_the_exact_denoiser_keeps_the_ring():
    data = toy.noisy_circle(500)
    points = Scaling.of(data.info).action(data.action)
    scores = ring_scores(exact_denoiser_actions(data, 15, 500), points)
    assert scores.on_ring > 0.9 and scores.covered_angles == 1.0
    one_point = dataclasses.replace(data, action=np.repeat(data.action[:1], 500, axis=0))
    np.testing.assert_allclose(exact_denoiser_actions(one_point, 3, 7), points[:1].repeat(7, axis=0), atol=1e-5)


def test_means_over_the_seeds_by_hand(tmp_path):
    rows = [
        RingRow("a", 2, 0, 0.1, 0.0, 0.0, 1.0, 0.5),
        RingRow("a", 2, 1, 0.3, 0.0, 0.0, 0.0, 0.5),
        RingRow("b", None, None, 0.25, 0.0, 0.0, 0.0, 0.0),
    ]
    write_markdown(tmp_path / "ring.md", rows)
    assert (tmp_path / "ring.md").read_text().splitlines() == [
        "| method | num steps | on data | covered data | on ring | inside | covered angles |",
        "|---|---|---|---|---|---|---|",
        "| a | 2 | 0.200 ± 0.100 | 0.000 ± 0.000 | 0.000 ± 0.000 | 0.500 ± 0.500 | 0.500 ± 0.000 |",
        "| b |  | 0.250 | 0.000 | 0.000 | 0.000 | 0.000 |",
    ]
    write_markdown(tmp_path / "path.md", [PathRow("data", None, 200, 45.25, 17.0, 62.5, 0.5)])
    assert (tmp_path / "path.md").read_text().splitlines() == [
        "| method | return mean | return std | return max | reached goal |",
        "|---|---|---|---|---|",
        "| data | 45.250 | 17.000 | 62.500 | 0.500 |",
    ]
