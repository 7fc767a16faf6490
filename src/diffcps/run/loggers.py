"""Other places to send metrics to. Each logger is a display, so that the loop knows one kind of listener."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffcps.run.progress import Silent
from diffcps.types import Display, UserError

NOT_METRICS = ("update", "member", "seed", "returns", "lengths", "diagnose")


class TensorBoard(Silent):
    """Scalars of every member for TensorBoard, one sub-folder a member."""

    def __init__(self, folder: Path, labels: Sequence[str]):
        try:
            from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise UserError("--tensorboard needs tensorboardX: pip install 'diffcps[tensorboard]'") from None
        self._open = lambda label: SummaryWriter(str(folder / label.replace(", ", "-").replace(" ", "_")))
        self._labels = labels

    def start(self, update: int, best: Mapping[int, float]) -> None:
        self._writers = [self._open(label) for label in self._labels]

    def logged(self, update: int, rows: Sequence[dict[str, Any]]) -> None:
        for row in rows:
            for name, value in _scalars(row).items():
                self._writers[row["member"]].add_scalar(name, value, update)

    def evaluated(self, update: int, rows: Sequence[dict[str, Any]]) -> None:
        for row in rows:
            for name, value in _evaluation_scalars(row).items():
                self._writers[row["member"]].add_scalar(name, value, update)
            self._writers[row["member"]].flush()


class WandB(Silent):
    """One Weights & Biases run for all members: `seed 0/critic/loss`. WANDB_MODE=offline needs no account."""

    def __init__(self, project: str, folder: Path, labels: Sequence[str]):
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise UserError("--wandb needs wandb: pip install 'diffcps[wandb]'") from None
        self._labels = labels
        self._init = lambda: wandb.init(project=project, name=folder.name, dir=folder)

    def start(self, update: int, best: Mapping[int, float]) -> None:
        self._run = self._init()

    def logged(self, update: int, rows: Sequence[dict[str, Any]]) -> None:
        self._log(update, rows, _scalars)

    def evaluated(self, update: int, rows: Sequence[dict[str, Any]]) -> None:
        self._log(update, rows, _evaluation_scalars)

    def _log(self, update: int, rows: Sequence[dict[str, Any]], scalars: Any) -> None:
        named = {f"{self._labels[row['member']]}/{name}": x for row in rows for name, x in scalars(row).items()}
        self._run.log(named, step=update)


class Together:
    """Several displays as one."""

    def __init__(self, displays: Sequence[Display]):
        self._displays = displays

    def start(self, update: int, best: Mapping[int, float]) -> None:
        for display in self._displays:
            display.start(update, best)

    def waiting(self) -> None:
        for display in self._displays:
            display.waiting()

    def logged(self, update: int, rows: Sequence[dict[str, Any]]) -> None:
        for display in self._displays:
            display.logged(update, rows)

    def evaluating(self, step: int, alive: int) -> None:
        for display in self._displays:
            display.evaluating(step, alive)

    def evaluated(self, update: int, rows: Sequence[dict[str, Any]]) -> None:
        for display in self._displays:
            display.evaluated(update, rows)

    def note(self, text: str) -> None:
        for display in self._displays:
            display.note(text)


def _scalars(row: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name not in NOT_METRICS and isinstance(value, int | float)}


def _evaluation_scalars(row: Mapping[str, Any]) -> dict[str, float]:
    diagnosis = {f"evaluation/{name}": value for name, value in row["diagnose"].items() if value is not None}
    return diagnosis if row["score"] is None else {"evaluation/score": row["score"], **diagnosis}
