"""Environments made from their specification: flat boxes only, and one line to read when something is wrong."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from diffcps.envs.names import Environment, current_folder_importable, import_named, named
from diffcps.envs.quiet import one_line, quiet_making
from diffcps.tasks.names import environment_by_name
from diffcps.types import DatasetInfo, EnvironmentSpec, Spec, UserError

if TYPE_CHECKING:
    import gymnasium
    from gymnasium import Space
    from gymnasium.envs.registration import EnvSpec
    from gymnasium.spaces import Box

WATCHERS = ("RecordVideo", "HumanRendering", "RenderCollection", "PassiveEnvChecker")
"""Wrappers that only look on. Where data were recorded under them, scores are the same without."""
WITH_STATISTICS = ("NormalizeObservation", "NormalizeReward")
"""Wrappers whose effect rests on running statistics, which no specification holds."""


class EnvironmentSizes(NamedTuple):
    """The sizes of an environment. Action bounds are in its own units, one number per action dimension."""

    observation_size: int
    action_size: int
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    max_steps: int | None
    """Time limit of one episode in environment steps; None where the environment has none."""


class Boxes(NamedTuple):
    """The spaces of an environment, flat boxes both."""

    observation: Box
    """(observation_size,)."""
    action: Box
    """(action_size,). It may lack bounds."""


def make_environment(environment: Environment, render_mode: str | None = None) -> gymnasium.Env:
    """The environment of a specification, an id, or a function. The caller closes it.

    `module:Id-v0` imports `module` first, `module:function` calls a function; a module may lie in the current folder.
    Dict and Tuple observations of boxes are flattened, a Dict in the order of its sorted keys. What Gymnasium warns
    about while making it (an old version, say) is told once per process.

    Raises `UserError` for whatever goes wrong while it is made: an unknown id, a missing dependency, arguments that it
    does not take, a wrapper that cannot be made again, an observation or action space that is not a flat box, a render
    mode that the environment lacks.
    """
    wanted = named(environment)
    with current_folder_importable():
        try:
            with quiet_making():
                made = _flattened(_made(wanted, render_mode))
        except (UserError, Warning):
            raise
        except Exception as error:  # a constructor raises what it likes
            raise UserError(_why_not_made(error, wanted, render_mode)) from error
    problem = _space_problem(made)
    if problem:
        made.close()
        raise UserError(f"environment {wanted} cannot be used: {problem}")
    return made


def boxes(environment: gymnasium.Env) -> Boxes:
    """The spaces of an environment that `make_environment` has made."""
    from gymnasium.spaces import Box

    observation, action = environment.observation_space, environment.action_space
    assert isinstance(observation, Box) and isinstance(action, Box)
    return Boxes(observation, action)


def time_limit(environment: gymnasium.Env) -> int | None:
    """After how many steps an episode is cut; None where nobody says."""
    import gymnasium
    from gymnasium.wrappers import TimeLimit

    if environment.spec is not None and environment.spec.max_episode_steps is not None:
        return environment.spec.max_episode_steps
    inner = environment
    while isinstance(inner, gymnasium.Wrapper):  # an environment that was not registered has no specification
        if isinstance(inner, TimeLimit):
            return inner._max_episode_steps
        inner = inner.env
    return None


def environment_sizes(environment: Environment) -> EnvironmentSizes:
    """Sizes, action bounds and time limit of an environment. Errors as in `make_environment`."""
    with closing(make_environment(environment)) as made:
        observation, action = boxes(made)
        return EnvironmentSizes(
            observation_size=observation.shape[0],
            action_size=action.shape[0],
            action_low=tuple(action.low.tolist()),
            action_high=tuple(action.high.tolist()),
            max_steps=time_limit(made),
        )


def check_fits(spec: Spec, info: DatasetInfo, environment: EnvironmentSpec | str) -> EnvironmentSizes:
    """The environment's sizes. Raises `UserError` when what was learnt from `info.source` (of sizes `spec`) cannot act
    in it."""
    sizes = environment_sizes(environment)
    for name, ours, theirs in (
        ("observations", spec.observation_size, sizes.observation_size),
        ("actions", spec.action_size, sizes.action_size),
    ):
        if ours != theirs:
            raise UserError(
                f"{name} have {ours} numbers in {info.source} but {theirs} in environment {environment}: "
                "name the environment (and its version) that the data were recorded in"
            )
    return sizes


# --- making ---


def _made(wanted: EnvironmentSpec, render_mode: str | None) -> gymnasium.Env:
    """Raises `UserError`, and whatever the environment raises."""
    import gymnasium

    arguments = json.loads(wanted.kwargs)
    if render_mode is not None:  # not every constructor takes one
        arguments["render_mode"] = render_mode
    # The checker talks to authors of environments: of no use here.
    make = partial(gymnasium.make, disable_env_checker=True, max_episode_steps=wanted.max_episode_steps)
    if wanted.function is not None:
        return _made_by(wanted.function, wanted, arguments)
    if wanted.recorded is not None:
        return make(_recorded(wanted.id, wanted.recorded), **arguments)
    _register_ours(wanted.id)
    found = import_named(wanted.id)
    return make(found, **arguments) if isinstance(found, str) else _made_by(found, wanted, arguments)


def _made_by(
    function: Callable[..., object], wanted: EnvironmentSpec, arguments: Mapping[str, object]
) -> gymnasium.Env:
    import gymnasium
    from gymnasium.wrappers import TimeLimit

    made = function(**arguments)
    if not isinstance(made, gymnasium.Env):
        raise UserError(f"environment {wanted} is a function that gives a {type(made).__name__}, not a gymnasium.Env")
    if wanted.max_episode_steps is None:
        return made
    own = time_limit(made)
    if own is not None and own < wanted.max_episode_steps:
        raise UserError(
            f"environment {wanted}: its function sets a time limit of {own} steps, which can only be shortened; "
            "raise it in the function"
        )
    return TimeLimit(made, wanted.max_episode_steps)


def _recorded(environment_id: str, recorded: str) -> EnvSpec:
    """A dataset's specification for `gymnasium.make`. Raises `UserError` where it cannot be made again as it was."""
    from gymnasium.envs.registration import EnvSpec

    facts: dict[str, object] = json.loads(recorded)
    if facts.get("apply_api_compatibility"):
        raise UserError(
            f"environment {environment_id} was recorded through the layer for old Gym environments, which Gymnasium no "
            "longer has: name the environment of the scores with --env, or --env none"
        )
    known = {found.name for found in dataclasses.fields(EnvSpec) if found.init}  # older versions had other fields
    facts = {"additional_wrappers": []} | {name: value for name, value in facts.items() if name in known}
    specification = EnvSpec.from_json(json.dumps(facts))
    specification.kwargs.pop("render_mode", None)
    wrappers = tuple(each for each in specification.additional_wrappers if each.name not in WATCHERS)
    for wrapper in wrappers:
        if wrapper.kwargs is None or wrapper.name in WITH_STATISTICS:
            why = "does not say how it was made" if wrapper.kwargs is None else "has statistics of its own"
            raise UserError(
                f"environment {environment_id} was recorded under the wrapper {wrapper.name}, which {why} and cannot "
                "be made again: name the environment of the scores with --env, or --env none"
            )
    specification.additional_wrappers = wrappers
    return specification


def _flattened(made: gymnasium.Env) -> gymnasium.Env:
    """With observations as a flat box where they are a Dict or Tuple of boxes, in the order of the sorted keys."""
    import gymnasium
    from gymnasium.spaces import Dict, Tuple
    from gymnasium.wrappers import FlattenObservation

    space = made.observation_space
    if not isinstance(space, Dict | Tuple) or not _all_boxes(space):
        return made
    ordered = _in_order(space)
    if str(ordered) != str(space):
        made = gymnasium.Wrapper(made)
        made.observation_space = ordered
    return FlattenObservation(made)


def _all_boxes(space: Space) -> bool:
    from gymnasium.spaces import Box, Dict, Tuple

    if isinstance(space, Dict):
        return all(map(_all_boxes, space.spaces.values()))
    return all(map(_all_boxes, space.spaces)) if isinstance(space, Tuple) else isinstance(space, Box)


def _in_order(space: Space) -> Space:
    """The same space with sorted keys, as Minari stores it."""
    from gymnasium.spaces import Dict, Tuple

    if isinstance(space, Dict):
        return Dict([(key, _in_order(space.spaces[key])) for key in sorted(space.spaces)])
    return Tuple([_in_order(member) for member in space.spaces]) if isinstance(space, Tuple) else space


# --- what went wrong ---


def _why_not_made(error: Exception, wanted: EnvironmentSpec, render_mode: str | None) -> str:
    """One line for what was raised while an environment was made."""
    import gymnasium
    from gymnasium import error as gymnasium_error

    text = one_line(error) or type(error).__name__
    if isinstance(error, gymnasium_error.DependencyNotInstalled):
        return f"environment {wanted} needs a package that is not installed: {text}"
    if isinstance(error, gymnasium_error.Error):
        return f"unknown environment {str(wanted)!r}: {_hint(wanted.id)}"
    if isinstance(error, ImportError):
        newer = [re.sub(r"-v[23]$", version, wanted.id) for version in ("-v4", "-v5")]
        successor = environment_by_name(wanted.id) or next((each for each in newer if each in gymnasium.registry), None)
        if re.search(r"^\w+-v[23]$", wanted.id) and successor is not None:
            return f"environment {wanted} cannot be made: it ran on mujoco-py, which is retired; use {successor}"
        return (
            f"environment {wanted} cannot be made: {text}; install the package that provides it, or go to the folder "
            "where the module lies"
        )
    unknown = re.search(r"unexpected keyword argument '(\w+)'", text)
    if isinstance(error, TypeError) and unknown is not None:
        name = unknown[1]
        if name == "render_mode" and render_mode is not None:
            return f"environment {wanted} has no render mode {render_mode!r}"
        return f"environment {wanted} takes no argument {name}: correct --env-kwargs"
    return f"environment {wanted} cannot be made: {type(error).__name__}: {text}"


def _register_ours(environment_id: str) -> None:
    """Imports the module that registers this id, where the id is one of ours. Some need an extra: `UserError`."""
    ours = environment_id.removeprefix("diffcps/")
    if ours == environment_id:
        if re.match("antmaze-.*-singletask", environment_id):
            import diffcps.envs.ogbench
    elif ours.startswith(("AntDirection-", "AntMaze-")):
        import diffcps.envs.ant_maze
    elif ours.startswith("Maze2D-"):
        import diffcps.envs.point_maze
    elif ours.startswith("Ant-"):
        import diffcps.envs.ant
    elif ours.startswith("Adroit"):
        import diffcps.envs.adroit
    elif ours.startswith("Kitchen-"):
        import diffcps.envs.kitchen
    elif ours.startswith(("Stitching-", "NoisyCircle-")):
        import diffcps.envs.toy
    elif ours.startswith("TriFinger"):
        import diffcps.envs.trifinger  # noqa: F401


def _name(environment_id: str) -> str:
    """`Hopper-v5` -> `Hopper`."""
    return re.sub(r"-v\d+$", "", environment_id)


def _hint(environment_id: str) -> str:
    """The catalogue's environment of that name, else the nearest id that Gymnasium knows, in its newest version."""
    import gymnasium

    if (known := environment_by_name(environment_id)) is not None:
        return f"did you mean {known}?"
    by_version = sorted(gymnasium.registry.values(), key=lambda registered: registered.version or 0)
    ids = {_name(registered.id).lower(): registered.id for registered in by_version}  # the newest comes last and stays
    wanted = _name(environment_id).lower()
    for attempt in (wanted, wanted.split("-")[0]):  # "hopper-medium-v2" is a dataset, "Hopper" its environment
        nearest = difflib.get_close_matches(attempt, ids, n=1, cutoff=0.75)
        if nearest:
            return f"did you mean {ids[nearest[0]]}?"
    return "gymnasium.pprint_registry() lists the known ones; write package:Id-v0 for one that a package registers"


def _space_problem(environment: gymnasium.Env) -> str | None:
    """Why a policy over flat vectors cannot act here; None when it can."""
    from gymnasium.spaces import Box

    for name, space in (("observation", environment.observation_space), ("action", environment.action_space)):
        if not isinstance(space, Box) or len(space.shape) != 1:
            found = f"Box of shape {space.shape}" if isinstance(space, Box) else type(space).__name__
            needed = "a Box of shape (size,)" + (", or a Dict or Tuple of boxes," if name == "observation" else "")
            return f"its {name} space is a {found}, and {needed} is needed; wrap the environment first"
    return None
