"""What Gymnasium and MuJoCo say while they work, told once as Python warnings; MuJoCo's callbacks with types."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Protocol, cast, runtime_checkable

from diffcps.types import UserError


class _Contacts(Protocol):
    ncon: int
    """How many contacts there are."""


@runtime_checkable
class MujocoCallbacks(Protocol):
    """The functions of the module `mujoco` that set callbacks: it has no type stubs."""

    def get_mju_user_warning(self) -> Callable[[str], None] | None: ...
    def set_mju_user_warning(self, callback: Callable[[str], None] | None, /) -> None: ...
    def get_mjcb_control(self) -> Callable[[object, _Contacts], None] | None: ...
    def set_mjcb_control(self, callback: Callable[[object, _Contacts], None] | None, /) -> None: ...


def mujoco_callbacks() -> MujocoCallbacks | None:
    """MuJoCo's callbacks; None where it is not installed. Raises `UserError` where it cannot be loaded."""
    try:
        import mujoco
    except ImportError:  # Gymnasium reports it where an environment needs MuJoCo
        return None
    except Exception as error:  # it loads OpenGL while it is imported, and fails as the driver pleases
        backend = os.environ.get("MUJOCO_GL")
        raise UserError(
            f"mujoco cannot be loaded with MUJOCO_GL={backend} ({one_line(error)}): unset it, or without a display "
            "set it to egl (apt-get install libegl1) or osmesa (apt-get install libosmesa6)"
        ) from error
    return cast(MujocoCallbacks, mujoco)


@contextmanager
def mujoco_warnings(tell: Callable[[str], None]) -> Iterator[None]:
    """Hands MuJoCo's warnings to `tell` instead of writing them to stderr and to `MUJOCO_LOG.TXT`."""
    callbacks = mujoco_callbacks()
    if callbacks is None:
        yield
        return
    previous = callbacks.get_mju_user_warning()
    callbacks.set_mju_user_warning(tell)
    try:
        yield
    finally:
        callbacks.set_mju_user_warning(previous)


@contextmanager
def quiet_making() -> Iterator[None]:
    """While an environment is made: the same warning of forty environments is one, in plain text.

    MuJoCo's notes on Gymnasium's model files become Python warnings, and deprecations inside those files are dropped:
    only Gymnasium can act on them. MuJoCo's warnings while stepping (an unstable simulation) stay as they are.
    """

    def tell(message: str) -> None:
        if "deprecated" not in message:
            warnings.warn(message, stacklevel=2)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", message=".*precision lowered by casting")  # float64 bounds: harmless
        with mujoco_warnings(tell):
            yield
    for warning in caught:
        _tell_once(re.sub(r"\x1b\[\d*m|WARN: ", "", str(warning.message)))


@cache
def _tell_once(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=5)


def one_line(error: Exception) -> str:
    """The message of an error without line breaks and final full stop."""
    return " ".join(str(error).split()).rstrip(".")
