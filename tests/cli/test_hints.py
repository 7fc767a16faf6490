"""Each hint in an error message is followed once, and leads on: message, words to add, and the command that works."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from diffcps.cli.main import main

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROWS = 400
Arrays = dict[str, np.ndarray]


def walk() -> Arrays:
    """Four trajectories of 100 steps in the plane."""
    random = np.random.default_rng(0)
    state = random.normal(size=(4, 101, 3)).cumsum(axis=1)
    return {
        "observations": state[:, :-1].reshape(-1, 3),
        "actions": random.uniform(-1, 1, (ROWS, 1)),
        "rewards": random.normal(size=ROWS),
        "next_observations": state[:, 1:].reshape(-1, 3),
        "terminals": np.zeros(ROWS, bool),
        "timeouts": np.arange(ROWS) % 100 == 99,
    }


def without(arrays: Arrays, *names: str) -> Arrays:
    return {name: value for name, value in arrays.items() if name not in names}


def renamed(arrays: Arrays, old: str, new: str) -> Arrays:
    return {new if name == old else name: value for name, value in arrays.items()}


def in_order(arrays: Arrays, order: np.ndarray) -> Arrays:
    return {name: value[order] for name, value in arrays.items()}


def half_reset(arrays: Arrays) -> Arrays:
    """One trajectory, cut every ten rows, that jumps at some of the cuts."""
    state = np.random.default_rng(0).normal(size=(ROWS + 1, 3)).cumsum(axis=0)
    state[200:] += 1000 * (np.arange(ROWS - 199) // 40)[:, None]
    ends = np.arange(ROWS) % 20 == 19
    return arrays | {"observations": state[:-1], "next_observations": state[1:], "timeouts": ends}


SIDE_BY_SIDE = np.arange(ROWS).reshape(4, 100).T.ravel()
SHUFFLED = np.random.default_rng(1).permutation(ROWS)


class Case(NamedTuple):
    """A file, what is said of it, and what is added to the command, as it stands in the message."""

    data: Callable[[Arrays], Arrays]
    message: str
    hint: str


CASES = [
    Case(lambda a: renamed(a, "timeouts", "dones"), "`dones` may say how episodes end", "timeout=dones"),
    Case(lambda a: renamed(a, "timeouts", "is_last"), "`is_last` may say how episodes end", "timeout=none"),
    Case(lambda a: renamed(a, "terminals", "done"), "`done` may say how episodes end", "terminal=done"),
    Case(lambda a: renamed(a, "actions", "moves"), "no field `actions`", "--columns action=NAME"),
    Case(
        lambda a: without(in_order(a, SIDE_BY_SIDE), "next_observations"),
        "as if 4 environments lay side by side",
        "--environments 4",
    ),
    Case(
        lambda a: without(in_order(a, SHUFFLED), "next_observations"),
        "as if the rows were shuffled",
        "--environments 1",
    ),
    Case(half_reset, "which is a start at some and a step at others", "--timeout-next none"),
    Case(half_reset, "which is a start at some and a step at others", "--timeout-next real"),
    Case(lambda a: a | {"actions": 1.5 * np.sign(a["actions"])}, "outside [-1, 1]", "--clip-actions"),
    Case(
        lambda a: a | {"actions": 1.5 * np.sign(a["actions"])}, "outside [-1, 1]", "--action-low -1.5 --action-high 1.5"
    ),
    Case(lambda a: a | {"action_high": np.array([np.inf]), "action_low": np.array([0.0]), "actions": abs(a["actions"])},
         "is not finite", "--action-low X and --action-high X"),
    Case(
        lambda a: a | {"actions": np.ones((ROWS, 1), int)}, "as if each number named an action", "--continuous-actions"
    ),
]  # fmt: skip
WORDS = {
    "timeout=dones": ("--columns", "timeout=dones"),
    "timeout=none": ("--columns", "timeout=none"),
    "terminal=done": ("--columns", "terminal=done"),
    "--columns action=NAME": ("--columns", "action=moves"),
    "--action-low X and --action-high X": ("--action-low", "0", "--action-high", "1"),
}
"""What a hint is as words of a command, where it is no command line by itself."""


@pytest.mark.parametrize("case", CASES, ids=[case.hint for case in CASES])
def test_hints_about_data_lead_on(tmp_path, capsys, case):
    data, out = str(tmp_path / "data.npz"), str(tmp_path / "new.npz")
    np.savez(data, **case.data(walk()))  # pyright: ignore[reportArgumentType]
    assert main(["data", "convert", data, out]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert case.message in line and case.hint in line
    assert not Path(out).exists()
    assert main(["data", "convert", data, out, *WORDS.get(case.hint, tuple(case.hint.split()))]) == 0
    assert Path(out).exists()


USELESS = [
    ("--observation-keys", "a"),
    ("--timeout-next", "none"),
    ("--action-units", "scaled"),
    ("--top-episodes", "0.1"),
    ("--reward", "standardise"),
    ("--reward-scale", "2"),
    ("--normalise-observation",),
]
"""Words that can change nothing about a conversion of a plain file without next observations."""


@pytest.mark.parametrize("words", USELESS, ids=[words[0] for words in USELESS])
def test_words_that_would_do_nothing_are_refused(tmp_path, capsys, words):
    data, out = str(tmp_path / "data.npz"), str(tmp_path / "new.npz")
    np.savez(data, **without(walk(), "next_observations"))  # pyright: ignore[reportArgumentType]
    assert main(["data", "convert", data, out, *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words[0] in line and "leave" in line
    assert main(["data", "convert", data, out]) == 0


def test_words_about_fields_are_refused_where_fields_are_fixed(capsys):
    assert main(["data", "show", "builtin", "--columns", "reward=none"]) == 2
    assert "leave --columns reward=none out" in capsys.readouterr().err


@pytest.mark.parametrize("units", ["environment", "scaled"])
def test_hints_about_units_lead_on(tmp_path, capsys, units):
    data = str(tmp_path / "data.npz")
    np.savez(data, **walk())  # pyright: ignore[reportArgumentType]
    command = ["train", "bc", "--dataset", data, "--env", "Pendulum-v1", "--out", str(tmp_path / "run")]
    command += ["--updates", "2", "--eval-every", "2", "--log-every", "2", "--episodes", "1", "--width", "4"]
    assert main(command) == 2
    assert f"--action-units {units}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main([*command, "--action-units", units]) == 0


def test_hints_about_what_data_lack_lead_on(tmp_path, capsys):
    data = str(tmp_path / "data.npz")
    np.savez(data, **without(walk(), "rewards"))  # pyright: ignore[reportArgumentType]
    words = ["--dataset", data, "--env", "none", "--out", str(tmp_path / "run")]
    words += ["--updates", "2", "--eval-every", "2", "--log-every", "2", "--width", "4"]
    assert main(["train", "td3_bc", *words]) == 2
    assert "clone the behaviour with bc or diffusion_bc" in capsys.readouterr().err
    assert main(["train", "bc", *words]) == 0


def test_hints_about_what_diverged_lead_on(tmp_path, capsys):
    data, arrays = str(tmp_path / "data.npz"), walk()
    for name in ("observations", "next_observations"):
        arrays[name] = 1e7 * arrays[name]
    np.savez(data, **arrays)  # pyright: ignore[reportArgumentType]
    words = [
        "train",
        "td3_bc",
        "--dataset",
        data,
        "--env",
        "none",
        "--width",
        "4",
        "--updates",
        "2",
        "--eval-every",
        "2",
    ]
    assert main([*words, "--log-every", "2", "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "diverged" in said and "try --normalise-observation" in said
    assert main([*words, "--log-every", "2", "--out", str(tmp_path / "other"), "--normalise-observation"]) == 0


def test_a_table_without_a_header(tmp_path, capsys):
    pytest.importorskip("pyarrow")
    arrays = walk()
    columns = np.hstack([arrays["observations"], arrays["actions"], arrays["rewards"][:, None]])
    data, out = tmp_path / "data.csv", str(tmp_path / "new.npz")
    np.savetxt(data, columns, delimiter=",")
    assert main(["data", "convert", str(data), out]) == 2
    assert "put a header on top" in capsys.readouterr().err
    data.write_text("observation_0,observation_1,observation_2,action,reward\n" + data.read_text())
    assert main(["data", "convert", str(data), out]) == 0
