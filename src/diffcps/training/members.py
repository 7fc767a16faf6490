"""Members: the (seed, hyper-parameters) pairs of one run, trained together in one compiled program."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxlib._jax import Device

from diffcps.types import Algorithm, Dataset, NetAction, NetObservation, Stage, Stored, Tree, UpdateIndex, UserError

DIVERGENCE_LIMIT = 1e8
"""A member whose logged numbers exceed this in size has diverged, in units of the largest reward squared where that is
above 1 (squared TD errors of sane runs stay below 1e5 of them)."""

LONGEST_PERIOD = 4
"""Updates that are written out at most: more would take minutes to compile."""
PIECE = 2048
"""Rows for which a stage computes at once what it begins with."""
BLOCK = 120
"""Updates whose batches and noise are drawn at once: a multiple of each period that is written out."""
SHORT = 12
"""A shorter block is a multiple of it, and so of each period; where not even so many fit, a block is one period."""
BLOCK_BYTES = 2**28
"""Of what is drawn for a block, at most, all members together."""
WIDE_VECTORS = {"xla_cpu_prefer_vector_width": 512}
"""For the loop: XLA uses 256 bits of a CPU's vectors of 512 unless it is told to use all."""
Rows = Literal["device", "host"]
"""Where the data's rows lie: with the device that trains, or in the memory of the machine, from which their batches are
sent to it."""


@dataclass(frozen=True)
class Member:
    """One (seed, swept values) of a run."""

    index: int
    seed: int
    swept: dict[str, float]

    @property
    def label(self) -> str:
        return ", ".join([f"seed {self.seed}", *(f"{name} {value:g}" for name, value in self.swept.items())])


def expand(seeds: Sequence[int], sweep: Mapping[str, Sequence[float]]) -> list[Member]:
    """Every combination of the swept values with every seed; seeds vary fastest."""
    combinations = itertools.product(itertools.product(*sweep.values()), seeds)
    return [
        Member(index, seed, dict(zip(sweep, values, strict=True))) for index, (values, seed) in enumerate(combinations)
    ]


def devices_for(num_members: int) -> list[Device]:
    """As many devices as share the members equally."""
    a_device_per_core()
    devices = jax.devices()
    return devices[: math.gcd(num_members, len(devices))]


def a_device_per_core() -> None:
    """Makes each core of a CPU a device, if JAX has not started yet: call it before anything is computed.

    Members then train side by side, a core each, instead of one after the other with every small product split over
    all cores.
    """
    if jax.config.jax_num_cpu_devices < 0:  # pyright: ignore[reportAttributeAccessIssue]; nobody has set it
        with suppress(RuntimeError):  # JAX is running already: its devices are what they are
            jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))


class Program:
    """All members of a run as one compiled program: for each member a loop over updates, shared by the devices.

    The random numbers of a member depend on its seed and on the index of the update alone, so that they are the same
    in any company and after any interruption. Members of equal seed share them.
    """

    def __init__(
        self,
        make: Callable[[Mapping[str, Tree]], Algorithm[Tree]],
        members: Sequence[Member],
        dataset: Dataset | None,
        rows: Rows = "device",
    ):
        """`make(swept)` builds the algorithm with the given (traced) values in place of the configuration's.

        Without a dataset the members can act and be diagnosed, but not train. `rows` changes no number.
        """
        devices = devices_for(len(members))
        mesh = _mesh(devices)
        self._by_member = NamedSharding(mesh, PartitionSpec("members"))
        self.members = members
        self._make = make
        algorithm = make(members[0].swept)
        self._stages, self.needs, self.episode_steps = algorithm.stages, algorithm.needs, algorithm.episode_steps
        self.check = algorithm.check
        self._everywhere = NamedSharding(mesh, PartitionSpec())
        home = mesh if rows == "device" else _mesh(jax.devices("cpu")[:1])
        self._home_by_member = NamedSharding(home, PartitionSpec("members"))
        self._dataset = jax.device_put(dataset, NamedSharding(home, PartitionSpec()))
        self.largest_reward = 0.0 if dataset is None else _largest(dataset.reward)
        self.largest_observation = 0.0 if dataset is None else _largest(dataset.observation)
        self._swept = self.place(
            {name: np.asarray([member.swept[name] for member in members], np.float32) for name in members[0].swept}
        )
        keys = jax.vmap(lambda seed: jax.random.split(jax.random.key(seed), 4))(
            jnp.asarray([member.seed for member in members], jnp.uint32)
        )
        self._key_init, self._key_update, self._key_diagnose, self._key_act = self.place([keys[:, i] for i in range(4)])
        self._own_at_home = jax.device_put((self._swept, self._key_update), self._home_by_member)
        self._blocks: dict[int, int] = {}
        self._key_begin = jax.vmap(lambda key: jax.random.fold_in(key, 0))(jax.random.clone(self._key_init))

    def place(self, tree: Tree) -> Tree:
        """Arrays with a leading member axis, each member on its device."""
        return jax.device_put(tree, self._by_member)

    def place_labels(self, labels: Tree) -> Tree:
        """What stages have computed for the rows, "members ...", where the rows are."""
        return jax.device_put(labels, self._home_by_member)

    def init(self) -> Tree:
        """Initial states, stacked along a leading member axis; always the same."""
        return self.place(_init(self._make, self._swept, jax.random.clone(self._key_init)))

    def starts(self, updates: int) -> list[int]:
        """The update at which each stage begins, in a run of so many; [0] where there is one stage.

        Raises `UserError` where a stage would have no update.
        """
        shares = np.array([stage.share for stage in self._stages])
        lengths = np.diff(_boundaries(shares, updates))
        if not lengths.all():
            least = math.ceil(shares.sum() / shares.min())
            while not np.diff(_boundaries(shares, least)).all():
                least += 1
            raise UserError(
                f"{updates} updates are too few for {len(shares)} stages, of which {int(np.sum(lengths == 0))} would "
                f"have none: take at least {least} updates, or fewer stages"
            )
        return _boundaries(shares, updates)[:-1]

    @property
    def num_stages(self) -> int:
        """How many stages the training has."""
        return len(self._stages)

    def keeps_labels(self, stage: int) -> bool:
        """Whether a checkpoint made in this stage must hold the labels."""
        return self._stages[stage].keep

    def pieces(self, stage: int) -> list[int]:
        """The first rows of the pieces for which `prepare` is to be called before the stage; none where it needs none.

        The last piece reaches back into the one before it: all have the same size.
        """
        if self._stages[stage].for_rows is None:
            return []
        last = self.rows - self.piece_rows
        return [*range(0, last, PIECE), last]

    @property
    def rows(self) -> int:
        """Of the dataset."""
        return self._dataset.size

    @property
    def piece_rows(self) -> int:
        """Rows of a piece."""
        return min(PIECE, self.rows)

    def prepare(self, state: Tree, stage: int, start: int) -> Tree:
        """What a stage needs of a piece of the rows, "members rows ..."; at once, while the device computes."""
        number, size = self.first_like(stage), self.piece_rows
        rows = jax.device_put(_piece(self._dataset, start, size), self._everywhere)
        return _prepare(self._make, number, size, state, self._swept, rows, self._key_begin, stage, start)

    def begin(self, state: Tree, labels: Tree, alive: np.ndarray | jax.Array, stage: int) -> tuple[Tree, Tree]:
        """Begins a stage (by its number) with the state and labels that the one before left.

        The state of a member that is not alive stays as it is. Returns at once, while the device computes.
        """
        number, home = self.first_like(stage), self._home_by_member
        of_members = jax.device_put((state, alive, labels, self._swept, self._key_begin), home)
        state, labels = _begin(self._make, number, *of_members, self._dataset, stage)
        return self.place(state), self.place_labels(labels)

    @property
    def shares(self) -> list[float]:
        """Of the updates, for each stage."""
        return [float(stage.share) for stage in self._stages]

    def first_like(self, stage: int) -> int:
        """The first stage that is the same: what is compiled for one serves for all its repetitions."""
        return self._stages.index(self._stages[stage])

    def advance(
        self,
        state: Tree,
        alive: np.ndarray | jax.Array,
        first: int,
        last: int,
        labels: Tree = (),
        stage: int = 0,
        wait: Callable[[Tree], object] = jax.block_until_ready,
    ) -> tuple[Tree, jax.Array, dict[str, jax.Array]]:
        """Makes updates `first`, ..., `last` - 1, all of them in one stage; returns while the device still computes.

        A member that leaves finite numbers (or DIVERGENCE_LIMIT) behind keeps the state that it had at `first` and is
        no longer `alive`. Metrics are means over the updates that report them, per member. What a block reads is drawn
        while the block before trains, and no further ahead: `wait(arrays)` comes back when they are computed.
        """
        number = self.first_like(stage)
        period = written_out(self._stages[number], jax.default_backend())
        block, new, sums, before = self._block(number, period, labels), state, (), ()
        for start in range(first, last, block):
            stop = min(start + block, last)
            drawn = self._drawn(number, block, labels, start)
            if start == first:
                sums = self.place(_no_sums(self._make, number, state, drawn, self._swept))
            wait(before)
            before = sums  # of the block that trains meanwhile
            loop = self._by_member.mesh, period, start % period, (stop - start) % period
            new, sums = _advance(self._make, number, *loop, new, sums, drawn, self._swept, start, stop)
        limit = DIVERGENCE_LIMIT * max(1.0, self.largest_reward) ** 2 * (last - first)
        return _judged(jax.device_put(alive, self._by_member), state, new, sums, limit)

    def _drawn(self, number: int, block: int, labels: Tree, start: int) -> tuple[Tree, Tree]:
        """What the updates from `start` on read and what else is random in them, "members block ..."."""
        home = self._home_by_member.mesh
        batches = _batches(self._make, number, home, block, labels, *self._own_at_home, self._dataset, start)
        batches = jax.device_put(batches, self._by_member)
        own = self._swept, self._key_update
        return batches, _draws(self._make, number, self._by_member.mesh, batches, *own, start)

    def _block(self, number: int, period: int, labels: Tree) -> int:
        """For how many updates a stage draws at once: a multiple of its period."""
        if number not in self._blocks:
            drawn = jax.tree.leaves(jax.eval_shape(lambda: self._drawn(number, 1, labels, 0)))
            fitting = BLOCK_BYTES // max(1, sum(leaf.size * leaf.dtype.itemsize for leaf in drawn))
            self._blocks[number] = max(period, min(BLOCK, fitting // SHORT * SHORT))
        return self._blocks[number]

    def act(self, state: Tree, observation: NetObservation, update: int, step: int) -> NetAction:
        """Actions for "members episodes obs" after `update` updates, of policies that remember no step before."""
        return NetAction(np.asarray(_act(self._make, state, self._swept, observation, self._key_act, update, step)))

    def begin_episodes(self, observation: NetObservation) -> Tree:
        """What the policies remember before the first step of episodes "members episodes obs"; () if they never do."""
        return _begin_episodes(self._make, self._swept, observation)

    def act_in_episodes(
        self, state: Tree, observation: NetObservation, memory: Tree, update: int, step: int
    ) -> tuple[NetAction, Tree]:
        """Actions for "members episodes obs", all at one step of their episodes, and what is remembered of it."""
        key = self._key_act
        action, memory = _act_in_episodes(self._make, state, self._swept, observation, memory, key, update, step)
        return NetAction(np.asarray(action)), memory

    def diagnose(self, state: Tree, rows: Dataset) -> dict[str, np.ndarray]:
        """The algorithm's diagnostics on the given rows, on the host, per member, with the same noise each time."""
        key = jax.random.clone(self._key_diagnose)  # on purpose: the same noise makes evaluations comparable
        metrics = _diagnose(self._make, state, self._swept, jax.device_put(rows, self._everywhere), key)
        return {name: np.asarray(value) for name, value in metrics.items()}


def _mesh(devices: list[Device]) -> Mesh:
    """Devices that share the members."""
    return jax.make_mesh((len(devices),), ("members",), (AxisType.Auto,), devices=devices)


def _largest(values: Stored) -> float:
    """The size of the largest entry."""
    array = np.asarray(values)
    return float(max(array.max(), -array.min()))


@partial(jax.jit, static_argnums=0)
def _init(make, swept, key):
    return jax.vmap(lambda swept, key: make(swept).init(key))(swept, key)


def _boundaries(shares: np.ndarray, updates: int) -> list[int]:
    """0, the update counts at which the stages after the first begin, and `updates`."""
    return [round(updates * before) for before in np.cumsum([0.0, *shares]) / shares.sum()]


@partial(jax.jit, static_argnums=2)
def _piece(dataset, start, size):
    return jax.tree.map(lambda array: jax.lax.dynamic_slice_in_dim(array, start, size), dataset)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _prepare(make, number, size, state, swept, rows, key, stage, start):
    index = start + jnp.arange(size)

    def prepare_member(state, swept, key):
        return make(swept).stages[number].for_rows(state, rows, index, jax.random.fold_in(key, stage))

    return jax.vmap(prepare_member)(state, swept, key)


@partial(jax.jit, static_argnums=(0, 1))
def _begin(make, number, state, alive, labels, swept, key, dataset, stage):
    def begin_member(state, labels, swept, key):
        labelled = dataclasses.replace(dataset, labels=labels)
        return make(swept).stages[number].begin(state, labelled, jax.random.fold_in(key, stage))

    new, labels = jax.vmap(begin_member)(state, labels, swept, key)
    return _where(alive, new, state), labels


def written_out(stage: Stage[Tree], platform: str) -> int:
    """How many updates the loop writes out: on a GPU the stage's period, unless that is long.

    A CPU does not wait for a condition. There one update is enough: as fast, compiled sooner, and the same numbers
    whatever the boundaries of the calls are.
    """
    return stage.period if platform != "cpu" and stage.period <= LONGEST_PERIOD else 1


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _batches(make, number, mesh, block, labels, swept, key, dataset, start):
    """Of the updates from `start` on, "members block ..."."""

    def batches_of_member(labels, swept, key, dataset):
        stage, labelled = make(swept).stages[number], dataclasses.replace(dataset, labels=labels)
        return jax.vmap(lambda i: stage.batch(labelled, _keys(key, i)[0]))(start + jnp.arange(block))

    return _each(batches_of_member, mesh, 3)(labels, swept, key, dataset)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _draws(make, number, mesh, batches, swept, key, start):
    """What else is random in the updates from `start` on, "members block ..."."""

    def draws_of_member(batches, swept, key, start):
        stage = make(swept).stages[number]
        index = start + jnp.arange(jax.tree.leaves(batches)[0].shape[0])
        return jax.vmap(lambda batch, i: stage.draw(batch, _keys(key, i)[1]))(batches, index)

    return _each(draws_of_member, mesh, 3)(batches, swept, key, start)


def _keys(key, update):
    """Of an update: for its batch, and for what else is random in it."""
    return jax.random.split(jax.random.fold_in(key, update))


@partial(jax.jit, static_argnums=(0, 1))
def _no_sums(make, number, state, drawn, swept):
    """Of the metrics of no update: their sums, and how many reported them."""

    def metrics(state, drawn, swept):
        first = jax.tree.map(lambda array: array[0], drawn)
        return make(swept).stages[number].update(state, *first, UpdateIndex(jnp.asarray(0)))[1]

    found = jax.eval_shape(jax.vmap(metrics), state, drawn, swept)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), found)
    return zeros, zeros


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5), compiler_options=WIDE_VECTORS)
def _advance(make, number, mesh, period, phase, rest, state, sums, drawn, swept, start, stop):
    """Whole periods, each from the same `phase` on, and the `rest` of the updates after them."""

    def advance_member(state, sums, drawn, swept, start):
        stage = make(swept).stages[number]

        def one_by_one(first, number, carry):
            for i in range(number):
                state, (total, count) = carry
                index = UpdateIndex(first + i, (phase + i) % period, period)
                read = jax.tree.map(lambda array, at=index.count - start: array[at], drawn)
                read = jax.lax.optimization_barrier(read)  # a CPU is slower where it reads it in its place
                state, metrics = stage.update(state, *read, index)
                total = jax.tree.map(lambda total, x: total + jnp.where(jnp.isnan(x), 0.0, x), total, metrics)
                count = jax.tree.map(lambda count, x: count + ~jnp.isnan(x), count, metrics)
                carry = state, (total, count)
            return carry

        def whole_period(i, carry):
            return one_by_one(start + i * period, period, carry)

        carry = jax.lax.fori_loop(0, (stop - start) // period, whole_period, (state, sums))
        return one_by_one(stop - rest, rest, carry)

    return _each(advance_member, mesh, 4)(state, sums, drawn, swept, start)


@jax.jit
def _judged(alive, old, new, sums, limit):
    """The state of each member that is sane, else the old one; whether it is; the means of the metrics."""
    total, count = sums
    numbers = jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(new)], axis=1)
    sane = alive & jnp.all(jnp.isfinite(numbers), axis=1)
    for value in total.values():
        sane &= ~(jnp.abs(value) > limit)
    return _where(sane, new, old), sane, jax.tree.map(lambda total, count: total / count, total, count)


def _each(function: Callable[..., Tree], mesh: Mesh, count: int) -> Callable[..., Tree]:
    """`function(*of_a_member, shared)` for all members, each device with its own; `count`: arguments of a member.

    A GPU trains its members side by side. A CPU core trains them in turn: products of one member after the other are
    faster there than batches of small products (by a tenth), and company changes a member by rounding alone.
    """

    def on_device(*trees):
        *of_members, shared = trees
        if mesh.devices.flat[0].platform == "cpu":
            return jax.lax.map(lambda of_a_member: function(*of_a_member, shared), tuple(of_members))
        return jax.vmap(lambda *of_a_member: function(*of_a_member, shared))(*of_members)

    members, all_of_it = PartitionSpec("members"), PartitionSpec()
    in_specs = (*[members] * count, all_of_it)
    return jax.shard_map(on_device, mesh=mesh, in_specs=in_specs, out_specs=members, check_vma=False)


def _where(member: jax.Array, new: Tree, old: Tree) -> Tree:
    """`new` for the members that are true, `old` for the others."""
    return jax.tree.map(lambda new, old: jnp.where(member.reshape(-1, *[1] * (new.ndim - 1)), new, old), new, old)


@partial(jax.jit, static_argnums=0)
def _act(make, state, swept, observation, key, update, step):
    def act_member(state, swept, observation, key):
        return make(swept).act(state, observation, jax.random.fold_in(jax.random.fold_in(key, update), step))

    return jax.vmap(act_member)(state, swept, observation, key)


@partial(jax.jit, static_argnums=0)
def _begin_episodes(make, swept, observation):
    def begin_member(swept, observation):
        actor = make(swept).in_episode
        return () if actor is None else actor.begin(observation)

    return jax.vmap(begin_member)(swept, observation)


@partial(jax.jit, static_argnums=0)
def _act_in_episodes(make, state, swept, observation, memory, key, update, step):
    def act_member(state, swept, observation, memory, key):
        algorithm, key = make(swept), jax.random.fold_in(jax.random.fold_in(key, update), step)
        if algorithm.in_episode is None:
            return algorithm.act(state, observation, key), memory
        return algorithm.in_episode.act(state, observation, memory, jnp.asarray(step), key)

    return jax.vmap(act_member)(state, swept, observation, memory, key)


@partial(jax.jit, static_argnums=0)
def _diagnose(make, state, swept, rows, key):
    def diagnose_member(state, swept, key):
        return make(swept).diagnose(state, rows, key)

    return jax.vmap(diagnose_member)(state, swept, key)
