"""Downloads against a local server that misbehaves in every way that a slow old server does, and some more."""

from __future__ import annotations

import fcntl
import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from diffcps.data import load_dataset
from diffcps.data.download import (
    Patience,
    adopt,
    data_file,
    data_folder,
    download,
    fetch_minari,
    part_file,
    state_of,
    verify,
    where_from,
)
from diffcps.tasks.catalogue import COLLECTED, Task, find_task
from diffcps.types import EnvironmentSpec, UserError
from tests.data.files import hopper_bytes

ROWS = 400
CONTENT = hopper_bytes(ROWS)


class Server(ThreadingHTTPServer):
    """Serves `content`. Each fault in `faults` spoils one request, in order; then all is well."""

    daemon_threads = True
    content = CONTENT
    ranges = True
    validator: dict[str, str]
    faults: list[str]

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.validator, self.faults = {"ETag": '"one"'}, []
        self.requests: list[dict[str, str]] = []
        self.sent: list[int] = []
        self.released, self.stalls_outlasted = threading.Event(), 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/hopper.hdf5"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format, *args):
        pass

    def do_GET(self):
        server = self.server
        server.requests.append(dict(self.headers))
        fault = server.faults.pop(0) if server.faults else ""
        content, start = server.content, 0
        if fault.isdecimal():
            self.send_error(int(fault))
            return
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        unchanged = self.headers.get("If-Range") in (None, *server.validator.values())
        if wanted and server.ranges and (unchanged or fault == "deaf to If-Range"):
            start = int(wanted[1])
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            shown = start + 1 if fault == "wrong part" else start
            self.send_header("Content-Range", f"bytes {shown}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        length = len(content) - start + {"too long": 1000, "too short": -1000}.get(fault, 0)
        if fault != "no length":
            self.send_header("Content-Length", str(length))
        for name, value in server.validator.items():
            self.send_header(name, value)
        self.end_headers()
        body = content[start:]
        if fault in ("cut", "stall"):
            body = body[: len(body) // 2]
        self.wfile.write(body[:length])
        server.sent.append(len(body))
        if fault == "stall":
            self.wfile.flush()
            server.stalls_outlasted += not server.released.wait(10.0)


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DIFFCPS_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def task() -> Task:
    """A task of the catalogue, its published file replaced by a small one."""
    published = {"bytes": len(CONTENT), "sha256": hashlib.sha256(CONTENT).hexdigest()}
    return replace(find_task("hopper-medium-v2"), **published)


@pytest.fixture
def get(server: Server, task: Task) -> Callable[..., Path]:
    def run(task: Task = task, *, stall_seconds=60.0, attempts=5, pause_seconds=0.0, **changes) -> Path:
        patience = Patience(stall_seconds, attempts, pause_seconds)  # a busy machine is no server that stalls
        return download(task, **({"url": server.url, "patience": patience} | changes))

    return run


@pytest.fixture
def refused(get, folder: Path) -> Callable[..., str]:
    def run(*task: Task, **changes) -> str:
        with pytest.raises(UserError) as caught:
            get(*task, **changes)
        assert "\n" not in str(caught.value)
        assert not list(folder.glob("*.hdf5"))
        return str(caught.value)

    return run


def test_where_data_are_kept(monkeypatch, tmp_path):
    assert data_folder() == tmp_path / "cache"
    monkeypatch.delenv("DIFFCPS_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert data_folder() == tmp_path / "diffcps"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert data_folder() == Path.home() / ".cache" / "diffcps"


def test_states(monkeypatch, tmp_path):
    monkeypatch.setenv("DIFFCPS_DATA", str(tmp_path))
    task = replace(find_task("hopper-medium-v2"), bytes=3)
    assert state_of(task) == "no"
    (tmp_path / "hopper-medium-v2.hdf5.part").touch()
    assert state_of(task) == "part"
    data_file(task).write_bytes(b"12")
    assert state_of(task) == "wrong size"
    data_file(task).write_bytes(b"123")
    assert state_of(task) == "yes"


def test_where_from_names_only_what_exists():
    assert "collect" in where_from(find_task("maze2d-umaze-v1")) and "maze2d" in COLLECTED
    assert "collect" not in where_from(find_task("pen-human-v1"))
    assert "--minari" in where_from(find_task("pen-human-v1"))
    for task_id in ("hopper-random-v2", "maze2d-umaze-v1"):  # there is none; it cannot be read
        assert "--minari" not in where_from(find_task(task_id))


def test_a_download_that_works(get, server, task, folder):
    seen: list[tuple[int, int | None]] = []
    assert state_of(task) == "no"
    path = get(progress=lambda done, total: seen.append((done, total)))
    assert path == data_file(task) == folder / "hopper-medium-v2.hdf5"
    assert path.read_bytes() == CONTENT
    assert [entry.name for entry in folder.iterdir()] == [path.name]
    assert seen[0] == (0, len(CONTENT)) and seen[-1] == (len(CONTENT), len(CONTENT))
    assert state_of(task) == "yes"
    assert get() == path
    assert len(server.requests) == 1  # a second time nothing is fetched


@pytest.mark.parametrize("validator", [{"ETag": '"one"'}, {"Last-Modified": formatdate(1e9, usegmt=True)}])
def test_only_the_rest_is_sent_after_a_cut(get, server, validator):
    server.validator = validator
    server.faults = ["cut", "cut"]
    assert get().read_bytes() == CONTENT
    half = len(CONTENT) // 2
    assert sum(server.sent) == len(CONTENT)
    assert server.requests[1]["Range"] == f"bytes={half}-"
    assert server.requests[1]["If-Range"] == next(iter(validator.values()))


def test_going_on_in_another_process(get, server, refused, task, folder):
    server.faults = ["cut", "503", "503"]
    message = refused(attempts=2)
    assert "the server answers 503" in message
    assert f"{len(CONTENT) // 2:,} bytes are kept, and the same command goes on from there" in message
    assert part_file(data_file(task)).stat().st_size == len(CONTENT) // 2
    assert state_of(task) == "part"
    assert get().read_bytes() == CONTENT
    assert server.sent[-1] == len(CONTENT) - len(CONTENT) // 2


def test_all_was_there_but_the_name(get, server, task):
    """Killed between the last byte and the renaming."""
    path = get()
    path.rename(part_file(path))
    part_file(path).with_name(part_file(path).name + ".json").write_text(
        f'{{"url": "{server.url}", "validator": "\\"one\\""}}'
    )
    before = list(server.sent)
    assert get().read_bytes() == CONTENT
    assert server.sent == before


def test_a_stall_is_noticed_and_mended(get, server):
    server.faults = ["stall"]
    assert get(stall_seconds=1.0).read_bytes() == CONTENT
    assert server.stalls_outlasted == 0
    assert sum(server.sent) == len(CONTENT)


def test_stalls_without_end(refused, server):
    server.faults = ["stall", *["503"] * 9]
    assert "the server answers 503" in refused(attempts=3, stall_seconds=1.0)
    assert len(server.requests) == 4  # the first brought something


def test_a_server_without_ranges(get, server):
    server.ranges = False
    server.faults = ["cut"]
    assert get().read_bytes() == CONTENT
    assert server.sent == [len(CONTENT) // 2, len(CONTENT)]


def test_a_server_without_ranges_that_always_cuts(refused, server):
    server.ranges = False
    server.faults = ["cut"] * 20
    half = len(CONTENT) // 2
    assert f"the server sent {half:,} of {len(CONTENT):,} bytes" in refused(attempts=3)
    assert len(server.requests) == 4


def test_a_server_without_validators_starts_anew(get, server):
    server.validator = {}
    server.faults = ["cut"]
    assert get().read_bytes() == CONTENT
    assert "Range" not in server.requests[1]


@pytest.mark.parametrize("deaf", [False, True])
def test_a_file_that_changes_in_between(get, server, task, deaf):
    """The first half of one file never gets the second half of another."""
    server.faults = ["cut", *["503"] * 2]
    with pytest.raises(UserError):
        get(attempts=2)
    server.content = hopper_bytes(ROWS, seed=1)
    server.validator = {"ETag": '"two"'}
    server.faults = ["deaf to If-Range"] if deaf else []
    unknown = replace(task, bytes=None, sha256=None)
    assert get(unknown).read_bytes() == server.content


def test_another_part_than_asked_for(get, server):
    server.faults = ["cut", "wrong part"]
    assert get().read_bytes() == CONTENT


def test_lies_about_the_length(get, refused, server, task):
    server.faults = ["too long"]
    message = refused()
    assert f"offers {len(CONTENT) + 1000:,} bytes, but the published file has {len(CONTENT):,}" in message
    unknown = replace(task, bytes=None, sha256=None)
    server.faults = ["too short"]
    assert "not a complete HDF5 file" in refused(unknown)
    server.faults = ["too long"]
    assert get(unknown).read_bytes() == CONTENT  # asked for the rest, the server says that there is none
    assert len(server.requests) == 4


def test_no_length_at_all(get, server):
    server.faults = ["no length"]
    assert get().read_bytes() == CONTENT


def test_a_wrong_hash_is_not_kept(refused, server, task, folder):
    wrong = replace(task, sha256="0" * 64)
    message = refused(wrong)
    assert "is not that of the published file, 000000000000…" in message
    assert f"what came from {server.url} was removed" in message
    assert list(folder.iterdir()) == []


def test_what_comes_is_no_dataset(refused, server, task, folder):
    server.content = b"<html>Please log in to this network.</html>"
    assert "offers 43 bytes" in refused()
    assert "not a complete HDF5 file" in refused(replace(task, bytes=None, sha256=None))
    server.content = hopper_bytes(ROWS, observation_size=17)
    message = refused(replace(task, bytes=None, sha256=None))
    assert "observations of shape (400, 17)" in message and "hopper-medium-v2 have 11 and 3 numbers" in message
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("code", ["403", "404"])
def test_there_is_no_such_file(refused, server, folder, code):
    server.faults = [code]
    assert f"{server.url} answers {code}" in (message := refused())
    assert "--from FILE" in message
    assert len(server.requests) == 1
    assert list(folder.iterdir()) == []


def test_a_404_keeps_what_came_before(get, server, refused):
    server.faults = ["cut", "404"]
    refused()
    assert get().read_bytes() == CONTENT
    assert sum(server.sent) == len(CONTENT)


@pytest.mark.parametrize("code", ["500", "503", "429"])
def test_trouble_of_the_server_is_tried_again(get, server, code):
    server.faults = [code, code]
    assert get().read_bytes() == CONTENT
    assert len(server.requests) == 3


def test_offline(refused, server, folder):
    free = Server()
    free.server_close()
    message = refused(url=free.url, pause_seconds=1e6)  # no use in waiting
    assert "no connection" in message
    for way in ("--from FILE", "--url", "--minari", "mujoco/hopper/medium-v0", "diffcps data collect hopper-medium-v2"):
        assert way in message
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("url", ["ftp://example.org/hopper.hdf5", "/home/hopper.hdf5", "http://[bad"])
def test_what_is_no_address(refused, folder, url):
    assert url in refused(url=url)
    assert list(folder.glob("*")) == []


def test_two_at_once(get, refused, server, task, folder):
    server.faults = ["cut", "404"]
    refused()
    with open(folder / "hopper-medium-v2.hdf5.part.json") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert "another process is downloading it" in refused()
    assert get().read_bytes() == CONTENT


def test_trifinger_comes_through_its_package(refused):
    assert "trifinger-rl-datasets" in refused(find_task("trifinger-cube-push-sim-expert-v0"))


# ------------------------------------------------------------------------------------------------- a file by hand


def test_a_file_given_by_hand(task, tmp_path, folder):
    source = tmp_path / "hopper_medium-v2.hdf5"
    source.write_bytes(CONTENT)
    path = adopt(task, source)
    assert path.read_bytes() == CONTENT
    assert path.samefile(source)  # a hard link takes no room
    assert adopt(task, source) == adopt(task, path) == path
    assert [entry.name for entry in folder.iterdir()] == [path.name]


def test_a_file_from_another_file_system(task, tmp_path, folder, monkeypatch):
    def across(*paths):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", across)
    source = tmp_path / "hopper_medium-v2.hdf5"
    source.write_bytes(CONTENT)
    path = adopt(task, source)
    assert path.read_bytes() == CONTENT and not path.samefile(source)
    assert [entry.name for entry in folder.iterdir()] == [path.name]


def test_a_wrong_file_given_by_hand(task, tmp_path, folder):
    source = tmp_path / "other.hdf5"
    for content, words in (
        (CONTENT[:-1], "bytes, but the published file"),
        (hopper_bytes(ROWS, seed=1), "is not that of the published file"),
    ):
        source.write_bytes(content)
        with pytest.raises(UserError, match=words):
            adopt(task, source)
        assert source.read_bytes() == content and not data_file(task).exists()
    with pytest.raises(UserError, match="no such file"):
        adopt(task, tmp_path / "absent.hdf5")


def test_trifinger_given_by_hand(tmp_path, folder):
    task = find_task("trifinger-cube-push-sim-expert-v0")
    source = tmp_path / "downloaded"
    source.mkdir()
    with pytest.raises(UserError, match=r"no folder with a data\.mdb"):
        adopt(task, source)
    (source / "data.mdb").write_bytes(b"zarr")
    for _ in range(2):
        assert (adopt(task, source) / "data.mdb").read_bytes() == b"zarr"
    assert [entry.name for entry in folder.iterdir()] == [f"{task.id}.zarr"]


# ------------------------------------------------------------------------------------------------- by the task's id


def test_loading_by_id(task, tmp_path, monkeypatch):
    monkeypatch.setattr("diffcps.data.load.find_task", lambda name: task)
    with pytest.raises(UserError, match="the data are not here; fetch them with `diffcps data get hopper-medium-v2`"):
        load_dataset("hopper-medium-v2")
    source = tmp_path / "source.hdf5"
    source.write_bytes(CONTENT)
    adopt(task, source)
    info = load_dataset("hopper-medium-v2").info
    assert (info.source, info.task) == ("hopper-medium-v2", "hopper-medium-v2")
    assert info.environment == EnvironmentSpec("Hopper-v4")
    assert (info.reference_min, info.reference_max) == (-20.272305, 3234.3)
    assert info.sha256 == task.sha256
    given = load_dataset("hopper-medium-v2", environment="Hopper-v5")
    assert given.info.environment == EnvironmentSpec("Hopper-v5")

    plain = load_dataset(source).info
    assert (plain.task, plain.environment, plain.reference_max) == (None, None, None)
    assert load_dataset(source, task="hopper-medium-v2").info == replace(info, source=str(source))

    data_file(task).unlink()
    data_file(task).write_bytes(hopper_bytes(ROWS, seed=1))
    with pytest.raises(UserError, match="not the published file of hopper-medium-v2"):
        load_dataset("hopper-medium-v2")


def test_a_task_that_does_not_fit_the_file(tmp_path):
    (tmp_path / "data.hdf5").write_bytes(CONTENT)
    with pytest.raises(UserError, match="have 11 and actions 3 numbers, those of task walker2d-medium-v2 17 and 6"):
        load_dataset(tmp_path / "data.hdf5", task="walker2d-medium-v2")
    with pytest.raises(UserError, match=r"unknown task 'hoper-medium-v2': did you mean hopper-medium-v2\?"):
        load_dataset(tmp_path / "data.hdf5", task="hoper-medium-v2")


def test_minari_instead(monkeypatch):
    asked = []
    monkeypatch.setattr("diffcps.data.download.minari_folder", lambda name: asked.append(name) or Path())
    assert fetch_minari(find_task("door-human-v1")) == "D4RL/door/human-v2" == asked[0]
    with pytest.raises(UserError, match="Minari has no dataset near it; give a copy"):
        fetch_minari(find_task("hopper-random-v2"))


# ------------------------------------------------------------------------------------------------------ OGBench


@pytest.fixture
def ogbench_file(tmp_path) -> Path:
    """Two trajectories of five states of an ant; the third state of the first one is at the goal."""
    rng = np.random.default_rng(0)
    qpos, qvel = rng.normal(size=(10, 15)), rng.normal(size=(10, 14))
    qpos[2, :2] = [20.0, 20.0]
    np.savez(
        tmp_path / "antmaze-medium-navigate-v0.npz",
        observations=np.concatenate([qpos, qvel], axis=1).astype(np.float32),
        actions=rng.uniform(-1, 1, size=(10, 8)).astype(np.float32),
        terminals=np.arange(10) % 5 == 4,
        qpos=qpos.astype(np.float32),
        qvel=qvel.astype(np.float32),
    )
    return tmp_path / "antmaze-medium-navigate-v0.npz"


def test_ogbench_file(ogbench_file):
    task = find_task("antmaze-medium-navigate-singletask-v0")
    assert adopt(task, ogbench_file).name == "antmaze-medium-navigate-singletask-v0.npz"
    ogbench_file.write_bytes(ogbench_file.read_bytes()[:-500])
    with pytest.raises(UserError, match="not a complete file of OGBench"):
        verify(ogbench_file, task)


@pytest.mark.filterwarnings("default")  # of the package's own
def test_ogbench_rewards(ogbench_file):
    pytest.importorskip("ogbench")
    task = find_task("antmaze-medium-navigate-singletask-v0")
    adopt(task, ogbench_file)
    dataset = load_dataset(task.id)
    assert dataset.size == 8
    assert dataset.reward.tolist() == [-1, -1, 0, -1, -1, -1, -1, -1]
    assert np.flatnonzero(dataset.terminal).tolist() == [2]
    assert np.flatnonzero(dataset.timeout).tolist() == [3, 7]
    with np.load(ogbench_file) as file:
        np.testing.assert_array_equal(dataset.next_observation[3], file["observations"][4])
    assert dataset.info.environment == EnvironmentSpec(task.id)
