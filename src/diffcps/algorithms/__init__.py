"""One file per method. Each has `Config`, `State`, `make(config, spec) -> Algorithm`, `CITATION` and `METRICS`."""

from importlib import import_module
from pkgutil import iter_modules
from typing import Any, cast

from diffcps.types import Method


def methods() -> dict[str, Method[Any]]:
    """The modules of this package, by name. That each is a `Method` is checked by the table of the contract test."""
    names = (module.name for module in iter_modules(__path__))
    return {name: cast(Method[Any], import_module(f"{__name__}.{name}")) for name in names}


ALGORITHMS = methods()
"""What a person may name on the command line."""
