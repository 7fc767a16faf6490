"""Rows in the memory of the machine: the same numbers to the bit, and no copy of them with the devices that train."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from diffcps import UserError
from diffcps.algorithms import awr, bc, diffuser, diffusion_bc, qgpo
from diffcps.records.folder import RunFolder
from diffcps.records.settings import Settings
from diffcps.run.train import train
from diffcps.training import members
from diffcps.training.members import Program, expand
from diffcps.training.timing import made_up_data
from diffcps.types import Spec

pytestmark = pytest.mark.usefixtures("quick_compilation")
SPEC, ROWS = Spec(3, 2), 200
SETTINGS = Settings(env="none", updates=24, eval_every=12, log_every=6, seeds=(0, 1))
CONFIGS = {
    "bc": bc.Config(width=8, batch_size=8),
    "awr": awr.Config(width=8, second_width=8, batch_size=8, iterations=2, critic_share=1, actor_share=2),
    "qgpo": qgpo.Config(
        **{"width": 8, "depth": 1, "guidance_depth": 1, "behaviour_width": 8, "behaviour_depth": 1, "num_features": 4},
        **{"batch_size": 8, "behaviour_batch_size": 8, "support_actions": 2, "num_steps": 2},
    ),
    "diffuser": diffuser.Config(
        **{"width": 32, "multipliers": (1, 2), "horizon": 8, "num_steps": 2, "batch_size": 4, "plans": 2}
    ),
}
NOISY = diffusion_bc.Config(width=8, batch_size=8)


@pytest.fixture(scope="module")
def dataset():
    return made_up_data(SPEC, ROWS)


def made(out, dataset, config, resume=False, **changes) -> dict[str, object]:
    """All that a run leaves behind but clocks."""
    train(config, dataset, Settings(**vars(SETTINGS) | changes), out=out, resume=resume)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    files = {path.name: path.read_bytes() for path in (out / "checkpoints").iterdir()}
    return files | {
        "metrics": [{name: value for name, value in row.items() if name != "updates_per_second"} for row in rows],
        "evaluations": (out / "evaluations.jsonl").read_text(),
    }


@pytest.mark.parametrize("name", ["bc", "awr", "qgpo", pytest.param("diffuser", marks=pytest.mark.slow)])
def test_a_run_is_the_same_wherever_its_rows_lie(name, dataset, tmp_path):
    """One stage, labels of whole episodes, what a stage computes a piece after the other, windows."""
    config = CONFIGS[name]
    ours = made(tmp_path / "host", dataset, config, rows="host")
    assert ours == made(tmp_path / "device", dataset, config)
    assert "last.safetensors" in ours and ours["metrics"]
    assert json.loads((tmp_path / "host" / "config.json").read_text())["rows"] == "host"


def test_a_run_goes_on_with_its_rows_elsewhere(dataset, tmp_path):
    config, whole = CONFIGS["bc"], made(tmp_path / "whole", dataset, CONFIGS["bc"])
    made(tmp_path / "run", dataset, config, updates=12)
    assert made(tmp_path / "run", dataset, config, resume=True, rows="host") == whole


def test_the_size_of_a_block_changes_nothing(dataset, monkeypatch):
    waited: list[members.Tree] = []

    def trained():
        program = Program(lambda swept: diffusion_bc.make(NOISY, SPEC), expand([0, 1], {}), dataset)
        return jax.tree.map(np.asarray, program.advance(program.init(), np.ones(2, bool), 3, 26, wait=waited.append))

    whole = trained()
    assert len(waited) == 1
    for name, value, blocks in (("BLOCK", 12, 2), ("BLOCK_BYTES", 16_000, 2), ("BLOCK_BYTES", 1, 23)):
        monkeypatch.setattr(members, name, value)  # an update of both members reads 2 x 8 x 49 bytes or some more
        waited.clear()
        jax.tree.map(np.testing.assert_array_equal, trained(), whole)
        assert len(waited) == blocks
        monkeypatch.undo()


def test_devices_that_train_have_no_copy(dataset):
    """Where there are as many as members each has one of its own, if it is not told otherwise."""

    def copies(rows: members.Rows) -> int:
        before = {id(array) for array in jax.live_arrays()}
        program = Program(lambda swept: bc.make(CONFIGS["bc"], SPEC), expand([0, 1], {}), dataset, rows)
        program.advance(program.init(), np.ones(2, bool), 0, 2)[1].block_until_ready()
        found = [array for array in jax.live_arrays() if array.shape == (ROWS, 3) and id(array) not in before]
        assert len(found) == 2  # observations and next observations
        return max(len(array.devices()) for array in found)

    assert copies("host") == 1
    assert copies("device") == len(members.devices_for(2))


# --- Memory ---


def test_a_run_says_what_it_has_held(dataset, tmp_path):
    made(tmp_path / "run", dataset, CONFIGS["bc"])
    peak = RunFolder(tmp_path / "run").read_summary().peak_memory
    assert peak is not None and peak.device is None  # of a CPU it is the host's
    assert 100e6 < peak.host < 100e9


def test_rows_that_do_not_fit_are_refused_with_the_way_out(dataset, tmp_path, monkeypatch):
    stats = {"bytes_limit": 10_000, "bytes_in_use": 6_000, "peak_bytes_in_use": 7_000}
    monkeypatch.setattr(jax, "local_devices", lambda: [SimpleNamespace(memory_stats=lambda: stats)] * 2)
    line = f"made up: its {ROWS} rows take 0 MB, and the device that trains has 0 MB left: --rows host"
    with pytest.raises(UserError, match=line):
        made(tmp_path / "run", dataset, CONFIGS["bc"])
    assert not (tmp_path / "run").exists()
    made(tmp_path / "run", dataset, CONFIGS["bc"], rows="host")
    peak = RunFolder(tmp_path / "run").read_summary().peak_memory
    assert peak is not None and peak.device == 7_000
