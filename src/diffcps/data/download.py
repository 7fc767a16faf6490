"""The data folder, and getting a task's data into it: by download, from a file at hand, or from Minari.

A download is gathered in `NAME.part` beside its target and resumed there, with `NAME.part.json` saying which version of
the file it belongs to. Nothing gets its final name before it has passed `verify`.
"""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from diffcps.readers.d4rl_hdf5 import read_hdf5
from diffcps.readers.hashes import sha256_of_file
from diffcps.readers.minari import minari_folder
from diffcps.readers.ogbench import read_arrays
from diffcps.storage import cache_folder
from diffcps.tasks.catalogue import COLLECTED, FLAT_ON_MINARI, Task
from diffcps.types import UserError

PIECE = 1 << 18

Progress = Callable[[int, int | None], None]
"""progress(bytes that are here, bytes in all if known)"""


class Patience(NamedTuple):
    """How long a download waits for a server."""

    stall_seconds: float = 60.0
    """A connection that delivers nothing for so long is given up, and made again."""
    attempts: int = 5
    """Connections in a row that bring nothing new before the download is given up."""
    pause_seconds: float = 2.0
    """Wait before the second connection; it doubles with each further one."""


class _Again(Exception):
    """This connection failed; another one may go on. The message says how."""


class _Unreachable(_Again):
    """There was no connection at all."""


class _Answer(NamedTuple):
    stream: http.client.HTTPResponse
    total: int | None
    """Bytes of the whole file, where the server says."""


def data_folder() -> Path:
    """Where downloaded data are kept: `DIFFCPS_DATA`, else `diffcps` in the user's cache (`XDG_CACHE_HOME`)."""
    if given := os.environ.get("DIFFCPS_DATA"):
        return Path(given).expanduser()
    return cache_folder()


def data_file(task: Task) -> Path:
    """Where the task's data are kept once they are here.

    TriFinger's data are a folder, which may also lie where their package puts it.
    """
    if task.family == "trifinger":
        of_package = Path.home() / ".trifinger_rl_datasets" / f"{task.id}.zarr"
        return of_package if of_package.exists() else data_folder() / of_package.name
    return data_folder() / (task.id + Path(task.url).suffix)


def state_of(task: Task) -> str:
    """Whether the data are here: "yes", "no", "part" of a download, or "wrong size"."""
    path = data_file(task)
    if path.exists():
        wrong = task.bytes is not None and path.stat().st_size != task.bytes
        return "wrong size" if wrong else "yes"
    return "part" if part_file(path).exists() else "no"


def part_file(path: Path) -> Path:
    """Where a download of `path` is gathered until it is complete."""
    return path.with_name(path.name + ".part")


def where_from(task: Task) -> str:
    """What a person without the data can do, as the end of a sentence."""
    choices = [f"give a copy with `diffcps data get {task.id} --from FILE`, or another address with --url"]
    if task.minari is not None and task.family in FLAT_ON_MINARI:
        choices.append(f"take Minari's {task.minari} with --minari")
    if task.family in COLLECTED:
        choices.append(f"make data of the kind with `diffcps data collect {task.id}`")
    return ", or ".join(choices)


def download(
    task: Task,
    *,
    url: str | None = None,
    progress: Progress | None = None,
    patience: Patience | None = None,
) -> Path:
    """Downloads the task's data from its address (or from `url`), resumes what is there in part, and verifies it.

    Returns the file in the data folder; a verified one that is there already is not fetched again. Stalls, broken
    connections and errors of the server (5xx) are tried again, as often as `patience` says while nothing new comes.

    Raises `UserError` where the address gives another file than the catalogue describes or none at all.
    """
    if task.family == "trifinger":
        raise UserError(
            f"{task.id}: its data come in parts, which the package trifinger-rl-datasets fetches (get_dataset() of its "
            "environment of this name) and keeps in ~/.trifinger_rl_datasets, where they are found; or give a copy of "
            "the folder with --from"
        )
    path, address = data_file(task), url or task.url
    if not address.startswith(("http://", "https://")):
        raise UserError(f"{address}: an address begins with http:// or https://; give a local file with --from")
    if path.exists():
        verify(path, task)
        return path
    part = part_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(_note_file(part), "a+") as note, open(part, "ab") as file:
        try:
            fcntl.flock(note, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{part}: another process is downloading it; wait for it") from None
        try:
            _gather(task, address, file, note, progress or (lambda done, total: None), patience or Patience())
        except UserError:
            if file.tell() == 0:
                _forget(part)
            raise
        file.flush()
        os.fsync(file.fileno())
        try:
            verify(part, task, path.suffix)
        except UserError as error:
            _forget(part)
            raise UserError(f"{error}; what came from {address} was removed") from None
        os.replace(part, path)
    _forget(part)
    return path


def _gather(task: Task, url: str, file: IO[bytes], note: IO[str], progress: Progress, patience: Patience) -> None:
    """Connects until `file`, which is open for appending and described by `note`, is complete."""
    failures, furthest, reached = 0, file.tell(), False
    while True:
        try:
            answer = _ask(task, url, file, note, patience.stall_seconds)
            reached = True
            if answer is not None:
                with closing(answer.stream):
                    _receive(answer, file, progress, patience.stall_seconds)
            return
        except _Again as error:
            failures = 0 if file.tell() > furthest else failures + 1
            furthest = max(furthest, file.tell())
            if failures < patience.attempts and (reached or not isinstance(error, _Unreachable)):
                time.sleep(patience.pause_seconds * 2 ** max(failures - 1, 0))
                continue
            kept = f"{file.tell():,} bytes are kept, and the same command goes on from there; or "
            raise UserError(f"{task.id}: {url}: {error}; {kept if file.tell() else ''}{where_from(task)}") from None


def _ask(task: Task, url: str, file: IO[bytes], note: IO[str], stall: float) -> _Answer | None:
    """Asks for what is missing. Afterwards `file` stands where the answer begins; None: nothing is missing.

    Reference: RFC 9110, sections 13.1.5 (If-Range) and 14 (range requests).
    """
    validator = _validator(note, url)
    if validator is None:
        _start_anew(file)
    start = file.tell()
    headers = {"User-Agent": "diffcps", "Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": str(validator)}
    try:
        stream = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=stall)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and error.headers.get("Content-Range", "").strip() == f"bytes */{start}":
                return None  # all of it came before, and then something went wrong
            if error.code == 416:
                _start_anew(file)
            if error.code in (408, 416, 429) or error.code >= 500:
                raise _Again(f"the server answers {error.code} {error.reason}") from None
            raise UserError(
                f"{task.id}: {url} answers {error.code} {error.reason}; check the address, or {where_from(task)}"
            ) from None
    except TimeoutError:
        raise _Again(f"no answer for {stall:g} seconds") from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise _Again(f"no answer for {stall:g} seconds") from None
        raise _Unreachable(f"no connection ({getattr(error.reason, 'strerror', None) or error.reason})") from None
    except (http.client.HTTPException, ConnectionError) as error:
        raise _Again(f"the connection broke ({error or type(error).__name__})") from None
    except ValueError as error:
        raise UserError(f"{url}: not an address ({error}); check it") from None

    given = stream.headers
    length = given.get("Content-Length", "")
    total = int(length) if length.isdecimal() else None
    now = _strong(given.get("ETag")) or given.get("Last-Modified")
    if stream.status == 206:
        described = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", given.get("Content-Range", "").strip())
        if described is None or int(described[1]) != start or (now is not None and now != validator):
            stream.close()
            _start_anew(file)
            raise _Again("the server sent a part of another file, or another part, than was asked for")
        total = int(described[2]) if described[2].isdecimal() else None
    else:  # the whole file: it changed, or the server knows no ranges
        _start_anew(file)
        _remember(note, url, now)
    if task.bytes is not None and total not in (None, task.bytes):
        stream.close()
        _start_anew(file)
        raise UserError(
            f"{task.id}: {url} offers {total:,} bytes, but the published file has {task.bytes:,}; "
            f"it is another file; check the address, or {where_from(task)}"
        )
    return _Answer(stream, total)


def _receive(answer: _Answer, file: IO[bytes], progress: Progress, stall: float) -> None:
    """Appends what comes. Raises `_Again` where it ends too early."""
    progress(file.tell(), answer.total)
    while True:
        try:
            piece = answer.stream.read1(PIECE)
        except TimeoutError:
            raise _Again(f"no data for {stall:g} seconds") from None
        except (http.client.HTTPException, OSError) as error:
            raise _Again(f"the connection broke ({error or type(error).__name__})") from None
        if not piece:
            break
        file.write(piece)
        progress(file.tell(), answer.total)
    if answer.total is not None and file.tell() < answer.total:
        raise _Again(f"the server sent {file.tell():,} of {answer.total:,} bytes")


def _strong(etag: str | None) -> str | None:
    """A weak validator cannot be used for ranges."""
    return None if etag is None or etag.startswith("W/") else etag


def _start_anew(file: IO[bytes]) -> None:
    file.seek(0)
    file.truncate()


def _note_file(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _remember(note: IO[str], url: str, validator: str | None) -> None:
    note.seek(0)
    note.truncate()
    note.write(json.dumps({"url": url, "validator": validator}))
    note.flush()


def _validator(note: IO[str], url: str) -> str | None:
    """Which version of the file a part belongs to; None where that is not known, or it came from another address."""
    note.seek(0)
    try:
        described = json.load(note)
    except ValueError:
        return None
    return described["validator"] if described["url"] == url else None


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _note_file(part).unlink(missing_ok=True)


@contextmanager
def download_bar(name: str) -> Iterator[Progress]:
    """A bar with rate and remaining time, on a terminal; what it yields is called with the bytes here and in all."""
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with progress.Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=None)

        def show(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total)

        yield show


def adopt(task: Task, source: Path) -> Path:
    """Verifies a file (TriFinger: a folder) given by hand and puts it into the data folder, as a hard link or a copy.

    Raises `UserError` where it is not what the catalogue describes.
    """
    path = data_file(task)
    if path.exists() and source.exists() and path.samefile(source):
        if path.is_file():
            verify(path, task)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    if task.family == "trifinger":
        if not (source / "data.mdb").is_file():
            raise UserError(f"{source}: no folder with a data.mdb; name the dataset's folder, {task.id}.zarr")
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(source, temporary)
        shutil.rmtree(path, ignore_errors=True)
    else:
        verify(source, task, path.suffix)
        temporary.unlink(missing_ok=True)
        try:
            os.link(source.resolve(), temporary)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source, temporary)
    os.replace(temporary, path)
    return path


def fetch_minari(task: Task) -> str:
    """Downloads the nearest Minari dataset where it is not local yet, and returns its id. Raises `UserError`."""
    if task.minari is None:
        raise UserError(f"{task.id}: Minari has no dataset near it; {where_from(task)}")
    minari_folder(task.minari)
    return task.minari


def verify(path: Path, task: Task, suffix: str | None = None) -> None:
    """Raises `UserError` unless the file is what the catalogue says of the task's data, as far as it says anything.

    Size and SHA-256 where they are known; and it must be a complete file of its format with the fields and sizes of
    the task. `suffix` tells the format where the name does not.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the path")
    size = path.stat().st_size
    if task.bytes is not None and size != task.bytes:
        raise UserError(f"{path}: has {size:,} bytes, but the published file of {task.id} {task.bytes:,}")
    if task.sha256 is not None and (found := sha256_of_file(path, str(path))) != task.sha256:
        raise UserError(f"{path}: SHA-256 {found[:12]}… is not that of the published file, {task.sha256[:12]}…")
    if (suffix or path.suffix) == ".npz":  # OGBench's have no rewards, so that `read_npz` would refuse them
        rows = read_arrays(path)
        shapes = rows["observations"].shape, rows["actions"].shape
    else:
        raw = read_hdf5(path, str(path))
        shapes = raw.observation.shape, raw.action.shape
    if (shapes[0][1:], shapes[1][1:]) != ((task.observation_size,), (task.action_size,)):
        raise UserError(
            f"{path}: observations of shape {shapes[0]} and actions of shape {shapes[1]}, but those of {task.id} have "
            f"{task.observation_size} and {task.action_size} numbers"
        )
