"""Fields of messages and rows: read, or refused by name; none is dropped without a word."""

import json

import pytest

from pipeline.data.load import load_examples
from pipeline.data.tasks import RowError, example_of, preference_of
from pipeline.errors import InputError

ASKED = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}
ANSWERED = [{"role": "assistant", "content": "Hello"}]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]


@pytest.mark.parametrize(
    "field",
    [{"weight": 0}, {"weight": 1}, {"train": False}, {"name": "Ann"}, {"audio": {"id": 1}}, {"x": 0}],
)  # fmt: skip
@pytest.mark.parametrize("at", [0, 1])
def test_a_message_with_a_field_that_is_not_read_is_refused_by_name(field, at):
    messages = [dict(ASKED), dict(ANSWER)]
    messages[at] |= field
    rows = [{"messages": messages}, {"prompt": messages[:1], "completion": messages[1:]}]
    for row in rows:
        with pytest.raises(RowError, match=repr(next(iter(field)))):
            example_of("chat", row)
    pair = {"prompt": messages[:1], "chosen": messages[1:], "rejected": "No."}
    with pytest.raises(RowError, match=repr(next(iter(field)))):
        preference_of("chat", pair)


@pytest.mark.parametrize(
    "name", ["weight", "train", "documents", "system", "thinking", "functions"]
)
@pytest.mark.parametrize("task", ["chat", "gsm8k"])
def test_a_row_with_a_field_that_is_not_read_is_refused_by_name(name, task):
    row = {"messages": [ASKED, ANSWER], "question": "1 + 1?", "answer": "#### 2"}
    with pytest.raises(RowError) as caught:
        example_of(task, row | {name: 0.5})
    assert caught.value.field == name
    assert example_of(task, row | {name: None, "id": 3, "source": "web"}) == example_of(task, row)


def test_an_answer_that_is_marked_as_bad_is_not_trained_on():
    """Rows of KTO: prompt, completion, and whether the completion is a good one."""
    row = {"prompt": "Hi", "completion": "Go away."}
    for label in (False, 0, "False", "0"):
        with pytest.raises(RowError, match="marks a bad answer"):
            example_of("chat", row | {"label": label})
    for label in (True, 1, "True", None, 3, "sport"):
        assert example_of("chat", row | {"label": label}) == example_of("chat", row)


@pytest.mark.parametrize("content", ["\u200b", "\ufeff", "\x00", " \u200f\n"])
def test_a_text_of_nothing_to_see_is_empty(content):
    with pytest.raises(RowError, match="is empty"):
        example_of("chat", {"prompt": "Hi", "completion": content})
    asked = [{"role": "user", "content": "Hi"}]
    with pytest.raises(RowError, match="has no text"):
        example_of("chat", {"messages": [*asked, {"role": "assistant", "content": content}]})
    said = {"role": "assistant", "content": "\u200f\u05e9\u05dc\u05d5\u05dd"}  # Hebrew, with a mark
    assert example_of("chat", {"messages": [*asked, said]}).reference == said["content"]


def test_a_content_of_parts_is_named_as_such():
    """As OpenAI and models of images write it."""
    parts = [{"type": "text", "text": "Hi"}]
    with pytest.raises(RowError, match=r"message 0 \(user\) has a list of parts as its content"):
        example_of("chat", {"messages": [{"role": "user", "content": parts}, *ANSWERED]})
    with pytest.raises(RowError, match="has int as its content"):
        example_of("chat", {"messages": [{"role": "user", "content": 5}, *ANSWERED]})


def test_pairs_that_look_the_same_are_no_preference():
    row = {"prompt": "Hi", "chosen": "caf\u00e9", "rejected": "cafe\u0301"}
    with pytest.raises(RowError, match="equals chosen"):
        preference_of("chat", row)
    with pytest.raises(RowError, match="is missing; the row has chosen, rejected"):
        preference_of("chat", {"chosen": "a", "rejected": "b"})


def test_fields_without_a_value_are_those_of_other_rows(tmp_path):
    """A table gives each row the fields of all, arguments of tools among them."""
    import pandas

    called = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    other = {"type": "function", "function": {"name": "time", "arguments": {"zone": "CET"}}}
    rows = [
        {"messages": [ASKED, ANSWER], "tools": TOOLS},
        {"messages": [ASKED, called | {"tool_calls": [CALL, other]}]},
    ]
    pandas.DataFrame(rows).to_parquet(tmp_path / "rows.parquet")
    plain, calling = load_examples({"source": str(tmp_path / "rows.parquet")}, "chat")
    assert plain.messages == [ASKED] and plain.answer is None
    assert calling.answer is not None
    assert calling.answer["tool_calls"] == [CALL, other]


def test_unread_fields_are_counted_where_the_source_skips_what_is_unusable(tmp_path):
    rows = [{"messages": [ASKED, ANSWER | {"weight": 0}]}, {"messages": [ASKED, ANSWER]}]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(InputError, match=r"rows.jsonl:1: field 'messages' message 1.*'weight'"):
        load_examples({"source": str(path)}, "chat")
    said = []
    found = load_examples({"source": str(path), "skip_unusable": True}, "chat", said.append)
    assert len(found) == 1 and "1 of 2 rows left out" in said[0] and "'weight'" in said[0]


def test_arguments_of_a_call_may_be_json_as_openai_writes_them():
    """A template would write the text once more as JSON, in quotes."""
    written = {"id": "a", "type": "function", "function": {**CALL["function"]}}
    written["function"]["arguments"] = '{"city": "Rome"}'
    row = {"messages": [ASKED, {"role": "assistant", "tool_calls": [written]}]}
    answer = example_of("chat", row).answer
    assert answer is not None
    assert answer["tool_calls"][0]["function"]["arguments"] == {"city": "Rome"}
    written["function"]["arguments"] = '{"city": '
    with pytest.raises(RowError, match="tool_calls"):
        example_of("chat", row)


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_has_one_name(name):
    row = {"messages": [ASKED, ANSWER | {name: "They greet me."}]}
    answer = example_of("chat", row).answer
    assert answer == {**ANSWER, "reasoning_content": "They greet me."}
    with pytest.raises(RowError, match="several names"):
        example_of("chat", {"messages": [ASKED, ANSWER | {"thinking": "a", "reasoning": "b"}]})


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "system", "content": "Be kind."}, ANSWER],
        [ASKED, ANSWER, ANSWER],
        [{"role": "tool", "content": "5"}, ANSWER],
        [ASKED, ANSWER, {"role": "system", "content": "Be kind."}, ANSWER],
    ],
)
def test_an_answer_that_follows_no_question_is_refused(messages):
    """RAC would write its reference into the message before it, whoever's that is."""
    with pytest.raises(RowError, match="must end with a user message"):
        example_of("chat", {"messages": messages})
    with pytest.raises(RowError, match="must end with a user message"):
        preference_of("chat", {"prompt": messages[:-1], "chosen": "a", "rejected": "b"})


def test_the_reference_is_shown_in_the_users_message_after_a_tools_result():
    messages = [
        ASKED,
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "content": "9"},
    ]
    example = example_of("chat", {"messages": [*messages, ANSWER]})
    shown = example.shown("Known: {reference}\n{prompt}")
    assert shown.messages[0]["content"] == "Known: Hello\nHi"
    assert shown.messages[1:] == example.messages[1:]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("    return x\n", "    return x"),
        ("\n\n\tif a:\n\t\tb", "\tif a:\n\t\tb"),
        (" Hello ", "Hello"),
        ("\n Hello", "Hello"),
    ],
)
def test_an_answer_keeps_its_indentation(written, read):
    said = {"role": "assistant", "content": written}
    rows = [{"prompt": "Hi", "completion": written}, {"messages": [ASKED, said]}]
    assert [example_of("chat", row).reference for row in rows] == [read, read]
    pair = preference_of(
        "chat", {"prompt": "Hi", "chosen": written, "rejected": [said | {"content": "b"}]}
    )
    assert pair.chosen == read


def test_answers_that_differ_in_indentation_are_a_preference():
    pair = preference_of("chat", {"prompt": "Hi", "chosen": "    x = 1", "rejected": "x = 1"})
    assert (pair.chosen, pair.rejected) == ("    x = 1", "x = 1")
