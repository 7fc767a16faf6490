"""One file per method. Each has `Config`, `State`, `make(config, spec) -> Algorithm`, `CITATION` and `METRICS`."""

from importlib import import_module
from pkgutil import iter_modules

from diffcps.types import Method, Tree


def methods() -> dict[str, Method[Tree]]:
    """Every module of this package, by its name: a new file is a new method, and nothing has to be registered.

    That each is a `Method` is asserted here; that its parts have the right types, by pyright on the table of the
    contract test.
    """
    found: dict[str, Method[Tree]] = {}
    for module in iter_modules(__path__):
        method = import_module(f"{__name__}.{module.name}")
        assert isinstance(method, Method), f"{module.name} lacks a name that every method has"
        found[module.name] = method
    return found


ALGORITHMS = methods()
"""What a person may name on the command line."""
