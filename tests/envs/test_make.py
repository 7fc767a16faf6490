import warnings
from collections.abc import Callable, Iterator

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete

from diffcps.envs import quiet
from diffcps.envs.make import EnvironmentSizes, check_fits, environment_sizes, make_environment
from diffcps.types import DatasetInfo, Spec, UserError

FLAT = Box(-1.0, 1.0, (2,))


class Still(gymnasium.Env):
    """An environment that is nothing but its spaces."""

    def __init__(self, observation_space: gymnasium.Space, action_space: gymnasium.Space):
        self.observation_space, self.action_space = observation_space, action_space


@pytest.fixture
def register() -> Iterator[Callable[..., str]]:
    registered = []

    def add(name: str, entry_point: Callable, **options) -> str:
        environment_id = f"DiffcpsTest{name}-v0"
        gymnasium.register(environment_id, entry_point=entry_point, **options)
        registered.append(environment_id)
        return environment_id

    yield add
    for environment_id in registered:
        del gymnasium.registry[environment_id]


def message(environment_id: str) -> str:
    with pytest.raises(UserError) as caught:
        make_environment(environment_id)
    text = str(caught.value)
    assert "\n" not in text
    assert environment_id in text
    return text


def test_spec_of_hopper() -> None:
    assert environment_sizes("Hopper-v5") == EnvironmentSizes(11, 3, (-1.0,) * 3, (1.0,) * 3, 1000)


def test_spec_keeps_each_dimensions_bounds_and_a_missing_time_limit(register: Callable) -> None:
    action = Box(np.array([-1, -3], np.float32), np.array([2, 0.5], np.float32))
    environment_id = register("Bounds", lambda: Still(Box(-np.inf, np.inf, (4,)), action))
    assert environment_sizes(environment_id) == EnvironmentSizes(4, 2, (-1.0, -3.0), (2.0, 0.5), None)


@pytest.mark.parametrize(
    ("unknown", "suggested"),
    [
        ("Hoper-v5", "Hopper-v5"),
        ("hopper-v5", "Hopper-v5"),
        ("Hopper-v99", "Hopper-v5"),
        ("halfcheetah-medium-expert-v2", "HalfCheetah-v4"),  # a task: the environment that scores it
        ("walker2d-medium-replay-v2", "Walker2d-v4"),
        ("antmaze-umaze-v0", "diffcps/AntMaze-umaze-v0"),
        ("door-v0", "diffcps/AdroitDoor-v1"),  # what D4RL calls the robot
    ],
)
def test_unknown_id_names_the_nearest(unknown: str, suggested: str) -> None:
    assert f"did you mean {suggested}?" in message(unknown)


@pytest.mark.parametrize("unknown", ["", "a b", "Zzzzzz-v0", "NoSuchNamespace/Hop-v0"])
def test_unknown_id_without_a_near_one_says_where_to_look(unknown: str) -> None:
    assert "pprint_registry" in message(unknown)


@pytest.mark.filterwarnings("ignore:The environment .* is out of date")
@pytest.mark.parametrize(
    ("old", "today"),
    [("Hopper-v2", "Hopper-v4"), ("HalfCheetah-v3", "HalfCheetah-v4"), ("Ant-v2", "diffcps/Ant-v2")],
)
def test_mujoco_py_environments_lead_to_those_of_the_catalogue(old: str, today: str) -> None:
    assert f"use {today}" in message(old)
    make_environment(today).close()


def test_package_that_is_not_there() -> None:
    text = message("no_such_package_of_ours:Thing-v0")
    assert "No module named 'no_such_package_of_ours'" in text and "install" in text


def test_missing_dependency(register: Callable) -> None:
    def needs_something() -> gymnasium.Env:
        raise gymnasium.error.DependencyNotInstalled("Box2D is missing,\npip install it")

    assert "not installed: Box2D is missing, pip install it" in message(register("Needs", needs_something))


@pytest.mark.parametrize(
    ("observation", "action", "found"),
    [
        (FLAT, Discrete(3), "action space is a Discrete"),
        (Dict({"goal": Discrete(3)}), FLAT, "observation space is a Dict"),
        (Box(0, 255, (8, 8, 3), np.uint8), FLAT, "observation space is a Box of shape (8, 8, 3)"),
    ],
)
def test_spaces_that_are_not_flat_boxes(
    register: Callable, observation: gymnasium.Space, action: gymnasium.Space, found: str
) -> None:
    assert found in message(register("Spaces", lambda: Still(observation, action)))


def test_refused_environment_is_closed(register: Callable) -> None:
    closed = []

    class Closing(Still):
        def close(self) -> None:
            closed.append(True)

    message(register("Closing", lambda: Closing(Discrete(2), FLAT)))
    assert closed == [True]


def test_render_mode_that_the_environment_lacks(register: Callable) -> None:
    environment_id = register("Blind", lambda: Still(FLAT, FLAT))
    quiet._tell_once.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(UserError, match=f"{environment_id} has no render mode 'rgb_array'"):
            make_environment(environment_id, render_mode="rgb_array")


def test_old_version_is_told_once_in_one_plain_line() -> None:
    quiet._tell_once.cache_clear()
    with pytest.warns(UserWarning) as told:
        make_environment("Hopper-v4").close()
    [warning] = told
    text = str(warning.message)
    assert text.startswith("The environment Hopper-v4 is out of date") and "\n" not in text and "\x1b" not in text
    make_environment("Hopper-v4").close()  # a second warning would be an error here


def test_float64_bounds_are_no_reason_to_warn(register: Callable) -> None:
    def entry_point() -> gymnasium.Env:
        return Still(Box(np.full(2, -0.1), np.full(2, 0.1)), FLAT)

    make_environment(register("Precise", entry_point)).close()


def test_mujoco_notes_reach_neither_stderr_nor_a_log_file(tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    make_environment("HalfCheetah-v5").close()  # MuJoCo 4 writes a deprecation note for its model file
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err == ""
    assert list(tmp_path.iterdir()) == []


def test_data_must_fit_the_environment() -> None:
    info = DatasetInfo(source="logs/hopper.hdf5", sha256="0")
    check_fits(Spec(11, 3), info, "Hopper-v5")
    with pytest.raises(UserError) as caught:
        check_fits(Spec(17, 3), info, "Hopper-v5")
    assert "observations have 17 numbers in logs/hopper.hdf5 but 11 in environment Hopper-v5" in str(caught.value)
    with pytest.raises(UserError) as caught:
        check_fits(Spec(11, 6), info, "Hopper-v5")
    assert "actions have 6 numbers in logs/hopper.hdf5 but 3 in environment Hopper-v5" in str(caught.value)
