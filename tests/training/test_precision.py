"""Products in float32 where a run asks for it: in all that a method computes, and nowhere else."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffcps
from diffcps.algorithms import awr, diffuser
from diffcps.algorithms import diffcps as method
from diffcps.run.policy import load_run
from diffcps.training.precision import in_precision
from diffcps.training.timing import made_up_data
from diffcps.types import Algorithm, Spec, UpdateIndex

SPEC = Spec(3, 2)
SMALL = method.Config(width=16, depth=1, batch_size=8, num_candidates=3)


def products(function, *arguments) -> tuple[int, int]:
    """How many products a program has, and how many of them are in float32 on every device."""
    text = jax.jit(function).lower(*arguments).as_text().splitlines()
    found = [line for line in text if "dot_general" in line]
    return len(found), sum("HIGHEST" in line for line in found)


def at_first(stage):
    """As the first update."""
    return lambda state, batch, key: stage.update(state, batch, stage.draw(batch, key), UpdateIndex(jnp.asarray(0)))


def parts(algorithm: Algorithm) -> list[tuple]:
    """All that computes, with what it takes."""
    keys, data = jax.random.split(jax.random.key(0), 5), jax.tree.map(jnp.asarray, made_up_data(SPEC))
    state, stage = algorithm.init(keys[0]), algorithm.stages[-1]
    return [
        (at_first(stage), state, stage.batch(data, keys[1]), keys[2]),
        (algorithm.act, state, jnp.zeros((4, 3)), keys[3]),
        (lambda state, key: algorithm.diagnose(state, data, key), state, keys[4]),
    ]


def test_all_products_are_in_float32_where_it_is_asked_for():
    plain, exact = (parts(in_precision(method.make(SMALL, SPEC), which)) for which in ("device", "float32"))
    for (function, *arguments), (in_float32, *_) in zip(plain, exact, strict=True):
        count, high = products(function, *arguments)
        assert count > 3 and high == 0
        assert products(in_float32, *arguments) == (count, count)


def test_plans_and_what_a_stage_begins_with_too():
    config = diffuser.Config(width=32, horizon=8, multipliers=(1, 1), plans=2, replan_every=2)
    planner = in_precision(diffuser.make(config, SPEC), "float32")
    assert planner.in_episode is not None
    state, observation = planner.init(jax.random.key(0)), jnp.zeros((2, 3))
    memory = planner.in_episode.begin(observation)
    count, high = products(planner.in_episode.act, state, observation, memory, jnp.asarray(0), jax.random.key(1))
    assert count == high > 3
    staged = in_precision(awr.make(awr.Config(width=16), SPEC), "float32")
    data = jax.tree.map(jnp.asarray, made_up_data(SPEC))
    count, high = products(
        lambda state, key: staged.stages[0].begin(state, data, key), staged.init(jax.random.key(0)), jax.random.key(1)
    )
    assert count == high > 0


def test_stages_that_share_a_function_go_on_sharing_it():
    plain, exact = (in_precision(awr.make(awr.Config(width=16), SPEC), which) for which in ("device", "float32"))
    same = [plain.stages.index(stage) for stage in plain.stages]
    assert [exact.stages.index(stage) for stage in exact.stages] == same


def test_a_run_keeps_its_precision(tmp_path):
    """On a CPU the numbers are the same; a run does not go on in another one."""
    data, runs = made_up_data(SPEC, 64), {}
    for precision in ("device", "float32"):
        settings = diffcps.Settings(env="none", updates=2, eval_every=2, log_every=2, precision=precision)
        runs[precision] = tmp_path / precision
        diffcps.train(SMALL, data, settings, out=runs[precision])
        assert json.loads((runs[precision] / "config.json").read_text())["precision"] == precision
    first, second = (load_run(run, "last") for run in runs.values())
    jax.tree.map(np.testing.assert_array_equal, first.state, second.state)
    algorithm, state = second.of_member(0)
    count, high = products(algorithm.act, state, jnp.zeros((4, 3)), jax.random.key(0))
    assert count == high > 3
    settings = diffcps.Settings(env="none", updates=4, eval_every=2, log_every=2, precision="device")
    with pytest.raises(diffcps.UserError, match="cannot resume with another precision: the run has float32"):
        diffcps.train(SMALL, data, settings, out=runs["float32"], resume=True)
