"""Trained policies: one member's, or all members of a run at once; and a run folder, read back."""

# JAX and matplotlib leave some of their types open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffcps.algorithms import ALGORITHMS
from diffcps.data.scaling import Scaling
from diffcps.optim import without_memory
from diffcps.records import fields
from diffcps.records.folder import RunFolder
from diffcps.records.record import RunRecord
from diffcps.storage import Json
from diffcps.training import checkpoint
from diffcps.training.members import Member, Program
from diffcps.training.precision import in_precision
from diffcps.types import (
    Algorithm,
    Dataset,
    EnvAction,
    EnvObservation,
    NetAction,
    NetObservation,
    Spec,
    Tree,
    UserError,
)

Checkpoint = Literal["best", "selected", "fqe", "last"]
"""`best` by the score; without an environment `selected` by `selection/loss`, and `fqe` among the kept ones by fitted Q
evaluation, where `diffcps ope` was run; `last` as the run ended."""


class Origin(NamedTuple):
    """Where a policy was loaded from: enough to load it again."""

    run: Path
    """Absolute, so that a process in another folder finds it."""
    checkpoint: Checkpoint | int
    member: int
    action_choice: str | None
    seed: int


class Policy:
    """policy(observation) -> action, both NumPy arrays in the environment's units, with or without leading axes.

    A loaded policy can be pickled, copied and sent to other processes. What travels is the place of its run and how
    often it was called; the arrays are read from the run folder again, as it is by then. Threads may share a policy.
    """

    def __init__(
        self,
        algorithm: Algorithm[Tree],
        state: Tree,
        scaling: Scaling,
        spec: Spec,
        member: Member,
        seed: int = 0,
        origin: Origin | None = None,
    ):
        self.spec = spec
        self.member = member
        self._act: Callable[..., jax.Array] = jax.jit(algorithm.act)
        remembers = algorithm.in_episode
        self._begin: Callable[..., Tree] | None = None if remembers is None else jax.jit(remembers.begin)
        self._act_on: Callable[..., tuple[jax.Array, Tree]] | None = (
            None if remembers is None else jax.jit(remembers.act)
        )
        self._state = state
        self._scaling = scaling
        self._key = jax.random.key(seed)
        self._origin = origin
        self._calls = 0
        self._counting = threading.Lock()

    def __call__(self, observation: np.ndarray) -> EnvAction:
        """ "*b obs" -> "*b act". Each call draws anew; a policy loaded again with the same seed repeats its draws.

        Observations are filled up to the next power of two, so that few sizes are compiled; the draws of a row may
        depend on that size. Raises `UserError` for another size of observations, and where one is not finite.
        """
        seen, key = self._seen(observation)
        leading, rows = seen.shape[:-1], seen.reshape(-1, self.spec.observation_size)
        filled = np.zeros((_power_of_two(len(rows)), self.spec.observation_size), np.float32)
        filled[: len(rows)] = rows
        action = np.asarray(self._act(self._state, filled, key))
        return self._scaling.action(NetAction(action[: len(rows)].reshape(*leading, self.spec.action_size)))

    def episode(self) -> Callable[[np.ndarray], EnvAction]:
        """The policy in the course of an episode, or of several that begin together: to be called once a step.

        What it does at one step may follow from the steps before (a planner goes on with its plan). A policy that
        remembers nothing acts as ever.
        """
        begin, act = self._begin, self._act_on
        if begin is None or act is None:
            return self
        memory: Tree = ()
        step = 0

        def follow(observation: np.ndarray) -> EnvAction:
            nonlocal memory, step
            seen, key = self._seen(observation)
            if step == 0:
                memory = begin(seen)
            action, memory = act(self._state, seen, memory, step, key)
            step += 1
            return self._scaling.action(NetAction(np.asarray(action)))

        return follow

    def _seen(self, observation: np.ndarray) -> tuple[NetObservation, jax.Array]:
        """Observations as the networks see them, and the key of this call."""
        observation = np.asarray(observation, np.float64)
        if observation.shape[-1:] != (self.spec.observation_size,):
            raise UserError(
                f"observation has shape {observation.shape}: this policy takes {self.spec.observation_size} numbers "
                "along the last axis"
            )
        with np.errstate(over="ignore", invalid="ignore"):  # what float32 cannot hold is refused
            seen = self._scaling.observation(EnvObservation(observation))
        if not (np.isfinite(observation) & np.isfinite(seen)).all():
            raise UserError(_not_finite(observation, seen))
        with self._counting:
            self._calls += 1
            calls = self._calls
        return seen, jax.random.fold_in(self._key, calls)

    def __reduce__(self) -> tuple[Callable[[Origin], Policy], tuple[Origin], int]:
        if self._origin is None:
            raise UserError(
                "this policy was not loaded from a run folder, and only a loaded one can be pickled: train into a "
                "folder and take diffcps.load_policy(folder)"
            )
        return _load_again, (self._origin,), self._calls

    def __setstate__(self, calls: int) -> None:
        """A policy that was sent goes on drawing where it was."""
        self._calls = calls


def _not_finite(observation: np.ndarray, seen: np.ndarray) -> str:
    *row, dimension = (int(x) for x in np.argwhere(~(np.isfinite(observation) & np.isfinite(seen)))[0])
    what = f"row {', '.join(map(str, row))} of the observations" if row else "the observation"
    return (
        f"{what} has {observation[(*row, dimension)]} at dimension {dimension}, which is not finite in float32: no "
        "action follows from it; repair it or leave it out"
    )


def _power_of_two(size: int) -> int:
    """The least power of two that is no less than `size`."""
    return 1 << max(size - 1, 0).bit_length()


def _load_again(origin: Origin) -> Policy:
    """The policy of a pickle. Raises `UserError` where its run is gone."""
    return load_policy(
        origin.run, origin.checkpoint, member=origin.member, action_choice=origin.action_choice, seed=origin.seed
    )


class MemberPolicies:
    """The policies of all members at one moment, as a roll-out asks them: units of the environment on either side.

    All episodes begin together, at step 0, and are at the same step ever after.
    """

    def __init__(self, program: Program, state: Tree, scaling: Scaling, number: int):
        """`number`, with the step, names the draws: the number of updates made, or the seed of an evaluation."""
        self._program, self._state, self._scaling, self._number = program, state, scaling, number
        self._memory: Tree = ()

    def __call__(self, observation: EnvObservation, step: int) -> EnvAction:
        """ "members episodes obs" -> "members episodes act"."""
        seen = self._scaling.observation(observation)
        if step == 0:
            self._memory = self._program.begin_episodes(seen)
        action, self._memory = self._program.act_in_episodes(self._state, seen, self._memory, self._number, step)
        return self._scaling.action(action)


def program_of(record: RunRecord, members: Sequence[Member], dataset: Dataset | None) -> Program:
    """Members of a run as one compiled program; without a dataset they can act, but not train."""
    return Program(partial(algorithm_of, record), members, dataset, record.settings.rows)


def algorithm_of(record: RunRecord, swept: Mapping[str, Tree]) -> Algorithm[Tree]:
    """The method of a run with the swept values of one member, as numbers or traced arrays."""
    config = dataclasses.replace(record.config, **swept)
    return in_precision(ALGORITHMS[record.algorithm].make(config, record.spec), record.settings.precision)


class LoadedRun(NamedTuple):
    """A run, read back, with one of its checkpoints."""

    folder: RunFolder
    record: RunRecord
    """The run as it was trained, but for how its policies act, where that was overridden."""
    program: Program
    state: Tree
    """The members' states at the checkpoint, stacked, on the host."""
    updates: list[int]
    """How many updates each member had made by then."""

    @property
    def scaling(self) -> Scaling:
        """Between the environment's units and the networks'."""
        return Scaling.of(self.record.dataset)

    def of_member(self, member: int) -> tuple[Algorithm[Tree], Tree]:
        """A member's method, with its swept values, and its state. Raises `UserError` for an unknown member."""
        members = self.record.members
        if not 0 <= member < len(members):
            raise UserError(f"{self.folder.path}: has no member {member}; it has members 0 to {len(members) - 1}")

        def own(of_all: np.ndarray) -> jax.Array:
            return jnp.asarray(of_all[member])

        return algorithm_of(self.record, members[member].swept), jax.tree.map(own, self.state)

    def policies(self, number: int) -> MemberPolicies:
        """All members' policies; `number` fixes their draws."""
        return MemberPolicies(self.program, self.program.place(self.state), self.scaling, number)


def acting_by(record: RunRecord, action_choice: str) -> RunRecord:
    """The run with policies that act by this rule. Raises `UserError` where the method does not have it."""
    values = fields.values_of(record.config)
    if "action_choice" not in values:
        raise UserError(f"{record.algorithm} has one way to act: leave out the action choice")
    config = fields.build(ALGORITHMS[record.algorithm].Config, values | {"action_choice": action_choice})
    return dataclasses.replace(record, config=config)


def load_run(run: str | Path, which: Checkpoint | int = "best", action_choice: str | None = None) -> LoadedRun:
    """A run folder with one of its checkpoints, a number: the kept one after so many updates.

    `action_choice` overrides how its policies act. Raises `UserError`.
    """
    folder = RunFolder(run)
    record = folder.read_record()
    if action_choice is not None:
        record = acting_by(record, action_choice)
    path = checkpoint_path(folder, which)
    program = program_of(record, record.members, None)
    whole = jax.eval_shape(program.init)
    like = without_memory(whole) if isinstance(which, int) or which == "fqe" else whole
    state, information = checkpoint.load(path, like)
    return LoadedRun(folder, record, program, state, _updates(information["update"], len(record.members)))


def checkpoint_path(folder: RunFolder, which: str | int) -> Path:
    """The file of a checkpoint, a number: of the kept one after so many updates. Raises `UserError` without it."""
    if isinstance(which, int):
        if (path := folder.kept(which)).exists():
            return path
        kept = ", ".join(map(str, folder.kept_updates()))
        raise UserError(
            f"{folder.path}: kept no weights after {which} updates: "
            + (f"take one of {kept}" if kept else "take best, selected or last; --keep and --keep-every keep more")
        )
    paths = {"best": folder.best, "selected": folder.selected, "fqe": folder.fqe, "last": folder.last}
    if which not in paths:
        raise UserError(
            f"there is no checkpoint {which!r}: take best, selected or fqe (chosen without scores), last, or the "
            "number of updates of a kept one"
        )
    if which == "fqe" and not paths[which].exists():
        raise UserError(
            f"{folder.path}: has no checkpoint fqe: diffcps ope {folder.path} chooses it among those that --keep kept"
        )
    if not paths[which].exists():
        others = [name for name, path in paths.items() if path.exists()]
        if not others:
            raise UserError(f"{folder.path}: has no checkpoint {which}; it was stopped before its first evaluation")
        why = "it has no scores, so none is best" if which == "best" else "it has none that could be chosen"
        raise UserError(f"{folder.path}: has no checkpoint {which} ({why}): take {' or '.join(others)}")
    return paths[which]


def _updates(made: Json, num_members: int) -> list[int]:
    """Each member's number of updates: `last` has one for all, those that were chosen one for each."""
    return [int(str(x)) for x in made] if isinstance(made, Sequence) else [int(str(made))] * num_members


def load_policy(
    run: str | Path,
    checkpoint: Checkpoint | int = "best",
    *,
    member: int = 0,
    action_choice: str | None = None,
    seed: int = 0,
) -> Policy:
    """The policy of one member of a run, by default from its best checkpoint (the one with the highest mean return).

    A run without scores has none: take "selected", the checkpoint with the lowest `selection/loss`, "fqe", the one that
    `diffcps ope` estimates highest, "last", or the number of updates of one that was kept (`keep`, `keep_every`).
    `action_choice` overrides how it acts (sample, softmax_q, argmax_q); `seed` fixes its draws. Raises `UserError`.
    """
    loaded = load_run(run, checkpoint, action_choice)
    algorithm, state = loaded.of_member(member)
    origin = Origin(loaded.folder.path.resolve(), checkpoint, member, action_choice, seed)
    return Policy(algorithm, state, loaded.scaling, loaded.record.spec, loaded.record.members[member], seed, origin)
