"""One file per method. Each has `Config`, `State`, `make(config, spec) -> Algorithm` and `CITATION`."""

from types import ModuleType

from diffcps.algorithms import awr, bc, bcq, bear, diffcps, diffusion_bc, diffusion_ql, sfbc, td3_bc

ALGORITHMS: dict[str, ModuleType] = {
    "diffcps": diffcps,
    "diffusion_ql": diffusion_ql,
    "diffusion_bc": diffusion_bc,
    "bc": bc,
    "td3_bc": td3_bc,
    "bcq": bcq,
    "bear": bear,
    "awr": awr,
    "sfbc": sfbc,
}
"""What a person may name on the command line."""
