"""Where a run starts that does not begin anew: with the weights of another run, on other data."""

# JAX leaves some of its types open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from diffcps.algorithms import ALGORITHMS
from diffcps.data.transforms import mean_and_std, normalise_with
from diffcps.readers.hashes import sha256_of_file
from diffcps.records import fields
from diffcps.records.folder import RunFolder
from diffcps.records.record import InitialWeights, RunRecord
from diffcps.training import checkpoint
from diffcps.training.members import Program
from diffcps.types import Configuration, Dataset, DatasetInfo, Spec, Tree, UserError


class Start(NamedTuple):
    """The run whose weights are taken, and what the new data must have in common with its own."""

    weights: InitialWeights
    data: DatasetInfo
    """Action box and scaling of the observations."""


def start_of(init_from: str | Path | None, stored: RunRecord | None) -> Start | None:
    """The start that is asked for, or that of the stored run, which does not need the other run any more.

    Raises `UserError` where `init_from` is no run with a checkpoint `last`, or not the one that the stored run took.
    """
    if stored is not None:
        taken = None if stored.init_from is None else stored.init_from.run
        if init_from is not None and str(init_from) != taken:
            had = f"the weights of {taken}" if taken else "none of another run's weights"
            raise UserError(f"cannot resume with --init-from {init_from}: the run began with {had}; leave it out")
        return None if stored.init_from is None else Start(stored.init_from, stored.dataset)
    if init_from is None:
        return None
    folder = RunFolder(init_from)
    record = folder.read_record()
    if not folder.last.exists():
        raise UserError(
            f"{init_from}: has no checkpoint last to start from; it was stopped before its first evaluation"
        )
    return Start(InitialWeights(str(init_from), sha256_of_file(folder.last, str(folder.last))), record.dataset)


def fitted(dataset: Dataset, start: Start) -> Dataset:
    """The dataset as the networks of the start know it: observations scaled as they were there, not by its own numbers.

    Raises `UserError` where actions or observations mean something else.
    """
    run, before, known = start.weights.run, start.data, mean_and_std(start.data)
    if known is not None and dataset.info.observation_mean is None:
        copy = {name: np.array(getattr(dataset, name)) for name in ("observation", "next_observation")}
        dataset = normalise_with(dataclasses.replace(dataset, **copy), known)
    data = dataset.info
    if (data.observation_mean, data.observation_std) != (before.observation_mean, before.observation_std):
        raise UserError(
            f"{data.source}: its observations are scaled in another way than those of {run}: load it without "
            "normalise_observation, and it is scaled as that run's data were"
        )
    if (data.action_low, data.action_high) != (before.action_low, before.action_high):
        raise UserError(
            f"{data.source}: its actions lie in the box {_text(data.action_low)} to {_text(data.action_high)}, those "
            f"of {run} in {_text(before.action_low)} to {_text(before.action_high)}: weights are taken for one box "
            "only; store the true one as action_low and action_high"
        )
    return dataset


def initial_state(weights: InitialWeights, record: RunRecord, program: Program) -> Tree:
    """The members' states with which a run of `record` begins: those of the run's checkpoint `last`, on the device.

    Each member takes the one of its number, or all the only one. Networks, targets and the optimisers' memory are
    taken; the count of updates starts at 0. Raises `UserError` where the two runs do not fit.
    """
    folder = RunFolder(weights.run)
    before = folder.read_record()
    _check_same(weights.run, before, record)
    if sha256_of_file(folder.last, str(folder.last)) != weights.sha256:
        raise UserError(f"{folder.last}: has changed since this run took its weights; start a new run from it")
    number, count = len(before.members), len(record.members)
    if number not in (1, count):
        raise UserError(
            f"{weights.run}: has {number} members, this run {count}: take as many seeds and swept values, or a run of "
            "one member, which all start from"
        )

    def shape(of_all: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((number, *of_all.shape[1:]), of_all.dtype)

    def for_all(of_origin: np.ndarray) -> np.ndarray:
        return np.repeat(of_origin, count // number, axis=0)

    state, _ = checkpoint.load(folder.last, jax.tree.map(shape, jax.eval_shape(program.init)))
    return program.place(jax.tree.map(for_all, state))


def _check_same(run: str, before: RunRecord, now: RunRecord) -> None:
    """Raises `UserError` where the networks cannot be the same ones, and names the reason."""
    if before.algorithm != now.algorithm:
        raise UserError(f"{run}: is a run of {before.algorithm}, this one of {now.algorithm}: weights fit one method")
    if before.spec != now.spec:
        raise UserError(
            f"{now.dataset.source}: observations have {now.spec.observation_size} and actions {now.spec.action_size} "
            f"numbers, those of {run} {before.spec.observation_size} and {before.spec.action_size}: take data of the "
            "same task"
        )
    old, new = fields.values_of(before.config), fields.values_of(now.config)
    shapes = _shapes(before.algorithm, before.config, before.spec)
    for name, value in new.items():
        if value != old[name]:
            changed = dataclasses.replace(before.config, **{name: value})
            if _shapes(before.algorithm, changed, before.spec) != shapes:
                raise UserError(
                    f"{run}: has {name} {_value(old[name])}, this run {_value(value)}, and weights keep their shapes: "
                    f"take {name} {_value(old[name])}, too"
                )


def _shapes(method: str, config: Configuration, spec: Spec) -> str | None:
    """The state's structure and the shapes of its arrays; None where the method refuses the fields together."""
    try:
        state = jax.eval_shape(ALGORITHMS[method].make(config, spec).init, jax.random.key(0))
    except UserError:
        return None
    return str(state)


def _value(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _text(bounds: tuple[float, ...]) -> str:
    return f"[{', '.join(f'{bound:g}' for bound in bounds)}]"
