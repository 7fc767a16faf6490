"""Do two checkouts of this library train to the same weights?

    python tools/compare_weights.py OTHER [METHOD ...] [--updates 250]

Trains each method for some updates on made-up data, with two seeds and small networks, once with the sources that lie
beside this file and once with those of the checkout OTHER. Prints the largest difference of a number in their last
checkpoints (weights and optimisers), and the largest number. What changes how an update is compiled changes its
rounding, which grows with the updates; what changes an update shows in the first digits from the first one on.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
import tempfile
from pathlib import Path

SMALL = {
    "width": 32,
    "batch_size": 64,
    "behaviour_batch_size": 64,
    "dynamics_batch_size": 64,
    "horizon": 8,
    "multipliers": (1, 2),
    "plans": 2,
    "generated": 16,
    "generated_in_batch": 16,
    "dynamics_width": 32,
    "behaviour_width": 32,
    "behaviour_depth": 1,
    "num_features": 8,
    "support_actions": 2,
    "actor_width": 32,
    "second_width": 32,
    "vae_width": 32,
    "iterations": 2,
    "rounds": 2,
    "num_candidates": 4,
    "replan_every": 2,
}
"""Values of config fields, for the methods that have them."""


def trained(method: str, updates: int, out: Path) -> None:
    """A run of the method, by whichever sources Python finds."""
    from diffcps.algorithms import ALGORITHMS
    from diffcps.records.settings import Settings
    from diffcps.run.train import train
    from diffcps.training.timing import made_up_data
    from diffcps.types import Spec

    config = ALGORITHMS[method].Config
    known = {field.name for field in dataclasses.fields(config)}
    settings = Settings(env="none", updates=updates, eval_every=updates, log_every=updates, seeds=(0, 1))
    train(
        config(**{name: value for name, value in SMALL.items() if name in known}),
        made_up_data(Spec(5, 3), 400),
        settings,
        out=out,
    )


def main() -> None:
    import numpy as np
    from safetensors.numpy import load_file

    from diffcps.algorithms import ALGORITHMS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="folder of the other checkout")
    parser.add_argument("methods", nargs="*", metavar="METHOD", help="of these methods [all]")
    parser.add_argument("--updates", type=int, default=250, metavar="N", help="of each run [250]")
    options = parser.parse_args()
    here = Path(__file__).resolve()
    for method in options.methods or sorted(ALGORITHMS):
        with tempfile.TemporaryDirectory() as folder:
            states = []
            for name, sources in (("ours", here.parents[1]), ("other", options.other.resolve())):
                out = Path(folder) / name
                made = f"trained({method!r}, {options.updates}, Path({str(out)!r}))"
                paths = os.pathsep.join([str(sources / "src"), str(here.parent)])
                done = subprocess.run(
                    [sys.executable, "-c", f"from compare_weights import Path, trained; {made}"],
                    env=os.environ | {"PYTHONPATH": paths},
                    stderr=subprocess.PIPE,
                    text=True,
                )
                if done.returncode:
                    sys.exit(f"{method}, {name}: {done.stderr.strip().splitlines()[-1]}")
                states.append(load_file(out / "checkpoints" / "last.safetensors"))
        ours, other = states
        if ours.keys() != other.keys():
            print(f"{method}: other names")
            continue
        numbers = [name for name in ours if np.issubdtype(ours[name].dtype, np.floating)]
        difference = max(float(np.max(np.abs(ours[name] - other[name]), initial=0.0)) for name in numbers)
        size = max(float(np.max(np.abs(ours[name]), initial=0.0)) for name in numbers)
        print(f"{method}: {'the same bits' if difference == 0.0 else f'{difference:.1e}'} of {size:.3g}", flush=True)


if __name__ == "__main__":
    main()
