"""The run folder: one owner, whole rows, nothing from the future."""

import json

import pytest

from diffcps.run.folder import RunFolder
from diffcps.types import UserError


def test_a_folder_in_use_is_refused_and_free_again_afterwards(tmp_path):
    with RunFolder(tmp_path / "run").locked():
        with (
            pytest.raises(UserError, match="another process is writing this run"),
            RunFolder(tmp_path / "run").locked(),
        ):
            pass
    with RunFolder(tmp_path / "run").locked():
        pass


def test_a_line_cut_by_a_kill_does_not_count(tmp_path):
    folder = RunFolder(tmp_path)
    folder.append(folder.metrics, [{"update": 1}, {"update": 2}])
    with open(folder.metrics, "a") as file:
        file.write('{"update": 3, "criti')
    assert [row["update"] for row in folder.rows(folder.metrics)] == [1, 2]


def test_rows_after_the_checkpoint_are_dropped(tmp_path):
    folder = RunFolder(tmp_path)
    folder.append(folder.metrics, [{"update": update} for update in (100, 200, 300)])
    folder.append(folder.evaluations, [{"update": 200}, {"update": 400}])
    folder.forget_after(200)
    assert [json.loads(line) for line in folder.metrics.read_text().splitlines()] == [{"update": 100}, {"update": 200}]
    assert folder.rows(folder.evaluations) == [{"update": 200}]


def test_a_folder_without_a_run_says_so(tmp_path):
    with pytest.raises(UserError, match=r"not a run folder \(it has no config.json\)"):
        RunFolder(tmp_path).read_config()
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        RunFolder(tmp_path).read_config()
