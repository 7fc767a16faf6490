"""An environment from its specification: arguments, time limit, wrappers, modules of the user's, flattening."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Tuple
from gymnasium.wrappers import ClipReward, FlattenObservation, NormalizeReward, TimeLimit, TransformReward

from diffcps.envs.make import environment_sizes, make_environment, time_limit
from diffcps.envs.names import named
from diffcps.types import EnvironmentSpec, UserError

PLANT = """
import gymnasium, numpy as np
from gymnasium.spaces import Box

class Tank(gymnasium.Env):
    def __init__(self, target=0.5, broken=False):
        if broken:
            raise OSError("no connection to\\nthe plant")
        self.observation_space, self.action_space = Box(-1, 1, (2,)), Box(0.0, 1.0, (1,))
        self.target = target
    def reset(self, *, seed=None, options=None):
        return np.full(2, self.target, np.float32), {}
    def step(self, action):
        return np.full(2, self.target, np.float32), 1.0, False, False, {}

def make_tank(target=0.5):
    return Tank(target)

def limited():
    return gymnasium.wrappers.TimeLimit(Tank(), 30)

def make_number():
    return 7

gymnasium.register("DiffcpsPlant-v0", "PLANT:Tank", max_episode_steps=40)
"""


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module in the current folder, which is not on `sys.path`."""
    name = "diffcps_test_plant"
    (tmp_path / f"{name}.py").write_text(PLANT.replace("PLANT", name))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", str(tmp_path))])
    yield name
    sys.modules.pop(name, None)
    gymnasium.registry.pop("DiffcpsPlant-v0", None)


def refused(environment: EnvironmentSpec | str) -> str:
    with pytest.raises(UserError) as caught:
        make_environment(environment)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def reset(environment: EnvironmentSpec | str) -> np.ndarray:
    made = make_environment(environment)
    observation, _ = made.reset(seed=0)
    made.close()
    return observation


def test_text_and_canonical_form() -> None:
    assert str(EnvironmentSpec("Hopper-v5")) == "Hopper-v5"
    spec = EnvironmentSpec("Hopper-v5", '{"b": false,"a": 0.5}', 200)
    assert str(spec) == "Hopper-v5(a=0.5, b=false), 200 steps"
    assert spec == EnvironmentSpec("Hopper-v5", '{"a":0.5, "b":false}', 200) and hash(spec)
    assert EnvironmentSpec("Hopper-v5").is_default and not spec.is_default
    assert spec.with_changes('{"a": 1}', None) == EnvironmentSpec("Hopper-v5", '{"a": 1, "b": false}', 200)


@pytest.mark.parametrize("text", ["{", "[1]", "healthy_reward=0"])
def test_arguments_must_be_a_json_object(text: str) -> None:
    with pytest.raises(UserError, match=r"arguments of environment X-v0 .* JSON object such as"):
        EnvironmentSpec("X-v0", text)
    with pytest.raises(UserError, match="1 step or more"):
        EnvironmentSpec("X-v0", max_episode_steps=0)


def test_arguments_and_time_limit_reach_the_environment() -> None:
    made = make_environment(EnvironmentSpec("Hopper-v5", '{"healthy_reward": 0.25}', 7))
    assert made.unwrapped._healthy_reward == 0.25  # type: ignore[attr-defined]
    assert time_limit(made) == 7
    made.reset(seed=0)
    ends = [made.step(np.zeros(3, np.float32))[3] for _ in range(7)]
    assert ends == [False] * 6 + [True]


def test_argument_that_the_environment_does_not_take() -> None:
    text = refused(EnvironmentSpec("Hopper-v5", '{"helthy_reward": 0}'))
    assert "Hopper-v5(helthy_reward=0) takes no argument helthy_reward: correct --env-kwargs" in text


def test_module_in_the_current_folder(plant: str) -> None:
    before = list(sys.path)
    np.testing.assert_array_equal(reset(f"{plant}:DiffcpsPlant-v0"), [0.5, 0.5])
    np.testing.assert_array_equal(reset(EnvironmentSpec(f"{plant}:DiffcpsPlant-v0", '{"target": 0.75}')), [0.75, 0.75])
    assert sys.path == before
    assert environment_sizes(f"{plant}:DiffcpsPlant-v0").max_steps == 40


def test_function_of_a_module(plant: str) -> None:
    assert environment_sizes(f"{plant}:make_tank").max_steps is None
    assert environment_sizes(EnvironmentSpec(f"{plant}:make_tank", max_episode_steps=9)).max_steps == 9
    np.testing.assert_array_equal(reset(EnvironmentSpec(f"{plant}:make_tank", '{"target": 0.25}')), [0.25, 0.25])
    assert environment_sizes(f"{plant}:limited").max_steps == 30
    assert environment_sizes(EnvironmentSpec(f"{plant}:limited", max_episode_steps=20)).max_steps == 20
    assert "limit of 30 steps" in refused(EnvironmentSpec(f"{plant}:limited", max_episode_steps=50))


def test_what_a_module_lacks(plant: str) -> None:
    assert f"module {plant} registers no id Tonk-v0" in refused(f"{plant}:Tonk-v0")
    assert "gives a int, not a gymnasium.Env" in refused(f"{plant}:make_number")
    assert "OSError: no connection to the plant" in refused(EnvironmentSpec(f"{plant}:Tank", '{"broken": true}'))
    Path("diffcps_test_typo.py").write_text("def f(:\n")
    assert "cannot be made: SyntaxError" in refused("diffcps_test_typo:X-v0")


def test_a_function_is_called_by_its_name() -> None:
    def here() -> gymnasium.Env:
        return gymnasium.make("Pendulum-v1")

    spec = named(here)
    assert spec.id == f"{__name__}:test_a_function_is_called_by_its_name.<locals>.here"
    make_environment(spec).close()
    stored = EnvironmentSpec(spec.id)  # as it comes back from config.json
    assert stored == spec
    assert "pass environment=" in refused(stored)
    assert "pass environment=" in refused("__main__:make")


# --- what Gymnasium records ---


def recorded(made: gymnasium.Env) -> EnvironmentSpec:
    assert made.spec is not None
    return EnvironmentSpec(made.spec.id, recorded=made.spec.to_json())


def test_recorded_arguments_limit_and_wrappers_come_back() -> None:
    spec = recorded(ClipReward(gymnasium.make("Pendulum-v1", g=5.0, max_episode_steps=7), -1.0, 0.0))
    assert str(spec) == "Pendulum-v1(g=5.0), ClipReward, 7 steps"
    made = make_environment(spec)
    assert isinstance(made, ClipReward) and time_limit(made) == 7
    assert made.unwrapped.g == 5.0  # type: ignore[attr-defined]
    changed = make_environment(spec.with_changes('{"g": 6.0}', 9))
    assert changed.unwrapped.g == 6.0 and time_limit(changed) == 9  # type: ignore[attr-defined]


def test_recorded_by_older_versions_and_for_the_eyes() -> None:
    """Fields that Gymnasium no longer has, a render mode that would open a window, a wrapper that films."""
    spec = gymnasium.spec("Pendulum-v1")
    facts = json.loads(spec.to_json()) | {"autoreset": False, "apply_api_compatibility": False}
    facts["kwargs"] = {"render_mode": "human"}
    facts["additional_wrappers"] = [
        {"name": "RecordVideo", "entry_point": "gymnasium.wrappers:RecordVideo", "kwargs": {}}
    ]
    made = make_environment(EnvironmentSpec("Pendulum-v1", recorded=json.dumps(facts)))
    assert made.unwrapped.render_mode is None and time_limit(made) == 200
    facts["apply_api_compatibility"] = True
    assert "layer for old Gym environments" in refused(EnvironmentSpec("Pendulum-v1", recorded=json.dumps(facts)))


class Secret(gymnasium.Wrapper):
    """Does not record how it was made."""


@pytest.mark.parametrize(("wrapper", "name"), [(Secret, "Secret"), (NormalizeReward, "NormalizeReward")])
def test_wrappers_that_cannot_be_made_again_are_refused(wrapper: type[gymnasium.Wrapper], name: str) -> None:
    text = refused(recorded(wrapper(gymnasium.make("Pendulum-v1"))))
    assert f"under the wrapper {name}" in text and "--env" in text


# --- flattening ---


class Goal(gymnasium.Env):
    """Observations are parts, each full of its own number."""

    def __init__(self, space: gymnasium.Space, observation: object):
        self.observation_space, self.action_space = space, Box(-np.inf, np.inf, (1,))
        self.observation = observation

    def reset(self, *, seed=None, options=None):
        return self.observation, {}

    def step(self, action):
        return self.observation, 0.0, False, False, {}


@pytest.mark.parametrize("sort_keys", [True, False])
def test_dict_and_tuple_of_boxes_are_flattened_by_sorted_keys(sort_keys: bool) -> None:
    box = Box(-9, 9, (2,))
    inner = Dict({"z": box, "a": Box(-9, 9, (1, 2))}, sort_keys=sort_keys)
    space = Dict({"observation": Tuple([box, inner]), "goal": box}, sort_keys=sort_keys)
    three = {"z": np.full(2, 3.0), "a": np.full((1, 2), 2.0)}
    goal = Goal(space, {"observation": (np.full(2, 1.0), three), "goal": np.zeros(2)})
    made = make_environment(named(lambda: goal))
    assert isinstance(made, FlattenObservation)
    expected = [0, 0, 1, 1, 2, 2, 3, 3]
    np.testing.assert_array_equal(made.reset(seed=0)[0], expected)
    np.testing.assert_array_equal(made.step(np.zeros(1))[0], expected)
    assert made.observation_space.shape == (8,)


def test_action_boxes_without_bounds_will_do() -> None:
    sizes = environment_sizes(named(lambda: Goal(Box(-1, 1, (2,)), np.zeros(2))))
    assert (sizes.action_low, sizes.action_high, sizes.max_steps) == ((-np.inf,), (np.inf,), None)
    limited = TransformReward(TimeLimit(Goal(Box(-1, 1, (2,)), np.zeros(2)), 4), float)
    assert time_limit(limited) == 4  # though it has no specification
