import pytest

from pipeline.tasks import RowError, example_of, preference_of


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
