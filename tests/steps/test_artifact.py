import json
import os
import stat

import pytest

from pipeline.errors import BashracError, InputError
from pipeline.steps import artifact


def test_rows_come_back_whatever_their_text_holds(tmp_path):
    """U+2028, U+2029 and U+0085 end a line for str.splitlines, but not in JSON lines."""
    rows = [
        {"text": f"a{mark}b"} for mark in ("\u2028", "\u2029", "\x85", "\n", "\r\n", "\x0c", "é")
    ]
    artifact.write_rows(tmp_path / "rows.jsonl", rows)
    assert artifact.read_rows(tmp_path / "rows.jsonl") == rows
    artifact.write_rows(tmp_path / "none.jsonl", [])
    assert artifact.read_rows(tmp_path / "none.jsonl") == []


def test_a_damaged_row_is_named_by_file_and_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(InputError, match=r"rows.jsonl:2 is damaged"):
        artifact.read_rows(path)


def test_a_file_that_could_not_be_finished_leaves_the_old_one(tmp_path):
    path = tmp_path / "file.json"
    artifact.write_json(path, {"version": 1})
    with pytest.raises(RuntimeError, match="stopped"), artifact.atomic_file(path) as file:
        file.write("half")
        raise RuntimeError("stopped")
    assert json.loads(path.read_text()) == {"version": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.json"]


def test_a_full_disk_is_a_sentence_and_leaves_the_old_file(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    path = tmp_path / "file.json"
    temporary = tmp_path / f".file.json.{os.getpid()}.tmp"
    artifact.write_json(path, {"version": 1})
    temporary.symlink_to("/dev/full")
    with pytest.raises(BashracError, match="No space left on device; free space"):
        artifact.write_json(path, {"version": 2})
    assert json.loads(path.read_text()) == {"version": 1}
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)


def test_canonical_json_has_one_spelling_and_refuses_what_has_none():
    assert artifact.canonical_json({"b": 1, "a": [1.0, "é"]}) == '{"a":[1.0,"\\u00e9"],"b":1}'
    for value in ({"a": float("nan")}, {"a": {1, 2}}, {"a": object()}):
        with pytest.raises((ValueError, TypeError)):
            artifact.canonical_json(value)
