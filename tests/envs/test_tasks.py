"""Every task of the catalogue is scored in an environment that has the sizes, limit and references it states."""

import warnings

import pytest

from diffcps.envs.make import environment_sizes
from diffcps.tasks.catalogue import catalogue
from diffcps.tasks.references import reference_scores

PACKAGES = {
    "adroit": "gymnasium_robotics",
    "kitchen": "gymnasium_robotics",
    "ogbench": "ogbench",
    "trifinger": "trifinger_rl_datasets",
}
"""What the environments of a family need beyond the core."""
ENVIRONMENTS = {task.environment: task for task in catalogue().values()}


@pytest.mark.parametrize("environment_id", ENVIRONMENTS)
def test_the_catalogue_and_the_environment_agree(environment_id):
    task = ENVIRONMENTS[environment_id]
    if task.family in PACKAGES:
        pytest.importorskip(PACKAGES[task.family])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # v4, and v0 of AntMaze, are called old
        spec = environment_sizes(environment_id)
    assert (spec.observation_size, spec.action_size) == (task.observation_size, task.action_size)
    assert spec.max_steps == task.max_steps
    if task.family in ("gym", "antmaze", "maze2d", "adroit", "kitchen"):
        assert reference_scores(environment_id) == (task.reference_min, task.reference_max)


def test_play_and_diverse_share_an_environment():
    tasks = catalogue()
    assert tasks["antmaze-large-play-v2"].environment == tasks["antmaze-large-diverse-v2"].environment
    assert tasks["antmaze-large-play-v2"].environment != tasks["antmaze-large-play-v0"].environment
