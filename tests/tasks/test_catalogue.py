from __future__ import annotations

import re
from collections import Counter

import pytest
from rich.console import Console

from diffcps.presets import presets_of
from diffcps.readers.source import MINARI_ID
from diffcps.tasks.catalogue import catalogue, find_task
from diffcps.tasks.table import task_tables
from diffcps.types import UserError


def test_what_is_in_it():
    families = Counter(task.family for task in catalogue().values())
    assert families == {
        "gym": 24, "antmaze": 12, "maze2d": 6, "adroit": 12, "kitchen": 3, "ogbench": 11, "trifinger": 17
    }  # fmt: skip
    for task_id, task in catalogue().items():
        assert task.id == task_id
        assert task.url.startswith(("http://", "https://"))
        assert re.fullmatch("[0-9a-f]{64}", task.sha256 or 64 * "0")
        assert (task.sha256 is None) == (task.bytes is None)
        assert task.reference_max is None or (task.reference_min or 0) < task.reference_max
        assert task.minari is None or MINARI_ID.fullmatch(task.minari)


@pytest.mark.parametrize(
    ("task_id", "facts"),
    [
        ("hopper-medium-v2", {"environment": "Hopper-v4", "bytes": 152_756_557, "reference_max": 3234.3}),
        ("ant-random-v2", {"environment": "diffcps/Ant-v2", "observation_size": 111, "sha256": None}),
        ("antmaze-umaze-v0", {"environment": "diffcps/AntMaze-umaze-v0", "max_steps": 700, "sha256": None}),
        ("antmaze-large-diverse-v2", {"environment": "diffcps/AntMaze-large-v2", "max_steps": 1000}),
        ("maze2d-large-dense-v1", {"environment": "diffcps/Maze2D-large-dense-v1", "reference_min": 30.569041}),
        ("door-human-v1", {"environment": "diffcps/AdroitDoor-v1", "action_size": 28, "max_steps": 200}),
        ("kitchen-partial-v0", {"environment": "diffcps/Kitchen-partial-v0", "reference_max": 4.0}),
        ("antmaze-giant-stitch-singletask-v0", {"observation_size": 29, "reference_max": None}),
        ("trifinger-cube-lift-sim-expert-v0", {"environment": "diffcps/TriFingerLift-v0", "max_steps": 1500}),
    ],
)
def test_facts(task_id, facts):
    task = find_task(task_id)
    assert {name: getattr(task, name) for name in facts} == facts


def test_addresses_are_those_of_the_benchmarks():
    rail = "http://rail.eecs.berkeley.edu/datasets/offline_rl/"
    assert find_task("hopper-full-replay-v2").url == rail + "gym_mujoco_v2/hopper_full_replay-v2.hdf5"
    umaze = "Ant_maze_u-maze_noisy_multistart_False_multigoal_False_sparse"
    assert find_task("antmaze-umaze-v0").url == f"{rail}ant_maze_new/{umaze}.hdf5"
    assert find_task("antmaze-umaze-v2").url == f"{rail}ant_maze_v2/{umaze}_fixed.hdf5"
    assert find_task("antmaze-large-explore-singletask-v0").url.endswith("/ogbench/antmaze-large-explore-v0.npz")


def test_every_preset_is_known_and_used():
    named = {task.preset for task in catalogue().values()} - {None}
    assert named == set(presets_of("diffcps")) | set(presets_of("diffusion_ql")) | set(presets_of("diffuser"))
    assert set(presets_of("diffusion_ql")) == set(presets_of("diffusion_bc"))
    assert len(named) == 24


def test_unknown_tasks():
    with pytest.raises(UserError, match=r"unknown task 'hopper-medium': did you mean hopper-medium-v2\?"):
        find_task("hopper-medium")
    with pytest.raises(UserError, match="`diffcps data list` shows all"):
        find_task("tetris")


def test_the_table_fits_100_columns():
    console = Console(width=100, record=True, file=open("/dev/null", "w"))
    with console.file:
        console.print(task_tables(list(catalogue().values()), lambda task: "wrong size"))
        text = console.export_text()
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text
    lines = text.splitlines()
    for task in catalogue().values():
        row = next(line for line in lines if line.startswith(f"{task.id} "))
        assert row.split()[1:3] == ["wrong", "size"]
        assert (task.environment in text or task.family == "ogbench") and (task.minari or "") in row
    hopper = next(line for line in lines if line.startswith("hopper-medium-v2 "))
    assert hopper.split()[3:8] == ["1,000,000", "153", "yes", "yes", "mujoco/hopper/medium-v0"]
    assert text.count("CC-BY-4.0") == 5
    assert "diffcps/Ant-v2: observation 111, action 8, 1000 steps, score 0 at -325.6, 100 at 3879.7. Minari" in text
