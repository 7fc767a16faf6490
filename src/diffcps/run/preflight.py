"""Before update 0: whatever can fail later for a reason that is there now fails now, with one line."""

# JAX leaves some of its types open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import inspect
import shutil
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import jax
import numpy as np

from diffcps.data.actions import Box
from diffcps.data.summary import episode_returns
from diffcps.envs.make import EnvironmentSizes, boxes, make_environment
from diffcps.evaluation.rollout import check_time_limit, success_of
from diffcps.optim import without_memory
from diffcps.records.folder import RunFolder
from diffcps.records.record import RunRecord
from diffcps.records.settings import Settings
from diffcps.tasks.references import normalised_score
from diffcps.training.members import Program
from diffcps.training.memory import free_of_device
from diffcps.types import Dataset, DatasetInfo, EnvironmentSpec, Need, Tree, UserError

if TYPE_CHECKING:
    import gymnasium

MAX_SEED = 2**32 - 1
"""JAX takes no larger one, and neither do many environments."""
API = (
    "write it for Gymnasium: reset(self, *, seed=None, options=None) returns (observation, info), and step(self, "
    "action) returns (observation, reward, terminated, truncated, info)"
)


def preflight(record: RunRecord) -> None:
    """Raises `UserError` for what would fail later in a run, but for the disk (`check_disk`). Nothing is written."""
    check_seeds("seeds", max(record.settings.seeds))
    check_seeds("eval_seed plus episodes", record.settings.eval_seed + record.settings.episodes - 1)
    check_keep(record.settings)
    check_reference(record)
    if record.environment is not None:
        check_environment(record.environment, record.spec.observation_size, record.settings.eval_seed)


def check_seeds(name: str, largest: int) -> None:
    """The largest of some seeds, of members or of episodes, which start at 0."""
    if largest > MAX_SEED:
        raise UserError(f"{name}: seed {largest} is too large, it must be {MAX_SEED} or less")


def check_keep(settings: Settings) -> None:
    """Weights are kept where there is an evaluation."""
    if settings.keep_every % settings.eval_every:
        raise UserError(
            f"keep_every = {settings.keep_every} is no multiple of eval_every = {settings.eval_every}: weights are "
            "kept at evaluations"
        )


def check_reference(record: RunRecord) -> None:
    """Reference returns that give a normalised score."""
    if record.reference is None:
        return
    try:
        normalised_score(0.0, record.reference)
    except UserError as error:
        raise UserError(f"{record.dataset.source}: {error}; correct ref_min_score and ref_max_score") from None


def check_disk(program: Program, folder: RunFolder, settings: Settings) -> None:
    """Room for the checkpoints that are not there yet, and for one more while it is written."""
    state = jax.eval_shape(program.init)
    needed = _size(state) * (1 + sum(not path.exists() for path in (folder.last, folder.best, folder.selected)))
    kept = settings.kept(range(settings.eval_every, settings.updates + 1, settings.eval_every))
    needed += _size(without_memory(state)) * sum(not folder.kept(update).exists() for update in kept)
    there = next(place for place in (folder.path.absolute(), *folder.path.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise UserError(
            f"{folder.path}: the checkpoints need {needed / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free there: make "
            "room, or choose another --out"
        )


def check_memory(dataset: Dataset, settings: Settings) -> None:
    """Room for the rows with the device that trains, where they are to lie there and it says what it has."""
    needed, free = _size(dataset), free_of_device()
    if settings.rows == "device" and free is not None and free < needed:
        raise UserError(
            f"{dataset.info.source}: its {dataset.size:,} rows take {needed / 1e6:,.0f} MB, and the device that trains "
            f"has {free / 1e6:,.0f} MB left: --rows host leaves them in the memory of the machine"
        )


def _size(arrays: Tree) -> int:
    """Bytes of all arrays."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(arrays))


def check_needs(needs: frozenset[Need], method: str, info: DatasetInfo) -> None:
    """The data have what the method reads."""
    for field in info.account.absent:
        if field in needs:
            raise UserError(
                f"{info.source}: has no {field}s, which {method} needs; store them, or clone the behaviour with bc or "
                "diffusion_bc"
            )
    if "order" in needs and not info.account.ordered:
        raise UserError(
            f"{info.source}: its rows are not in the order of its episodes, on which the returns of {method} rest "
            f"({info.account.warnings[0] if info.account.warnings else 'their ends are not known'}): put them in order"
        )


def check_windows(episode_steps: int, method: str, dataset: Dataset, rows: Dataset) -> None:
    """There is an episode that is long enough, in the data and in the `rows` that are measured; 0 asks for none."""
    if not episode_steps:
        return
    for read, whose in ((dataset, "the longest of its episodes"), (rows, "the longest of the episodes held out")):
        longest = int(episode_returns(read)[1].max())
        if longest < episode_steps:
            raise UserError(
                f"{dataset.info.source}: {whose} has {longest} steps, and the windows of {method} need "
                f"{episode_steps}: take a shorter horizon"
            )


def check_box(info: DatasetInfo, environment: EnvironmentSpec, sizes: EnvironmentSizes) -> None:
    """A policy's actions lie in the environment's box."""
    ours, theirs = Box.of(info.action_low, info.action_high), Box.of(sizes.action_low, sizes.action_high)
    if np.isfinite(theirs).all() and not ours.same(theirs):
        raise UserError(
            f"{info.source}: its actions were loaded from the box {ours}, and environment {environment} takes "
            f"{theirs}: load it with action_low and action_high, or give its name to `train`, which compares them"
        )


def with_limits_noticed(dataset: Dataset, environment: EnvironmentSpec, sizes: EnvironmentSizes) -> Dataset:
    """With a warning in its account, where terminal episodes are as long as the environment's time limit.

    Not in bandits, whose episodes end with their one step.
    """
    account = dataset.info.account
    if sizes.max_steps == 1 or not account.ordered or any("greatest length" in line for line in account.warnings):
        return dataset
    terminal = np.asarray(dataset.terminal)
    end = terminal | np.asarray(dataset.timeout)
    count = int((np.diff(np.flatnonzero(end), prepend=-1)[terminal[end]] == sizes.max_steps).sum())
    if not count:
        return dataset
    warning = (
        f"{count} terminal episodes have {sizes.max_steps} steps, the time limit of {environment}: terminal may mark "
        "the limit, too, which teaches that the future is worth nothing there; mark these rows as timeout instead"
    )
    account = replace(account, warnings=(*account.warnings, warning))
    return replace(dataset, info=replace(dataset.info, account=account))


def check_environment(environment: EnvironmentSpec, observation_size: int, seed: int) -> None:
    """One reset and one step. Whatever the environment raises becomes one line."""
    with closing(make_environment(environment)) as made:
        check_time_limit(made, environment)
        observation = _first_reset(made, environment, seed)
        _check_observation(observation, observation_size, f"environment {environment}: its reset")
        _first_step(made, environment, observation_size)


def _first_reset(made: gymnasium.Env, environment: EnvironmentSpec, seed: int) -> object:
    """The observation."""
    parameters = inspect.signature(made.unwrapped.reset).parameters.values()
    if not any(each.name == "seed" or each.kind is each.VAR_KEYWORD for each in parameters):
        raise UserError(f"environment {environment}: its reset takes no seed; {API}")
    try:
        answer = cast(object, made.reset(seed=seed))
    except Exception as error:  # somebody else's program
        raise _failed(environment, "first reset", error) from error
    values = cast(tuple[object, ...], answer) if isinstance(answer, tuple) else ()
    if len(values) != 2 or not isinstance(values[1], Mapping):
        raise UserError(f"environment {environment}: its reset does not return (observation, info); {API}")
    return values[0]


def _first_step(made: gymnasium.Env, environment: EnvironmentSpec, observation_size: int) -> None:
    """With the middle of the action box."""
    box = boxes(made).action
    low, high = np.nan_to_num(box.low, neginf=-1.0), np.nan_to_num(box.high, posinf=1.0)
    action = np.clip((low + high) / 2, box.low, box.high).astype(box.dtype)
    where = f"environment {environment}: its step"
    try:
        answer = cast(object, made.step(action))
    except ValueError as error:
        if "expected 5, got" not in str(error):  # a wrapper cannot unpack what an old environment returns
            raise _failed(environment, "first step", error) from error
        raise UserError(f"{where} does not return five values; {API}") from error
    except Exception as error:
        raise _failed(environment, "first step", error) from error
    values = cast(tuple[object, ...], answer) if isinstance(answer, tuple) else ()
    if len(values) != 5:
        raise UserError(f"{where} does not return five values; {API}")
    observation, reward, *ends, info = values
    _check_observation(observation, observation_size, where)
    if not _is_finite(reward, ()):
        raise UserError(f"{where} gives the reward {reward!r:.60}, which is not a finite number")
    if not all(np.ndim(cast(bool, end)) == 0 and np.isin(cast(bool, end), (False, True)).all() for end in ends):
        raise UserError(f"{where} gives {ends!r:.60} where `terminated` and `truncated` are true or false; {API}")
    if not isinstance(info, Mapping):
        raise UserError(f"{where} gives no dictionary as info, but {type(info).__name__}; {API}")
    success_of(cast(Mapping[str, object], info), environment)  # warns where it cannot be read


def _check_observation(observation: object, size: int, where: str) -> None:
    shape = np.shape(cast(np.ndarray, observation))
    if shape != (size,):
        raise UserError(f"{where} gives an observation of shape {shape}, where the data have {size} numbers")
    if not _is_finite(observation, (size,)):
        raise UserError(f"{where} gives an observation that is not all finite numbers")


def _is_finite(value: object, shape: tuple[int, ...]) -> bool:
    try:
        numbers = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        return False
    return numbers.size == np.prod(shape, dtype=int) and bool(np.isfinite(numbers).all())


def _failed(environment: EnvironmentSpec, when: str, error: Exception) -> UserError:
    text = " ".join(str(error).split())[:300].rstrip(".")
    return UserError(
        f"environment {environment} fails in its {when} ({type(error).__name__}: {text}): correct it, or train without "
        "scores (--env none)"
    )
