"""Environments by a name that Python can import: `module:Id-v0`, `module:function`, and functions themselves."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import reduce

from diffcps.types import EnvironmentSpec, UserError

Environment = str | EnvironmentSpec | Callable[[], object]
"""What names an environment: an id, a specification, or a function without arguments that makes one."""


def named(environment: Environment) -> EnvironmentSpec:
    """The specification of what was given. A function is called by its module and name, `plant:make_tank`."""
    if isinstance(environment, EnvironmentSpec):
        return environment
    if isinstance(environment, str):
        return EnvironmentSpec(environment)
    module = getattr(environment, "__module__", None) or "__main__"
    name = getattr(environment, "__qualname__", None) or f"<{type(environment).__name__}>"
    return EnvironmentSpec(f"{module}:{name}", function=environment)


@contextmanager
def current_folder_importable() -> Generator[None, None, None]:
    """Modules in the current folder can be imported, as with `python -m`; afterwards `sys.path` is as before."""
    before = list(sys.path)
    sys.path.insert(0, os.getcwd())
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before


def import_named(environment_id: str) -> Callable[..., object] | str:
    """What `module:name` stands for, after importing the module: the id that it registers, else its function.

    An id without a module stays as it is. Raises `UserError` for a function that cannot be imported and a name that the
    module lacks, and whatever the module raises while it is imported.
    """
    import gymnasium

    module_name, _, name = environment_id.rpartition(":")
    if not module_name:
        return environment_id
    if module_name == "__main__" or "<" in name:
        raise UserError(
            f"environment {environment_id} is a function of the program that trained the run, which cannot be imported "
            "again: pass environment= in Python, or name another one with --env"
        )
    module = importlib.import_module(module_name)
    if name in gymnasium.registry:
        return name
    try:
        found = reduce(getattr, name.split("."), module)
    except AttributeError:
        found = None
    if callable(found):
        return found
    raise UserError(
        f"environment {environment_id} is unknown: module {module_name} registers no id {name} and has no function of "
        "that name"
    )
