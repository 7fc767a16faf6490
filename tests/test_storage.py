"""Files whole or not at all, logs of whole rows, folders with one owner."""

import errno
import os

import pytest

from diffcps.storage import append_rows, claim, locked, read_json, read_rows, replaced, write_atomically, write_json
from diffcps.types import UserError


def test_a_folder_in_use_is_refused_and_free_again_afterwards(tmp_path):
    with locked(tmp_path / "run"):
        with pytest.raises(UserError, match="another process is writing this run"), locked(tmp_path / "run"):
            pass
    with locked(tmp_path / "run"):
        pass


def test_a_line_cut_by_a_kill_does_not_count(tmp_path):
    path = tmp_path / "log.jsonl"
    assert read_rows(path) == []
    append_rows(path, [{"update": 1}, {"update": 2}])
    with open(path, "a") as file:
        file.write('{"update": 3, "criti')
    assert [row["update"] for row in read_rows(path)] == [1, 2]


def test_an_exception_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_atomically(path, b"old")
    with pytest.raises(RuntimeError), replaced(path) as file:
        file.write(b"half a fi")
        raise RuntimeError

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_json_comes_back_and_what_is_none_is_said_in_a_line(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": [1, 2.5, None], "b": {"c": "d"}})
    assert read_json(path) == {"a": [1, 2.5, None], "b": {"c": "d"}}
    path.write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        read_json(path)
    path.write_text("[1]")
    with pytest.raises(UserError, match="not a JSON object"):
        read_json(path)


def test_a_claimed_folder_refuses_another_content(tmp_path):
    path = tmp_path / "config.json"
    claim(path, {"task": "hopper", "seed": 0})
    before = path.read_bytes()
    claim(path, {"task": "hopper", "seed": 0})
    with pytest.raises(UserError, match=r"holds a run with another seed \(0, asked for 1\)"):
        claim(path, {"task": "hopper", "seed": 1})
    assert path.read_bytes() == before
