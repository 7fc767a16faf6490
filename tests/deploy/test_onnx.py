"""Policies as ONNX graphs, run by onnxruntime (extra: export)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import diffcps
from diffcps.algorithms import ALGORITHMS
from diffcps.deploy.check import Act, compare, onnx_act, trial
from diffcps.deploy.graph import onnx_graph
from diffcps.deploy.program import Exported, exported

pytest.importorskip("jax2onnx")
pytest.importorskip("onnxruntime")

pytestmark = [
    pytest.mark.usefixtures("quick_compilation"),
    pytest.mark.filterwarnings("default"),  # of foreign packages
]

PLANNERS = ("diffuser", "decision_diffuser", "adapt_diffuser")


def graph_of(policy: Exported) -> tuple[bytes, Act]:
    content = onnx_graph(policy).SerializeToString()
    return content, onnx_act(policy, content)


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name not in PLANNERS])
def test_the_graph_acts_as_the_run_does(name, run_of):
    policy = exported(run_of(name), "last")
    _, act = graph_of(policy)
    looked_at = trial(policy)
    parity = compare(policy, looked_at, act, name)
    assert parity.rows == 1000 and parity.largest_difference < 1e-5 and parity.other_choices < 5
    for size in (1, 7):
        few = looked_at._replace(
            observation=looked_at.observation[:size],
            numbers=tuple(numbers[:size] for numbers in looked_at.numbers),
            action=looked_at.action[:size],
            margin=looked_at.margin[:size],
        )
        assert compare(policy, few, act, name).rows == size


@pytest.mark.parametrize("name", PLANNERS)
def test_a_planner_says_why_it_cannot(name, run_of):
    with pytest.raises(diffcps.UserError, match=f"{name} cannot become an ONNX graph: .*--no-onnx exports the rest"):
        onnx_graph(exported(run_of(name, num_steps=20), "last"))


@pytest.mark.parametrize("rule", ["sample", "softmax_q", "argmax_q"])
def test_every_rule_to_act(rule, run_of):
    policy = exported(run_of("diffcps"), "last", member=1, action_choice=rule)
    assert policy.laws == (("noise", "gumbel") if rule == "softmax_q" else ("noise",))
    _, act = graph_of(policy)
    assert compare(policy, trial(policy), act, rule).largest_difference < 1e-5


@pytest.mark.parametrize("normalise", [True, False])
def test_observations_at_a_large_offset(normalise, run_of):
    policy = exported(run_of("diffusion_bc", offset=1e6 if normalise else 0.0, normalise=normalise), "last")
    _, act = graph_of(policy)
    assert compare(policy, trial(policy), act, "x").largest_difference < 1e-5


@pytest.fixture(scope="module")
def folder(run_of, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("exports") / "policy"
    record = diffcps.export(run_of("diffcps"), out, "last")
    assert set(record.parity) == {"policy.onnx", "policy.stablehlo"}
    return out


def test_the_program_of_the_export_needs_neither_diffcps_nor_jax(folder, tmp_path):
    np.save(tmp_path / "rows.npy", np.zeros((4, 3)))
    site = Path(np.__file__).parents[1]
    program = f"""
import sys
sys.path += [{str(site)!r}, {str(folder)!r}]
import numpy as np
from deploy import Policy
one, many, again = Policy(seed=1), Policy(seed=1), Policy(seed=1)
assert one(np.zeros(3)).shape == (2,) and many(np.zeros((5, 3))).shape == (5, 2)
policy, same = Policy(seed=2), Policy(seed=2)
first, second = policy(np.zeros(3)), policy(np.zeros(3))
assert (first == same(np.zeros(3))).all() and (first != second).any()
for wrong in (np.zeros(4), np.full(3, np.nan), np.zeros((2, 2, 3))):
    try:
        policy(wrong)
    except ValueError as error:
        assert "3 finite numbers" in str(error)
    else:
        raise AssertionError(wrong.shape)
print(sorted({{"jax", "jaxlib", "diffcps", "equinox"}} & set(sys.modules)))
"""
    answer = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True, timeout=100)
    assert answer.stdout.strip() == "[]", answer.stderr
    for given in (["0.1", "-0.2", "3"], [str(tmp_path / "rows.npy")]):
        words = [sys.executable, str(folder / "deploy.py"), *given]
        printed = subprocess.run(words, capture_output=True, text=True, timeout=100, check=True)
        rows = np.array([line.split() for line in printed.stdout.splitlines()], float)
        assert rows.shape == (4 if len(given) == 1 else 1, 2) and printed.stderr == ""
    for wrong in (["0.1"], ["nowhere.npy"], ["0.1", "one", "3"]):
        failed = subprocess.run([sys.executable, str(folder / "deploy.py"), *wrong], capture_output=True, text=True)
        assert failed.returncode == 1 and failed.stderr.startswith("deploy.py: ") and failed.stderr.count("\n") == 1


@pytest.mark.slow
def test_whole_episodes_earn_the_same_by_jax_and_by_onnxruntime(tmp_path):
    """Hopper's states soon differ where actions do in the last digits, so that few steps are taken."""
    import gymnasium
    import jax

    from diffcps.algorithms.diffcps import Config

    settings = diffcps.Settings(env="none", updates=200, eval_every=200)
    config = Config(width=32, depth=2, num_candidates=10, action_choice="argmax_q")
    diffcps.train(config, "builtin", settings, out=tmp_path / "run")
    policy = exported(tmp_path / "run", "last")
    _, by_onnx = graph_of(policy)

    @jax.jit
    def seen_to_action(seen, *numbers):
        return policy.act(seen, *numbers)

    def by_jax(observation, numbers):
        return np.asarray(seen_to_action(policy.scaling.observation(observation), *numbers))

    def total(act: Act) -> list[float]:
        rewards, environment, rng = [], gymnasium.make("Hopper-v5"), np.random.default_rng(0)
        for episode in range(3):
            observation, _ = environment.reset(seed=episode)
            for _ in range(50):
                numbers = [rng.normal(size=(1, policy.traced.size(law))).astype(np.float32) for law in policy.laws]
                observation, reward, ended, _, _ = environment.step(act(observation[None], numbers)[0])
                rewards.append(float(reward))
                if ended:
                    break
        return rewards

    np.testing.assert_allclose(total(by_onnx), total(by_jax), rtol=1e-3, atol=1e-3)
