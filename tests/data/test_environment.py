"""The environment that data name: Minari's specifications, attributes of files; Dict observations read flat."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box, Dict, Tuple

from diffcps.data import load_dataset
from diffcps.data.convert import convert
from diffcps.data.load import read_raw
from diffcps.envs.make import make_environment
from diffcps.types import EnvironmentSpec, UserError

# Minari's collector leaves temporary folders to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore:Implicitly cleaning up:ResourceWarning"
)


class Parts(gymnasium.Env):
    """Dict observations with a nested Tuple. The keys are given unsorted."""

    def __init__(self):
        box = Box(-np.inf, np.inf, (2,), np.float64)
        members = {"position": box, "goal": Tuple([Box(-9, 9, (1, 2)), box])}
        self.observation_space, self.action_space = Dict(members, sort_keys=False), Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self._look(), {}

    def step(self, action):
        self.time += 1
        return self._look(), 1.0, False, False, {}

    def _look(self):
        goal = (np.full((1, 2), 2.0, np.float32), np.full(2, 3.0))
        return {"position": np.full(2, float(self.time)), "goal": goal}


PARTS = "DiffcpsTestParts-v0"


@pytest.fixture
def collect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Two short episodes as a Minari dataset; returns its id."""
    import minari

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    (tmp_path / "minari").mkdir()
    monkeypatch.setitem(gymnasium.registry, PARTS, EnvSpec(PARTS, f"{__name__}:Parts", max_episode_steps=3))

    def make(environment: gymnasium.Env, eval_env: gymnasium.Env | None = None) -> str:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            collector = minari.DataCollector(environment)
            collector.action_space.seed(0)
            for episode in range(2):
                collector.reset(seed=episode)
                for _ in range(3):
                    collector.step(collector.action_space.sample())
            collector.create_dataset("own/set-v0", eval_env=eval_env)
            collector.close()
        return "own/set-v0"

    return make


def test_arguments_and_limit_of_a_minari_dataset(collect: Callable[..., str]) -> None:
    source = collect(gymnasium.make("Pendulum-v1", g=5.0, max_episode_steps=3))
    found = load_dataset(source).info.environment
    assert found is not None and str(found) == "Pendulum-v1(g=5.0), 3 steps"
    assert make_environment(found).unwrapped.g == 5.0  # type: ignore[attr-defined]


def test_the_evaluation_environment_comes_first(collect: Callable[..., str]) -> None:
    source = collect(gymnasium.make("Pendulum-v1", g=5.0), gymnasium.make("Pendulum-v1", g=7.0))
    assert str(load_dataset(source).info.environment) == "Pendulum-v1(g=7.0), 200 steps"


def test_what_says_no_more_than_an_id_is_an_id(collect: Callable[..., str]) -> None:
    assert load_dataset(collect(gymnasium.make("Pendulum-v1"))).info.environment == EnvironmentSpec("Pendulum-v1")


def test_dict_observations_are_read_as_the_environment_gives_them(collect: Callable[..., str]) -> None:
    source = collect(gymnasium.make(PARTS))
    dataset = load_dataset(source)
    np.testing.assert_array_equal(dataset.observation[:, 4:], np.tile([[0, 0], [1, 1], [2, 2]], (2, 1)))
    np.testing.assert_array_equal(dataset.next_observation[:, 4], [1, 2, 3] * 2)
    assert dataset.info.environment is not None
    made = make_environment(dataset.info.environment)
    np.testing.assert_array_equal(made.reset(seed=0)[0], dataset.observation[0])
    np.testing.assert_array_equal(made.step(np.zeros(1, np.float32))[0], dataset.next_observation[0])
    [note] = read_raw(source).notes
    assert note == "observations are flattened, in this order: goal.0 (2), goal.1 (2), position (2)"


def test_a_dataset_recorded_flat_keeps_its_wrapper(collect: Callable[..., str], tmp_path: Path) -> None:
    source = collect(gymnasium.wrappers.FlattenObservation(gymnasium.make(PARTS)))
    found = load_dataset(source).info.environment
    assert found is not None and str(found) == f"{PARTS}, FlattenObservation, 3 steps"
    for target in (str(tmp_path / "new.npz"), str(tmp_path / "new.hdf5")):
        convert(source, target)
        assert load_dataset(target).info.environment == found  # no argument or wrapper is lost on the way


def test_a_specification_that_is_none(tmp_path: Path) -> None:
    rows = {"observations": np.zeros((4, 2)), "actions": np.zeros((4, 1)), "rewards": np.zeros(4)}
    np.savez(tmp_path / "a.npz", **rows, terminals=np.arange(4) == 3, env_spec='{"name": 1}')
    with pytest.raises(UserError, match=r"`env_spec` is .*spec\.to_json"):
        load_dataset(tmp_path / "a.npz")
    spec = gymnasium.make("Pendulum-v1", g=5.0).spec
    assert spec is not None
    np.savez(tmp_path / "b.npz", **rows, terminals=np.arange(4) == 3, env_spec=spec.to_json())  # as the message says
    found = load_dataset(tmp_path / "b.npz").info.environment
    assert found is not None and found.recorded is not None and json.loads(found.recorded)["kwargs"] == {"g": 5.0}
