"""TensorBoard and Weights & Biases get every number of every member. Each test fails when nothing is written."""

import struct

import pytest

from diffcps.records.record import Evaluation, Measurement, Played
from diffcps.run.loggers import TensorBoard, Together, WandB
from diffcps.run.progress import Silent
from tests.run.test_folder import record_of

RECORD = record_of(sweep={"kappa": (0.01, 0.5)})
MEMBERS = RECORD.members
MEASURED = [Measurement(50, member, {"critic/loss": 1.5, "actor/bc_loss": None}, 80.0) for member in MEMBERS]
EVALUATED = [
    Evaluation(
        100, MEMBERS[0], 7.0, (7.0,), (3,), {"selection/loss": 0.25}, also={"sample": Played(5.0, (5.0,), (2,))}
    ),
    Evaluation(100, MEMBERS[1], None, (), (), {"selection/loss": 0.5, "critic/q": None}),
]


def tell(display) -> None:
    display.start(RECORD, 0, {})
    display.logged(50, MEASURED)
    display.evaluated(100, EVALUATED)


def test_tensorboard_files_hold_the_scalars(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore

    with TensorBoard(tmp_path) as display:
        tell(display)

    def scalars(folder) -> dict[str, tuple[int, float]]:
        """The events of a member: records of length, its checksum, content, its checksum."""
        (path,) = folder.iterdir()
        content, found = path.read_bytes(), {}
        while content:
            (size,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + size])
            found |= {value.tag: (event.step, value.simple_value) for value in event.summary.value}
            content = content[16 + size :]
        return found

    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("seed_0-kappa_0.01", "seed_0-kappa_0.5", "seed_3-kappa_0.01", "seed_3-kappa_0.5")
    ]
    first = scalars(tmp_path / "seed_0-kappa_0.01")
    assert first["critic/loss"] == (50, 1.5) and first["kappa"] == (50, pytest.approx(0.01))
    assert first["evaluation/score"] == (100, 7.0) and first["evaluation/selection/loss"] == (100, 0.25)
    assert "actor/bc_loss" not in first
    second = scalars(tmp_path / "seed_3-kappa_0.01")
    assert "evaluation/score" not in second and second["evaluation/selection/loss"] == (100, 0.5)
    assert "evaluation/critic/q" not in second


def test_wandb_offline_writes_a_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with WandB("a-project", tmp_path) as display:
        tell(display)
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    (file,) = run.glob("*.wandb")
    content = file.read_bytes()
    for name in (b"seed 0, kappa 0.01/critic/loss", b"seed 0, kappa 0.01/evaluation/score"):
        assert name in content


class Fake:
    """Stands where Weights & Biases' run does, where that is not installed."""

    def __init__(self):
        self.logged: list[tuple[dict[str, float], int]] = []
        self.finished = False

    def log(self, data: dict[str, float], step: int) -> None:
        self.logged.append((data, step))

    def finish(self) -> None:
        self.finished = True


def test_names_of_weights_and_biases(tmp_path, monkeypatch):
    import sys
    from types import SimpleNamespace

    fake = Fake()
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **_: fake))
    with WandB("a-project", tmp_path) as display:
        tell(display)
    assert fake.finished
    (metrics, at), (scores, then) = fake.logged
    assert (at, then) == (50, 100)
    assert metrics["seed 3, kappa 0.5/critic/loss"] == 1.5 and "seed 0, kappa 0.01/actor/bc_loss" not in metrics
    assert scores == {
        "seed 0, kappa 0.01/evaluation/score": 7.0,
        "seed 0, kappa 0.01/evaluation/score/sample": 5.0,
        "seed 0, kappa 0.01/evaluation/selection/loss": 0.25,
        "seed 3, kappa 0.01/evaluation/selection/loss": 0.5,
    }


def test_together_tells_all(tmp_path):
    class Heard(Silent):
        def __init__(self):
            self.heard: list[str] = []

        def start(self, record, update, best):
            self.heard.append("start")

        def logged(self, update, rows):
            self.heard.append("logged")

        def evaluated(self, update, rows):
            self.heard.append("evaluated")

    displays = [Heard(), Heard()]
    tell(Together(displays))
    assert [display.heard for display in displays] == [["start", "logged", "evaluated"]] * 2
