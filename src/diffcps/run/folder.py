"""The run folder: everything that a run leaves behind, owned by one process at a time."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffcps.storage import write_atomically
from diffcps.types import UserError


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

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Creates the folder and holds it for this process; the lock goes with the process, however it ends."""
        self.last.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path / ".lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"{self.path}: another process is writing this run; wait for it or choose another --out"
                ) from None
            yield

    def read_config(self) -> dict[str, Any]:
        try:
            return json.loads(self.config.read_text())
        except FileNotFoundError:
            raise UserError(f"{self.path}: not a run folder (it has no config.json)") from None
        except ValueError as error:
            raise UserError(f"{self.config}: not valid JSON ({error})") from None

    def write_json(self, path: Path, content: Any) -> None:
        write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())

    def append(self, path: Path, rows: Iterable[dict[str, Any]]) -> None:
        """Adds rows to a log and waits until they are on disk."""
        with open(path, "a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())

    def rows(self, path: Path) -> list[dict[str, Any]]:
        """The rows of a log; a last line that a kill left unfinished is not counted."""
        if not path.exists():
            return []
        lines = path.read_text().split("\n")
        return [json.loads(line) for line in lines[:-1]]

    def forget_after(self, update: int) -> None:
        """Drops what was logged after `update`: it will be made again."""
        for path in (self.metrics, self.evaluations):
            kept = [row for row in self.rows(path) if row["update"] <= update]
            write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept).encode())
