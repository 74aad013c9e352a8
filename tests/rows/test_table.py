"""Rows to train on, held once, and rows on disk, read one at a time."""

import gc
import json
import tracemalloc

import pytest

from pipeline.errors import InputError
from pipeline.rows.table import TokenTable, TrainingRows, dataset_of
from pipeline.steps.artifact import StoredRows, read_rows, write_rows


def row(*ids, prompt=1):
    return {"input_ids": list(ids), "labels": [-100] * prompt + list(ids[prompt:])}


def test_a_table_gives_the_rows_it_was_given_in_any_order():
    table = TokenTable()
    table.add("first", 1, row(5, 6, 70000), whole=True)
    table.add("second", 2, row(8, 9, 10, 11, prompt=2), whole=False)
    table.add("own", 1, row(5, 300), whole=False, prompt_of=0)
    assert [one.name for one in table] == ["first", "second", "own"]
    assert [list(one.prompt) for one in table] == [[5], [8, 9], [5]]
    assert table[0].whole and list(table[-1].labels) == [-100, 300]
    for numbers in ([0, 1, 2], [0, 2, 2], [1]):
        rows = TrainingRows(table, numbers)
        expected = [row(5, 6, 70000), row(8, 9, 10, 11, prompt=2), row(5, 300)]
        expected = [expected[number] for number in numbers]
        assert list(rows) == expected == dataset_of(rows).to_list()
        assert rows.sizes == [len(one["input_ids"]) for one in expected]


def test_a_row_that_does_not_begin_with_its_prompt_is_not_hidden():
    """The prompt of a self-generated row is the reference row's, not what the row begins with."""
    table = TokenTable()
    table.add("reference", 2, row(5, 6, 7, prompt=2), whole=True)
    table.add("own", 2, row(5, 9, 7, prompt=2), whole=False, prompt_of=0)
    assert list(table[1].prompt) == [5, 6] != list(table[1].input_ids[:2])


def test_rows_to_train_on_take_under_twelve_bytes_a_token():
    import datasets  # noqa: F401 - not to be counted
    import pyarrow as pa

    ids = [[1000 * place + at for at in range(700)] for place in range(200)]
    dataset_of(TrainingRows(TokenTable(), []))
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes()
        table = TokenTable()
        for place, each in enumerate(ids):
            table.add(f"row {place}", 100, row(*each, prompt=100), whole=True)
        dataset = dataset_of(TrainingRows(table, range(len(table))))
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes() - before
    finally:
        tracemalloc.stop()
    assert dataset[199]["input_ids"] == ids[199]
    assert taken / (200 * 700) <= 12


def test_stored_rows_are_those_of_the_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"id": number, "text": "a\u2028b\nç" * number} for number in range(5)]
    write_rows(path, rows)
    stored = StoredRows(path)
    assert list(stored) == list(stored) == rows == read_rows(path)
    assert len(stored) == 5 and stored[3] == rows[3] and stored[-1] == rows[-1]
    assert stored[1:3] == rows[1:3]
    assert json.loads(stored.line(2)) == rows[2] and stored.line(2).endswith(b"\n")
    with pytest.raises(IndexError):
        stored[5]
    write_rows(path, [])
    assert list(StoredRows(path)) == []


def test_a_damaged_stored_row_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": 0}\n{"id": \n')
    for look in (list, lambda stored: stored[1]):
        with pytest.raises(InputError, match=r"rows.jsonl:2 is damaged; delete"):
            look(StoredRows(path))
    with pytest.raises(InputError, match="cannot be read"):
        StoredRows(tmp_path / "none.jsonl")
