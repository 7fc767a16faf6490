"""The words that every part of the library shares: data, specs, and the contract of an algorithm."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, replace
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    Protocol,
    TypeAlias,
    TypeVar,
    TypeVarTuple,
    runtime_checkable,
)

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

Key = PRNGKeyArray
Scalar = Float[Array, ""]
Real = float | Scalar
"""A real-valued hyper-parameter: a number, or a traced array where a run sweeps it."""
Count = Annotated[int, "may be zero"]
"""A number of updates that may be zero; every other whole number of a config counts at least one."""
Share = Annotated[float, "from 0 to below 1"]
"""A share of something, of which less than all is meant."""
Metrics = dict[str, Scalar]
"""What is looked at: names such as `critic/td_error`, each with its row in the method's `METRICS`."""

EnvObservation = NewType("EnvObservation", np.ndarray)
"""Observations as the environment gives them."""
EnvAction = NewType("EnvAction", np.ndarray)
"""Actions in the environment's box."""
NetObservation = NewType("NetObservation", np.ndarray)
"""Observations as the networks see them: normalised where the data were."""
NetAction = NewType("NetAction", np.ndarray)
"""Actions in [-1, 1]. Only `diffcps.data.scaling` turns one kind into the other."""


Tree: TypeAlias = Any
"""A pytree of arrays whose structure only its method knows: states, labels, batches."""
if TYPE_CHECKING:
    Stored = Any
else:
    Stored = Array | np.ndarray
"""A dataset's arrays live on the host (NumPy) until a training puts them on the device."""


class UserError(Exception):
    """Bad input. The message is one line that says what is wrong, where, and what to do about it."""


class Spec(NamedTuple):
    """The sizes that an algorithm needs to build its networks. Actions always live in [-1, 1]."""

    observation_size: int
    action_size: int


class Transition(NamedTuple):
    """What one update reads. `terminal` is true termination: it alone stops the bootstrap."""

    observation: Float[Array, "*b obs"]
    action: Float[Array, "*b act"]
    reward: Float[Array, "*b"]
    next_observation: Float[Array, "*b obs"]
    terminal: Float[Array, "*b"]


@dataclass(frozen=True)
class Account:
    """The books of a loading: what became of the rows and fields of a source. Hashable."""

    rows: Count = 0
    """Rows in the source."""
    kept: Count = 0
    """Transitions that were made of them."""
    dropped: tuple[tuple[str, int], ...] = ()
    """Why rows were dropped, and how many."""
    ends: tuple[tuple[str, int], ...] = ()
    """How the ends of the episodes are known, and how many of each kind there are among the transitions."""
    read: tuple[str, ...] = ()
    """Names of the fields that were read, as in the source."""
    ignored: tuple[str, ...] = ()
    """Names of what else is there."""
    absent: tuple[str, ...] = ()
    """Of reward and terminal, what the source does not have: zeros stand in, and only methods that never read them may
    be trained."""
    notes: tuple[str, ...] = ()
    """What was converted, cut off or taken for something."""
    warnings: tuple[str, ...] = ()
    """What is suspicious, and what to do about it."""
    ordered: bool = True
    """Whether the rows of an episode follow one another: returns and windows rest on it."""


RewardTransform = Literal[
    "none", "corl_antmaze", "cql_antmaze", "iql_antmaze", "iql_locomotion", "min_max", "standardise"
]


@dataclass(frozen=True)
class Reading:
    """What a person says about a source that cannot be told from it, and what is to be done to it on the way in."""

    columns: tuple[str, ...] = ()
    """Fields under other names, as FIELD=NAME: terminal=fell timeout=none (none: the source has no such field)."""
    observation_keys: tuple[str, ...] = ()
    """Parts that make up an observation, in this order, where a source has it in named parts."""
    environments: int | None = None
    """Environments whose rows lie side by side, step 0 of all, step 1 of all; 1: the rows are in order, as they are."""
    timeout_next: Literal["real", "none"] | None = None
    """Whether next observations at time limits are real, or belong to the next episode; by default the data tell."""
    continuous_actions: bool = False
    """Take whole numbers as actions for continuous ones."""
    action_low: tuple[float, ...] = ()
    """Lower bounds of the actions, one or one for each dimension, where the source names none."""
    action_high: tuple[float, ...] = ()
    """Upper bounds of the actions."""
    action_units: Literal["environment", "scaled"] | None = None
    """Whether actions are in the environment's units, or scaled to [-1, 1]; by default the boxes tell."""
    clip_actions: bool = False
    """Cut actions outside their box off at its sides."""
    top_episodes: float = 1.0
    """Share of the episodes that is used, those of the highest returns; 0.1 with bc is known as 10 %-BC."""
    reward: RewardTransform = "none"
    """Transform of the rewards."""
    reward_scale: float = 1.0
    """Factor on the rewards, after the transform."""
    normalise_observation: bool = False
    """Shift and scale observations by the data's mean and deviation; it travels with the policy."""


@dataclass(frozen=True)
class EnvironmentSpec:
    """What an environment is made from: an id, and what differs from the id's registration. Hashable.

    Its text is short, for messages and tables: `Hopper-v5(healthy_reward=0.0), 200 steps`. Raises `UserError` for
    arguments that are no JSON object and for a time limit below one step.
    """

    id: str
    """Gymnasium id, `module:Id-v0` for one that a module registers, or `module:function` for a function that makes an
    environment."""
    kwargs: str = "{}"
    """Arguments of the constructor or the function, as a JSON object; its keys are sorted."""
    max_episode_steps: int | None = None
    """Time limit of an episode in steps, in the place of the registered one."""
    recorded: str | None = None
    """Gymnasium's own specification of the id (`EnvSpec.to_json`: arguments, time limit, wrappers), as a Minari dataset
    stores it. `kwargs` and `max_episode_steps` come on top of it."""
    function: Callable[[], object] | None = field(default=None, compare=False, repr=False)
    """What makes the environment in this process, in Python; it is not stored: `id` is its name."""

    def __post_init__(self) -> None:
        try:
            arguments = json.loads(self.kwargs)
        except ValueError:
            arguments = None
        if not isinstance(arguments, dict):
            raise UserError(
                f"the arguments of environment {self.id} are {self.kwargs!r:.80}: they must be a JSON object such as "
                '{"healthy_reward": 0.5}'
            )
        object.__setattr__(self, "kwargs", json.dumps(arguments, sort_keys=True))
        if self.max_episode_steps is not None and self.max_episode_steps < 1:
            raise UserError(
                f"the time limit of environment {self.id} is {self.max_episode_steps}: it must be 1 step or more"
            )

    def with_changes(self, kwargs: str | None, max_episode_steps: int | None) -> EnvironmentSpec:
        """With arguments added to the ones that are there, and another time limit; None changes nothing."""
        added = self if kwargs is None else replace(self, kwargs=kwargs)
        arguments = json.loads(self.kwargs) | json.loads(added.kwargs)
        steps = self.max_episode_steps if max_episode_steps is None else max_episode_steps
        return replace(self, kwargs=json.dumps(arguments), max_episode_steps=steps)

    @property
    def is_default(self) -> bool:
        """Whether it is the id as it is registered, and nothing else."""
        return (self.kwargs, self.max_episode_steps, self.recorded) == ("{}", None, None)

    def __str__(self) -> str:
        recorded: Mapping[str, Any] = json.loads(self.recorded or "{}")
        arguments: dict[str, object] = {**recorded.get("kwargs", {}), **json.loads(self.kwargs)}
        arguments.pop("render_mode", None)
        steps = self.max_episode_steps or recorded.get("max_episode_steps")
        text = self.id
        if arguments:
            text += "(" + ", ".join(f"{name}={json.dumps(value)}" for name, value in sorted(arguments.items())) + ")"
        for wrapper in recorded.get("additional_wrappers", ()):
            text += f", {wrapper['name']}"
        return text if steps is None else f"{text}, {steps} steps"


@dataclass(frozen=True)
class DatasetInfo:
    """Where a dataset comes from and what its numbers mean. Hashable: a static part beside the arrays."""

    source: str
    """File path or dataset id, as the user named it."""
    sha256: str
    """SHA-256 of the file (of the arrays, where there is no single file)."""
    environment: EnvironmentSpec | None = None
    """The environment that scores policies on the data, where the source names one."""
    reference_min: float | None = None
    """Return of a random policy: normalised score 0."""
    reference_max: float | None = None
    """Return of an expert: normalised score 100."""
    action_low: tuple[float, ...] = ()
    """Lower bounds of the environment's action box; internally every action is scaled to [-1, 1]."""
    action_high: tuple[float, ...] = ()
    reading: Reading = Reading()
    """How the source was read."""
    observation_mean: tuple[float, ...] | None = None
    """Set where observations were normalised: x -> (x - mean) / std. It travels with the policy."""
    observation_std: tuple[float, ...] | None = None
    task: str | None = None
    """Id of the catalogue's task that the data are used for: environment and reference scores are then its own."""
    account: Account = Account()
    """What became of the rows and fields of the source."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Dataset:
    """Logged transitions in the order of the file, every array with the same leading axis.

    `terminal` marks true termination; `timeout` marks the last stored step of an episode that did not terminate
    (time limit, or the end of the file). Together they are the ends of the episodes.
    """

    observation: Float[Stored, "n obs"]
    action: Float[Stored, "n act"]
    reward: Float[Stored, " n"]
    next_observation: Float[Stored, "n obs"]
    terminal: Bool[Stored, " n"]
    timeout: Bool[Stored, " n"]
    info: DatasetInfo = field(metadata={"static": True})
    labels: Tree = ()
    """What the current stage of a training in stages has computed for each row; empty otherwise."""

    @property
    def size(self) -> int:
        return self.observation.shape[0]

    @property
    def spec(self) -> Spec:
        return Spec(self.observation.shape[1], self.action.shape[1])


Denoise = Callable[[Float[Array, "*b d"], Int[Array, "*#b"]], Float[Array, "*b d"]]
"""eps_theta(x_t, t), the condition already bound."""

State = TypeVar("State")
Batch = Tree
"""What one update reads: `Transition` here, windows or whole trajectories elsewhere."""
Result = TypeVar("Result")
Operands = TypeVarTuple("Operands")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class UpdateIndex:
    """Which update it is. It is the loop's, not the state's: all members of a run share it."""

    count: Int[Array, ""]
    """Number of updates made before this one."""
    phase: int = field(default=0, metadata={"static": True})
    """`count` modulo `period`: known when the update is compiled."""
    period: int = field(default=1, metadata={"static": True})
    """The stage's."""

    def every(
        self,
        interval: int,
        do: Callable[[*Operands], Result],
        otherwise: Callable[[*Operands], Result],
        *operands: *Operands,
    ) -> Result:
        """`do(*operands)` where `count` is divisible by `interval`, else `otherwise(*operands)`, of the same shapes.

        Nothing is asked on the device where `interval` divides the stage's period.
        """
        if self.period % interval == 0:
            return (otherwise if self.phase % interval else do)(*operands)
        return jax.lax.cond(  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
            self.count % interval == 0, do, otherwise, *operands
        )


def draw_nothing(batch: Batch, key: Key) -> tuple[()]:
    """An update in which nothing but its batch is random."""
    return ()


def begin_as_it_is(state: State, dataset: Dataset, key: Key) -> tuple[State, Tree]:
    """A stage that takes the state as it is and computes nothing for the rows."""
    return state, ()


@dataclass(frozen=True)
class Stage(Generic[State]):
    """One stage of a training, on the state that all stages share; a simple method is one stage.

    `batch(dataset, key)` is what one update reads of the data; `draw(batch, key)` what else is random in it, such as
    noise of the batch's shape; `update(state, batch, draws, index)` is one training step, in which nothing is random.
    `begin(state, dataset, key)` hands over: it takes the state that the stage before left (and `dataset.labels`, what
    that one had computed for the rows) and returns the state to start from and the labels that `batch` finds in
    `dataset.labels`: arrays with a row for each transition, or what else its batches are drawn from.

    What takes long for many rows goes into `for_rows(state, rows, index, key)`: arrays with a row for each of `rows`,
    whose places in the dataset are `index`, from those rows alone. It is called for a piece of the dataset at a time,
    so that it can be watched and broken off; `begin` then finds the whole in `dataset.labels`, in the place of what the
    stage before had computed.
    """

    share: int | float
    """Its share of the run's updates, in proportion to the other stages' shares."""
    batch: Callable[[Dataset, Key], Batch]
    update: Callable[[State, Batch, Tree, UpdateIndex], tuple[State, Metrics]]
    begin: Callable[[State, Dataset, Key], tuple[State, Tree]] = begin_as_it_is
    for_rows: Callable[[State, Dataset, Int[Array, " n"], Key], Tree] | None = None
    draw: Callable[[Batch, Key], Tree] = draw_nothing
    period: int = 1
    """After how many updates their conditions repeat (`UpdateIndex.every`). On a GPU the loop writes so many out, one
    after the other, so that none waits for a condition, if they are few."""
    keep: bool = False
    """Whether the labels are saved with a checkpoint. Without, a resumed run has `begin` make them again from the state
    as it is by then: right only where they depend on nothing that the stage moves."""


Need = Literal["reward", "terminal", "order"]
"""What a method may need of its data: rewards, true ends of episodes, rows in the order of their episodes."""
TRANSITIONS: frozenset[Need] = frozenset({"reward", "terminal"})
EPISODES: frozenset[Need] = frozenset({"reward", "terminal", "order"})


def takes_all_data(dataset: Dataset) -> None:
    """A method that refuses no data beyond what it says in `needs`."""


@dataclass(frozen=True)
class EpisodeActor(Generic[State]):
    """How a policy acts that remembers something in the course of an episode, such as the plan that it follows.

    `begin(observation)` is the memory before the first step, arrays with the leading axes of "*b obs"; `act(state,
    observation, memory, step, key)` also returns the memory for the next step. Every episode is at the same `step`, 0
    at its start: it is one number, not one for each.
    """

    begin: Callable[[Float[Array, "*b obs"]], Tree]
    act: Callable[[State, Float[Array, "*b obs"], Tree, Int[Array, ""], Key], tuple[Float[Array, "*b act"], Tree]]


@dataclass(frozen=True)
class Algorithm(Generic[State]):
    """A learner as pure functions over an explicit state. Keys are new-style (`jax.random.key`), consumed once.

    `init(key)` builds the state; `stages` are its training, in order, where a stage may come several times;
    `act(state, observation, key)` maps "*b obs" to "*b act" in [-1, 1]; `diagnose(state, rows, key)` measures the state
    on rows of the dataset without changing it, and must report `selection/loss`, the number by which a checkpoint is
    chosen when no environment may be asked (lower is better).
    """

    init: Callable[[Key], State]
    stages: tuple[Stage[State], ...]
    act: Callable[[State, Float[Array, "*b obs"], Key], Float[Array, "*b act"]]
    diagnose: Callable[[State, Dataset, Key], Metrics]
    needs: frozenset[Need] = TRANSITIONS
    """What it reads of the data beside observations and actions; without order, it takes rows one by one."""
    episode_steps: Count = 0
    """Rows that an episode must have for a method that learns from windows; 0 where it does not."""
    in_episode: EpisodeActor[State] | None = None
    """How it acts in whole episodes, where it remembers; `act` is then its first step."""
    check: Callable[[Dataset], None] = takes_all_data
    """Raises `UserError` for data from which it cannot learn, before anything is computed or written."""


class Metric(NamedTuple):
    """What a number that a method reports means, for tables, pictures and the method's page."""

    title: str
    symbol: str = ""
    """Heading in the live table. Metrics with a symbol are a method's main ones: shown while it trains, and drawn."""
    scale: Literal["linear", "log"] = "linear"
    """Of the axis; log only where every value is positive."""
    bound: str = ""
    """The config field that bounds it from above, drawn beside it."""


if TYPE_CHECKING:

    class Configuration(Protocol):
        """A dataclass: a method's `Config`, whichever it is."""

        __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

else:
    Configuration = object


ConfigT = TypeVar("ConfigT", bound=Configuration)


@runtime_checkable
class Method(Protocol[ConfigT]):
    """What each module of `diffcps.algorithms` is."""

    __name__: str

    @property
    def CITATION(self) -> str: ...  # noqa: N802
    @property
    def METRICS(self) -> Mapping[str, Metric]:  # noqa: N802
        """Everything that `update` and `diagnose` report, by its name."""
        ...

    @property
    def Config(self) -> type[ConfigT]: ...  # noqa: N802
    @property
    def State(self) -> type[Tree]: ...  # noqa: N802
    @property
    def make(self) -> Callable[[ConfigT, Spec], Algorithm[Tree]]: ...
