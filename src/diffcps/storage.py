"""Files written whole or not at all and never over another's, logs of JSON rows, folders that one process owns."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeAlias

from diffcps.types import UserError

if TYPE_CHECKING:
    Json: TypeAlias = str | int | float | bool | Sequence["Json"] | Mapping[str, "Json"] | None
else:  # run-time checks of annotations do not follow a type into itself
    Json = object
"""What a JSON file can hold."""
JsonRow: TypeAlias = dict[str, Json]

SOFTWARE = "diffcps"
"""What our files say of their origin."""
VIDEO_COMMENT = f"written by {SOFTWARE}"
MARKS = {
    ".png": f"Software\0{SOFTWARE}",
    ".pdf": f"/Creator ({SOFTWARE})",
    ".json": f'"software": "{SOFTWARE}"',
    ".mp4": VIDEO_COMMENT,
}
"""By the ending of a file's name: the bytes by which a file of ours is known."""
MARK_WITHIN = 1 << 16
"""Marks lie so near to the start or the end of a file, in bytes."""
LONGEST_NAME = 120


def cache_folder() -> Path:
    """What can be fetched or made again is kept here: `diffcps` in the user's cache (`XDG_CACHE_HOME`)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / SOFTWARE


def plain_name(text: str) -> str:
    """A text as the name of a file or folder: all of it, ending included, with `-` for what does not belong in names.

    Of a long text the end stands, behind a hash of the whole.
    """
    name = re.sub(r"[^\w.+=@-]+", "-", text).strip("-.") or "unnamed"
    if len(name) <= LONGEST_NAME:
        return name
    return f"{hashlib.sha256(text.encode()).hexdigest()[:8]}-{name[9 - LONGEST_NAME :].lstrip('-.')}"


def check_ours(path: Path) -> None:
    """Raises `UserError` where there is a file that this library has not written: nothing is written over it.

    Files are known by their mark; of other kinds than those in `MARKS` none is ours.
    """
    if not path.exists():
        return
    mark = MARKS.get(path.suffix.lower())
    if mark is not None and path.is_file():
        with open(path, "rb") as file:
            start = file.read(MARK_WITHIN)
            file.seek(max(0, path.stat().st_size - MARK_WITHIN))
            if mark.encode() in start + file.read():
                return
    raise UserError(f"{path}: is there already and was not written by diffcps; name another file, or remove it")


@contextmanager
def replaced(path: Path) -> Generator[IO[bytes], None, None]:
    """A neighbour to write to, renamed at the end: a reader sees the old file or the new one, whatever happens.

    The folder must be there. After an exception the old file stands and no other is left.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces a file as a whole or not at all."""
    with replaced(path) as file:
        file.write(content)


def write_json(path: Path, content: Mapping[str, Json]) -> None:
    """Replaces a JSON file as a whole."""
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def read_json(path: Path) -> JsonRow:
    """The object in a JSON file. Raises `UserError` where there is none (FileNotFoundError where there is no file)."""
    try:
        content: Json = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object")
    return content


def append_rows(path: Path, rows: Iterable[Mapping[str, Json]]) -> None:
    """Adds rows to a log, a line of JSON each, and waits until they are on disk."""
    with open(path, "a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())


def read_rows(path: Path) -> list[JsonRow]:
    """The rows of a log; none where there is no file. A last line that a kill left unfinished is not counted."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


@contextmanager
def locked(folder: Path) -> Generator[None, None, None]:
    """Creates a folder and holds it for this process; the lock goes with the process, however it ends.

    Raises `UserError` where another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{folder}: another process is writing this run; wait for it or choose another --out"
            ) from None
        yield


def claim(path: Path, content: Mapping[str, Json]) -> None:
    """Says in the file `path`, in a locked folder, what the folder holds: written once, compared from then on.

    Raises `UserError` where it holds something else.
    """
    if not path.exists():
        write_json(path, content)
        return
    stored = read_json(path)
    different = [name for name in content if stored.get(name) != content[name]]
    if different:
        raise UserError(
            f"{path.parent}: holds a run with another {different[0]} ({stored.get(different[0])}, asked for "
            f"{content[different[0]]}); remove it or choose another folder"
        )
