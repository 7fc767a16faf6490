import math

import numpy as np
import pytest

from diffcps.tasks.catalogue import catalogue
from diffcps.tasks.names import environment_by_name
from diffcps.tasks.references import normalised_score, reference_scores
from diffcps.types import EnvironmentSpec, UserError


def test_normalised_score_by_hand() -> None:
    reference = (-20.0, 180.0)
    returns = np.array([[-20.0, 180.0], [80.0, 380.0]])
    np.testing.assert_allclose(normalised_score(returns, reference), [[0, 100], [50, 200]])
    assert normalised_score(30.0, reference) == 25.0


@pytest.mark.parametrize("reference", [(5.0, 5.0), (5.0, 4.0), (math.nan, 4.0)])
def test_reference_must_be_an_interval(reference: tuple[float, float]) -> None:
    with pytest.raises(UserError, match="min < max"):
        normalised_score(0.0, reference)


def test_reference_scores_are_those_of_d4rl_for_any_version() -> None:
    assert reference_scores("Hopper-v2") == reference_scores("Hopper-v5") == (-20.272305, 3234.3)
    assert reference_scores("HalfCheetah-v4") == (-280.178953, 12135.0)
    assert reference_scores("Walker2d") == (1.629008, 4592.3)
    assert reference_scores("Ant-v5") == reference_scores("diffcps/Ant-v2") == (-325.6, 3879.7)
    assert reference_scores("AntMaze_UMaze-v5") is None
    assert reference_scores("Pendulum-v1") is None


def test_references_hold_for_default_arguments_only() -> None:
    assert reference_scores(EnvironmentSpec("Hopper-v5")) == (-20.272305, 3234.3)
    assert reference_scores(EnvironmentSpec("Hopper-v5", '{"healthy_reward": 0}')) is None
    assert reference_scores(EnvironmentSpec("Hopper-v5", max_episode_steps=10)) is None
    assert reference_scores(EnvironmentSpec("Hopper-v5", recorded="{}")) is None


@pytest.mark.parametrize(
    ("name", "environment"),
    [
        ("hopper-medium-v2", "Hopper-v4"),
        ("hopper-medium", "Hopper-v4"),
        ("Hopper-v2", "Hopper-v4"),
        ("Walker2d-v3", "Walker2d-v4"),
        ("Ant-v2", "diffcps/Ant-v2"),
        ("antmaze-umaze-v0", "diffcps/AntMaze-umaze-v0"),
        ("antmaze-umaze-v1", "diffcps/AntMaze-umaze-v2"),
        ("maze2d-large-dense-v1", "diffcps/Maze2D-large-dense-v1"),
        ("door-v0", "diffcps/AdroitDoor-v1"),
        ("kitchen-mixed-v0", "diffcps/Kitchen-mixed-v0"),
        ("Hopper-v5", None),
        ("antmaze-v0", None),
        ("Pendulum-v1", None),
    ],
)
def test_names_of_benchmarks_lead_to_the_catalogues_environment(name: str, environment: str | None) -> None:
    assert environment_by_name(name) == environment


def test_reference_scores_of_the_mazes() -> None:
    assert reference_scores("diffcps/Maze2D-umaze-v1") == (23.85, 161.86)
    assert reference_scores("diffcps/Maze2D-large-v1") == (6.7, 273.99)
    assert reference_scores("diffcps/Maze2D-medium-dense-v1") == (44.264742, 297.4552547777125)
    assert reference_scores("diffcps/AntDirection-v0") is None


def test_the_references_of_an_environment_are_those_of_every_version_in_the_catalogue() -> None:
    """They are looked up without the version: no two versions may differ."""
    for task in catalogue().values():
        expected = (task.reference_min, task.reference_max) if task.source == "D4RL" else None
        assert reference_scores(task.environment) == expected
