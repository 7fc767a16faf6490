"""One cell of a study, in a process of its own: python -m diffcps.study.worker OUT FOLDER CELL PARENT [CORE ...]

OUT is the study's folder, which has its plan; data are looked for from FOLDER on, where the plan was written; PARENT is
the process that waits for this one. Trains the run (on from where it stopped) and plays the new episodes that the plan
wants. Ends as `diffcps train` does: 0, 2 with one line for bad input, 130 when it was asked to stop and everything is
saved.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

WATCH_SECONDS = 1.0
"""How often a worker looks whether the process that started it still lives."""


def main(out: str, folder: str, name: str, parent: str, *cores: str) -> int:
    """Makes one cell. The cores are taken before JAX counts them."""
    if cores:
        os.sched_setaffinity(0, map(int, cores))
    threading.Thread(target=_end_with_parent, args=(int(parent),), daemon=True).start()

    from diffcps.study.cell import make_cell
    from diffcps.study.plan import read_study
    from diffcps.study.run import PLAN
    from diffcps.training.loop import Interrupted
    from diffcps.types import UserError

    sys.argv = ["diffcps", "study", "run", PLAN, "--out", out]  # what the run writes down as its command
    try:
        _check_gpu()
        study = read_study(Path(out) / PLAN, folder)
        make_cell(study.cell(name), study.final, Path(out) / name)
        return 0
    except UserError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2
    except (Interrupted, KeyboardInterrupt):
        print("interrupted, and saved", file=sys.stderr)
        return 130


def _check_gpu() -> None:
    """Raises `UserError` where JAX is told to use GPUs and has none: it would take CPUs without a word."""
    wanted = os.environ.get("JAX_PLATFORMS", "")
    if wanted.startswith("cuda"):
        import jax

        from diffcps.types import UserError

        if jax.default_backend() == "cpu":
            raise UserError(f"JAX_PLATFORMS={wanted}: JAX finds no GPU here; pip install 'diffcps[cuda]'")


def _end_with_parent(parent: int) -> None:
    """Nobody may be left who trains for a study that was killed: its next start would find the run taken."""
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
