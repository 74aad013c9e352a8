"""Rows to train on, held once, and rows on disk, read one at a time."""

import gc
import json
import tracemalloc

import pytest
from conftest import benchmark_script, save_tiny_model

from pipeline.data.preflight import Row
from pipeline.errors import InputError
from pipeline.rows.table import (
    Answer,
    PairTable,
    TokenTable,
    TrainingRows,
    dataset_of,
    dataset_of_pairs,
)
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


def test_a_table_of_pairs_gives_the_pairs_it_was_given():
    pairs = PairTable()
    pairs.add("pair 1", [5, 6], Answer([70000, 2], whole=True), Answer([8], whole=False))
    pairs.add("pair 3", [7], Answer([9], whole=False), Answer([10, 11, 2], whole=True))
    chosen, rejected = pairs[0]
    assert chosen == Row("pair 1, chosen", [5, 6], [5, 6, 70000, 2], [-100, -100, 70000, 2], True)
    assert rejected == Row("pair 1, rejected", [5, 6], [5, 6, 8], [-100, -100, 8], False, False)
    assert list(pairs.sides) == [side for pair in pairs for side in pair]
    assert [(side.name, side.whole, side.wanted) for side in pairs.sides][2:] == [
        ("pair 3, chosen", False, True), ("pair 3, rejected", True, False),
    ]  # fmt: skip
    assert pairs.sizes == [(4, 3), (2, 4)] and pairs.longest_answer == 3
    empty = {"prompt": "", "chosen": "", "rejected": ""}  # TRL tokenises some text of every row
    assert dataset_of_pairs(pairs).to_list() == [
        {"row_prompt": [5, 6], "row_chosen": [70000, 2], "row_rejected": [8], **empty},
        {"row_prompt": [7], "row_chosen": [9], "row_rejected": [10, 11, 2], **empty},
    ]


def test_rows_are_held_once_and_stored_rows_not_at_all(tmp_path):
    """Python lists of ids from JSON take 36 bytes a token and more; what is held takes 4 or 8."""
    model = save_tiny_model(tmp_path / "model", max_position_embeddings=4096)
    script = benchmark_script("row_memory")
    try:
        parts = script.measured(model, rows=40, words=400, folder=tmp_path)
        taken = {part: size / tokens for part, size, tokens in parts}
    finally:
        tracemalloc.stop()
    print(taken)
    limits = {
        "rows to write contexts for, tokenised": 12,
        "written contexts, as the step holds them": 1,
        "rows to train on, checked and as a dataset": 12,
        "answers to correct, with their prompts": 12,
        "answers to correct, with their prompts, at most": 16,
        "answers made into pairs, at most": 16,
        "pairs to train on, checked and as a dataset": 8,
        "answers graded (gsm8k), at most": 6,
        "contexts read for their losses (gap), at most": 10,
        "contexts, losses and answers graded (gap), at most": 10,
    }
    assert {part: size for part, size in taken.items() if size > limits[part]} == {}
    assert taken.keys() == limits.keys()


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
