"""What a plan says, and what is refused of it, by file and key."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from diffcps.algorithms import bc, diffcps, td3_bc
from diffcps.records import fields
from diffcps.records.settings import Settings
from diffcps.study.plan import Final, Resources, Study, read_study, study_of
from diffcps.types import Reading, UserError

PLAN = """
[study]
name = "a test"
seeds = [0, 1]
updates = 100
eval_every = 50

[final]
episodes = 3
also_act = ["sample"]

[ray]
cpus = 2

[data.replay]
dataset = "builtin"
env = "Hopper-v5"
preset = "hopper-medium-replay"

[data.medium]
task = "hopper-medium-v2"
top_episodes = 0.5
updates = 200

[methods.diffcps]
kappa = [0.02, 0.04]
num_steps = [3, 5]

[methods.diffcps.on.medium]
preset = "none"
kappa = 0.3
width = 64

[methods.cloning]
method = "bc"

[methods.td3_bc]
"""


def plan(text: str = PLAN) -> Study:
    return study_of(tomllib.loads(text), "study")


def test_cells_are_every_method_on_all_data():
    study = plan()
    assert [cell.name for cell in study.cells] == [
        *("replay/diffcps-num_steps-3", "replay/diffcps-num_steps-5", "replay/cloning", "replay/td3_bc"),
        *("medium/diffcps-num_steps-3", "medium/diffcps-num_steps-5", "medium/cloning", "medium/td3_bc"),
    ]
    assert study.name == "a test"
    assert study.final == Final(episodes=3, also_act=("sample",))
    assert study.ray == Resources(cpus=2, gpus=0)
    assert [cell.members for cell in study.cells] == [4, 4, 2, 2, 2, 2, 2, 2]


def test_a_cell_is_what_its_tables_say():
    cells = {cell.name: cell.request for cell in plan().cells}
    first = cells["replay/diffcps-num_steps-3"]
    assert isinstance(first.config, diffcps.Config)
    assert (first.method, first.preset, first.source, first.task) == (
        "diffcps",
        "hopper-medium-replay",
        "builtin",
        None,
    )
    assert (first.config.num_steps, first.config.width) == (3, diffcps.Config().width)
    assert first.sweep == {"kappa": (0.02, 0.04)}
    assert (first.settings.env, first.settings.updates, first.settings.seeds) == ("Hopper-v5", 100, (0, 1))
    other = cells["medium/diffcps-num_steps-5"]
    assert isinstance(other.config, diffcps.Config)
    assert (other.preset, other.task, other.source) == (None, "hopper-medium-v2", "hopper-medium-v2")
    assert (other.config.kappa, other.config.width, other.config.num_steps) == (0.3, 64, 5)
    assert other.sweep == {}
    assert (other.settings.updates, other.reading.top_episodes) == (200, 0.5)
    assert isinstance(cells["medium/cloning"].config, bc.Config)


def test_the_datas_preset_is_for_the_methods_that_have_it():
    of_td3 = {cell.name: cell.request for cell in plan().cells}["replay/td3_bc"]
    assert (of_td3.preset, of_td3.config) == (None, td3_bc.Config())


def test_further_rules_are_for_the_methods_that_have_them():
    text = PLAN.replace("updates = 100", 'updates = 100\nalso_act = ["sample", "softmax_q"]')
    text = text.replace("updates = 200", 'updates = 200\nalso_act = ["argmax_q"]')
    rules = {cell.name: cell.request.settings.also_act for cell in plan(text).cells}
    assert rules["replay/diffcps-num_steps-3"] == ("sample",)  # softmax_q is its own
    assert rules["medium/diffcps-num_steps-5"] == ("argmax_q",)
    assert rules["replay/cloning"] == rules["medium/td3_bc"] == ()


def test_widths_of_levels_are_a_value_and_several_of_them_are_variants():
    tables: dict[str, Any] = {"data": {"d": {"dataset": "builtin"}}, "methods": {"diffuser": {"multipliers": [1, 2]}}}
    (cell,) = study_of(tables, "s").cells
    assert cell.request.config.multipliers == (1, 2)  # pyright: ignore[reportAttributeAccessIssue]
    tables["methods"]["diffuser"]["multipliers"] = [[1, 2], [1, 4]]
    names = [cell.name for cell in study_of(tables, "s").cells]
    assert names == ["d/diffuser-multipliers-1x2", "d/diffuser-multipliers-1x4"]


def test_data_files_lie_beside_the_plan(tmp_path):
    (tmp_path / "own.npz").touch()
    path = tmp_path / "my study.toml"
    path.write_text('[data.own]\ndataset = ["own.npz", "elsewhere.npz"]\n[methods.bc]\n')
    study = read_study(path)
    assert study.cells[0].request.source == f"{tmp_path / 'own.npz'},elsewhere.npz"
    assert study.name == "my study"
    assert study.ray == Resources(cpus=1, gpus=0)
    assert read_study(path, "").cells[0].request.source == "own.npz,elsewhere.npz"


def test_no_word_of_a_data_table_has_two_meanings():
    assert not set(fields.field_types(Settings)) & set(fields.field_types(Reading))
    assert not {"task", "dataset", "preset"} & (set(fields.field_types(Settings)) | set(fields.field_types(Reading)))


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("[study]", "[studdy]", "unknown table studdy: did you mean study?"),
        ("updates = 100", "update = 100", "study: unknown field update: did you mean updates?"),
        ("updates = 100", "updates = -1", "study: updates is -1: it must be 1 or more"),
        ("updates = 100", 'also_act = ["smaple"]', "study.also_act: unknown way to act of these methods smaple"),
        ("updates = 100", 'also_act = "sample"', "study: also_act is 'sample': it must be a list of words"),
        ("updates = 200", 'also_act = ["implicit"]', "data.medium.also_act: unknown way to act of these methods"),
        ("episodes = 3", "episode = 3", "final: unknown field episode: did you mean episodes?"),
        ("episodes = 3", 'checkpoint = "lst"', "final: unknown checkpoint lst: did you mean last?"),
        ("cpus = 2", "cpu = 2", "ray: unknown field cpu: did you mean cpus?"),
        ("cpus = 2", "cpus = 0", "ray: cpus is 0: it must be 1 or more"),
        ("cpus = 2", "gpus = 0.5", "ray: gpus is 0.5: it must be a whole number"),
        ('env = "Hopper-v5"', 'envv = "Hopper-v5"', "data.replay: unknown field envv: did you mean env?"),
        ('dataset = "builtin"', "", "data.replay: says neither task nor dataset"),
        ('dataset = "builtin"', "dataset = 3", "data.replay.dataset: is 3, and must be text"),
        ('"sample"', '"smaple"', "final.also_act: unknown way to act of these methods smaple: did you mean sample?"),
        ("hopper-medium-v2", "hoper-medium-v2", "unknown task 'hoper-medium-v2': did you mean hopper-medium-v2?"),
        ('method = "bc"', 'method = "bcc"', "methods.cloning: unknown method bcc: did you mean bc?"),
        ("kappa = [0.02", "kapa = [0.02", "methods.diffcps: unknown field kapa: did you mean kappa?"),
        ("kappa = 0.3", "kapa = 0.3", "methods.diffcps.on.medium: unknown field kapa: did you mean kappa?"),
        ("num_steps = [3, 5]", "num_steps = [3, 3]", "methods.diffcps.num_steps: a list of values has two or more"),
        ("num_steps = [3, 5]", 'num_steps = "3"', "methods.diffcps: num_steps is '3': it must be a whole number"),
        ("on.medium", "on.medum", "methods.diffcps.on.medum: unknown data medum: did you mean medium?"),
        ('preset = "hopper-medium-replay"', "preset = 1", "data.replay.preset: is 1, and must be text"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_place(before, after, message):
    assert before in PLAN
    with pytest.raises(UserError) as error:
        plan(PLAN.replace(before, after))
    assert message in str(error.value)


def test_a_table_is_no_value():
    with pytest.raises(UserError, match=r"methods\.bc: is 1, and must be a table \[methods\.bc\]"):
        plan('[data.d]\ndataset = "builtin"\n[methods]\nbc = 1')


def test_a_plan_has_data_and_methods():
    for text, missing in (("[data.d]\ndataset='builtin'", "[methods.NAME]"), ("[methods.bc]", "[data.NAME]")):
        with pytest.raises(UserError, match="has no table"):
            plan(text)
        with pytest.raises(UserError) as error:
            plan(text)
        assert missing in str(error.value)


def test_two_runs_do_not_share_a_folder():
    text = (
        '[data."a b"]\ndataset="builtin"\n[data.a_b]\ndataset="builtin"\n[data."a-b"]\ndataset="builtin"\n[methods.bc]'
    )
    with pytest.raises(UserError, match="two of its runs would have the folder"):
        plan(text)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no\.toml: cannot be read"):
        read_study(tmp_path / "no.toml")
    path = tmp_path / "bad.toml"
    path.write_text("[study\n")
    with pytest.raises(UserError, match=r"bad\.toml: is no TOML"):
        read_study(path)
    path.write_text(PLAN.replace("updates = 100", "update = 100"))
    with pytest.raises(UserError, match=r"bad\.toml: study: unknown field update"):
        read_study(path)
