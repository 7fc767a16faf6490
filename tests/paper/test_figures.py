"""The toy figures end to end at smoke size: what is written, that a second call only draws, and the exact denoiser."""

import csv
import dataclasses
import json

import numpy as np
import pytest

from diffcps import UserError
from diffcps.algorithms import ALGORITHMS
from diffcps.cli.main import REPRODUCED
from diffcps.data.scaling import Scaling
from diffcps.envs import toy
from diffcps.paper import figures
from diffcps.paper.ring import ring_scores

pytestmark = pytest.mark.usefixtures("quick_compilation")
SMOKE = dataclasses.replace(figures.FAST, updates=4, num_steps=(2,), num_actions=50, episodes=2)


@pytest.fixture(autouse=True)
def smoke(monkeypatch):
    monkeypatch.setattr(figures, "FAST", SMOKE)


def test_the_command_line_knows_every_figure():
    assert set(figures.FIGURES) < set(REPRODUCED)


def test_a_figure_is_trained_once_and_drawn_again(tmp_path, monkeypatch):
    paths = figures.reproduce("figure8", tmp_path, fast=True)
    assert [path.name for path in paths] == ["figure8.png", "figure8.pdf", "figure8.csv", "figure8.json"]
    assert paths[0].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and paths[1].read_bytes()[:5] == b"%PDF-"
    with paths[2].open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["num_steps"], row["seed"]) for row in rows] == [
        ("diffusion_bc", "2", "0"),
        ("diffusion_bc", "2", "1"),
    ]
    assert json.loads(paths[3].read_text())["plan"]["updates"] == 4
    before = [path.read_bytes() for path in paths[2:]]

    def no_training(*arguments, **options):
        raise AssertionError("trained a second time")

    monkeypatch.setattr(figures, "train", no_training)
    assert figures.reproduce("figure8", tmp_path, fast=True) == paths
    assert [path.read_bytes() for path in paths[2:]] == before
    with pytest.raises(AssertionError, match="second time"):  # negative control: other seeds are another run
        figures.reproduce("figure8", tmp_path / "elsewhere", fast=True)


def test_a_figure_with_methods_of_all_kinds(tmp_path):
    paths = figures.reproduce("figure1", tmp_path, fast=True, methods=["awr", "sfbc"], seeds=[3])
    rows = json.loads(paths[3].read_text())["rows"]
    assert [(row["method"], row["num_steps"], row["seed"]) for row in rows] == [("awr", None, 3), ("sfbc", 2, 3)]
    shares = ("on_data", "covered_data", "on_ring", "inside", "covered_angles")
    assert all(0 <= row[share] <= 1 for row in rows for share in shares)


def test_the_stitching_figure_reports_returns(tmp_path):
    paths = figures.reproduce("figure9", tmp_path, fast=True, methods=["bc"])
    rows = json.loads(paths[3].read_text())["rows"]
    assert [(row["method"], row["seed"], row["episodes"]) for row in rows] == [
        ("data", None, 200),
        ("bc", 0, 2),
        ("bc", 1, 2),
    ]
    assert rows[0]["reached_goal"] < 0.6 < 2 < rows[0]["return_mean"]


@pytest.mark.parametrize(
    ("figure", "options", "says"),
    [("figure2", {}, "unknown figure 'figure2'"), ("figure8", {"methods": ["awr"]}, "it shows diffusion_bc")],
)
def test_bad_wishes_are_refused(tmp_path, figure, options, says):
    with pytest.raises(UserError, match=says):
        figures.reproduce(figure, tmp_path, fast=True, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("problem", [figures.CIRCLE, figures.STITCHING])
def test_every_method_has_a_config_for_the_problems(problem):
    assert set(problem) <= set(ALGORITHMS)
    for method in ALGORITHMS:
        config = figures.config_of(method, problem, width=16, num_steps=None)
        assert config.width == 16
        assert getattr(config, "action_choice", "sample") == "sample" and getattr(config, "stochastic", True)


def test_the_exact_denoiser_keeps_the_ring():
    data = toy.noisy_circle(500)
    points = Scaling.of(data.info).action(data.action)
    scores = ring_scores(figures.exact_denoiser_actions(data, 15, 500), points)
    assert scores.on_ring > 0.9 and scores.covered_angles == 1.0
    one_point = dataclasses.replace(data, action=np.repeat(data.action[:1], 500, axis=0))
    np.testing.assert_allclose(figures.exact_denoiser_actions(one_point, 3, 7), points[:1].repeat(7, axis=0), atol=1e-5)
