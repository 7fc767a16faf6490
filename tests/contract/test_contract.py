"""What every method promises, tested on all of them. A new method enters by its row in `TABLE`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffcps.algorithms import (
    ALGORITHMS,
    adapt_diffuser,
    awac,
    awr,
    bc,
    bcq,
    bear,
    cql,
    crr,
    decision_diffuser,
    diffcps,
    diffuser,
    diffusion_bc,
    diffusion_ql,
    edp,
    idql,
    iql,
    qgpo,
    sfbc,
    srpo,
    td3_bc,
)
from diffcps.records.fields import documentation
from diffcps.training import checkpoint
from diffcps.types import Algorithm, Configuration, Dataset, Method, Stage, UpdateIndex
from tests.problems import SPEC, begun, random_dataset

pytestmark = pytest.mark.usefixtures("quick_compilation")

PAGES = Path(__file__).parents[2] / "docs" / "algorithms"
EVERY_UPDATE = (2, 3, 4, 5, 6)


class Row(NamedTuple):
    """A method, small and fast to compile, with rates at which a single update shows; and what cannot be derived."""

    method: Method[Any]
    config: Configuration
    """No bound in it is out of reach: a field that does nothing shows by it (`test_every_real_valued_field_counts`)."""
    targets: Mapping[str, tuple[str, Sequence[int]]] = {}
    """Target network -> the field that holds its rate, and those of updates 2 to 6 that move it."""
    own_start: Sequence[str] = ()
    """Target networks that start from weights of their own, not as copies."""
    read_in: Mapping[str, tuple[str, str]] = {}
    """Target network -> what shows in an update and in a diagnosis that it is read, where it is not the critics' error;
    empty: nothing does."""
    moves: Mapping[str, int | tuple[int, ...]] = {}
    """Part of the state -> the stage or stages (of those that differ) whose updates move it; by default the first."""
    draws_nothing: Sequence[str] = ()
    """Functions whose result is the same whatever the key (`update`: of the last stage)."""
    practice: int = 0
    """Updates of the first stage before actions are looked at, where an untrained model leaves them in corners."""
    wild: float = 30.0
    """Factor on all weights that leads a chain out of the box, and not to infinity."""
    elsewhere: Sequence[str] = ()
    """Parts of the state, metrics and real-valued fields that only other choices than the row's have or read."""
    chooses_by: str = "target_critic"
    """Part of the state that chooses among candidate actions, where they are chosen."""


RATES: dict[str, Any] = {"actor_learning_rate": 0.01, "critic_learning_rate": 0.01}
DIFFUSION: dict[str, Any] = {"width": 16, "depth": 1, "batch_size": 8, "num_steps": 3, "max_grad_norm": 1.0}
Q_LEARNING: dict[str, Any] = {
    **DIFFUSION,
    **RATES,
    **{"num_candidates": 4, "backup_actions": 2, "target_rate": 0.1},
    **{"ema_rate": 0.3, "ema_every": 2, "ema_start": 3},
}
EMA = {"target_actor": ("ema_rate", (4, 6)), "target_critic": ("target_rate", EVERY_UPDATE)}
VAE: dict[str, Any] = {
    **RATES,
    **{"width": 16, "vae_width": 16, "batch_size": 8, "num_candidates": 4, "backup_actions": 2},
    **{"target_rate": 0.1, "max_grad_norm": 1.0},
}
TABLE = [
    Row(diffcps, diffcps.Config(**Q_LEARNING, multiplier_learning_rate=0.01), EMA),
    Row(diffusion_ql, diffusion_ql.Config(**Q_LEARNING), EMA),
    Row(
        edp,
        edp.Config(**Q_LEARNING, value_learning_rate=0.01, schedule="vp"),
        # It counts updates from 1: the fourth and the sixth.
        targets={"target_actor": ("ema_rate", (3, 5)), "target_critic": ("target_rate", EVERY_UPDATE)},
        elsewhere=(
            *("value", "value/loss", "value/v", "value/grad_norm", "actor/regression_loss", "actor/weight"),
            *("expectile", "iql_inverse_temperature", "iql_max_weight", "crr_temperature", "crr_max_weight"),
            "value_learning_rate",
        ),
        chooses_by="critic",
    ),
    Row(diffusion_bc, diffusion_bc.Config(**DIFFUSION, learning_rate=0.01)),
    Row(
        bc,
        bc.Config(width=16, depth=1, batch_size=8, max_grad_norm=1.0, learning_rate=0.01),
        draws_nothing=("update", "act", "diagnose"),
    ),
    Row(
        td3_bc,
        td3_bc.Config(**RATES, width=16, depth=1, batch_size=8, max_grad_norm=1.0, target_rate=0.1),
        targets={"target_actor": ("target_rate", (2, 4, 6)), "target_critic": ("target_rate", (2, 4, 6))},
        draws_nothing=("act",),
    ),
    Row(
        bcq,
        bcq.Config(**VAE, second_width=16),
        targets={"target_actor": ("target_rate", EVERY_UPDATE), "target_critic": ("target_rate", EVERY_UPDATE)},
    ),
    Row(
        bear,
        bear.Config(
            **VAE, depth=1, mmd_samples=2, multiplier_learning_rate=0.01, multiplier_max=10.0, warm_up_updates=1
        ),
        targets={"target_critic": ("target_rate", EVERY_UPDATE)},
        own_start=("target_critic",),
    ),
    Row(
        cql,
        cql.Config(
            **RATES,
            **{"width": 16, "depth": 1, "critic_depth": 1, "batch_size": 8, "max_grad_norm": 1.0, "target_rate": 0.5},
            **{"temperature_learning_rate": 0.01, "multiplier_learning_rate": 0.01, "multiplier_max": 10.0},
            **{"lagrange": True, "num_actions": 3, "backup_actions": 2, "difference_floor": -4.0},  # cuts D at 4
        ),
        targets={"target_critic": ("target_rate", EVERY_UPDATE)},
        draws_nothing=("act",),
    ),
    Row(
        crr,
        crr.Config(
            **RATES,
            **{"width": 16, "depth": 1, "batch_size": 8, "max_grad_norm": 1.0, "target_rate": 0.1},
            **{"filter": "exp", "max_weight": 1.5},
        ),
        targets={"target_actor": ("target_rate", EVERY_UPDATE), "target_critic": ("target_rate", EVERY_UPDATE)},
        own_start=("target_actor",),
        chooses_by="critic",
    ),
    Row(
        awr,
        awr.Config(**RATES, width=16, second_width=16, batch_size=8, iterations=2),
        moves={"critic": 0, "actor": 1},
        draws_nothing=("update", "act", "diagnose"),
    ),
    Row(
        iql,
        iql.Config(**RATES, value_learning_rate=0.01, width=16, depth=1, batch_size=8, target_rate=0.1),
        targets={"target_critic": ("target_rate", EVERY_UPDATE)},
        read_in={"target_critic": ("value/loss", "value/loss")},
        draws_nothing=("update", "act", "diagnose"),
    ),
    Row(
        awac,
        awac.Config(**RATES, width=16, depth=1, batch_size=8, target_rate=0.1),
        targets={"target_critic": ("target_rate", EVERY_UPDATE)},
        draws_nothing=("act",),
    ),
    Row(
        srpo,
        srpo.Config(
            **RATES,
            behaviour_learning_rate=0.01,
            value_learning_rate=0.01,
            target_rate=0.1,
            width=16,
            depth=1,
            actor_depth=1,
            batch_size=8,
            behaviour_batch_size=8,
            behaviour_width=8,
            num_blocks=1,
            num_features=4,
            time_width=8,
        ),
        targets={"target_critic": ("target_rate", EVERY_UPDATE)},
        read_in={"target_critic": ("value/loss", "value/loss")},
        moves={"behaviour": 0, "value": 1, "critic": 1, "actor": 2},
        draws_nothing=("act",),
    ),
    Row(
        qgpo,
        qgpo.Config(
            **{"behaviour_learning_rate": 0.01, "critic_learning_rate": 0.01, "guidance_learning_rate": 0.01},
            **{
                "width": 16,
                "depth": 1,
                "guidance_depth": 1,
                "behaviour_width": 8,
                "behaviour_depth": 1,
                "num_features": 4,
            },
            **{"batch_size": 8, "behaviour_batch_size": 8, "num_steps": 3, "support_actions": 3, "target_rate": 0.1},
        ),
        targets={"target_critic": ("target_rate", EVERY_UPDATE)},
        moves={"behaviour": 0, "critic": 1, "guidance": (1, 2)},
        practice=50,
        wild=2.0,
    ),
    Row(
        sfbc,
        sfbc.Config(
            **RATES,
            **{"width": 16, "critic_depth": 1, "behaviour_width": 8, "behaviour_depth": 1, "num_features": 4},
            **{"batch_size": 8, "num_steps": 15, "max_grad_norm": 1.0},
            **{"num_candidates": 4, "support_actions": 4, "averaged_actions": 2},
        ),
        moves={"actor": 0, "critic": 2},
        draws_nothing=("update",),
        practice=200,
        wild=2.0,
    ),
    Row(
        idql,
        idql.Config(
            **RATES,
            **{"width": 16, "depth": 1, "actor_width": 16, "num_blocks": 1, "time_size": 8, "batch_size": 8},
            **{"num_steps": 3, "num_candidates": 4, "target_rate": 0.1, "ema_rate": 0.3, "value_learning_rate": 0.01},
            action_choice="softmax_q",
        ),
        targets={"target_actor": ("ema_rate", EVERY_UPDATE), "target_critic": ("target_rate", EVERY_UPDATE)},
        read_in={"target_actor": ("", "selection/loss"), "target_critic": ("value/loss", "value/loss")},
    ),
]
PLANNER: dict[str, Any] = {
    **{"horizon": 4, "num_steps": 3, "width": 32, "multipliers": (1,), "batch_size": 8},
    **{"ema_rate": 0.3, "ema_every": 2, "ema_start": 0},
}
TABLE += [
    Row(
        diffuser,
        diffuser.Config(
            **PLANNER,
            **{"planner_learning_rate": 0.01, "value_learning_rate": 0.01, "value_interval": 1},
            **{"plans": 3, "unguided_steps": 0, "guide_scale": 5.0},
        ),
        targets={"target_planner": ("ema_rate", (2, 4, 6)), "target_value": ("ema_rate", (2, 4, 6))},
        read_in={"target_planner": ("", "selection/loss"), "target_value": ("", "value/loss")},
    ),
    Row(
        decision_diffuser,
        decision_diffuser.Config(**PLANNER, learning_rate=0.01, inverse_width=16, target_return=0.1),
        targets={"target_planner": ("ema_rate", (2, 4, 6))},
        read_in={"target_planner": ("", "selection/loss")},
    ),
    Row(
        adapt_diffuser,
        adapt_diffuser.Config(
            **PLANNER,
            **{"planner_learning_rate": 0.01, "value_learning_rate": 0.01, "value_interval": 1},
            **{"plans": 3, "unguided_steps": 0, "guide_scale": 5.0},
            **{"dynamics_learning_rate": 0.01, "dynamics_width": 16, "dynamics_batch_size": 8},
            **{"generated": 8, "generated_in_batch": 4, "max_error": 3.0},
        ),
        targets={"target_planner": ("ema_rate", (2, 4, 6)), "target_value": ("ema_rate", (2, 4, 6))},
        read_in={"target_planner": ("", "selection/loss"), "target_value": ("", "value/loss")},
        moves={"planner": (0, 1), "value": 0, "dynamics": 0},
    ),
]
DECAY = 20
"""Updates of a rate's decay, where a method has one: more than any test makes."""


def decaying(config: Configuration) -> Any:
    """With rates that decay."""
    decays = {field.name: DECAY for field in dataclasses.fields(config) if field.name.endswith("decay_updates")}
    return dataclasses.replace(config, **decays)


ROWS = {row.method.__name__.rpartition(".")[2]: row._replace(config=decaying(row.config)) for row in TABLE}


def field_names(name: str) -> list[str]:
    return [field.name for field in dataclasses.fields(ROWS[name].config)]


def having(*wanted: str) -> list[str]:
    """The methods whose config has all the given fields."""
    return [name for name in ROWS if set(wanted) <= set(field_names(name))]


def config_of(name: str, **changes) -> Any:
    return dataclasses.replace(ROWS[name].config, **changes)


def real_values(name: str) -> dict[str, jax.Array]:
    """All real-valued fields, as arrays."""
    return {key: jnp.float32(value) for key, value in vars(config_of(name)).items() if isinstance(value, float)}


def other_values(name: str) -> dict[str, jax.Array]:
    """Another value for each of them."""
    return {key: jnp.float32(0.5 * value + 0.01) for key, value in real_values(name).items()}


def make(name: str, **changes) -> Algorithm[Any]:
    return ROWS[name].method.make(config_of(name, **changes), SPEC)


def stages_of(algorithm: Algorithm[Any]) -> list[Stage[Any]]:
    """The stages that differ, in order."""
    return list(dict.fromkeys(algorithm.stages))


def drawn_and_made(stage: Stage[Any], state: Any, batch: Any, key: jax.Array, index: UpdateIndex) -> Any:
    """One update with what it draws."""
    return stage.update(state, batch, stage.draw(batch, key), index)


@cache
def compiled(name: str, function: str, stage: int = -1):
    """One function of the contract as function(values, ...): the real-valued fields of the config are arguments."""

    def call(values, *arguments):
        algorithm = make(name, **values)
        if function == "begin":
            return begun(stages_of(algorithm)[stage], *arguments)
        if function == "batch":
            return stages_of(algorithm)[stage].batch(*arguments)
        if function == "update":
            return drawn_and_made(stages_of(algorithm)[stage], *arguments)
        return getattr(algorithm, function)(*arguments)

    return jax.jit(call)


@cache
def dataset() -> Dataset:
    """Random transitions, unlabelled, on the device."""
    return jax.tree.map(jnp.asarray, random_dataset())


def initial(name: str, seed: int = 0) -> Any:
    return compiled(name, "init")(real_values(name), jax.random.key(seed))


@cache
def labelled(name: str, stage: int = -1) -> Dataset:
    """The dataset with the labels that a stage begins with, after those before it."""
    state, labels = initial(name), ()
    for number in range(len(stages_of(make(name))))[: stage + 1 or None]:
        rows = dataclasses.replace(dataset(), labels=labels)
        state, labels = compiled(name, "begin", number)(real_values(name), state, rows, jax.random.key(0))
    return dataclasses.replace(dataset(), labels=labels)


def batch_of(name: str, seed: int = 0, stage: int = -1) -> Any:
    return compiled(name, "batch", stage)(real_values(name), labelled(name, stage), jax.random.key(seed))


def update(
    name: str, state: Any, index: int, zeros: Sequence[str] = (), stage: int = -1
) -> tuple[Any, dict[str, jax.Array]]:
    """One update, batch and key by its index alone, with the fields named in `zeros` set to zero."""
    values = real_values(name) | dict.fromkeys(zeros, jnp.float32(0.0))
    run, batch = compiled(name, "update", stage), batch_of(name, index, stage)
    return run(values, state, batch, jax.random.key(index), UpdateIndex(jnp.asarray(index)))


@cache
def trained(name: str, updates: int = 3) -> Any:
    """The state after a few updates, as host arrays."""
    state = initial(name)
    for index in range(updates):
        state, _ = update(name, state, index)
    return jax.tree.map(np.asarray, state)


@cache
def practised(name: str) -> Any:
    """`trained`, with actions that lie in the box."""
    state = trained(name)
    for index in range(ROWS[name].practice):
        state, _ = update(name, state, index, stage=0)
    return jax.tree.map(np.asarray, state)


def equal(a: Any, b: Any) -> bool:
    """Bit for bit."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def distance(a: Any, b: Any) -> float:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.max(np.abs(np.asarray(x, float) - np.asarray(y, float)))) for x, y in pairs)


every_method = pytest.mark.parametrize("name", list(ROWS))


# --- The module ---


def test_every_method_has_a_row():
    assert sorted(ROWS) == sorted(ALGORITHMS)


@every_method
def test_the_module_says_what_it_is(name):
    module = ROWS[name].method
    assert module is ALGORITHMS[name]
    assert module.__doc__ and "arXiv:" in module.__doc__
    assert module.CITATION.startswith("@") and module.CITATION.endswith("}")
    assert all(f"{field} = {{" in module.CITATION for field in ("title", "author", "year"))
    assert module.Config.__doc__ and module.State.__doc__ and module.make.__doc__
    assert hasattr(module.State, "_fields")


@every_method
def test_the_config_is_frozen_and_every_field_documented(name):
    config = ROWS[name].method.Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.width = 1
    texts = documentation(ROWS[name].method.Config)
    assert [key for key in field_names(name) if len(texts.get(key, "")) < 10] == []


@every_method
def test_the_docs_page_lists_every_metric(name):
    page = PAGES / f"{name}.md"
    assert page.is_file(), f"write {page.relative_to(PAGES.parents[1])}"
    text = page.read_text()
    assert [key for key in ROWS[name].method.METRICS if f"`{key}`" not in text] == []
    assert "Deviations" in text


@every_method
def test_metrics_names_everything_that_is_reported_and_nothing_else(name):
    metrics, known = ROWS[name].method.METRICS, field_names(name)
    reported = {key for _, _, metrics in abstract_updates(name) for key in metrics}
    assert reported | set(diagnosis(name, trained(name))) == set(metrics) - set(ROWS[name].elsewhere)
    main = [key for key, metric in metrics.items() if metric.symbol]
    assert 2 <= len(main) <= 6 and reported >= set(main)
    assert len({metrics[key].symbol for key in main}) == len(main)
    assert all(len(metric.title) > 5 and metric.bound in ("", *known) for metric in metrics.values())


@every_method
def test_what_has_a_logarithmic_axis_is_positive(name):
    values = diagnosis(name, trained(name))
    for stage in range(len(stages_of(make(name)))):
        values |= update(name, trained(name), 4, stage=stage)[1]
    logarithmic = [key for key, metric in ROWS[name].method.METRICS.items() if metric.scale == "log"]
    assert [key for key in logarithmic if key not in ROWS[name].elsewhere and not values[key] > 0.0] == []


# --- Shapes and compilation ---


def shapes(tree: Any) -> list:
    return [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(tree)]


def abstract_updates(name: str) -> list[tuple[Any, Any, dict[str, Any]]]:
    """Shapes only: for every stage a batch, and the state and the metrics after an update with it."""
    algorithm = make(name)
    key = jax.eval_shape(jax.random.key, 0)
    state, labels, updates = jax.eval_shape(algorithm.init, key), (), []
    for stage in stages_of(algorithm):
        if stage.for_rows is not None:
            labels = jax.eval_shape(stage.for_rows, state, dataset(), jnp.arange(dataset().size), key)
        begun, labels = jax.eval_shape(stage.begin, state, dataclasses.replace(dataset(), labels=labels), key)
        batch = jax.eval_shape(stage.batch, dataclasses.replace(dataset(), labels=labels), key)
        draws = jax.eval_shape(stage.draw, batch, key)
        new, metrics = jax.eval_shape(stage.update, begun, batch, draws, UpdateIndex(jnp.asarray(0)))
        updates.append((batch, new, metrics))
    return updates


@every_method
def test_update_keeps_structure_shapes_and_dtypes(name):
    """Weak types, too: what leaves an update is compiled no second time when it enters the next."""
    state = jax.eval_shape(make(name).init, jax.eval_shape(jax.random.key, 0))
    for batch, new, metrics in abstract_updates(name):
        assert jax.tree.structure(new) == jax.tree.structure(state)
        assert shapes(new) == shapes(state)
        assert {(value.shape, value.dtype) for value in metrics.values()} == {((), jnp.dtype(jnp.float32))}
        assert all(leaf.shape[0] == config_of(name).batch_size for leaf in jax.tree.leaves(batch))


def without_memory(state: Any) -> dict[str, Any]:
    """The parts of a state without what their optimisers remember."""
    return {part: getattr(value, "model", value) for part, value in state._asdict().items()}


# The update of one program in another form: of one method of each kind in every run, of the others on request.
OF_EACH_KIND = {"diffcps", "td3_bc", "iql", "awr", "bc"}
MAPPED = [name if name in OF_EACH_KIND else pytest.param(name, marks=pytest.mark.slow) for name in ROWS]


@pytest.mark.parametrize("name", MAPPED)
def test_real_valued_fields_may_be_traced_and_mapped_over(name):
    grid = jax.tree.map(lambda *values: jnp.stack(values), real_values(name), other_values(name))
    states = jax.vmap(compiled(name, "init"), in_axes=(0, None))(grid, jax.random.key(0))
    mapped = jax.jit(jax.vmap(compiled(name, "update"), in_axes=(0, 0, None, None, None)))
    states, _ = mapped(grid, states, batch_of(name, 0), jax.random.key(0), UpdateIndex(jnp.asarray(0)))
    after_one = jax.tree.map(lambda leaf: leaf[1], states)
    states, _ = mapped(grid, states, batch_of(name, 1), jax.random.key(1), UpdateIndex(jnp.asarray(1)))
    # Rounding differs between the programs; Adam turns it into a small part of its rate of 0.01 an update.
    assert distance(jax.tree.map(lambda leaf: leaf[0], states), trained(name, 2)) < 1e-4
    plain = make(name, **{key: float(value) for key, value in other_values(name).items()})  # Python's numbers
    state = jax.jit(plain.init)(jax.random.key(0))
    state, _ = jax.jit(partial(drawn_and_made, plain.stages[-1]))(
        state, batch_of(name, 0), jax.random.key(0), UpdateIndex(jnp.asarray(0))
    )
    assert distance(without_memory(after_one), without_memory(state)) < 1e-4
    first, second = (jax.tree.map(lambda leaf: leaf[i], states) for i in range(2))  # noqa: B023
    assert distance(first, second) > 1e-3  # negative control: the values do matter


# --- Keys ---


@every_method
def test_same_key_same_result_and_another_key_another(name):
    observation = dataset().observation[:5]

    def results(seed: int) -> dict[str, Any]:
        values = real_values(name)
        state = jax.tree.map(jnp.asarray, trained(name))
        batch = batch_of(name, 0)  # the same for every seed
        return {
            "init": initial(name, seed),
            "batch": batch_of(name, seed),
            "update": compiled(name, "update")(values, state, batch, jax.random.key(seed), UpdateIndex(jnp.asarray(0))),
            "act": compiled(name, "act")(values, state, observation, jax.random.key(seed)),
            "diagnose": diagnosis(name, state, seed),
        }

    first, again, other = results(5), results(5), results(6)
    for function in first:
        assert equal(first[function], again[function]), function
        assert equal(first[function], other[function]) == (function in ROWS[name].draws_nothing), function


# --- Acting ---


@every_method
def test_act_takes_any_leading_axes(name):
    state, act = practised(name), compiled(name, "act")
    for axes in ((), (8,), (2, 4)):
        observation = jnp.broadcast_to(dataset().observation[0], (*axes, 3))
        action = np.asarray(act(real_values(name), state, observation, jax.random.key(0)))
        assert action.shape == (*axes, 2) and action.dtype == np.float32
        rows = action.reshape(-1, 2)
        # Equal observations, noise of their own: some may meet in a corner of the box, shared noise would leave one.
        if "act" not in ROWS[name].draws_nothing:
            assert len(np.unique(rows, axis=0)) > len(rows) / 2


@every_method
def test_an_action_depends_on_its_own_observation(name):
    state, act = practised(name), compiled(name, "act")
    observation = dataset().observation
    before = act(real_values(name), state, observation, jax.random.key(0))
    after = act(real_values(name), state, observation.at[::2].add(2.0), jax.random.key(0))
    moved = np.max(np.abs(before - after), axis=1)
    assert np.mean(moved[::2] > 1e-3) > 0.5  # all but those in a corner of the box
    assert np.max(moved[1::2]) < 1e-5


@every_method
def test_actions_stay_in_the_box(name):
    # Weights so large that the chain would leave the box if nothing held it.
    factor = ROWS[name].wild
    wild = jax.tree.map(lambda leaf: factor * leaf if leaf.dtype == np.float32 else leaf, trained(name))
    action = np.abs(compiled(name, "act")(real_values(name), wild, 3.0 * dataset().observation, jax.random.key(0)))
    assert np.max(action) == 1.0
    assert np.mean(action == 1.0) > 0.1  # the box was reached in earnest


@pytest.mark.parametrize("name", having("action_choice"))
def test_argmax_takes_the_best_candidate(name):
    state, observation = trained(name), dataset().observation

    def chosen_q(choice: str) -> np.ndarray:
        act = jax.jit(make(name, action_choice=choice).act)
        action = act(state, observation, jax.random.key(0))
        critic = getattr(state, ROWS[name].chooses_by)
        return np.min(getattr(critic, "model", critic)(observation, action), axis=0)

    best, drawn = chosen_q("argmax_q"), chosen_q("softmax_q")  # of the same candidates
    assert np.all(best >= drawn - 1e-6) and np.any(best > drawn + 1e-3)
    # One candidate out of four: on average its Q lies clearly below that of the best.
    assert np.mean(chosen_q("sample")) < np.mean(best) - 1e-3


@pytest.mark.parametrize("name", having("act_with_target"))
def test_acting_with_the_target_policy(name):
    state = trained(name)
    swapped = state._replace(actor=dataclasses.replace(state.actor, model=state.target_actor))
    observation = dataset().observation[:5]
    plainly = compiled(name, "act")
    with_target = jax.jit(make(name, act_with_target=True).act)(state, observation, jax.random.key(0))
    expected = plainly(real_values(name), swapped, observation, jax.random.key(0))
    np.testing.assert_allclose(with_target, expected, rtol=0, atol=1e-5)
    assert np.max(np.abs(with_target - plainly(real_values(name), state, observation, jax.random.key(0)))) > 1e-3


# --- Diagnosis ---


def diagnosis(name: str, state: Any, seed: int = 0) -> dict[str, jax.Array]:
    return compiled(name, "diagnose")(real_values(name), state, dataset(), jax.random.key(seed))


@every_method
def test_diagnose_reports_finite_numbers_and_selection_loss(name):
    metrics = diagnosis(name, trained(name))
    assert "selection/loss" in metrics
    assert all(value.shape == () and np.isfinite(value) for value in metrics.values())
    assert all("/" in key for key in metrics)


@pytest.mark.parametrize("name", having("max_q_backup"))
def test_max_q_backup_over_one_action_is_the_plain_backup(name):
    def td_error(**changes) -> float:
        diagnose = jax.jit(make(name, **changes).diagnose)
        return float(diagnose(trained(name), dataset(), jax.random.key(0))["critic/td_error"])

    without = td_error(max_q_backup=False)
    np.testing.assert_allclose(td_error(max_q_backup=True, backup_actions=1), without, rtol=1e-5)
    assert abs(td_error(max_q_backup=True, backup_actions=4) - without) > 1e-4 * without  # negative control


# --- What the fields do ---


def outcome(name: str, values: Mapping[str, jax.Array]) -> Any:
    """A few updates of every stage, then actions and a diagnosis."""
    state, labels = compiled(name, "init")(values, jax.random.key(0)), ()
    for stage in range(len(stages_of(make(name)))):
        rows = dataclasses.replace(dataset(), labels=labels)
        state, labels = compiled(name, "begin", stage)(values, state, rows, jax.random.key(1))
        rows = dataclasses.replace(dataset(), labels=labels)
        for index in range(5):
            batch = compiled(name, "batch", stage)(values, rows, jax.random.key(index))
            run = compiled(name, "update", stage)
            state, _ = run(values, state, batch, jax.random.key(index), UpdateIndex(jnp.asarray(index)))
    action = compiled(name, "act")(values, state, dataset().observation, jax.random.key(2))
    return state, action, compiled(name, "diagnose")(values, state, dataset(), jax.random.key(3))


@every_method
def test_every_real_valued_field_counts(name):
    values = real_values(name)
    usual = outcome(name, values)
    assert equal(usual, outcome(name, values))  # negative control
    ignored = []
    for field, value in values.items():
        # A bound may be out of reach on one side.
        others = (0.001 * value + 0.001, 10.0 * value + 3.0)
        if all(equal(usual, outcome(name, values | {field: other})) for other in others):
            ignored.append(field)
    assert set(ignored) == set(values) & set(ROWS[name].elsewhere)


@pytest.mark.parametrize("name", having("candidate_temperature"))
def test_near_temperature_zero_the_best_candidate_is_drawn(name):
    state, observation, key = trained(name), dataset().observation, jax.random.key(0)
    best = jax.jit(make(name, action_choice="argmax_q").act)(state, observation, key)

    def drawn(temperature: float) -> jax.Array:
        values = real_values(name) | {"candidate_temperature": jnp.float32(temperature)}
        return compiled(name, "act")(values, state, observation, jax.random.clone(key))

    np.testing.assert_allclose(drawn(1e-6), best, rtol=0, atol=1e-5)
    assert np.max(np.abs(drawn(1.0) - best)) > 0.01  # negative control


@pytest.mark.parametrize("name", having("q_weight"))
def test_the_weight_of_q_multiplies_its_term_alone(name):
    state = trained(name)

    def metrics_with(weight: float) -> dict[str, float]:
        values = real_values(name) | {"q_weight": jnp.float32(weight)}
        index = UpdateIndex(jnp.asarray(4))
        _, metrics = compiled(name, "update")(values, state, batch_of(name, 4), jax.random.key(4), index)
        return {key: float(value) for key, value in metrics.items()}

    without, small, large, larger = (metrics_with(weight) for weight in (0.0, 0.5, 1e3, 2e3))
    assert without["actor/grad_norm"] > 0.0
    assert larger["actor/grad_norm"] / large["actor/grad_norm"] == pytest.approx(2.0, rel=0.02)  # Q's term is all
    assert all(small[key] == large[key] for key in ("actor/bc_loss", "actor/q_loss"))  # reported without the weight


# --- What moves what ---


def moving_parts(state: Any) -> dict[str, Any]:
    """The parts that gradient steps move, without the optimisers' memory."""
    return {part: value.model for part, value in state._asdict().items() if hasattr(value, "optimiser_state")}


def rate_fields(name: str) -> dict[str, str]:
    """Part of the state -> field that holds its learning rate."""
    parts = list(moving_parts(trained(name)))
    if len(parts) == 1:
        return {parts[0]: "learning_rate"}
    return {part: f"{part}_learning_rate" for part in parts}


LEARNED = (
    *("vae", "planner", "behaviour", "dynamics", "value", "critic", "guidance", "actor", "temperature", "multiplier"),
)
PARTS = [(name, part) for name in ROWS for part in LEARNED]
PARTS = [
    (name, part) for name, part in PARTS if part in ROWS[name].method.State._fields and part not in ROWS[name].elsewhere
]


def stages_that_move(name: str, part: str) -> tuple[int, ...]:
    stages = ROWS[name].moves.get(part, 0)
    return stages if isinstance(stages, tuple) else (stages,)


@every_method
def test_every_part_is_known(name):
    assert {part for known, part in PARTS if known == name} == set(moving_parts(trained(name)))


@pytest.mark.parametrize(("name", "part"), PARTS)
def test_a_rate_of_zero_stops_its_own_part_alone(name, part):
    stage = stages_that_move(name, part)[0]
    before = trained(name)
    usual, _ = update(name, before, 4, stage=stage)
    frozen, _ = update(name, before, 4, zeros=[rate_fields(name)[part]], stage=stage)
    for other, model in moving_parts(frozen).items():
        moves = stage in stages_that_move(name, other)
        assert equal(model, moving_parts(before)[other]) == (other == part or not moves), other
        assert equal(moving_parts(usual)[other], moving_parts(before)[other]) == (not moves), other
        # VAE, value and critic move first and others then read them; nothing else reads what a part has just become.
        if other != part and part not in ("vae", "value", "critic"):
            assert equal(model, moving_parts(usual)[other]), other


@pytest.mark.parametrize("name", having("policy_interval"))
def test_policy_and_multiplier_rest_between_their_updates(name):
    state = trained(name)
    for index, moves in ((3, False), (4, True), (5, False)):
        new, metrics = update(name, state, index)
        for part in {"actor", "multiplier"} & set(state._fields):  # with the optimisers' memory
            assert equal(getattr(new, part), getattr(state, part)) != moves
        assert np.isnan(metrics["actor/bc_loss"]) != moves
        assert not equal(new.critic.model, state.critic.model)
        state = new


@every_method
def test_metrics_have_the_same_names_at_every_update(name):
    state, stage = trained(name), make(name).stages[-1]
    names = []
    for number in range(2):  # outside of jit, where the index is a known number
        index = UpdateIndex(jnp.asarray(number), number % stage.period, stage.period)
        _, metrics = jax.eval_shape(
            lambda state, batch, key, index=index: drawn_and_made(stage, state, batch, key, index),
            state,
            batch_of(name),
            jax.eval_shape(jax.random.key, 0),
        )
        names.append(sorted(metrics))
    assert names[0] == names[1] and all("/" in key for key in names[0])


# --- Target networks ---

TARGETS = [(name, target) for name, row in ROWS.items() for target in row.targets]


@every_method
def test_every_target_is_known(name):
    targets = {part for part in ROWS[name].method.State._fields if part.startswith("target_")}
    assert targets == set(ROWS[name].targets)


def average(old: Any, new: Any, rate: float) -> Any:
    return jax.tree.map(lambda old, new: (1.0 - rate) * np.asarray(old) + rate * np.asarray(new), old, new)


@pytest.mark.parametrize(("name", "target"), TARGETS)
def test_targets_move_by_their_average_alone(name, target):
    online = target.removeprefix("target_")
    field, moving = ROWS[name].targets[target]
    rate = getattr(config_of(name), field)
    state = trained(name, 2)
    for index in range(2, 7):
        new, _ = update(name, state, index, stage=stages_that_move(name, online)[0])
        before, after, model = getattr(state, target), getattr(new, target), getattr(new, online).model
        if index in moving:
            assert distance(after, average(before, model, rate)) < 1e-6
            assert distance(after, before) > 1e-5  # negative controls: it moved
            # and towards the network after its step, not before it.
            assert distance(after, average(before, getattr(state, online).model, rate)) > 1e-5
        else:
            assert equal(after, before)
        state = new


@pytest.mark.parametrize(("name", "target"), TARGETS)
def test_targets_start_as_copies_but_where_the_table_says(name, target):
    state = initial(name)
    copied = equal(getattr(state, target), getattr(state, target.removeprefix("target_")).model)
    assert copied == (target not in ROWS[name].own_start)


def nudged(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf + np.float32(0.1), tree)


@pytest.mark.parametrize(("name", "target"), TARGETS)
def test_what_is_learned_comes_from_the_targets(name, target):
    state = trained(name)
    in_update, in_diagnosis = ROWS[name].read_in.get(target, ("critic/loss", "critic/td_error"))
    stage = stages_that_move(name, target.removeprefix("target_"))[0]

    def errors(state) -> list[float]:
        """What reads the target in an update, before the policy moves, and in a diagnosis: the critics' error."""
        found = [float(update(name, state, 4, stage=stage)[1][in_update])] if in_update else []
        return [*found, float(diagnosis(name, state)[in_diagnosis])]

    usual = errors(state)
    by_target = errors(state._replace(**{target: nudged(getattr(state, target))}))
    assert all(other != error for other, error in zip(by_target, usual, strict=True))
    if target == "target_actor":  # and from no other policy
        actor = dataclasses.replace(state.actor, model=nudged(state.actor.model))
        assert errors(state._replace(actor=actor)) == usual


# --- Decay ---


def aged(state: Any, updates: int) -> Any:
    """With optimisers that have made so many updates."""
    return jax.tree.map(lambda leaf: np.full_like(leaf, updates) if leaf.dtype == np.int32 else leaf, state)


@pytest.mark.parametrize("name", having("decay_updates") + having("actor_decay_updates"))
def test_after_its_decay_a_rate_moves_nothing(name):
    decays = "decay_updates" in field_names(name)  # of all parts, else of the policy alone
    for part in moving_parts(trained(name)):
        stage = stages_that_move(name, part)[0]
        for updates in (3, DECAY):
            state = aged(trained(name), updates)
            new, _ = update(name, state, 4, stage=stage)  # an update that also moves the policy
            rests = updates == DECAY and (decays or part == "actor")
            assert equal(moving_parts(new)[part], moving_parts(state)[part]) == rests, (part, updates)


# --- Checkpoints ---


@every_method
def test_a_checkpoint_continues_bit_for_bit(name, tmp_path):
    state = trained(name)
    checkpoint.save(tmp_path / "state.safetensors", state, {"update": 3})
    like = jax.eval_shape(make(name).init, jax.eval_shape(jax.random.key, 0))
    loaded, information = checkpoint.load(tmp_path / "state.safetensors", like)
    assert information == {"update": 3}
    assert shapes(jax.tree.map(jnp.asarray, loaded)) == shapes(jax.tree.map(jnp.asarray, state))
    assert equal(loaded, state)

    def continued(state) -> Any:
        for index in (3, 4):
            state, _ = update(name, state, index)
        return state

    assert equal(continued(loaded), continued(state))
    last = len(stages_of(make(name))) - 1
    part = next(part for part in moving_parts(state) if last in stages_that_move(name, part))
    moving = getattr(loaded, part)
    memory = jax.tree.map(np.zeros_like, moving.optimiser_state)
    forgetful = loaded._replace(**{part: dataclasses.replace(moving, optimiser_state=memory)})
    assert not equal(continued(forgetful), continued(state))  # negative control: the optimiser's memory counts
