"""A training in stages: when they begin, what they hand over, and that stopping between them changes nothing."""

import dataclasses
import os
import signal
from itertools import chain, repeat
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from jax.core import Tracer

from diffcps import UserError
from diffcps.algorithms import awr, sfbc
from diffcps.records.settings import Settings
from diffcps.run.progress import Silent
from diffcps.run.train import train
from diffcps.training import checkpoint, loop, members
from diffcps.training.members import Program, expand
from diffcps.types import Algorithm, Dataset, DatasetInfo, Stage
from tests.problems import begun

pytestmark = pytest.mark.usefixtures("quick_compilation")
ROWS = 48
INFO = DatasetInfo("made by a test", "0", action_low=(-1.0,) * 2, action_high=(1.0,) * 2)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    rng = np.random.default_rng(0)
    end = np.arange(ROWS) % 8 == 7
    return Dataset(
        observation=rng.normal(size=(ROWS, 3)).astype(np.float32),
        action=rng.uniform(-1, 1, size=(ROWS, 2)).astype(np.float32),
        reward=rng.normal(size=ROWS).astype(np.float32),
        next_observation=rng.normal(size=(ROWS, 3)).astype(np.float32),
        terminal=end & (np.arange(ROWS) < ROWS / 2),
        timeout=end & (np.arange(ROWS) >= ROWS / 2),
        info=INFO,
    )


class Count(NamedTuple):
    first: jax.Array
    second: jax.Array


def counting() -> Algorithm[Count]:
    """Two stages that take turns: each counts its updates, and labels the rows with what the other had counted."""

    def init(key):
        return Count(jnp.float32(0.0), jnp.float32(0.0))

    def batch(dataset, key):
        return dataset.labels

    def begin_first(state, dataset, key):
        return state, jnp.full(ROWS, state.second)

    def begin_second(state, dataset, key):
        return state, {"before": dataset.labels, "now": jnp.full(ROWS, state.first)}

    def update_first(state, batch, draws, index):
        return state._replace(first=state.first + 1), {"first/label": jnp.mean(batch)}

    def update_second(state, batch, draws, index):
        labels = {"second/before": jnp.mean(batch["before"]), "second/now": jnp.mean(batch["now"])}
        return state._replace(second=state.second + 10), labels

    def act(state, observation, key):
        return observation[..., :2]

    def diagnose(state, rows, key):
        return {"selection/loss": state.first}

    first = Stage(1, batch, update_first, begin_first, keep=True)
    second = Stage(3, batch, update_second, begin_second, keep=True)
    return Algorithm(init, (first, second) * 2, act, diagnose)


def test_stages_take_their_shares_and_hand_over(dataset):
    algorithm = counting()
    program = Program(lambda swept: algorithm, expand([0, 1], {}), dataset)
    assert program.starts(80) == [0, 10, 40, 50]
    state, labels, alive = program.init(), (), np.array([True, False])
    seen = []
    for stage, (first, last) in enumerate([(0, 10), (10, 40), (40, 50), (50, 80)]):
        state, labels = program.begin(state, labels, alive, stage)
        state, now_alive, metrics = program.advance(state, alive, first, last, labels, stage)
        assert now_alive.tolist() == alive.tolist()
        seen.append({name: float(value[0]) for name, value in metrics.items()})
    assert seen == [
        {"first/label": 0.0},
        {"second/before": 0.0, "second/now": 10.0},
        {"first/label": 300.0},
        {"second/before": 300.0, "second/now": 20.0},
    ]
    assert state.first.tolist() == [20.0, 0.0] and state.second.tolist() == [600.0, 0.0]


def test_a_stage_without_an_update_is_refused(dataset):
    """Two rounds of shares 1 and 3: below eight updates one stage has none."""
    algorithm = counting()
    program = Program(lambda swept: algorithm, expand([0], {}), dataset)
    assert program.starts(8) == [0, 1, 4, 5]
    with pytest.raises(UserError, match="3 updates are too few for 4 stages, of which 2 would have none: take"):
        program.starts(3)
    (least,) = [int(word) for word in str(refusal(program, 3)).split() if word.isdigit()][-1:]
    assert len(program.starts(least)) == 4  # the way out that the message names leads on


def refusal(program: Program, updates: int) -> UserError:
    with pytest.raises(UserError) as error:
        program.starts(updates)
    return error.value


def test_awr_names_the_least_number_of_updates(dataset, tmp_path):
    """Forty iterations are 80 stages; 60 updates once left out three quarters of the value's without a word."""
    config, settings = dataclasses.replace(CONFIGS["awr"], iterations=40), dataclasses.replace(SETTINGS, updates=60)
    with pytest.raises(UserError, match="60 updates are too few for 80 stages"):
        train(config, dataset, settings, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --- Labels that are not saved ---


def without_labels() -> Algorithm[Count]:
    """One stage whose labels follow from the seed alone, and are too large to be saved."""

    def begin(state, dataset, key):
        return state._replace(second=jnp.float32(7.0)), jnp.full(ROWS, 5.0)

    def update(state, batch, draws, index):
        return state._replace(first=state.first + jnp.mean(batch)), {"first/label": jnp.mean(batch)}

    stage = Stage(1, lambda dataset, key: dataset.labels, update, begin)
    return dataclasses.replace(counting(), stages=(stage,))


def test_labels_that_are_not_kept_are_made_again_after_a_resume(dataset, tmp_path):
    algorithm = without_labels()
    program = Program(lambda swept: algorithm, expand([0, 1], {}), dataset)
    path, lengths = tmp_path / "last.safetensors", loop.Lengths(updates=10, eval_every=10, log_every=4)
    whole = loop.begin(program)
    boundaries = loop.advance(program, whole, lengths, lambda update: None)
    next(boundaries)
    loop.save(program, whole, path, lengths.updates)
    assert "labels" not in "".join(safetensors.numpy.load_file(path))
    again = loop.resume(program, path, lengths.updates)
    assert (again.update, again.labels.tolist()) == (4, whole.labels.tolist())
    assert again.state.first.tolist() == [20.0, 20.0] and again.state.second.tolist() == [7.0, 7.0]
    for training, rest in ((whole, boundaries), (again, loop.advance(program, again, lengths, lambda update: None))):
        assert [round(boundary.metrics["first/label"][0], 3) for boundary in rest] == [5.0, 5.0]
        assert training.state.first.tolist() == [50.0, 50.0]


def test_a_stage_that_computes_for_long_before_its_first_update_says_so(dataset, monkeypatch):
    algorithm, waits, told = without_labels(), chain((False, False), repeat(True)), []
    program = Program(lambda swept: algorithm, expand([0], {}), dataset)
    monkeypatch.setattr(loop, "_are_ready", lambda arrays: next(waits))
    lengths = loop.Lengths(updates=8, eval_every=8, log_every=4)
    list(loop.advance(program, loop.begin(program), lengths, lambda update: None, lambda *of: told.append(of)))
    assert told == [(0, 0, 0)] * 2  # of the one stage, and not again where it goes on


# --- What a stage needs of the rows, a piece after the other ---


def summing() -> Algorithm[Count]:
    """One stage that labels each row with a draw of its own, after its place, and counts their sum."""

    def for_rows(state, rows, index, key):
        noise = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i)))(index)
        return {"place": index, "noise": noise, "seen": rows.observation[:, 0]}

    def begin(state, dataset, key):
        return state._replace(second=jnp.sum(dataset.labels["noise"])), dataset.labels

    def update(state, batch, draws, index):
        return state._replace(first=state.first + 1), {"first/label": jnp.mean(batch["noise"])}

    rest = counting()
    stage = Stage(1, lambda dataset, key: dataset.labels, update, begin, for_rows, keep=True)
    return Algorithm(rest.init, (stage,), rest.act, rest.diagnose)


@pytest.mark.parametrize(("piece", "starts"), [(48, [0]), (100, [0]), (16, [0, 16, 32]), (20, [0, 20, 28])])
def test_pieces_are_the_rows(dataset, monkeypatch, piece, starts):
    monkeypatch.setattr(members, "PIECE", piece)
    algorithm = summing()
    program = Program(lambda swept: algorithm, expand([0, 1], {}), dataset)
    assert program.pieces(0) == starts
    labels = loop.prepared(program, program.init(), (), 0)
    np.testing.assert_array_equal(labels["place"], [np.arange(ROWS)] * 2)
    np.testing.assert_array_equal(labels["seen"], [dataset.observation[:, 0]] * 2)
    monkeypatch.setattr(members, "PIECE", ROWS)
    whole = loop.prepared(Program(lambda swept: algorithm, expand([0, 1], {}), dataset), program.init(), (), 0)
    np.testing.assert_array_equal(labels["noise"], whole["noise"])


def test_pieces_are_read_again_and_a_checkpoint_has_the_whole(dataset, monkeypatch, tmp_path):
    monkeypatch.setattr(members, "PIECE", 20)
    algorithm, told = summing(), []
    program = Program(lambda swept: algorithm, expand([0], {}), dataset)

    def stopping(stage, done, total):
        told.append((done, total))
        if done == 20:
            raise KeyboardInterrupt

    lengths, pieces = loop.Lengths(updates=8, eval_every=8, log_every=4), tmp_path / "rows"
    with pytest.raises(KeyboardInterrupt):
        list(loop.advance(program, loop.begin(program), lengths, lambda update: None, stopping, pieces))
    assert list(dict.fromkeys(told)) == [(0, ROWS), (20, ROWS)]  # told again where a piece takes its time
    assert [path.name for path in pieces.iterdir()] == ["0-0.safetensors"]
    made, prepare = [], program.prepare

    def noted(state, stage, start):
        if not isinstance(state.first, Tracer):  # shapes alone are asked for, too
            made.append(start)
        return prepare(state, stage, start)

    monkeypatch.setattr(program, "prepare", noted)
    training = loop.begin(program)
    list(loop.advance(program, training, lengths, lambda update: None, pieces=pieces))
    assert made == [20, 28]
    whole = loop.begin(program)
    list(loop.advance(program, whole, lengths, lambda update: None))
    assert whole.state.second.tolist() == training.state.second.tolist() != [0.0]
    path = tmp_path / "last.safetensors"
    loop.save(program, training, path, lengths.updates)
    again = loop.resume(program, path, lengths.updates)
    np.testing.assert_array_equal(again.labels["noise"], whole.labels["noise"])


# --- Stopping between and within stages ---

SETTINGS = Settings(updates=48, eval_every=16, log_every=4, seeds=(0, 1))
CONFIGS = {
    "awr": awr.Config(width=8, second_width=8, batch_size=8, iterations=2, critic_share=1, actor_share=2),
    "sfbc": sfbc.Config(
        **{
            "width": 8,
            "critic_depth": 1,
            "behaviour_width": 8,
            "behaviour_depth": 1,
            "num_features": 4,
            "batch_size": 8,
        },
        **{"num_steps": 2, "rounds": 3, "actor_share": 1, "critic_share": 3},
    ),
}


class StopAt(Silent):
    """Ends the run when so many updates are logged, as a kill would: nothing is saved after."""

    def __init__(self, update: int):
        self.update = update

    def logged(self, update, rows):
        if update >= self.update:
            raise KeyboardInterrupt


def files(out) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "checkpoints").iterdir())}


@pytest.mark.parametrize("name", ["awr", pytest.param("sfbc", marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(name, dataset, tmp_path):
    config, whole = CONFIGS[name], tmp_path / "whole"
    train(config, dataset, SETTINGS, out=whole)
    expected = files(whole)
    assert "last.safetensors" in expected
    longer = dataclasses.replace(SETTINGS, updates=2 * SETTINGS.updates)
    with pytest.raises(UserError, match=f"another updates: .*the stages of {name} are shares"):
        train(config, dataset, longer, out=whole, resume=True)
    assert files(whole) == expected
    # Checkpoints come after 16, 32 and 48 updates. AWR's stages begin at 0, 8, 24 and 32, SfBC's at 0, 12, 24 and 36.
    for update in (20, 36):  # within a stage of either, after the checkpoint of before; at the start of SfBC's last
        out = tmp_path / f"killed-at-{update}"
        with pytest.raises(KeyboardInterrupt):
            train(config, dataset, SETTINGS, out=out, display=StopAt(update))
        train(config, dataset, SETTINGS, out=out, resume=True)
        assert files(out) == expected, update


def test_a_run_that_is_stopped_among_the_rows_goes_on_as_if_nothing_had_happened(dataset, tmp_path, monkeypatch):
    """SfBC's stage on planned values begins at 24; Ctrl-C comes after the first of three pieces."""
    monkeypatch.setattr(members, "PIECE", 20)
    config = dataclasses.replace(CONFIGS["sfbc"], rounds=2)
    train(config, dataset, SETTINGS, out=tmp_path / "whole")

    class Stopping(Silent):
        def preparing(self, stage, stages, done, total):
            if done:
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(loop.Interrupted) as stop:
        train(config, dataset, SETTINGS, out=tmp_path / "run", display=Stopping())
    assert stop.value.update == 30
    assert checkpoint.information(tmp_path / "run" / "checkpoints" / "last.safetensors")["update"] == 30
    pieces = tmp_path / "run" / "checkpoints" / "rows"
    assert "2-0.safetensors" in [path.name for path in pieces.iterdir()]
    train(config, dataset, SETTINGS, out=tmp_path / "run", resume=True)
    assert not pieces.exists() and files(tmp_path / "run") == files(tmp_path / "whole")


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [("awr", {"discount": 1.0}, "below 1"), ("sfbc", {"num_candidates": 3}, "no more candidates can be averaged")],
)
def test_values_that_cannot_work_are_refused_before_anything_is_written(name, changes, says, dataset, tmp_path):
    with pytest.raises(UserError, match=says):
        train(dataclasses.replace(CONFIGS[name], **changes), dataset, SETTINGS, out=tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_policy_is_read_from_a_checkpoint_with_labels(dataset, tmp_path):
    from diffcps import load_policy

    train(CONFIGS["awr"], dataset, SETTINGS, out=tmp_path / "run")
    action = load_policy(tmp_path / "run", "last")(dataset.observation[0])
    assert action.shape == (2,) and np.all(np.abs(action) <= 1)
    with pytest.raises(UserError, match="no checkpoint best"):
        load_policy(tmp_path / "run", "best")


# --- What AWR and SfBC compute for the rows ---


def labels_of(algorithm: Algorithm, dataset: Dataset, stage: int, state=None):
    on_device = jax.tree.map(jnp.asarray, dataset)
    state = algorithm.init(jax.random.key(0)) if state is None else state
    return begun(algorithm.stages[stage], state, on_device, jax.random.key(1))


def test_awr_standardises_advantages_over_the_dataset(dataset):
    algorithm = awr.make(dataclasses.replace(CONFIGS["awr"], discount=0.9), dataset.spec)
    state, returns = labels_of(algorithm, dataset, 0)
    _, advantages = labels_of(algorithm, dataset, 1)
    value = 10.0 * state.critic.model(jnp.asarray(dataset.observation))[:, 0]
    by_hand = np.asarray(returns - value)
    np.testing.assert_allclose(advantages, (by_hand - by_hand.mean()) / (by_hand.std() + 1e-5), rtol=2e-4, atol=1e-5)


def test_sfbc_plans_with_the_values_of_the_critic_before(dataset):
    algorithm = sfbc.make(CONFIGS["sfbc"], dataset.spec)
    state, logged = labels_of(algorithm, dataset, 1)
    np.testing.assert_allclose([np.mean(logged), np.std(logged)], [0, 1], atol=1e-5)
    moved = state._replace(
        critic=dataclasses.replace(state.critic, model=jax.tree.map(lambda x: x + 1.0, state.critic.model))
    )
    planned_state, planned = labels_of(algorithm, dataset, 2, moved)
    returns = np.asarray(state.return_mean + state.return_std * logged)
    better = np.asarray(planned_state.return_mean + planned_state.return_std * planned)
    assert np.all(better >= returns - 1e-4) and np.any(better > returns + 0.1)
    # The critic starts anew.
    for start, first in zip(
        jax.tree.leaves(planned_state.critic), jax.tree.leaves(algorithm.init(jax.random.key(0)).critic), strict=True
    ):
        np.testing.assert_array_equal(start, first)
