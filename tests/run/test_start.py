"""Runs that begin with another run's weights, and runs that hold episodes out."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import diffcps
from diffcps.algorithms import bc, diffusion_bc
from diffcps.cli.main import main
from diffcps.data.transforms import normalise_observation
from diffcps.records.folder import RunFolder
from diffcps.run.progress import Silent
from diffcps.run.resolve import Given, resolve
from diffcps.run.start import fitted, start_of
from diffcps.types import Configuration, Dataset
from tests.problems import random_dataset

pytestmark = pytest.mark.usefixtures("quick_compilation")
CONFIG = bc.Config(width=8, batch_size=8)
SETTINGS = diffcps.Settings(env="none", updates=2, eval_every=2, log_every=2)


def newer() -> Dataset:
    dataset = random_dataset()
    return dataclasses.replace(
        dataset,
        observation=2 * np.asarray(dataset.observation) + 1,
        info=dataclasses.replace(dataset.info, source="newer numbers", sha256="1"),
    )


def arrays(out: Path, name: str = "last") -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(out / "checkpoints" / f"{name}.safetensors")


@pytest.fixture(scope="module")
def origin(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "origin"
    diffcps.train(CONFIG, normalise_observation(random_dataset()), SETTINGS, out=out)
    return out


class StopAtOnce(Silent):
    def start(self, record, update, best):
        raise KeyboardInterrupt


def test_every_member_begins_with_the_only_one_and_the_other_run_is_not_needed_to_go_on(origin, tmp_path):
    settings = dataclasses.replace(SETTINGS, updates=4, seeds=(0, 1))
    mine = tmp_path / "origin"
    shutil.copytree(origin, mine)
    out = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        diffcps.train(CONFIG, newer(), settings, out=out, init_from=mine, display=StopAtOnce())
    first, before = arrays(out), arrays(mine)
    assert set(first) == set(before) and any("mu" in name for name in first)  # the optimiser's memory, too
    for name, array in first.items():
        np.testing.assert_array_equal(array, np.repeat(before[name], 2, axis=0))

    whole = tmp_path / "whole"
    diffcps.train(CONFIG, newer(), settings, out=whole, init_from=mine)
    shutil.rmtree(mine)
    diffcps.train(CONFIG, newer(), settings, out=out, init_from=mine, resume=True)
    for name, array in arrays(whole).items():
        np.testing.assert_array_equal(array, arrays(out)[name])
    assert (out / "evaluations.jsonl").read_text() == (whole / "evaluations.jsonl").read_text()
    diffcps.train(CONFIG, newer(), settings, out=out, resume=True)  # nor does it have to be named
    with pytest.raises(diffcps.UserError, match="cannot resume with --init-from other: the run began with the weights"):
        diffcps.train(CONFIG, newer(), settings, out=out, init_from="other", resume=True)


def test_observations_are_scaled_as_the_weights_know_them(origin, tmp_path):
    out = tmp_path / "run"
    diffcps.train(CONFIG, newer(), SETTINGS, out=out, init_from=origin)
    now, before = (RunFolder(path).read_record() for path in (out, origin))
    assert now.dataset.observation_mean == before.dataset.observation_mean is not None
    assert now.dataset.observation_std == before.dataset.observation_std
    assert now.init_from is not None and now.init_from.run == str(origin)
    content = json.loads((out / "config.json").read_text())["init_from"]
    assert set(content) == {"run", "sha256"} and len(content["sha256"]) == 64
    with pytest.raises(diffcps.UserError, match=r"scaled in another way .*: load it without normalise_observation"):
        diffcps.train(CONFIG, normalise_observation(newer()), SETTINGS, out=tmp_path / "other", init_from=origin)


def test_what_does_not_fit_is_refused_and_named(origin, tmp_path):
    def refused(
        says: str, config: Configuration = CONFIG, dataset: Dataset | None = None, settings=SETTINGS, init_from=origin
    ):
        with pytest.raises(diffcps.UserError, match=says):
            diffcps.train(config, dataset or newer(), settings, out=tmp_path / "run", init_from=init_from)
        assert not (tmp_path / "run").exists()

    refused("has width 8, this run 16, .*: take width 8, too", dataclasses.replace(CONFIG, width=16))
    refused("is a run of bc, this one of diffusion_bc", diffusion_bc.Config(width=8))
    refused("not a run folder", init_from=tmp_path)
    box = dataclasses.replace(newer().info, action_low=(-2.0, -2.0), action_high=(2.0, 2.0))
    wider = dataclasses.replace(newer(), info=box)
    refused(
        r"actions lie in the box \[-2, -2\] to \[2, 2\], those of .* \[-1, -1\]",
        dataset=wider,
    )
    two = tmp_path / "two"
    diffcps.train(CONFIG, newer(), dataclasses.replace(SETTINGS, seeds=(0, 1)), out=two)
    refused("has 2 members, this run 3", settings=dataclasses.replace(SETTINGS, seeds=(0, 1, 2)), init_from=two)
    diffcps.train(
        CONFIG, newer(), dataclasses.replace(SETTINGS, seeds=(5, 6)), out=tmp_path / "as-many", init_from=two
    )  # the way out


def test_the_command_begins_with_weights(tmp_path, capsys):
    common = ["--dataset", "builtin", "--env", "none", "--updates", "2", "--eval-every", "2", "--log-every", "2"]
    common += ["--width", "8", "--batch-size", "8"]
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    assert main(["train", "bc", *common, "--normalise-observation", "--out", first]) == 0
    assert main(["train", "bc", *common, "--normalise-observation", "--init-from", first, "--out", second]) == 0
    again = ["train", "bc", *common, "--normalise-observation", "--init-from", first, "--out", second, "--resume"]
    assert main(again) == 0  # the same command goes on
    assert main(["train", "bc", "--out", second, "--resume", "--updates", "4"]) == 0
    capsys.readouterr()
    assert main(["train", "bc", *common, "--no-normalise-observation", "--init-from", first, "--out", "x"]) == 2
    assert "its observations were normalised, and its weights know them so: say nothing" in capsys.readouterr().err


def test_diagnosis_is_measured_on_the_episodes_held_out(tmp_path):
    """The held-out episodes have actions that no other has: the loss on them is another one."""
    dataset = random_dataset()
    settings = dataclasses.replace(SETTINGS, validation=0.25)
    summary = diffcps.train(CONFIG, dataset, settings, out=tmp_path / "run")
    record = RunFolder(tmp_path / "run").read_record()
    assert (record.transitions, record.held_out, record.settings.validation) == (48, 16, 0.25)
    plain = diffcps.train(CONFIG, dataset, SETTINGS, out=tmp_path / "plain")
    assert RunFolder(tmp_path / "plain").read_record().held_out == 0
    assert summary.data_return == plain.data_return
    diffcps.train(CONFIG, dataset, settings, out=tmp_path / "run", resume=True)
    with pytest.raises(diffcps.UserError, match=r"another validation: the run has 0\.25, you gave 0\.0"):
        diffcps.train(CONFIG, dataset, SETTINGS, out=tmp_path / "run", resume=True)
    with pytest.raises(diffcps.UserError, match=r"validation is 1\.0: it must be below 1"):
        diffcps.train(CONFIG, dataset, dataclasses.replace(SETTINGS, validation=1.0), out=tmp_path / "all")


def test_training_never_sees_what_is_held_out(tmp_path):
    """Another content of the held-out rows changes their loss, and not a bit of the training."""
    from diffcps.data.split import hold_out

    dataset, settings = random_dataset(), dataclasses.replace(SETTINGS, validation=0.25)
    held_out = hold_out(dataclasses.replace(dataset, reward=np.arange(64, dtype=np.float32)), 0.25)[1]
    action = np.array(dataset.action)
    action[np.asarray(held_out.reward, int)] *= -1
    summaries = [
        diffcps.train(CONFIG, data, settings, out=tmp_path / name)
        for name, data in (("one", dataset), ("other", dataclasses.replace(dataset, action=action)))
    ]
    for name, array in arrays(tmp_path / "one").items():
        np.testing.assert_array_equal(array, arrays(tmp_path / "other")[name])
    one, other = (summary.members[0].selected for summary in summaries)
    assert one is not None and other is not None and abs(one.loss - other.loss) > 1e-3


def test_observations_far_from_0_keep_their_digits(tmp_path):
    """Those of a file in float64 are scaled by the numbers of the start before they are cast to float32."""
    rng = np.random.default_rng(0)
    observation = np.concatenate([1e9 + rng.normal(size=(200, 2)).cumsum(axis=0), np.full((200, 1), 5.0)], axis=1)
    fields = {"observations": observation, "actions": rng.uniform(-1, 1, (200, 1)), "rewards": rng.normal(size=200)}
    np.savez(tmp_path / "old.npz", **fields, terminals=np.arange(200) % 20 == 19)
    moved = {"observations": 0.5 + observation, "actions": fields["actions"], "rewards": fields["rewards"]}
    np.savez(tmp_path / "new.npz", **moved, terminals=np.arange(200) % 20 == 19)
    origin = tmp_path / "origin"
    old = diffcps.load_dataset(tmp_path / "old.npz", normalise_observation=True)
    diffcps.train(CONFIG, old, dataclasses.replace(SETTINGS, env="none"), out=origin)
    new = resolve("bc", Given(source=str(tmp_path / "new.npz")), start=start_of(origin, None)).load()
    assert (new.info.observation_mean, new.info.observation_std) == (
        old.info.observation_mean,
        old.info.observation_std,
    )
    mean, std = observation[:, :2].mean(axis=0), observation[:, :2].std(axis=0)
    expected = (moved["observations"][:, :2] - mean) / std
    np.testing.assert_allclose(np.asarray(new.observation)[:, :2], expected, rtol=0, atol=1e-6)
    followed = np.flatnonzero(np.arange(200) % 20 != 19)  # a terminal row has no next observation
    following = np.asarray(new.next_observation)[followed, :2]
    np.testing.assert_allclose(following, expected[followed + 1], rtol=0, atol=1e-6)
    assert not np.asarray(new.observation)[:, 2].any()  # constant in the data of the start


def test_the_datasets_own_arrays_stay_as_they_are(origin):
    dataset = newer()
    before = np.array(dataset.observation)
    start = start_of(origin, None)
    assert start is not None
    fitted(dataset, start)
    np.testing.assert_array_equal(dataset.observation, before)
