"""The environment of a run: from flags, data or a function, in config.json, and the same in `evaluate`."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box

import diffcps
from diffcps.algorithms import bc
from diffcps.cli.main import main
from diffcps.records.environment import chosen_environment, reference_of
from diffcps.records.folder import RunFolder
from diffcps.types import DatasetInfo, EnvironmentSpec, UserError

MODULE = "diffcps_test_tank"
TANK = '''
import gymnasium, numpy as np
from gymnasium.spaces import Box

class Tank(gymnasium.Env):
    """Pays `reward` a step; a success at the first step only."""
    def __init__(self, reward=1.0, own_limit=None):
        self.observation_space, self.action_space = Box(-np.inf, np.inf, (2,)), Box(-1.0, 1.0, (1,))
        self.reward, self.own_limit = reward, own_limit
    def reset(self, *, seed=None, options=None):
        self.time = 0
        return np.zeros(2, np.float32), {}
    def step(self, action):
        self.time += 1
        return np.zeros(2, np.float32), self.reward, self.time == self.own_limit, False, {"is_success": self.time == 1}

def twice():
    return gymnasium.wrappers.TimeLimit(Tank(2.0), 5)

gymnasium.register("DiffcpsTank-v0", "MODULE:Tank", max_episode_steps=4)
gymnasium.register("DiffcpsTankOwn-v0", "MODULE:Tank", kwargs={"own_limit": 6})
'''.replace("MODULE", MODULE)
SHORT = (
    "--updates",
    "2",
    "--eval-every",
    "2",
    "--log-every",
    "2",
    "--episodes",
    "2",
    "--batch-size",
    "4",
    "--width",
    "4",
)
SETTINGS = diffcps.Settings(updates=2, eval_every=2, log_every=2, episodes=2)
CONFIG = bc.Config(batch_size=4, width=4)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with a module and data of 20 rows; nothing of it is on `sys.path`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", str(tmp_path))])
    (tmp_path / f"{MODULE}.py").write_text(TANK)
    random = np.random.default_rng(0)
    rows = {"observations": random.normal(size=(20, 2)), "actions": random.uniform(-1, 1, (20, 1))}
    np.savez("data.npz", allow_pickle=False, **rows, rewards=np.ones(20), terminals=np.arange(20) % 5 == 4)
    yield tmp_path
    sys.modules.pop(MODULE, None)
    for name in ("DiffcpsTank-v0", "DiffcpsTankOwn-v0"):
        gymnasium.registry.pop(name, None)


def run(*arguments: str) -> int:
    return main([*arguments])


def train(*arguments: str, out: str = "run") -> int:
    return run("train", "bc", "--dataset", "data.npz", *SHORT, "--out", out, *arguments)


def returns(out: str = "run") -> list[float]:
    return json.loads(Path(out, "evaluations.jsonl").read_text().splitlines()[-1])["returns"]


def again(out: str = "run") -> list[float]:
    newest = max(Path(out, "evaluations").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    [member] = json.loads(newest.read_text())["members"]
    return member["returns"]


def test_flags_make_a_specification_that_evaluate_uses_again(capsys) -> None:
    flags = ("--env", f"{MODULE}:DiffcpsTank-v0", "--env-kwargs", '{"reward": 3.0}', "--max-episode-steps", "7")
    assert train(*flags) == 0
    assert returns() == [21.0, 21.0]
    stored = json.loads(Path("run/config.json").read_text())["env"]
    assert stored == {
        "id": f"{MODULE}:DiffcpsTank-v0", "kwargs": '{"reward": 3.0}', "max_episode_steps": 7, "recorded": None
    }  # fmt: skip
    capsys.readouterr()
    assert run("evaluate", "run", "--episodes", "2") == 0
    table = capsys.readouterr().out
    assert again() == [21.0, 21.0]
    assert "a success at the last step, and at any step" in " ".join(table.split())
    assert "0.000" in table and "1.000" in table
    assert run("evaluate", "run", "--episodes", "2", "--env-kwargs", '{"reward": 5.0}') == 0
    assert again() == [35.0, 35.0]  # the run's limit stays
    assert run("evaluate", "run", "--episodes", "2", "--env", f"{MODULE}:twice", "--max-episode-steps", "3") == 0
    assert again() == [6.0, 6.0]


def test_an_id_alone_stands_in_config_as_before_and_old_folders_are_read() -> None:
    assert train("--env", f"{MODULE}:DiffcpsTank-v0") == 0
    config = json.loads(Path("run/config.json").read_text())
    assert config["env"] == f"{MODULE}:DiffcpsTank-v0"
    assert "env_kwargs" not in config and config["dataset"]["environment"] is None
    config["dataset"]["environment"] = "Hopper-v5"  # as older versions wrote it
    Path("run/config.json").write_text(json.dumps(config))
    record = RunFolder("run").read_record()
    assert record.dataset.environment == EnvironmentSpec("Hopper-v5")
    assert record.environment == record.settings.env == EnvironmentSpec(f"{MODULE}:DiffcpsTank-v0")


def test_a_run_is_resumed_in_its_own_environment_only(capsys) -> None:
    flags = ("--env", f"{MODULE}:DiffcpsTank-v0", "--env-kwargs", '{"reward": 3.0}')
    assert train(*flags) == 0
    assert train("--resume", "--updates", "4", "--eval-every", "2") == 0
    assert returns() == [12.0, 12.0]
    capsys.readouterr()
    assert train("--resume", "--updates", "4", "--env-kwargs", '{"reward": 4.0}') == 2
    line = capsys.readouterr().err
    name = f"{MODULE}:DiffcpsTank-v0"
    assert f"another env: the run has {name}(reward=3.0), you gave {name}(reward=4.0)" in line


def test_an_environment_that_ends_by_itself(capsys) -> None:
    own = ("--env", f"{MODULE}:DiffcpsTankOwn-v0")
    assert train(*own) == 2
    line = capsys.readouterr().err
    assert "has no time limit" in line and "--max-episode-steps N" in line and not Path("run").exists()
    assert train(*own, "--max-episode-steps", "50") == 0
    assert returns() == [6.0, 6.0]


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--env-kwargs", '{"reward": 1}'), "there is none: add --env ID"),
        (("--env", f"{MODULE}:DiffcpsTank-v0", "--env-kwargs", "{reward: 1}"), "must be a JSON object"),
        (("--env", f"{MODULE}:DiffcpsTank-v0", "--env-kwargs", '{"rewrd": 1}'), "takes no argument rewrd"),
        (("--env", f"{MODULE}:DiffcpsTank-v0", "--max-episode-steps", "0"), "max_episode_steps is 0"),
        (("--env", "no_such_module:X-v0"), "No module named 'no_such_module'"),
    ],
)
def test_flags_that_are_wrong(capsys, flags: tuple[str, ...], line: str) -> None:
    assert train(*flags) == 2
    captured = capsys.readouterr().err
    assert line in captured and captured.count("\n") == 1 and not Path("run").exists()


# --- in Python ---


def importable() -> gymnasium.Env:
    return Constant(0.5)


class Constant(gymnasium.Env):
    def __init__(self, reward: float):
        self.observation_space, self.action_space = Box(-1, 1, (2,)), Box(-1, 1, (1,))
        self.reward = reward

    def reset(self, *, seed=None, options=None):
        self.time = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.time += 1
        return np.zeros(2, np.float32), self.reward, self.time == 3, False, {}


def limited(reward: float) -> gymnasium.Env:
    return gymnasium.wrappers.TimeLimit(Constant(reward), 10)


def module_function() -> gymnasium.Env:
    return limited(0.5)


def test_a_function_of_a_module_is_stored_by_its_name() -> None:
    diffcps.train(CONFIG, "data.npz", SETTINGS, out="run", environment=module_function)
    assert returns() == [1.5, 1.5]
    assert json.loads(Path("run/config.json").read_text())["env"] == f"{__name__}:module_function"
    found = diffcps.evaluate("run", episodes=2)
    assert found.members[0].returns == (1.5, 1.5) and found.members[0].success_at_any_step is None


def test_a_function_that_cannot_be_imported_again() -> None:
    diffcps.train(CONFIG, "data.npz", SETTINGS, out="run", environment=lambda: limited(0.5))
    assert returns() == [1.5, 1.5]
    with pytest.raises(UserError, match=r"cannot be imported again: pass environment="):
        diffcps.evaluate("run")
    assert diffcps.evaluate("run", episodes=2, environment=lambda: limited(2.0)).members[0].returns == (6.0, 6.0)
    more = diffcps.Settings(updates=4, eval_every=2, log_every=2, episodes=2)
    with pytest.raises(UserError, match="another env"):
        diffcps.train(CONFIG, "data.npz", more, out="run", environment=module_function, resume=True)


def test_a_function_is_called_again_when_a_run_goes_on() -> None:
    make = lambda: limited(0.5)  # noqa: E731
    diffcps.train(CONFIG, "data.npz", SETTINGS, out="run", environment=make)
    more = diffcps.Settings(updates=4, eval_every=2, log_every=2, episodes=2)
    diffcps.train(CONFIG, "data.npz", more, out="run", environment=make, resume=True)
    assert len(Path("run/evaluations.jsonl").read_text().splitlines()) == 2


def test_ids_and_specifications_in_python() -> None:
    spec = diffcps.EnvironmentSpec(f"{MODULE}:DiffcpsTank-v0", '{"reward": 2.0}')
    diffcps.train(CONFIG, "data.npz", SETTINGS, out="run", environment=spec)
    assert returns() == [8.0, 8.0]
    assert diffcps.evaluate("run", episodes=1, environment=f"{MODULE}:DiffcpsTank-v0").members[0].returns == (4.0,)


# --- pure functions ---


def test_what_is_given_comes_before_what_the_data_name() -> None:
    own = EnvironmentSpec("Hopper-v5", '{"a": 1}', recorded="{}")
    assert chosen_environment(None, None, None, own) is own
    assert chosen_environment("none", None, None, own) is None
    assert chosen_environment("X-v0", None, None, own) == EnvironmentSpec("X-v0")
    changed = chosen_environment(None, '{"b": 2}', 9, own)
    assert changed == EnvironmentSpec("Hopper-v5", '{"a": 1, "b": 2}', 9, "{}")


def test_references_hold_where_they_were_measured() -> None:
    plain, changed = EnvironmentSpec("Hopper-v5"), EnvironmentSpec("Hopper-v5", '{"healthy_reward": 0}')
    d4rl, own = (-20.272305, 3234.3), (1.0, 2.0)

    def references(environment: EnvironmentSpec | None, *asked: EnvironmentSpec | None) -> list[tuple | None]:
        info = DatasetInfo("x", "0", environment, reference_min=1.0, reference_max=2.0)
        return [reference_of(info, each) for each in asked]

    v4, other = EnvironmentSpec("Hopper-v4"), EnvironmentSpec("Walker2d-v5")
    assert references(plain, plain, v4, changed, None) == [own, own, None, None]
    assert references(changed, changed, plain) == [own, d4rl]
    assert references(None, plain, changed) == [own, None]
    assert references(plain, other) == [(1.629008, 4592.3)]
