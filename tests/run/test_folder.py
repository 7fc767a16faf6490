"""The run folder: nothing from the future, and records that come back as they were written."""

import dataclasses
import json
import math

import pytest

from diffcps.algorithms import crr, diffcps
from diffcps.evaluation.scores import Score, Scores
from diffcps.records import fields
from diffcps.records.folder import RunFolder
from diffcps.records.record import Evaluation, Measurement, MemberScores, Played, RunRecord, Summary, differences
from diffcps.records.settings import Settings
from diffcps.types import DatasetInfo, EnvironmentSpec, Reading, Spec, UserError

HOPPER = EnvironmentSpec("Hopper-v5")
DATASET = DatasetInfo("a.hdf5", "abc", HOPPER, -20.25, 3234.5, (-1.0,), (1.0,), observation_mean=(0.5,))
DATASET = dataclasses.replace(DATASET, reading=Reading(normalise_observation=True))


def record_of(**changes) -> RunRecord:
    """A run of two seeds with kappa swept, an infinite value among its fields."""
    facts = {
        "algorithm": "diffcps",
        "config": diffcps.Config(kappa=0.01, max_grad_norm=math.inf, width=16),
        "sweep": {"kappa": (0.01, math.inf)},
        "settings": Settings(env=HOPPER, seeds=(0, 3), updates=100),
        "environment": HOPPER,
        "reference": (-20.25, 3234.5),
        "dataset": DATASET,
        "transitions": 1000,
        "data_return": 466.5,
        "spec": Spec(11, 3),
        "command": "diffcps train diffcps",
        "versions": {"jax": "1.2"},
        "device": "cpu x 2",
    }
    return RunRecord(**(facts | changes))


RECORDED = EnvironmentSpec(
    "Hopper-v5",
    "{}",
    9,
    '{"kwargs": {"g": 1}, "max_episode_steps": 5, "additional_wrappers": [{"name": "ClipReward"}]}',
)


def test_specifications_come_back():
    for environment in (None, HOPPER, RECORDED, EnvironmentSpec("plant:make", '{"a": [1, null]}')):
        settings = Settings(env=environment or "none", seeds=(0, 3), updates=100)
        dataset = dataclasses.replace(DATASET, environment=environment)
        record = record_of(environment=environment, dataset=dataset, settings=settings)
        assert RunRecord.from_json(json.loads(json.dumps(record.to_json()))) == record


def test_records_come_back(tmp_path):
    folder, record = RunFolder(tmp_path), record_of()
    folder.write_record(record)
    assert folder.read_record() == record
    members = record.members
    assert [member.swept["kappa"] for member in members] == [0.01, 0.01, math.inf, math.inf]
    measured = [Measurement(50, members[3], {"critic/loss": 1.5, "actor/bc_loss": None}, 80.0)]
    folder.append_measurements(measured)
    assert folder.read_measurements(members) == measured
    evaluated = [Evaluation(100, members[1], 2.0, (1.0, 3.0), (10, 20), {"selection/loss": 0.5, "critic/q": None})]
    evaluated += [dataclasses.replace(evaluated[0], also={"sample": Played(4.0, (3.0, 5.0), (1, 2))})]
    folder.append_evaluations(evaluated)
    assert folder.read_evaluations(members) == evaluated
    one, mean = Score((100,), 2.0, 0.75), Score((50, 100), 1.5, None)
    scores = Scores(last=one, best=one, mean_of_last=mean, offline_selected=None)
    further = MemberScores(members[2], scores, None, {"sample": scores._replace(last=mean)})
    rows = (MemberScores(members[0], scores), MemberScores(members[1], None), further)
    summary = Summary("diffcps", None, 100, None, None, rows)
    folder.write_summary(summary)
    assert folder.read_summary() == summary


def test_runs_of_earlier_versions_are_read_without_what_they_do_not_say():
    content = record_of(settings=Settings(env=HOPPER, seeds=(0, 3), updates=100, also_act=("sample",))).to_json()
    assert RunRecord.from_json(content).settings.also_act == ("sample",)
    first = {
        "env",
        "env_kwargs",
        "max_episode_steps",
        "updates",
        "eval_every",
        "log_every",
        "episodes",
        "eval_seed",
        "seeds",
    }
    added = set(fields.field_types(Settings)) - first
    assert added >= {"validation", "also_act", "keep", "keep_every"}
    old = {name: value for name, value in content.items() if name not in added}
    assert RunRecord.from_json(old) == record_of()


def test_fields_are_read_under_the_names_that_they_had():
    record = record_of(algorithm="crr", config=crr.Config(action_choice="mean"), sweep={})
    content = record.to_json()
    config = content["config"]
    assert isinstance(config, dict)
    earlier = {"acting" if name == "action_choice" else name: value for name, value in config.items()}
    assert "acting" in earlier and RunRecord.from_json({**content, "config": earlier}) == record


def test_a_swept_field_stands_in_the_sweep_alone(tmp_path):
    """With kappa swept, no single kappa is that of the run."""
    content = record_of().to_json()
    assert content["sweep"] == {"kappa": [0.01, "inf"]}
    config = content["config"]
    assert isinstance(config, dict) and "kappa" not in config and config["width"] == 16
    old = content | {"config": config | {"kappa": 0.05}}  # as written by earlier versions
    assert RunRecord.from_json(old) == record_of()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"config": diffcps.Config(kappa=0.01, max_grad_norm=math.inf, width=17)}, ("width", 16, 17)),
        ({"sweep": {"kappa": (0.01, 0.5)}}, ("kappa", [0.01, "inf"], [0.01, 0.5])),
        ({"sweep": {}}, ("kappa", [0.01, "inf"], 0.01)),
        ({"settings": Settings(env=HOPPER, seeds=(0,), updates=100)}, ("seeds", [0, 3], [0])),
        (
            {"settings": Settings(env=HOPPER, seeds=(0, 3), updates=100, also_act=("sample",))},
            ("also_act", [], ["sample"]),
        ),
        ({"environment": None, "reference": None}, ("env", "Hopper-v5", None)),
        ({"environment": RECORDED}, ("env", "Hopper-v5", "Hopper-v5(g=1), ClipReward, 9 steps")),
        (
            {"dataset": DatasetInfo("a.hdf5", "abd", HOPPER, -20.25, 3234.5, (-1.0,), (1.0,))},
            ("sha256", "abc", "abd"),
        ),
        ({"transitions": 999}, ("transitions", 1000, 999)),
    ],
)
def test_what_a_continuation_must_not_change(changes, expected):
    assert next(differences(record_of(), record_of(**changes))) == expected


def test_what_a_continuation_may_change():
    moved = dataclasses.replace(DATASET, source="b.hdf5")
    longer = Settings(env=HOPPER, seeds=(0, 3), updates=200)
    now = record_of(dataset=moved, settings=longer, command="x", versions={}, device="gpu", data_return=None)
    assert list(differences(record_of(), now)) == []


def test_rows_after_the_checkpoint_are_dropped(tmp_path):
    folder, members = RunFolder(tmp_path), record_of().members
    folder.append_measurements([Measurement(update, members[0], {}, 1.0) for update in (100, 200, 300)])
    folder.append_evaluations([Evaluation(update, members[0], None, (), (), {}) for update in (200, 400)])
    folder.forget_after(200)
    assert [row.update for row in folder.read_measurements(members)] == [100, 200]
    assert [row.update for row in folder.read_evaluations(members)] == [200]


def test_a_folder_without_a_run_says_so(tmp_path):
    with pytest.raises(UserError, match=r"not a run folder \(it has no config.json\)"):
        RunFolder(tmp_path).read_record()
    config = tmp_path / "config.json"
    config.write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        RunFolder(tmp_path).read_record()
    config.write_text(json.dumps(record_of().to_json() | {"algorithm": "magic"}))
    with pytest.raises(UserError, match=rf"{config}: names no algorithm of this version of diffcps \(magic\)"):
        RunFolder(tmp_path).read_record()
    config.write_text('{"algorithm": "diffcps"}')
    with pytest.raises(UserError, match="it has no 'sweep'"):
        RunFolder(tmp_path).read_record()
