"""The run folder: everything that a run leaves behind, owned by one process at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path

from diffcps.records.record import Evaluation, Measurement, RunEvaluation, RunRecord, Summary
from diffcps.storage import append_rows, locked, plain_name, read_json, read_rows, write_atomically, write_json
from diffcps.training.members import Member
from diffcps.types import EnvironmentSpec, UserError


class RunFolder:
    """Names and files of a run. Logs are JSON lines; everything else is replaced as a whole."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.metrics = self.path / "metrics.jsonl"
        self.evaluations = self.path / "evaluations.jsonl"
        self.summary = self.path / "summary.json"
        self.curves = self.path / "curves.png"
        self.last = self.path / "checkpoints" / "last.safetensors"
        self.best = self.path / "checkpoints" / "best.safetensors"
        self.selected = self.path / "checkpoints" / "selected.safetensors"
        self.fqe = self.path / "checkpoints" / "fqe.safetensors"
        self.pieces = self.path / "checkpoints" / "rows"
        """What a stage has computed for the rows before its first update, until a checkpoint has it."""

    def kept(self, update: int) -> Path:
        """The weights of the evaluation after `update`, where they are kept."""
        return self.last.parent / f"{update}.safetensors"

    def kept_updates(self) -> list[int]:
        """The evaluations whose weights are kept, in order."""
        return sorted(int(path.stem) for path in self.last.parent.glob("*.safetensors") if path.stem.isdecimal())

    def forget_pieces(self) -> None:
        """Drops what was computed for the rows: a checkpoint has it, or the stage has ended."""
        shutil.rmtree(self.pieces, ignore_errors=True)

    @contextmanager
    def locked(self) -> Generator[None, None, None]:
        """Creates the folder and holds it for this process. Raises `UserError` where another holds it."""
        with locked(self.path):
            self.last.parent.mkdir(parents=True, exist_ok=True)
            yield

    def read_record(self) -> RunRecord:
        """config.json. Raises `UserError` where there is none, or none of this library."""
        try:
            return RunRecord.from_json(read_json(self.config))
        except FileNotFoundError:
            raise UserError(f"{self.path}: not a run folder (it has no config.json)") from None
        except KeyError as error:
            raise UserError(f"{self.config}: not of a run of this version of diffcps (it has no {error})") from None
        except UserError as error:
            raise UserError(str(error) if str(self.config) in str(error) else f"{self.config}: {error}") from None

    def write_record(self, record: RunRecord) -> None:
        """Replaces config.json."""
        write_json(self.config, record.to_json())

    def append_measurements(self, rows: Iterable[Measurement]) -> None:
        """Adds to metrics.jsonl."""
        append_rows(self.metrics, (row.to_json() for row in rows))

    def append_evaluations(self, rows: Iterable[Evaluation]) -> None:
        """Adds to evaluations.jsonl."""
        append_rows(self.evaluations, (row.to_json() for row in rows))

    def read_measurements(self, members: Sequence[Member]) -> list[Measurement]:
        """metrics.jsonl, whole lines only."""
        return [Measurement.from_json(row, members) for row in read_rows(self.metrics)]

    def read_evaluations(self, members: Sequence[Member]) -> list[Evaluation]:
        """evaluations.jsonl, whole lines only."""
        return [Evaluation.from_json(row, members) for row in read_rows(self.evaluations)]

    def forget_after(self, update: int) -> None:
        """Drops what was logged after `update`: it will be made again."""
        for path in (self.metrics, self.evaluations):
            _keep_rows(path, update)
        for made in self.kept_updates():
            if made > update:
                self.kept(made).unlink()

    def forget_evaluation(self, update: int) -> None:
        """Drops the evaluation after `update`, the last one, too: it will be made again."""
        _keep_rows(self.evaluations, update - 1)

    def write_summary(self, summary: Summary) -> None:
        """Replaces summary.json."""
        write_json(self.summary, summary.to_json())

    def read_summary(self) -> Summary:
        """summary.json. Raises `UserError` where the run has not got so far."""
        try:
            return Summary.from_json(read_json(self.summary), self.read_record().members)
        except FileNotFoundError:
            raise UserError(f"{self.path}: has no summary.json; the run was stopped before it had one") from None

    def evaluation_path(
        self, environment: EnvironmentSpec, checkpoint: str, seed: int, action_choice: str | None
    ) -> Path:
        """Where new episodes are written down: a file for each environment, checkpoint, seed and way to act.

        The run's own way stands in no name. Raises `UserError` where there is no run.
        """
        own = getattr(self.read_record().config, "action_choice", None)
        way = "" if action_choice in (None, own) else f"-{action_choice}"
        return self.path / "evaluations" / f"{plain_name(str(environment))}-{checkpoint}-seed{seed}{way}.json"

    def evaluation_file(self, evaluation: RunEvaluation) -> Path:
        """Where these new episodes are written down."""
        of = evaluation
        return self.evaluation_path(of.environment, of.checkpoint, of.seed, of.action_choice)

    def write_evaluation(self, evaluation: RunEvaluation) -> None:
        """Replaces evaluations/ENVIRONMENT-CHECKPOINT-seedSEED[-ACTION_CHOICE].json."""
        path = self.evaluation_file(evaluation)
        path.parent.mkdir(exist_ok=True)
        write_json(path, evaluation.to_json())


def _keep_rows(path: Path, update: int) -> None:
    """Drops the rows of a log that were made after `update`."""
    kept = [row for row in read_rows(path) if int(str(row["update"])) <= update]
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept).encode())
