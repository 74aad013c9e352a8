import pytest

from pipeline.data.tasks import Example, RowError, example_of, preference_of


@pytest.mark.parametrize(
    ("task", "row"),
    [
        ("gsm8k", {"question": "What is 1 + 1?", "answer": "#### 2"}),
        ("tldr", {"subreddit": "cats", "title": "A cat", "post": "It sat.", "summary": "Sat."}),
        ("chat", {"messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello"},
        ]}),
    ],
)  # fmt: skip
def test_a_preference_pair_has_the_same_prompt_as_the_training_row(task, row):
    """Else a model without a chat template is tuned on one prompt and preferred on another."""
    example = example_of(task, row)
    pair = preference_of(task, {"prompt": example.messages, "chosen": "a", "rejected": "b"})
    assert pair.example.messages == example.messages
    assert pair.example.plain_prompt == example.plain_prompt


def test_a_post_of_preferences_is_written_as_that_of_a_row_with_fields():
    """OpenAI's comparisons keep the white space around a post that its own rows have lost."""
    row = {"subreddit": "cats", "title": "A cat", "post": "It sat.\n\nPOST: no.", "summary": "Sat."}
    prompt = "SUBREDDIT: r/cats\n\nTITLE: A cat \n\nPOST:  It sat.\n\nPOST: no. \n\n\nTL;DR: "
    dialogue = [{"role": "user", "content": prompt}]
    for written in (prompt, dialogue):
        chosen = [*dialogue, {"role": "assistant", "content": " Sat."}]
        pair = preference_of("tldr", {"prompt": written, "chosen": chosen, "rejected": "b"})
        assert pair.example.messages == example_of("tldr", row).messages
        assert pair.chosen == "Sat."


@pytest.mark.parametrize("prompt", ["Sum up: it sat.", "SUBREDDIT: r/a\n\nPOST: b\n\nTL;DR:"])
def test_a_prompt_of_another_form_stays_as_it_is(prompt):
    pair = preference_of("tldr", {"prompt": prompt, "chosen": "a", "rejected": "b"})
    assert pair.example.messages[0]["content"] == prompt


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ("Hi", " Hello "),
        ([{"role": "user", "content": "Hi"}], [{"role": "assistant", "content": "Hello"}]),
    ],
)
def test_a_chat_row_may_be_prompt_and_completion_as_trl_writes_them(prompt, completion):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    row = {"prompt": prompt, "completion": completion}
    assert example_of("chat", row) == example_of("chat", {"messages": turns})


def test_the_tldr_prompt_is_the_papers():
    row = {"subreddit": "cats", "title": "A cat", "post": "It sat.", "summary": " Sat. "}
    example = example_of("tldr", row)
    assert example.plain_prompt == "SUBREDDIT: r/cats\n\nTITLE: A cat\n\nPOST: It sat.\n\nTL;DR:"
    assert example.reference == "Sat."


@pytest.mark.parametrize(
    ("task", "row", "field"),
    [
        ("tldr", {"title": "t", "post": "p", "summary": "s"}, "subreddit"),
        ("chat", {"messages": []}, "messages"),
        ("chat", {"messages": [{"role": "user", "content": "Hi"}]}, "messages"),
        ("chat", {"messages": [{"role": "human", "content": "Hi"}]}, "messages"),
        ("chat", {"messages": [{"role": "user", "content": " "}]}, "messages"),
        ("chat", {"messages": ["Hi"]}, "messages"),
        ("chat", {"question": "Hi", "answer": "Hello"}, "messages"),
        ("chat", {"completion": "Hello"}, "prompt"),
        ("chat", {"prompt": "Hi", "completion": " "}, "completion"),
        ("chat", {"prompt": "Hi", "completion": [{"role": "user", "content": "b"}]}, "completion"),
    ],
)
def test_a_row_without_what_its_task_needs_names_the_field(task, row, field):
    with pytest.raises(RowError) as caught:
        example_of(task, row)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"prompt": [{"role": "assistant", "content": "Hi"}], "chosen": "a", "rejected": "b"}, "prompt"),
        ({"prompt": "Hi", "rejected": "b"}, "chosen"),
        ({"prompt": "Hi", "chosen": "a", "rejected": [{"role": "user", "content": "b"}]}, "rejected"),
        ({"prompt": "Hi", "chosen": "a", "rejected": [
            {"role": "user", "content": "Bye"}, {"role": "assistant", "content": "b"},
        ]}, "rejected"),
    ],
)  # fmt: skip
def test_a_preference_row_names_the_field_that_is_wrong(row, field):
    with pytest.raises(RowError) as caught:
        preference_of("chat", row)
    assert caught.value.field == field


def test_the_reference_is_put_into_the_last_message_as_it_is():
    """Braces in the data are text, not places to fill."""
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "What is {reference}?"},
    ]
    example = Example("chat", messages, "A {prompt}.")
    shown = example.shown("See: {reference} | {answer} | {prompt}", answer="{x}")
    assert shown.messages[:2] == messages[:2]
    assert shown.messages[2]["content"] == "See: A {prompt}. | {x} | What is {reference}?"
    assert shown.reference == example.reference and example.messages == messages


def test_a_shown_plain_prompt_ends_as_the_plain_prompt_does():
    example = Example("gsm8k", [{"role": "user", "content": "1 + 1?"}], "#### 2")
    shown = example.shown("Known: {reference}\n{prompt}")
    assert shown.plain_prompt == "Question: Known: #### 2\n1 + 1?\nAnswer:"


def test_a_post_is_cut_at_line_ends_then_between_words_and_keeps_its_frame():
    row = {
        "subreddit": "cats",
        "title": "A cat",
        "post": "It sat down.\nOn the mat.\n\nHm.",
        "summary": "s",
    }
    cuts = [cut().messages[0]["content"] for cut in example_of("tldr", row).shorter()]
    posts = [text.split("POST: ")[1] for text in cuts]
    assert (
        posts
        == ["It\n\nTL;DR:", "It sat\n\nTL;DR:", "It sat down.\n\nTL;DR:"]
        + ["It sat down.\nOn the mat.\n\nTL;DR:"] * 2
    )
    assert all(text.startswith("SUBREDDIT: r/cats\n\nTITLE: A cat\n\nPOST: ") for text in cuts)


def test_a_dialogue_loses_its_oldest_turns_and_a_question_nothing():
    system = {"role": "system", "content": "Be kind."}
    turns = [
        {"role": role, "content": f"{role} {number}"}
        for number in range(3)
        for role in ("user", "assistant")
    ][:-1]
    cuts = [cut().messages for cut in Example("chat", [system, *turns], "r").shorter()]
    assert cuts == [[system, *turns[4:]], [system, *turns[2:]]]
    assert Example("gsm8k", turns[:1], "r").shorter() == []
