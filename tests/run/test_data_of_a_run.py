"""What a training asks of its data before update 0, and what it says of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import diffcps
from diffcps.algorithms import ALGORITHMS, bc, td3_bc
from diffcps.cli.main import main
from diffcps.envs.make import environment_sizes
from diffcps.envs.toy import noisy_circle
from diffcps.run.preflight import with_limits_noticed
from diffcps.types import UserError

pytestmark = pytest.mark.usefixtures("quick_compilation")

SHORT = ("--updates", "4", "--eval-every", "4", "--log-every", "4", "--width", "8", "--batch-size", "8")
FIELDS = ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts")


def pendulum(rows: int = 400) -> dict[str, np.ndarray]:
    """Trajectories of 100 steps of a swing; torques in [-1, 1]."""
    random = np.random.default_rng(0)
    angle = random.normal(scale=0.1, size=(rows // 100, 101)).cumsum(axis=1)
    state = np.stack([np.cos(angle), np.sin(angle), np.gradient(angle, axis=1)], axis=2)
    return {
        "observations": state[:, :-1].reshape(-1, 3),
        "actions": random.uniform(-1, 1, (rows, 1)),
        "rewards": -(angle[:, :-1].reshape(-1) ** 2),
        "next_observations": state[:, 1:].reshape(-1, 3),
        "terminals": np.zeros(rows, bool),
        "timeouts": np.arange(rows) % 100 == 99,
    }


def saved(folder: Path, arrays: dict[str, np.ndarray], *without: str) -> str:
    np.savez(folder / "data.npz", **{name: value for name, value in arrays.items() if name not in without})  # pyright: ignore
    return str(folder / "data.npz")


def train(data: str, out: Path, *words: str, method: str = "bc", env: str = "none") -> int:
    return main(["train", method, "--dataset", data, "--env", env, "--out", str(out), *SHORT, *words])


def test_the_account_is_said_before_update_0_and_kept(tmp_path, capsys):
    data = saved(tmp_path, {**pendulum(), "notes": np.zeros(3)}, "next_observations")
    assert train(data, tmp_path / "run") == 0
    said = capsys.readouterr().out
    for line in (
        "data: 400 rows in the source, 396 transitions",
        "data: dropped 4: time-outs: without next observations nothing says what came after them",
        "data: ends of episodes: 4 timeout, at the row before a dropped one",
        "data: read: observations, actions, rewards, terminals, timeouts; left unread: `notes`",
        "data: actions in [-1, 1], as no box is named",
    ):
        assert line in said and said.index(line) < said.index("4 of 4 updates")
    account = json.loads((tmp_path / "run" / "config.json").read_text())["dataset"]["account"]
    assert (account["rows"], account["kept"], account["ignored"]) == (400, 396, ["notes"])


def test_warnings_are_said_in_both_languages(tmp_path, capsys, caplog):
    arrays = pendulum()
    arrays["rewards"][:] = 0
    data = saved(tmp_path, arrays)
    assert train(data, tmp_path / "run") == 0
    assert "warning: every reward is zero" in capsys.readouterr().out
    settings = diffcps.Settings(env="none", updates=4, eval_every=4, log_every=4)
    diffcps.train(bc.Config(width=8, batch_size=8), data, settings, out=tmp_path / "quiet")
    assert any("every reward is zero" in record.getMessage() for record in caplog.records)


def test_terminals_at_the_time_limit_of_the_environment(tmp_path, capsys):
    arrays = pendulum(200)
    arrays["terminals"], arrays["timeouts"] = np.arange(200) == 199, np.zeros(200, bool)  # one of 200 steps, the limit
    arrays["next_observations"][99] = arrays["observations"][100]
    assert train(saved(tmp_path, arrays), tmp_path / "run", "--action-units", "scaled", env="Pendulum-v1") == 0
    assert "warning: 1 terminal episodes have 200 steps, the time limit of Pendulum-v1" in capsys.readouterr().out


def test_the_one_step_of_a_bandit_is_no_time_limit():
    data = noisy_circle(8)
    assert data.info.environment is not None and bool(np.all(data.terminal))
    noticed = with_limits_noticed(data, data.info.environment, environment_sizes(data.info.environment))
    assert noticed.info.account.warnings == ()


@pytest.mark.parametrize("method", ALGORITHMS)
def test_what_methods_need(tmp_path, method):
    """Behaviour cloning needs neither rewards nor terminals; the others refuse data without, by name."""
    arrays = pendulum()
    needs = (
        ALGORITHMS[method].make(ALGORITHMS[method].Config(), diffcps.load_dataset(saved(tmp_path, arrays)).spec).needs
    )
    assert needs == (set() if method in ("bc", "diffusion_bc") else {"reward", "terminal"} | (
        {"order"} if method in ("awr", "sfbc", "diffuser", "decision_diffuser", "adapt_diffuser") else set()
    ))  # fmt: skip
    for field in ("reward", "terminal"):
        dataset = diffcps.load_dataset(saved(tmp_path, arrays, f"{field}s"))
        assert dataset.info.account.absent == (field,)
        if field in needs:
            settings = diffcps.Settings(env="none", updates=4000)
            with pytest.raises(UserError, match=f"has no {field}s, which {method} needs"):
                diffcps.train(ALGORITHMS[method].Config(), dataset, settings, out=tmp_path / "run")
            assert not (tmp_path / "run").exists()


def test_demonstrations_alone_can_be_cloned(tmp_path, capsys):
    data = saved(tmp_path, pendulum(), "rewards", "terminals", "timeouts", "next_observations")
    assert train(data, tmp_path / "run") == 0
    assert "warning: no rewards and no terminals: only methods that clone behaviour" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data_return"] is None


def test_returns_need_rows_in_order(tmp_path, capsys):
    arrays = pendulum()
    order = np.random.default_rng(0).permutation(400)
    data = saved(tmp_path, {name: value[order] for name, value in arrays.items()}, "timeouts")
    assert train(data, tmp_path / "run", "--updates", "40", method="awr") == 2
    assert "its rows are not in the order of its episodes, on which the returns of awr rest" in capsys.readouterr().err
    assert train(data, tmp_path / "td3", method="td3_bc") == 0
    assert "warning: next_observation is not the following row's observation at 3" in capsys.readouterr().out


def test_a_dataset_in_another_box_than_the_environments(tmp_path):
    data = saved(tmp_path, pendulum())
    settings = diffcps.Settings(env="Pendulum-v1", updates=4, eval_every=4, log_every=4, episodes=1)
    config = td3_bc.Config(width=8, batch_size=8)
    with pytest.raises(UserError, match=r"from the box \[-1, 1\], and environment Pendulum-v1 takes \[-2, 2\]"):
        diffcps.train(config, diffcps.load_dataset(data), settings, out=tmp_path / "run")
    named = diffcps.load_dataset(data, action_low=-2, action_high=2)
    diffcps.train(config, named, settings, out=tmp_path / "run")


def test_rewards_in_large_units_train(tmp_path):
    """The limit of divergence is relative to the data's rewards; what does diverge is told the cure."""
    arrays = pendulum()
    arrays["rewards"] = arrays["rewards"] * 1e6
    data = saved(tmp_path, arrays)
    assert train(data, tmp_path / "run", method="td3_bc") == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["critic/loss"] > 1e8


def test_a_reading_is_kept_by_a_continuation(tmp_path, capsys):
    data = saved(tmp_path, {**pendulum(), "actions": 3 * pendulum()["actions"]})
    words = ("--action-low", "-3", "--action-high", "3", "--reward-scale", "0.5")
    assert train(data, tmp_path / "run", *words) == 0
    assert main(["train", "bc", "--out", str(tmp_path / "run"), "--resume", "--updates", "8"]) == 0
    reading = json.loads((tmp_path / "run" / "config.json").read_text())["dataset"]["reading"]
    assert (reading["action_low"], reading["reward_scale"]) == ([-3.0], 0.5)
    assert main(["train", "bc", "--out", str(tmp_path / "run"), "--resume", "--reward-scale", "1"]) == 2
    assert "cannot resume with another reward_scale: the run has 0.5, you gave 1.0" in capsys.readouterr().err
