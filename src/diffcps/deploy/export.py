"""A trained policy as a folder that needs neither this library nor JAX."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from diffcps.deploy.card import card
from diffcps.deploy.check import compare, onnx_act, stablehlo_act, trial
from diffcps.deploy.graph import check_extra, onnx_graph
from diffcps.deploy.program import exported, stablehlo
from diffcps.deploy.record import ExportRecord, record_of
from diffcps.run.policy import Checkpoint
from diffcps.storage import check_ours, write_json
from diffcps.training import checkpoint as checkpoints
from diffcps.types import UserError

CONFIG = "config.json"
FILES = (CONFIG, "README.md", "deploy.py", "policy.onnx", "policy.stablehlo", "weights.safetensors")
"""Everything in an export."""
PACKAGES, OF_ONNX = ("diffcps", "jax", "numpy"), ("jax2onnx", "onnx", "onnxruntime")
"""Whose versions are written down."""


def export(
    run: str | Path,
    out: str | Path,
    checkpoint: Checkpoint | int = "best",
    *,
    member: int = 0,
    action_choice: str | None = None,
    onnx: bool = True,
) -> ExportRecord:
    """Writes one member's policy into the folder `out`: ONNX, StableHLO, weights, card, and a program that calls it.

    `action_choice` overrides how it acts. The exported policy is compared with the run's own on up to 1,000
    observations before anything is written; the result is in the record. An earlier export is replaced as a whole.
    Without `onnx` there is neither the graph nor the program that calls it, and the extra `export` is not needed.
    Raises `UserError`.
    """
    out = Path(out)
    if onnx:
        check_extra()
    check_out(out)
    policy = exported(run, checkpoint, member, action_choice)
    programs = {"policy.stablehlo": stablehlo(policy)}
    acts = {"policy.stablehlo": stablehlo_act(programs["policy.stablehlo"])}
    if onnx:
        programs["policy.onnx"] = onnx_graph(policy).SerializeToString()
        acts["policy.onnx"] = onnx_act(policy, programs["policy.onnx"])
    looked_at = trial(policy)
    parity = {name: compare(policy, looked_at, act, name) for name, act in sorted(acts.items())}
    versions = {name: version(name) for name in (*PACKAGES, *(OF_ONNX if onnx else ()))}
    record = record_of(policy, parity, versions)
    with _whole_folder(out) as folder:
        for name, program in programs.items():
            (folder / name).write_bytes(program)
        names = {"algorithm": record.algorithm, "update": record.updates, "member": record.member}
        checkpoints.save(folder / "weights.safetensors", policy.state, names)
        write_json(folder / CONFIG, record.to_json())
        (folder / "README.md").write_text(card(policy, record))
        if onnx:
            shutil.copyfile(Path(__file__).with_name("deploy.py"), folder / "deploy.py")
    return record


def check_out(out: Path) -> None:
    """Raises `UserError` where there is something else than an earlier export."""
    if not out.exists():
        return
    if out.is_dir() and (out / CONFIG).is_file():
        check_ours(out / CONFIG)
        others = sorted({path.name for path in out.iterdir()} - set(FILES) - {"__pycache__"})
        if others:
            raise UserError(f"{out}: holds {others[0]}, which is not of an export; name another folder, or remove it")
        return
    raise UserError(f"{out}: is there already and is no earlier export; name another folder, or remove it")


@contextmanager
def _whole_folder(out: Path) -> Generator[Path, None, None]:
    """A new folder beside `out`, which takes its place at the end; after an exception nothing has changed."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temporary:
        new, old = Path(temporary, "new"), Path(temporary, "old")
        new.mkdir()
        yield new
        if out.exists():
            os.replace(out, old)
        try:
            os.replace(new, out)
        except OSError:
            if old.exists():
                os.replace(old, out)
            raise
