"""A policy leaves the library: what it draws becomes an input, and it acts as the run does. Needs no extra."""

from __future__ import annotations

import json
import re

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import diffcps
from diffcps.algorithms import ALGORITHMS
from diffcps.cli.main import main
from diffcps.data.scaling import Scaling
from diffcps.deploy import check, export
from diffcps.deploy.check import Parity, compare, stablehlo_act, trial
from diffcps.deploy.draws import Draw, Given, trace
from diffcps.deploy.program import exported, stablehlo
from diffcps.deploy.record import source_name
from diffcps.records.folder import RunFolder
from diffcps.run.policy import load_run
from diffcps.types import EnvObservation
from tests.deploy.conftest import HIGH, LOW

pytestmark = pytest.mark.usefixtures("quick_compilation")

PLANNERS = ("diffuser", "decision_diffuser", "adapt_diffuser")


# --- Draws as inputs ---


def test_draws_are_found_in_their_order_and_given_numbers_take_their_place():
    def act(state, observation, key):
        key_noise, key_choice = jax.random.split(key)
        noise = jax.random.normal(key_noise, (4, 2))
        index = jax.random.categorical(jax.random.fold_in(key_choice, 3), observation[:4])
        return state * noise[index]

    traced = trace(act, jnp.asarray(2.0), 5)
    assert traced.draws == (Draw("noise", (4, 2)), Draw("gumbel", (4,)))
    assert traced.laws == ("noise", "gumbel") and traced.size("noise") == 8
    observation = jnp.zeros(5)
    gumbel = jnp.array([0.0, 0.0, 5.0, 0.0])
    given: Given = {"noise": jnp.arange(8.0), "gumbel": gumbel}
    np.testing.assert_array_equal(traced.act(observation, given), [8.0, 10.0])  # twice the third row
    numbers = traced.numbers_of(jax.random.key(7))
    np.testing.assert_array_equal(traced.act(observation, numbers), act(2.0, observation, jax.random.key(7)))


@pytest.mark.parametrize(
    ("law", "name"),
    [
        (lambda key: jax.random.uniform(key, (2,)), "random_bits"),
        (lambda key: jax.random.randint(key, (2,), 0, 5).astype(jnp.float32), "random_bits"),
        (lambda key: jax.random.key_data(key).astype(jnp.float32), "random_unwrap"),
        (
            lambda key: jax.lax.scan(lambda x, k: (x, jax.random.normal(k, (2,))), 0.0, jax.random.split(key, 3))[1],
            "scan",
        ),
    ],
)
def test_other_draws_are_refused_by_name(law, name):
    with pytest.raises(diffcps.UserError, match=f"the policy draws by `{name}`, which cannot be made an input"):
        trace(lambda state, observation, key: law(key), (), 3)


def test_what_is_drawn_for_nothing_is_no_input():
    def act(state, observation, key):
        jax.random.uniform(key, (2,))
        return observation

    assert trace(act, (), 3).draws == ()


# --- Every method, as StableHLO ---


@pytest.mark.parametrize("name", ALGORITHMS)
def test_stablehlo_acts_as_the_run_does(name, run_of):
    policy = exported(run_of(name), "last")
    rows = 50 if name in PLANNERS else 1000
    looked_at = trial(policy, rows)
    assert len(looked_at.observation) == rows
    act = stablehlo_act(stablehlo(policy))
    parity = compare(policy, looked_at, act, name)
    assert parity.rows == rows and parity.largest_difference < 1e-5 and parity.other_choices < 5
    assert (looked_at.action >= np.array(LOW) - 1e-5).all() and (looked_at.action <= np.array(HIGH) + 1e-5).all()
    for size in (1, 7):  # the number of rows is free
        few = act(looked_at.observation[:size], [numbers[:size] for numbers in looked_at.numbers])
        wide = np.array(HIGH) - np.array(LOW)
        close = (np.abs(few - looked_at.action[:size]) / wide).max(axis=1) < 1e-5
        assert (close | (looked_at.margin[:size] < check.TIE)).all()


def test_a_large_offset_costs_nothing(run_of):
    """In float32, 1e6 would leave four digits of a deviation of one."""
    policy = exported(run_of("diffusion_bc", offset=1e6), "last")
    looked_at = trial(policy)
    assert (looked_at.observation > 9e5).all()
    assert compare(policy, looked_at, stablehlo_act(stablehlo(policy)), "x").largest_difference < 1e-5
    seen = Scaling.of(policy.record.dataset).observation(EnvObservation(looked_at.observation))
    assert 0.9 < seen.std() < 1.1


# --- The comparison ---


def test_a_policy_that_acts_otherwise_is_refused(run_of):
    policy = exported(run_of("diffcps"), "last")
    looked_at = trial(policy, 50)
    width = np.array(HIGH) - np.array(LOW)

    def off(by: float, rows: slice | int = slice(None)):
        moved = np.zeros((50, 2))
        moved[rows] = by * width
        return lambda observation, numbers: looked_at.action + moved

    parity = compare(policy, looked_at, off(0.5e-5), "x")
    assert (parity.rows, parity.other_choices) == (50, 0) and 0.4e-5 < parity.largest_difference < 0.6e-5
    with pytest.raises(diffcps.UserError, match=r"x would not act as the run does: .* by 2e-05 of .*row 3 of 50"):
        compare(policy, looked_at, off(2e-5, 3), "x")
    with pytest.raises(diffcps.UserError, match="by inf"):
        compare(policy, looked_at, off(np.nan), "x")
    margin = np.where(np.arange(50) == 3, 1e-6, 1.0)
    assert compare(policy, looked_at._replace(margin=margin), off(0.5, 3), "x") == Parity(50, 0.0, 1)
    with pytest.raises(diffcps.UserError, match="row 4"):
        compare(policy, looked_at._replace(margin=margin), off(0.5, slice(3, 5)), "x")


def test_the_margin_of_a_choice_is_the_gap_to_the_next_candidate(run_of):
    chosen, drawn = (trial(exported(run_of("diffcps"), "last", 0, rule), 20) for rule in ("argmax_q", "sample"))
    assert np.isfinite(chosen.margin).all() and (chosen.margin >= 0).all()
    assert np.isinf(drawn.margin).all()


# --- The folder ---


@pytest.fixture(scope="module")
def folder(run_of, tmp_path_factory):
    out = tmp_path_factory.mktemp("exports") / "policy"
    assert main(["export", str(run_of("diffcps")), "--out", str(out), "--checkpoint", "last", "--no-onnx"]) == 0
    return out


def test_the_folder_is_whole(folder):
    assert sorted(path.name for path in folder.iterdir()) == [
        *("README.md", "config.json", "policy.stablehlo", "weights.safetensors")
    ]
    assert [path.name for path in folder.parent.iterdir()] == ["policy"]  # nothing half-written beside it


def test_the_record_says_what_it_is(folder, run_of):
    content = json.loads((folder / "config.json").read_text())
    run = RunFolder(run_of("diffcps")).read_record()
    assert content["software"] == "diffcps" and content["algorithm"] == "diffcps"
    assert content["config"]["action_choice"] == run.config.action_choice  # pyright: ignore
    assert (content["checkpoint"], content["updates"], content["member"], content["seed"]) == ("last", 2, 0, 0)
    assert content["action_low"] == list(LOW) and content["action_high"] == list(HIGH)
    assert content["observation_mean"] == list(run.dataset.observation_mean or ())
    assert content["dataset_sha256"] == run.dataset.sha256
    assert [(each["name"], each["shape"], each["dtype"]) for each in content["inputs"]] == [
        ("observation", ["batch", 3], "float64"),
        ("noise", ["batch", 24], "float32"),
        ("gumbel", ["batch", 4], "float32"),
    ]
    assert content["parity"]["policy.stablehlo"]["rows"] == 1000
    assert content["versions"]["export jax"] == jax.__version__


def test_the_weights_are_those_of_the_checkpoint_without_the_optimisers_memory(folder, run_of):
    found = safetensors.numpy.load_file(folder / "weights.safetensors")
    stored = safetensors.numpy.load_file(RunFolder(run_of("diffcps")).last)
    assert set(found) < set(stored) and not any("optimiser_state" in name for name in found)
    assert all(np.array_equal(array, stored[name][0]) for name, array in found.items())
    assert set(stored) - set(found) == {name for name in stored if "optimiser_state" in name}


def test_the_card_has_front_matter_data_scores_and_calls(folder, run_of):
    text = (folder / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    assert "library_name: diffcps" in front and "- diffcps\n" in front and "license: " in front and "datasets:" in front
    sha256 = RunFolder(run_of("diffcps")).read_record().dataset.sha256
    for part in (f"SHA-256 `{sha256}`", "The run has no scores.", ALGORITHMS["diffcps"].CITATION, "program.call"):
        assert part in body
    assert "onnx" not in text  # there is none


def test_the_cards_call_of_stablehlo_works(folder, monkeypatch):
    (call,) = re.findall(r"```python\n(from pathlib .*?)```", (folder / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(folder)
    names = {"observation": np.zeros((2, 3)), "noise": np.zeros((2, 24), np.float32)}
    names |= {"gumbel": np.zeros((2, 4), np.float32)}
    exec(call, names)
    assert np.asarray(names["action"]).shape == (2, 2)


def test_scores_stand_by_their_protocol(tmp_path):
    from diffcps.algorithms.diffusion_bc import Config
    from diffcps.envs.toy import stitching

    settings = diffcps.Settings(env="diffcps/Stitching-v0", updates=4, eval_every=2, log_every=2, episodes=2)
    diffcps.train(Config(width=8, depth=1, num_steps=2, batch_size=8), stitching(20), settings, out=tmp_path / "run")
    diffcps.evaluate(tmp_path / "run", episodes=3, seed=5)
    diffcps.export(tmp_path / "run", tmp_path / "out", onnx=False)
    text = (tmp_path / "out" / "README.md").read_text()
    for kind in ("last", "best", "mean_of_last", "offline_selected"):
        assert f"| `{kind}`: " in text
    assert "New episodes in diffcps/Stitching-v0" in text and "3 episodes from seed 5, return " in text


def test_a_planner_says_that_it_plans_anew(run_of, tmp_path):
    run = run_of("diffuser", replan_every=0)
    record = diffcps.export(run, tmp_path / "out", "last", onnx=False)
    assert record.plans_anew
    assert not diffcps.export(run_of("diffcps"), tmp_path / "other", "last", onnx=False).plans_anew


def test_folders_stay_private():
    assert source_name("/home/somebody/secret/hopper.npz") == "hopper.npz"
    assert source_name("mujoco/hopper/medium-v0") == "mujoco/hopper/medium-v0" and source_name("builtin") == "builtin"


# --- What is refused ---


@pytest.fixture
def fails(capsys):
    def run(*arguments) -> str:
        code = main(["export", *map(str, arguments)])
        captured = capsys.readouterr()
        assert code == 2 and captured.out == "" and re.fullmatch(r"diffcps: error: [^\n]+\n", captured.err), captured
        return captured.err

    return run


def test_bad_input_is_one_line(fails, run_of, tmp_path):
    run, out = run_of("diffcps"), tmp_path / "out"
    assert "not a run folder" in fails(tmp_path, "--out", out, "--no-onnx")
    assert "has no checkpoint best (it has no scores" in fails(run, "--out", out, "--no-onnx")
    assert "kept no weights after 7 updates" in fails(run, "--out", out, "--no-onnx", "--checkpoint", 7)
    assert "neither best" in fails(run, "--out", out, "--checkpoint", "first")
    last = ("--out", out, "--no-onnx", "--checkpoint", "last")
    assert "has no member 2; it has members 0 to 1" in fails(run, *last, "--member", 2)
    assert "iql has one way to act" in fails(run_of("iql"), *last, "--action-choice", "sample")
    assert "the following arguments are required: --out" in fails(run)
    assert list(tmp_path.iterdir()) == []


def test_the_extra_is_named_where_it_is_missing(fails, run_of, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "jax2onnx", None)
    line = fails(run_of("diffcps"), "--out", tmp_path / "out", "--checkpoint", "last")
    assert "jax2onnx, which is not installed: pip install 'diffcps[export]'" in line


def test_only_an_earlier_export_is_replaced(fails, run_of, tmp_path, capsys):
    run, out = run_of("diffusion_bc"), tmp_path / "out"
    arguments = (run, "--out", out, "--no-onnx", "--checkpoint", "last")
    out.mkdir()
    assert f"{out}: is there already and is no earlier export" in fails(*arguments)
    assert "is no earlier export" in fails(run, "--out", __file__, "--no-onnx", "--checkpoint", "last")
    assert "was not written by diffcps" in fails(run, "--out", run, "--no-onnx", "--checkpoint", "last")
    out.rmdir()
    assert main(["export", *map(str, arguments)]) == 0
    before = (out / "config.json").read_bytes()
    assert main(["export", *map(str, arguments), "--member", "1"]) == 0
    assert (out / "config.json").read_bytes() != before
    capsys.readouterr()
    (out / "notes.txt").write_text("mine")
    assert "holds notes.txt, which is not of an export" in fails(*arguments)


def test_nothing_changes_where_the_comparison_fails(fails, run_of, tmp_path, monkeypatch):
    run, out = run_of("diffusion_bc"), tmp_path / "out"
    diffcps.export(run, out, "last", onnx=False)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    wrong = lambda content: lambda observation, numbers: np.zeros((len(observation), 2))  # noqa: E731
    monkeypatch.setattr(export, "stablehlo_act", wrong)
    line = fails(run, "--out", out, "--no-onnx", "--checkpoint", "last", "--member", 1)
    assert "policy.stablehlo would not act as the run does" in line
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_loaded_run_gives_the_same_member_as_a_loaded_policy(run_of):
    run = run_of("diffusion_bc")
    _, state = load_run(run, "last").of_member(1)
    loaded = diffcps.load_policy(run, "last", member=1)._state
    assert all(map(np.array_equal, jax.tree.leaves(state), jax.tree.leaves(loaded)))
