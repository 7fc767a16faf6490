"""Studies on a Ray cluster: what is refused, what is lost and tried again; and, on a real cluster, kills."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import jax
import pytest

from diffcps.cli.main import main
from diffcps.records.folder import RunFolder
from diffcps.storage import locked
from diffcps.study import cluster, worker
from diffcps.study.cluster import MAX_LOSSES, run_on_cluster
from diffcps.study.run import PLAN, Work, standing_of
from diffcps.types import UserError
from tests.study.test_run import started, wait_for, written

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own

STUDY = """
[study]
seeds = [0, 1]
updates = 1000
eval_every = 20
log_every = 10
episodes = 2

[final]
episodes = 3

[data.cross]
dataset = "cross.npz"
env = "diffcps/Stitching-v0"

[methods.bc]
width = 16
depth = 1
batch_size = [16, 24, 32]
"""


# --- What is refused before anything runs ---


def test_a_study_is_made_here_or_on_a_cluster(capsys):
    assert main(["study", "run", "plan.toml", "--out", "out", "--workers", "1", "--ray", "auto"]) == 2
    said = capsys.readouterr().err
    assert "argument --ray: not allowed with argument --workers" in said and len(said.splitlines()) == 1


def test_ray_is_an_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"--ray needs Ray: pip install 'diffcps\[distributed\]'"):
        run_on_cluster(written(tmp_path, STUDY), tmp_path / "out", "auto")
    assert not (tmp_path / "out").exists()
    assert main(["reproduce", "table1", "--ray", "auto", "--workers", "2"]) == 2


@pytest.mark.parametrize("address", ["local", "", "ray://head:10001", "head"])
def test_an_address_is_that_of_a_cluster(address, tmp_path):
    with pytest.raises(UserError, match=f"--ray {address}: is neither auto nor the address HOST:PORT of a cluster"):
        run_on_cluster(tmp_path / "plan.toml", tmp_path / "out", address)


# --- A cluster that is played: what its tasks come to is said by the test ---


class RayError(Exception):
    pass


class RayTaskError(RayError):
    cause = ValueError("no space\nleft. And more")


Task = tuple[str, ...]
Plays = Callable[[str, int], object]
"""What a task comes to: by the cell's name and how often it was started."""


def played(plays: Plays, faults: object = "", cpus: float = 4.0) -> tuple[ModuleType, list[str]]:
    """A module like Ray, each of whose tasks is over at once; and the cells that it was given."""
    made: list[str] = []

    def remote(function: Callable[..., object]) -> Any:
        def call(*words: Any) -> object:
            if function.__name__ == "_fault":
                return faults
            made.append(words[0])
            return words[0], made.count(words[0])

        return SimpleNamespace(options=lambda **given: SimpleNamespace(remote=call))

    def get(task: Any) -> object:
        found = plays(*task) if isinstance(task, tuple) else task
        if isinstance(found, Exception):
            raise found
        return found

    ray: Any = ModuleType("ray")
    ray.init = ray.shutdown = ray.cancel = lambda *words, **given: None
    ray.exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)
    ray.util = SimpleNamespace(
        scheduling_strategies=SimpleNamespace(NodeAffinitySchedulingStrategy=lambda node, soft: node)
    )
    ray.nodes = lambda: [
        {"Alive": False, "NodeID": "gone", "Resources": {}},
        {
            "Alive": True,
            "NodeID": "n",
            "NodeManagerHostname": "host",
            "NodeManagerAddress": "192.0.2.1",
            "Resources": {"CPU": cpus},
        },
    ]
    ray.get_runtime_context = lambda: SimpleNamespace(get_node_id=lambda: "n")
    ray.remote, ray.get = remote, get
    ray.wait = lambda tasks, num_returns, timeout: (tasks, [])
    return ray, made


@pytest.fixture
def on(monkeypatch, tmp_path) -> Callable[..., list[Work]]:
    """Runs the study on a played cluster."""

    def run(ray: ModuleType, text: str = STUDY) -> list[Work]:
        monkeypatch.setattr(cluster, "_ray", lambda: ray)
        return run_on_cluster(written(tmp_path, text), tmp_path / "out", "auto")

    return run


def test_what_is_lost_is_tried_again_and_what_fails_is_not(on, tmp_path):
    ends: dict[str, list[object]] = {
        "cross/bc-batch_size-16": [RayError("The node died. Long"), (-9, ""), (130, ""), (-15, ""), (0, "")],
        "cross/bc-batch_size-24": [RayTaskError()],
        "cross/bc-batch_size-32": [(2, "node host: does not see it")],
    }
    ray, made = played(lambda name, times: ends[name][times - 1])
    work = on(ray)
    assert [(one.state, one.line) for one in work] == [
        ("done", ""),
        ("failed", "ValueError: no space left"),
        ("failed", "node host: does not see it"),
    ]
    assert [made.count(name) for name in ends] == [5, 1, 1]
    assert [one.state for one in standing_of(tmp_path / "out")] == ["waiting", "failed", "failed"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".lock", "cross", PLAN]


def test_a_cell_that_is_lost_again_and_again_has_failed(on):
    ray, made = played(lambda name, times: (-9, "") if name.endswith("24") else (0, ""))
    work = on(ray)
    assert [one.state for one in work] == ["done", "failed", "done"]
    assert work[1].line == f"lost {MAX_LOSSES + 1} times, at last: its process ended with exit status -9"
    assert made.count(work[1].cell.name) == MAX_LOSSES + 1


def test_nodes_are_asked_before_anything_is_made(on):
    ray, made = played(lambda name, times: (0, ""), faults="does not see the folder")
    with pytest.raises(UserError, match=r"^node host \(192\.0\.2\.1\): does not see the folder$"):
        on(ray)
    ray, made = played(lambda name, times: (0, ""), faults=RayError("The remote function failed to import. sys.path"))
    with pytest.raises(
        UserError,
        match=r"cannot make a run \(RayError: The remote function failed to import\); it needs diffcps .* JAX",
    ):
        on(ray)
    with pytest.raises(UserError) as error:
        on(ray, STUDY + "[ray]\ncpus = 5\n")
    assert "no node of the cluster has so many (host (192.0.2.1) has 4 and 0)" in str(error.value)
    assert made == []


# --- A node ---


def test_a_node_has_the_folder_and_the_versions(tmp_path):
    (tmp_path / cluster.WORD).write_text("word")
    place = (str(tmp_path), "word", str(tmp_path), cluster._versions())
    assert cluster._fault(*place) == ""
    for number, other, message in (
        (0, str(tmp_path / "no"), "does not see the folder"),
        (1, "of another command", "take a folder for --out that all nodes share"),
        (2, str(tmp_path / "no"), "where the command was given"),
        (3, "diffcps 0.0.1 with JAX 0.1", rf"has {place[3]}, where this command has diffcps 0\.0\.1 with JAX 0\.1"),
    ):
        changed = (*place[:number], other, *place[number + 1 :])
        assert re.search(message, cluster._fault(*changed))
        assert cluster._make("cross/bc", "", 1, 0, cast(Any, changed))[0] == 2


def test_cells_of_a_node_have_cores_of_their_own(monkeypatch, tmp_path):
    monkeypatch.setattr(cluster.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 2, 5, 7})
    monkeypatch.setattr(cluster, "_ray", lambda: played(lambda *_: None)[0])
    with cluster._own_cores(2) as first, cluster._own_cores(1) as second:
        with cluster._own_cores(2) as third:
            assert (first, second, third) == ([1, 2], [5], [])  # third: there are not so many
    with cluster._own_cores(4) as again:
        assert again == [1, 2, 5, 7]
    monkeypatch.setattr(cluster, "_ray", lambda: played(lambda *_: None, cpus=8.0)[0])
    with cluster._own_cores(1) as of_a_quota:
        assert of_a_quota == []


@pytest.mark.parametrize(("cancelled", "gpus", "platforms"), [(True, 0, "cpu"), (False, 1, "cuda,cpu")])
def test_a_cell_is_a_process_that_saves_when_its_task_is_cancelled(cancelled, gpus, platforms, monkeypatch, tmp_path):
    (tmp_path / cluster.WORD).write_text("word")
    asked: list[str] = []
    started: list[Any] = []

    def poll() -> int | None:
        asked.append("poll")
        if cancelled and len(asked) == 2:
            signal.raise_signal(signal.SIGINT)  # so does Ray
        return None if len(asked) < 6 else 130 if cancelled else 0

    def start(*words: Any) -> Any:
        started.append(words)
        return SimpleNamespace(
            poll=poll, terminate=lambda: asked.append("terminate"), kill=lambda: asked.append("kill"), returncode=130
        )

    monkeypatch.setattr(cluster.time, "sleep", lambda _: None)
    monkeypatch.setattr(cluster, "_ray", lambda: played(lambda *_: None, cpus=-1.0)[0])
    monkeypatch.setattr(cluster, "start_worker", start)
    place = (str(tmp_path), "word", str(tmp_path.parent), cluster._versions())
    assert cluster._make("cross/bc", "of the plan", 1, gpus, place) == (130, "")
    ((*words, environment, here),) = started
    assert words == [tmp_path, Path("of the plan"), "cross/bc", []] and here == tmp_path.parent
    assert environment["JAX_PLATFORMS"] == platforms
    assert asked.count("terminate") == cancelled and asked[-1] == "kill"


def test_a_cell_waits_for_the_process_that_holds_its_run(monkeypatch, tmp_path):
    held = locked(tmp_path)
    held.__enter__()
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            held.__exit__(None, None, None)

    monkeypatch.setattr(cluster.time, "sleep", sleep)
    cluster._wait_until_free(tmp_path, lambda: False)
    assert len(slept) == 3
    with locked(tmp_path):
        cluster._wait_until_free(tmp_path, lambda: len(slept) > 5)  # asked to stop
    assert len(slept) == 6


def test_a_process_that_nobody_waits_for_ends(tmp_path):
    """Its parent has died before it looked."""
    command = [sys.executable, "-m", "diffcps.study.worker", str(tmp_path), str(tmp_path), "cross/bc", "1"]
    assert subprocess.run(command, timeout=120).returncode == -signal.SIGTERM


def test_a_cell_that_has_a_gpu_uses_it(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda,cpu")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    worker._check_gpu()
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    with pytest.raises(UserError, match=r"JAX finds no GPU here; pip install 'diffcps\[cuda\]'"):
        worker._check_gpu()


# --- A real cluster ---


@pytest.fixture(scope="module")
def real() -> Iterator[Any]:
    """A head without CPUs and two nodes with one each."""
    pytest.importorskip("ray", reason="Ray is the extra `distributed`")
    from ray.cluster_utils import Cluster  # pyright: ignore[reportMissingImports]

    small = {"object_store_memory": 80_000_000}
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **small})
    for _ in range(2):
        found.add_node(num_cpus=1, **small)
    yield found
    found.shutdown()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("undisturbed")
    with started(written(folder, STUDY), folder / "out") as process:
        process.communicate(timeout=300)
    assert process.returncode == 0
    return numbers(folder / "out")


def numbers(out: Path) -> dict[str, str]:
    """Everything that the runs have measured, but for the times."""
    paths = [*out.rglob("*.jsonl"), *out.rglob("evaluations/*.json")]
    assert len(paths) == 3 * 3
    return {str(path.relative_to(out)): re.sub(r'"updates_per_second": [^,}]*', "", path.read_text()) for path in paths}


def workers(out: Path) -> list[int]:
    """The processes that train for a study."""
    found = subprocess.run(["pgrep", "-f", f"diffcps.study.worker {out} "], capture_output=True, text=True)
    return list(map(int, found.stdout.split()))


def parent(process: int) -> int:
    return int(subprocess.run(["ps", "-o", "ppid=", "-p", str(process)], capture_output=True, text=True).stdout)


def name_of(process: int) -> str:
    return Path(f"/proc/{process}/cmdline").read_text().split("\0")[5]


def one_in_the_middle(out: Path) -> int:
    """The process of a cell that has made some of its evaluations."""

    def found() -> list[int]:
        rows = {process: RunFolder(out / name_of(process)).evaluations for process in workers(out)}
        return [process for process, path in rows.items() if path.exists() and len(path.read_text().splitlines()) > 6]

    wait_for(lambda: bool(found()))
    return found()[0]


@pytest.mark.slow
@pytest.mark.parametrize("what", ["worker of Ray", "process of the cell", "node"])
def test_a_loss_changes_no_number(what, real, undisturbed, tmp_path):
    plan, out = written(tmp_path, STUDY), tmp_path / "out"
    with started(plan, out, "--ray", real.address) as process:
        cell = one_in_the_middle(out)
        if what == "node":
            real.remove_node(real.list_all_nodes()[-1], allow_graceful=False)
        else:
            os.kill(cell if what == "process of the cell" else parent(cell), signal.SIGKILL)
        said, errors = process.communicate(timeout=300)
    if what == "node":
        real.add_node(num_cpus=1)
    assert (process.returncode, errors) == (0, b"")
    assert b"waiting: cross/bc-batch_size-" in said and b"3 of 3 runs done" in said
    assert numbers(out) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_command_leaves_nobody_and_goes_on(number, real, undisturbed, tmp_path):
    plan, out = written(tmp_path, STUDY), tmp_path / "out"
    with started(plan, out, "--ray", real.address) as process:
        one_in_the_middle(out)
        process.send_signal(number)
        said, errors = process.communicate(timeout=120)
    if number == signal.SIGKILL:  # by which Ray kills what works for it, too
        wait_for(lambda: not workers(out))
    else:
        assert process.returncode == 130, errors
        assert errors == b"diffcps: stopped, and saved; the same command goes on\n"
        assert workers(out) == [] and b"waiting: " not in said
        assert any("interrupted, and saved" in path.read_text() for path in out.rglob("*.log"))
    with started(plan, out, "--ray", real.address) as again:
        said, errors = again.communicate(timeout=300)
    assert (again.returncode, errors) == (0, b"")
    assert b"3 of 3 runs done" in said
    assert numbers(out) == undisturbed


@pytest.mark.slow
def test_a_cell_that_fails_is_recorded_with_its_line(real, tmp_path):
    text = STUDY.replace("1000", "20") + "[methods.diffuser]\nhorizon = 64\npadded_below = 0\n"
    with started(written(tmp_path, text), tmp_path / "out", "--ray", real.address) as process:
        said, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert b"3 of 4 runs done" in said
    assert b"1 failed (cross/diffuser: " in errors and b"the windows of diffuser need 65" in errors
    assert f"study run {tmp_path / 'plan.toml'} --out {tmp_path / 'out'} --ray {real.address}".encode() in errors
    assert [one.state for one in standing_of(tmp_path / "out")] == ["done", "done", "done", "failed"]
