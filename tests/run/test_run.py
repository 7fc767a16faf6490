"""The Python API, end to end at a small size: train, load, act, evaluate, show."""

import dataclasses
import json
import shutil

import matplotlib.image
import numpy as np
import pytest

import diffcps
from diffcps.algorithms import diffcps as algorithm
from diffcps.algorithms import diffusion_bc
from diffcps.cli.main import main
from diffcps.records.folder import RunFolder
from diffcps.records.record import Measurement
from diffcps.run.train import data_return
from diffcps.types import EnvObservation

SMALL = algorithm.Config(width=8, depth=1, num_steps=2, num_candidates=3, batch_size=8)
SETTINGS = diffcps.Settings(updates=60, eval_every=30, log_every=30, episodes=2, seeds=(0, 1))


@pytest.fixture(scope="module")
def run(tmp_path_factory, quick_compilation):
    out = tmp_path_factory.mktemp("runs") / "small"
    dataset = diffcps.load_dataset("builtin", normalise_observation=True)
    summary = diffcps.train(SMALL, dataset, SETTINGS, out=out, sweep={"kappa": (0.01, 0.1)})
    return out, summary


def test_a_run_leaves_everything_that_it_promises(run):
    out, summary = run
    assert {path.name for path in out.iterdir()} >= {
        *("config.json", "metrics.jsonl", "evaluations.jsonl", "summary.json", "curves.png", "checkpoints")
    }
    assert json.loads((out / "summary.json").read_text()) == summary.to_json()
    assert RunFolder(out).read_summary() == summary
    members = [row.member for row in summary.members]
    assert [(member.seed, member.swept["kappa"]) for member in members] == [(0, 0.01), (1, 0.01), (0, 0.1), (1, 0.1)]
    for row in summary.members:
        assert row.scores is not None and row.scores.best.score >= row.scores.last.score
        assert row.scores.mean_of_last.updates == (30, 60)
        assert row.scores.best.normalised == pytest.approx(100 * (row.scores.best.score + 20.272305) / 3254.572305)
    record = json.loads((out / "config.json").read_text())
    assert record["sweep"] == {"kappa": [0.01, 0.1]} and record["env"] == "Hopper-v5"
    assert "kappa" not in record["config"]
    assert len(record["dataset"]["observation_mean"]) == 11
    assert record["data_return"] == summary.data_return == pytest.approx(465.84, abs=0.01)
    evaluations = [json.loads(line) for line in (out / "evaluations.jsonl").read_text().splitlines()]
    assert len(evaluations) == 2 * 4
    for row in evaluations:
        assert len(row["returns"]) == 2 and row["score"] == pytest.approx(np.mean(row["returns"]))
    assert matplotlib.image.imread(out / "curves.png").shape[0] > 300


def test_a_policy_comes_back_with_its_scaling_and_repeats_itself(run):
    out, _ = run
    observation = np.random.default_rng(0).normal(size=(4, 5, 11))
    policy = diffcps.load_policy(out, member=2, seed=7)
    action = policy(observation)
    assert action.shape == (4, 5, 3) and np.abs(action).max() <= 1.0
    assert policy(observation[0, 0]).shape == (3,)
    np.testing.assert_array_equal(action, diffcps.load_policy(out, member=2, seed=7)(observation))
    assert not np.array_equal(action, diffcps.load_policy(out, member=2, seed=8)(observation))
    with pytest.raises(diffcps.UserError, match="this policy takes 11 numbers"):
        policy(np.zeros(12))
    with pytest.raises(diffcps.UserError, match="has no member 4; it has members 0 to 3"):
        diffcps.load_policy(out, member=4)


def test_normalisation_travels_with_the_policy(run):
    """The mean observation of the data reaches the network as zeros."""
    out, _ = run
    record = json.loads((out / "config.json").read_text())
    policy = diffcps.load_policy(out)
    mean = np.asarray(record["dataset"]["observation_mean"], np.float32)
    np.testing.assert_allclose(policy._scaling.observation(EnvObservation(mean)), 0.0, atol=1e-6)
    raw = diffcps.load_dataset("builtin").observation
    normalised = diffcps.load_dataset("builtin", normalise_observation=True).observation
    np.testing.assert_allclose(
        policy._scaling.observation(EnvObservation(np.asarray(raw[:50]))), normalised[:50], atol=1e-5
    )


def test_evaluate_uses_new_start_states_and_says_which_checkpoint(run, capsys):
    out, summary = run
    assert main(["evaluate", str(out), "--episodes", "2", "--checkpoint", "best", "--action-choice", "argmax_q"]) == 0
    assert "checkpoint best" in capsys.readouterr().out
    # Another way to act than the run's has a file of its own.
    assert not (out / "evaluations" / "Hopper-v5-best-seed1000.json").exists()
    result = json.loads((out / "evaluations" / "Hopper-v5-best-seed1000-argmax_q.json").read_text())
    assert result["seed"] == 1000 and result["action_choice"] == "argmax_q"
    for row, member in zip(result["members"], summary.members, strict=True):
        assert member.scores is not None and (row["updates"],) == member.scores.best.updates
        assert row["score"] == pytest.approx(np.mean(row["returns"])) and len(row["lengths"]) == 2


def test_without_an_environment_there_is_a_policy_but_no_score(tmp_path):
    config = diffusion_bc.Config(width=8, depth=1, num_steps=2, batch_size=8)
    settings = diffcps.Settings(env="none", updates=4, eval_every=2, log_every=2)
    summary = diffcps.train(config, "builtin", settings, out=tmp_path / "run")
    assert [(row.member.index, row.member.seed, row.scores) for row in summary.members] == [(0, 0, None)]
    assert summary.members[0].selected is not None and RunFolder(tmp_path / "run").read_summary() == summary
    with pytest.raises(diffcps.UserError, match=r"it has no scores, so none is best\): take selected or last"):
        diffcps.load_policy(tmp_path / "run")
    for checkpoint in ("selected", "last"):  # the message's way out
        assert diffcps.load_policy(tmp_path / "run", checkpoint)(np.zeros(11)).shape == (3,)


def test_data_show_prints_a_table_and_draws_a_picture(tmp_path, capsys):
    picture = tmp_path / "builtin.png"
    assert main(["data", "show", "builtin", "--out", str(picture)]) == 0
    out = capsys.readouterr().out
    assert "139,631" in out and "Hopper-v5" in out and str(picture) in out.replace("\n", "")
    assert matplotlib.image.imread(picture).shape[0] > 300


def test_list_cite_and_help(capsys):
    assert main(["list"]) == 0
    assert "hopper-medium-replay" in capsys.readouterr().out
    assert main(["cite", "diffcps"]) == 0
    assert "2310.05333" in capsys.readouterr().out
    for words, says in (
        (["--version"], "diffcps 0."),
        (["train", "diffcps", "--help"], "usage: diffcps train diffcps"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 0
        text = " ".join(capsys.readouterr().out.split())
        assert text.startswith(says)
    assert "Bound kappa on the denoising loss L_c" in text and "[0.05]" in text


def test_table_command_prints_markdown(run, capsys):
    out, summary = run
    assert main(["table", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| updates | members | return (normalised) | Denoising loss $L_c$ |")
    assert [line.split(" | ")[:2] for line in lines[2:4]] == [["| 30", "4"], ["| 60", "4"]]
    last = np.mean([row.scores.last.score for row in summary.members])
    assert any(line.startswith(f"- last: {last:.0f} ± ") for line in lines)
    assert main(["table", str(out), str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| method | updates | last | best | mean_of_last | offline_selected |"
    assert lines[2] == lines[3] and lines[2].startswith(f"| diffcps | 60 | {last:.0f} ± ")


def test_a_run_says_which_bound_it_does_not_meet(run, tmp_path, capsys):
    """A run that is complete already, with a log in which L_c stands still and the multiplier only rises."""
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(run[0], folder.path)
    members = folder.read_record().members
    folder.metrics.unlink()
    folder.append_measurements(
        Measurement(update, member, {"actor/bc_loss": 0.05, "dual/multiplier": float(update)}, 1.0)
        for update in range(1, 61)
        for member in members
    )
    assert main(["train", "diffcps", "--out", str(folder.path), "--resume"]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("a bound is not met")]
    assert said == [
        "a bound is not met: L_c stands still at 0.05 above kappa 0.01 (multiplier 60, which only rose; 2 of 2 members)"
        ". What these data allow: diffcps kappa builtin --steps 2 --width 8 --depth 1 --normalise-observation"
    ]
    assert [row.member.index for row in folder.read_summary().unmet_bounds] == [0, 1]
    assert main(["table", str(folder.path)]) == 0
    assert said[0] in capsys.readouterr().out.splitlines()


def test_the_datas_return_is_in_the_environments_units():
    raw = diffcps.load_dataset("builtin")
    assert data_return(raw) == pytest.approx(465.84, abs=0.01)
    assert data_return(diffcps.load_dataset("builtin", reward="iql_antmaze")) is None


def test_task_and_preset_from_python(tmp_path):
    """What differs from its default stays, the rest takes the preset's value; data must have been loaded so."""
    dataset = diffcps.load_dataset("builtin")
    settings = diffcps.Settings(env="none", updates=2, eval_every=2, log_every=2)
    config = algorithm.Config(width=8, depth=1, num_steps=2, batch_size=8, max_grad_norm=5.0)
    diffcps.train(config, dataset, settings, out=tmp_path / "run", preset="hopper-medium-replay")
    found = RunFolder(tmp_path / "run").read_record().config
    assert found == dataclasses.replace(config, kappa=0.03)
    with pytest.raises(diffcps.UserError, match="was loaded with reward='none', where preset antmaze-umaze wants"):
        diffcps.train(config, dataset, settings, out=tmp_path / "other", preset="antmaze-umaze")
    with pytest.raises(diffcps.UserError, match="was loaded for no task; load it with task='hopper-medium-v2'"):
        diffcps.train(config, dataset, settings, out=tmp_path / "other", task="hopper-medium-v2")
    assert not (tmp_path / "other").exists()
