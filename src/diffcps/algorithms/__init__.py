"""One file per method. Each has `Config`, `State`, `make(config, spec) -> Algorithm` and `CITATION`."""

from types import ModuleType

from diffcps.algorithms import diffcps, diffusion_bc, diffusion_ql

ALGORITHMS: dict[str, ModuleType] = {
    "diffcps": diffcps,
    "diffusion_ql": diffusion_ql,
    "diffusion_bc": diffusion_bc,
}
"""What a person may name on the command line."""
