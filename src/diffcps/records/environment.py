"""Which environment scores a run, and what its normalised scores refer to."""

from __future__ import annotations

from diffcps.envs.names import Environment, named
from diffcps.records.settings import NO_ENVIRONMENT, Settings
from diffcps.tasks.names import unversioned
from diffcps.tasks.references import reference_scores
from diffcps.types import DatasetInfo, EnvironmentSpec, UserError

Reference = tuple[float, float]
"""Returns of normalised score 0 and 100."""


def environment_of(settings: Settings, info: DatasetInfo) -> EnvironmentSpec | None:
    """The environment that scores a run; None where the user said `none`, or neither user nor dataset names one."""
    return chosen_environment(settings.env, settings.env_kwargs, settings.max_episode_steps, info.environment)


def chosen_environment(
    environment: Environment | None, kwargs: str | None, max_episode_steps: int | None, default: EnvironmentSpec | None
) -> EnvironmentSpec | None:
    """What a person named, else `default`, with the arguments and the time limit that were given.

    Arguments are added to those that are there already. Raises `UserError` for arguments without an environment.
    """
    found = default if environment is None else None if environment == NO_ENVIRONMENT else named(environment)
    if kwargs is None and max_episode_steps is None:
        return found
    if found is None:
        raise UserError(
            "--env-kwargs and --max-episode-steps belong to an environment, and there is none: add --env ID"
        )
    return found.with_changes(kwargs, max_episode_steps)


def reference_of(info: DatasetInfo, environment: EnvironmentSpec | None) -> Reference | None:
    """Returns of normalised score 0 and 100: the dataset's own, else D4RL's for the environment, else unknown.

    The dataset's own hold in its own environment, in other versions of it, and where it names none in any that is left
    as it is registered.
    """
    if environment is None:
        return None
    if info.reference_min is not None and info.reference_max is not None and _is_the_datas(info, environment):
        return info.reference_min, info.reference_max
    return reference_scores(environment)


def _is_the_datas(info: DatasetInfo, environment: EnvironmentSpec) -> bool:
    own = info.environment
    if own is None:
        return environment.is_default
    versions = own.is_default and environment.is_default and unversioned(own.id) == unversioned(environment.id)
    return own == environment or versions
