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
    names = (module.name for module in iter_modules(__path__))
    for name in sorted(names, key=lambda name: (name != "diffcps", name)):  # the library's own leads
        method = import_module(f"{__name__}.{name}")
        assert isinstance(method, Method), f"{name} lacks a name that every method has"
        found[name] = method
    return found


ALGORITHMS = methods()
"""What a person may name on the command line."""
