from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from diffcps.data import load_dataset
from diffcps.data.scaling import Scaling
from diffcps.types import DatasetInfo, EnvAction, EnvObservation, NetAction

ROOT = Path(__file__).parents[2]


def scaling(low: list[float], high: list[float]) -> Scaling:
    return Scaling.of(DatasetInfo("toy", "0", action_low=tuple(map(float, low)), action_high=tuple(map(float, high))))


def test_actions_by_hand():
    box = scaling([-2, 0], [2, 10])
    action = np.array([[-2, 0], [0, 5], [2, 10], [1, 7.5]], np.float32)
    expected = [[-1, -1], [0, 0], [1, 1], [0.5, 0.5]]
    assert box.scaled_action(EnvAction(action)).tolist() == expected
    assert box.action(NetAction(np.array(expected, np.float32))).tolist() == action.tolist()
    outside = np.array([2.00001, -0.00001], np.float32)
    assert box.scaled_action(EnvAction(outside)).tolist() == [1, -1]


def test_the_box_of_the_networks_changes_nothing():
    inside = np.array([[0.1, -0.7]], np.float32)
    np.testing.assert_array_equal(scaling([-1, -1], [1, 1]).scaled_action(EnvAction(inside)), inside)


def test_actions_there_and_back():
    rng = np.random.default_rng(0)
    low, high = [-2.0, -0.3, 0.0], [2.0, 0.7, 10.0]
    box = scaling(low, high)
    action = rng.uniform(low, high, (2, 500, 3)).astype(np.float32)
    scaled = box.scaled_action(EnvAction(action))
    assert scaled.dtype == np.float32 and np.abs(scaled).max() <= 1
    assert np.abs(scaled).min(axis=(0, 1)).max() < 0.01 and np.abs(scaled).max(axis=(0, 1)).min() > 0.99
    np.testing.assert_allclose(box.action(scaled), action, rtol=0, atol=2e-6)
    np.testing.assert_allclose(box.scaled_action(box.action(scaled)), scaled, rtol=0, atol=1e-6)


def test_observations_and_actions_of_a_loaded_file(rows, write_hdf5):
    """What a policy sees of a stored state is what it was trained on, and a stored action comes back."""
    rows["actions"] = np.linspace(-3, 5, 8)[:, None]
    path = write_hdf5(rows, {"action_low": -3.0, "action_high": 5.0})
    raw, changed = load_dataset(path), load_dataset(path, normalise_observation=True)
    seen = Scaling.of(changed.info).observation(EnvObservation(np.asarray(raw.observation)))
    np.testing.assert_allclose(seen, changed.observation, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(Scaling.of(raw.info).observation(EnvObservation(raw.observation)), raw.observation)
    stored = rows["actions"][[0, 1, 2, 3, 4, 6]]
    assert np.abs(changed.action).max() <= 1
    np.testing.assert_allclose(Scaling.of(changed.info).action(NetAction(changed.action)), stored, rtol=0, atol=1e-6)


SNIPPETS = {
    "control": "given = scaling.action(policy)\nenvironment(given)\nlearn(scaling.scaled_action(given))",
    "network action to the environment": "environment(policy)",
    "environment action to the learner": "learn(scaling.action(policy))",
    "environment action scaled again": "scaling.action(scaling.action(policy))",
    "network action scaled again": "scaling.scaled_action(policy)",
    "network observation normalised again": "scaling.observation(scaling.observation(seen))",
    "plain array as an action": "environment(np.zeros(2))",
}
HEAD = """
import numpy as np
from diffcps.data.scaling import Scaling
from diffcps.types import EnvAction, EnvObservation, NetAction

def environment(action: EnvAction) -> None: ...
def learn(action: NetAction) -> None: ...
def use(scaling: Scaling, policy: NetAction, seen: EnvObservation) -> None:
"""


@pytest.fixture(scope="module")
def complaints(tmp_path_factory) -> dict[str, list[str]]:
    """What pyright, with the repository's settings, says of each snippet: one start for all."""
    folder = tmp_path_factory.mktemp("snippets")
    settings = {"extends": str(ROOT / "pyproject.toml"), "include": ["."], "extraPaths": [str(ROOT / "src")]}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    files = {}
    for number, (name, code) in enumerate(SNIPPETS.items()):
        files[f"snippet{number}.py"] = name
        body = "".join(f"    {line}\n" for line in code.splitlines())
        (folder / f"snippet{number}.py").write_text(HEAD + body)
    command = [sys.executable, "-m", "pyright", "-p", str(folder), "--pythonpath", sys.executable, "--outputjson"]
    answer = json.loads(subprocess.run(command, capture_output=True, text=True).stdout)
    found: dict[str, list[str]] = {name: [] for name in SNIPPETS}
    for said in answer["generalDiagnostics"]:
        if said["severity"] == "error":
            found[files[Path(said["file"]).name]].append(said["rule"])
    assert answer["summary"]["filesAnalyzed"] >= len(SNIPPETS)
    return found


@pytest.mark.parametrize("name", SNIPPETS)
def test_pyright_tells_units_apart(complaints, name):
    assert complaints[name] == ([] if name == "control" else ["reportArgumentType"])
