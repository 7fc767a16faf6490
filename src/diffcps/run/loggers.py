"""Other places to send metrics to. Each logger is a display, so that a run knows one kind of listener."""

# The extras' types are known only where they are installed.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, cast

from diffcps.records.record import Evaluation, Measurement, RunRecord
from diffcps.run.progress import Display, Silent
from diffcps.types import UserError


class _Scalars(Protocol):
    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> object: ...
    def flush(self) -> object: ...
    def close(self) -> object: ...


class _Run(Protocol):
    def log(self, data: dict[str, float], step: int) -> object: ...
    def finish(self) -> object: ...


class TensorBoard(Silent):
    """Scalars of every member for TensorBoard, one sub-folder a member. A context manager: its end writes the rest."""

    def __init__(self, folder: Path):
        try:
            from tensorboardX import SummaryWriter  # pyright: ignore
        except ImportError:
            raise UserError("--tensorboard needs tensorboardX: pip install 'diffcps[tensorboard]'") from None
        self._open: Callable[[str], _Scalars] = lambda name: SummaryWriter(str(folder / name))
        self._writers: list[_Scalars] = []

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(self, *exception: object) -> None:
        for writer in self._writers:
            writer.close()

    def start(self, record: RunRecord, update: int, best: Mapping[int, float]) -> None:
        names = [member.label.replace(", ", "-").replace(" ", "_") for member in record.members]
        self._writers = [self._open(name) for name in names]

    def logged(self, update: int, rows: Sequence[Measurement]) -> None:
        for row in rows:
            for name, value in _scalars(row).items():
                self._writers[row.member.index].add_scalar(name, value, update)

    def evaluated(self, update: int, rows: Sequence[Evaluation]) -> None:
        for row in rows:
            for name, value in _evaluation_scalars(row).items():
                self._writers[row.member.index].add_scalar(name, value, update)
            self._writers[row.member.index].flush()


class WandB(Silent):
    """One Weights & Biases run for all members: `seed 0/critic/loss`. WANDB_MODE=offline needs no account.

    A context manager: its end tells Weights & Biases that the run is over.
    """

    def __init__(self, project: str, folder: Path):
        try:
            import wandb  # pyright: ignore
        except ImportError:
            raise UserError("--wandb needs wandb: pip install 'diffcps[wandb]'") from None
        init = cast(Callable[..., _Run], wandb.init)
        self._init: Callable[[], _Run] = lambda: init(project=project, name=folder.name, dir=folder)
        self._run: _Run | None = None

    def __enter__(self) -> WandB:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._run is not None:
            self._run.finish()

    def start(self, record: RunRecord, update: int, best: Mapping[int, float]) -> None:
        self._run = self._init()

    def logged(self, update: int, rows: Sequence[Measurement]) -> None:
        self._log(update, {row.member.label: _scalars(row) for row in rows})

    def evaluated(self, update: int, rows: Sequence[Evaluation]) -> None:
        self._log(update, {row.member.label: _evaluation_scalars(row) for row in rows})

    def _log(self, update: int, scalars: Mapping[str, Mapping[str, float]]) -> None:
        named = {f"{label}/{name}": value for label, own in scalars.items() for name, value in own.items()}
        if self._run is not None:
            self._run.log(named, step=update)


class Together:
    """Several displays as one."""

    def __init__(self, displays: Sequence[Display]):
        self._displays = displays

    def start(self, record: RunRecord, update: int, best: Mapping[int, float]) -> None:
        for display in self._displays:
            display.start(record, update, best)

    def preparing(self, stage: int, stages: int, done: int, total: int) -> None:
        for display in self._displays:
            display.preparing(stage, stages, done, total)

    def waiting(self) -> None:
        for display in self._displays:
            display.waiting()

    def logged(self, update: int, rows: Sequence[Measurement]) -> None:
        for display in self._displays:
            display.logged(update, rows)

    def evaluating(self, step: int, alive: int) -> None:
        for display in self._displays:
            display.evaluating(step, alive)

    def evaluated(self, update: int, rows: Sequence[Evaluation]) -> None:
        for display in self._displays:
            display.evaluated(update, rows)

    def note(self, text: str) -> None:
        for display in self._displays:
            display.note(text)


def _scalars(row: Measurement) -> dict[str, float]:
    known = {name: value for name, value in row.metrics.items() if value is not None}
    return known | row.member.swept | {"updates_per_second": row.updates_per_second}


def _evaluation_scalars(row: Evaluation) -> dict[str, float]:
    diagnosis = {f"evaluation/{name}": value for name, value in row.diagnosis.items() if value is not None}
    also = {f"evaluation/score/{rule}": played.score for rule, played in row.also.items()}
    return diagnosis if row.score is None else {"evaluation/score": row.score, **also, **diagnosis}
