import json

import pytest
from conftest import SHARED

from pipeline.data.load import describe_losses, load_examples, load_preferences, tokenise
from pipeline.data.render import Renderer
from pipeline.errors import InputError
from pipeline.recipe.schema import Source
from pipeline.run.upfront import row_count
from pipeline.steps import identity
from pipeline.steps.identity import data_identity

GOOD = {"question": "What is 1 + 1?", "answer": "#### 2"}


def write(tmp_path, rows, name="rows.jsonl"):
    path = tmp_path / name
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return {"source": str(path)}


def test_jsonl_json_csv_parquet_and_a_folder_give_the_same_rows(tmp_path):
    import pandas

    rows = [GOOD, {"question": "What is 2 + 2?", "answer": "#### 4"}]
    frame = pandas.DataFrame(rows)
    (tmp_path / "folder").mkdir()
    frame.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    frame.to_json(tmp_path / "a.json", orient="records")
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_parquet(tmp_path / "a.parquet")
    frame.to_json(tmp_path / "folder" / "train.jsonl", orient="records", lines=True)
    expected = load_examples({"source": str(tmp_path / "a.jsonl")}, "gsm8k")
    assert [example.reference for example in expected] == ["#### 2", "#### 4"]
    for name in ("a.json", "a.csv", "a.parquet"):
        assert load_examples({"source": str(tmp_path / name)}, "gsm8k") == expected
    folder = {"source": str(tmp_path / "folder"), "split": "train"}
    assert load_examples(folder, "gsm8k") == expected


def test_limit_takes_the_first_rows(tmp_path):
    source = write(tmp_path, [{**GOOD, "question": f"q{i}"} for i in range(5)])
    examples = load_examples({**source, "limit": 2}, "gsm8k")
    assert [example.messages[0]["content"] for example in examples] == ["q0", "q1"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([GOOD, {"question": "q"}], r"rows.jsonl:2: field 'answer' is missing"),
        (
            [GOOD, "", {"question": " ", "answer": "#### 1"}],
            r"rows.jsonl:3: field 'question' is empty",
        ),
        ([GOOD, '{"question": "q", "answer"'], r"rows.jsonl:2: not valid JSON"),
        ([GOOD, '{"question": ["q"], "answer": "a"}'], r"rows.jsonl:2: field 'question' is list"),
        ([GOOD, "[1, 2]"], r"rows.jsonl:2: a row must be a JSON object, .*call a file that is one"),
        ([GOOD, '{"a": 1,}'], r"rows.jsonl:2: not valid JSON \(.*, column 9\); write"),
        (["{", '"a": 1}'], r"rows.jsonl:1: not valid JSON \(the line ends too early\); write"),
        (
            ['{"question": 5, "answer": "a"}'],
            r"rows.jsonl:1: field 'question' is int, expected text",
        ),
    ],
    ids=[
        "missing field",
        "blank",
        "cut off",
        "changed type",
        "not an object",
        "comma",
        "several lines",
        "number",
    ],
)
def test_a_malformed_row_is_named_by_line_and_field(tmp_path, rows, message):
    with pytest.raises(InputError, match=message):
        load_examples(write(tmp_path, rows), "gsm8k")


def test_files_with_byte_order_marks_may_be_joined(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(f"\ufeff{json.dumps(GOOD)}\n\ufeff{json.dumps(GOOD)}\n")
    assert len(load_examples({"source": str(path)}, "gsm8k")) == 2


def test_bytes_that_are_no_text_are_named_by_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n" + b'{"question": "\xff", "answer": "a"}\n')
    with pytest.raises(InputError, match=r"rows.jsonl:2: not UTF-8"):
        load_examples({"source": str(path)}, "gsm8k")


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file_is_an_error_not_zero_rows(tmp_path, content):
    path = tmp_path / "empty.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=r"empty\.jsonl"):
        load_examples({"source": str(path)}, "gsm8k")


def test_a_file_rewritten_with_the_same_time_and_size_gives_its_new_rows(tmp_path):
    """datasets alone would serve the old rows from its cache, as after cp -p or rsync -t."""
    import os

    path = tmp_path / "rows.jsonl"
    for answer in ("#### 2", "#### 3"):
        path.write_text(json.dumps({**GOOD, "answer": answer}) + "\n")
        os.utime(path, ns=(10**18, 10**18))
        identity.forget()
        (example,) = load_examples({"source": str(path)}, "gsm8k")
        assert example.reference == answer


def test_a_reference_without_its_number_is_named_before_anything_is_trained(tmp_path):
    source = write(tmp_path, [GOOD, {**GOOD, "answer": "It is 5."}])
    with pytest.raises(InputError, match=r"rows.jsonl:2: field 'answer' does not end with"):
        load_examples(source, "gsm8k")


def test_an_unknown_file_type_names_the_known_ones(tmp_path):
    (tmp_path / "rows.txt").write_text("hello")
    with pytest.raises(InputError, match=r"not a \.jsonl, \.json, \.csv, \.parquet file"):
        load_examples({"source": str(tmp_path / "rows.txt")}, "gsm8k")


@pytest.mark.parametrize("task", ["gsm8k", "tldr", "chat"])
def test_every_task_reads_its_builtin_rows(task):
    name = {"gsm8k": "maths", "tldr": "posts", "chat": "chat"}[task]
    examples = load_examples({"source": f"builtin:{name}", "split": "test", "limit": 20}, task)
    assert len(examples) == 20
    assert all(example.messages[-1]["role"] == "user" for example in examples)
    assert len({example.plain_prompt for example in examples}) == 20


@pytest.mark.parametrize("name", ["maths", "chat"])
def test_builtin_preferences_are_read_and_differ(name):
    pairs = load_preferences(
        {"source": f"builtin:{name}", "split": "preferences", "limit": 20}, "chat"
    )
    assert len(pairs) == 20 and all(pair.chosen != pair.rejected for pair in pairs)


def test_preferences_may_be_plain_text_or_whole_dialogues(tmp_path):
    user = {"role": "user", "content": "Hi"}
    rows = [
        {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"},
        {
            "prompt": [user],
            "chosen": [{"role": "assistant", "content": "Hello!"}],
            "rejected": [{"role": "assistant", "content": "What?"}],
        },
        {
            "prompt": "Hi",
            "chosen": [user, {"role": "assistant", "content": "Hello!"}],
            "rejected": [user, {"role": "assistant", "content": "What?"}],
        },
    ]
    for row in rows:  # one file each: a JSONL column has one type
        (pair,) = load_preferences(write(tmp_path, [row]), "chat")
        assert (pair.example.messages, pair.chosen, pair.rejected) == ([user], "Hello!", "What?")


def test_a_preference_without_a_difference_is_refused(tmp_path):
    source = write(tmp_path, [{"prompt": "Hi", "chosen": "a", "rejected": "a"}])
    with pytest.raises(InputError, match="equals chosen"):
        load_preferences(source, "chat")


def test_rows_that_cannot_be_read_are_left_out_and_counted_where_the_source_says_so(tmp_path):
    good = {"prompt": "Hi", "chosen": "a", "rejected": "b"}
    rows = [{**good, "rejected": "a"}, good, {**good, "chosen": " "}]
    source = {**write(tmp_path, rows), "skip_unusable": True}
    said = []
    (pair,) = load_preferences(source, "chat", said.append)
    assert (pair.chosen, pair.rejected) == ("a", "b")
    assert said == [
        f"2 of 3 rows left out (skip_unusable), the first: {source['source']}:1: "
        "field 'rejected' equals chosen, so there is no preference"
    ]
    with pytest.raises(InputError, match=r"it has no usable rows; the first of 1: .*rows.jsonl:1"):
        load_preferences({**source, "limit": 1}, "chat")


def test_leaving_rows_out_is_another_source(tmp_path):
    source = Source(source=write(tmp_path, [GOOD])["source"])
    skipping = source.model_copy(update={"skip_unusable": True})
    plain, other = (data_identity(one, role="train") for one in (source, skipping))
    assert set(plain) == {"file", "limit"} and other == {**plain, "skip_unusable": True}


def test_skip_leaves_out_the_first_rows_of_every_kind_of_source(tmp_path):
    rows = [{**GOOD, "question": f"q{i}"} for i in range(5)]
    file = write(tmp_path, rows)["source"]
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder", rows[:2], "train-1.jsonl")
    write(tmp_path / "folder", rows[2:], "train-2.jsonl")
    for source in (file, str(tmp_path / "folder")):
        found = load_examples({"source": source, "skip": 1, "limit": 3}, "gsm8k")
        assert [example.messages[0]["content"] for example in found] == ["q1", "q2", "q3"]
    whole = load_examples({"source": "builtin:maths", "limit": 6}, "gsm8k")
    rest = load_examples({"source": "builtin:maths", "skip": 4, "limit": 2}, "gsm8k")
    assert rest == whole[4:], "two sources of one file share no row"


def test_skip_counts_rows_as_a_file_has_them(tmp_path):
    source = write(tmp_path, [GOOD, "", {"question": "q"}, GOOD])["source"]
    with pytest.raises(InputError, match=r"rows.jsonl:3: field 'answer'"):
        load_examples({"source": source, "skip": 1}, "gsm8k")
    assert len(load_examples({"source": source, "skip": 2}, "gsm8k")) == 1
    with pytest.raises(InputError, match="skip 3 leaves none of its 3 rows; lower skip"):
        load_examples({"source": source, "skip": 3}, "gsm8k")


def test_skip_is_part_of_a_sources_identity_only_where_it_is_set(tmp_path):
    plain = Source(source=write(tmp_path, [GOOD])["source"], limit=1)
    skipping = plain.model_copy(update={"skip": 2})
    identities = [data_identity(one, role="test") for one in (plain, skipping)]
    assert set(identities[0]) == {"file", "limit"}
    assert identities[1] == {**identities[0], "skip": 2}
    assert (plain.describe_rows, skipping.describe_rows) == ("the first 1", "from row 3 to 3")


@pytest.mark.parametrize(
    ("skip", "limit", "count"), [(0, None, 3), (1, None, 2), (1, 1, 1), (2, 5, 1), (4, None, 0)]
)
def test_the_rows_of_a_source_are_counted_without_loading_it(tmp_path, skip, limit, count):
    source = Source(source=write(tmp_path, [GOOD] * 3)["source"], skip=skip, limit=limit)
    assert row_count(source) == count


def test_rows_that_are_too_long_are_dropped_or_cut_and_counted(tiny_model):
    from pipeline.models.load import load_tokenizer

    renderer = Renderer(load_tokenizer(tiny_model))
    examples = load_examples({"source": "builtin:maths", "split": "train", "limit": 30}, "gsm8k")
    whole, counts = tokenise(examples, renderer, max_length=None)
    assert counts == {"rows": 30, "dropped": 0, "cut": 0, "prompts_cut": 0}
    prompts = sorted(len(row.prompt) for row in whole)
    limit = prompts[15]
    rows, counts = tokenise(examples, renderer, max_length=limit)
    assert counts["dropped"] == sum(length >= limit for length in prompts) > 0
    assert counts["rows"] + counts["dropped"] == 30
    assert all(len(row.prompt) + len(row.answer) <= limit for row in rows)
    cut = [row for row in rows if row.answer != whole[row.row_id].answer]
    assert len(cut) == counts["cut"] > 0
    assert all(row.answer[-1] != renderer.end_of_turn_id or len(row.answer) == 0 for row in cut)
    sentence = describe_losses(counts, max_length=limit, max_prompt_length=None)
    assert f"{counts['dropped']} of 30 rows dropped" in sentence
    assert f"{counts['cut']} of {counts['rows']} rows cut in the answer" in sentence
    assert "prompts cut" not in sentence
    nothing = {"rows": 3, "dropped": 0, "cut": 0, "prompts_cut": 0}
    assert describe_losses(nothing, max_length=limit, max_prompt_length=None) is None


def test_posts_are_cut_to_max_prompt_length_and_counted(tiny_model):
    from pipeline.models.load import load_tokenizer

    tokenizer = load_tokenizer(tiny_model)
    examples = load_examples({"source": "builtin:posts", "split": "train", "limit": 20}, "tldr")
    whole, _ = tokenise(examples, Renderer(tokenizer), max_length=None)
    limit = sorted(len(row.prompt) for row in whole)[10]
    rows, counts = tokenise(examples, Renderer(tokenizer, max_prompt_length=limit), max_length=None)
    too_long = sum(len(row.prompt) > limit for row in whole)
    assert counts == {"rows": 20, "dropped": 0, "cut": 0, "prompts_cut": too_long}
    assert max(len(row.prompt) for row in rows) <= limit


def test_prompts_that_all_fill_the_limit_are_an_error(tiny_model):
    from pipeline.models.load import load_tokenizer

    renderer = Renderer(load_tokenizer(tiny_model))
    examples = load_examples({"source": "builtin:maths", "split": "train", "limit": 3}, "gsm8k")
    with pytest.raises(InputError, match="all 3 prompts are too long"):
        tokenise(examples, renderer, max_length=4)


@pytest.mark.parametrize(
    ("file", "task", "rows"),
    [
        ("gsm8k/train.jsonl", "gsm8k", 7473),
        ("gsm8k/test.jsonl", "gsm8k", 1319),
        ("reddit_tldr/validation.jsonl", "tldr", None),
        ("oasst_en100/sft_best.jsonl", "chat", 207),
    ],
)
def test_real_data_is_read_whole(file, task, rows):
    path = SHARED / file
    if not path.exists():
        pytest.skip(f"{path} is not beside this checkout")
    expected = rows or sum(1 for line in path.read_text(encoding="utf-8").split("\n") if line)
    assert len(load_examples({"source": str(path)}, task)) == expected > 100


def test_real_human_preferences_are_read_whole():
    path = SHARED / "oasst_en100" / "preferences.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is not beside this checkout")
    assert len(load_preferences({"source": str(path)}, "chat")) == 732
