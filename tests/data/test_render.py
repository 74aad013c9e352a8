import pytest
from conftest import build_tokenizer

from pipeline.data.render import Renderer
from pipeline.data.tasks import example_of
from pipeline.errors import InputError

EXAMPLE = example_of("gsm8k", {"question": "What is 2 + 3?", "answer": "2 + 3 = 5.\n#### 5"})


@pytest.fixture(scope="module")
def chat():
    return build_tokenizer(template=True)


@pytest.fixture(scope="module")
def plain():
    return build_tokenizer(template=False)


def test_the_answer_ends_with_exactly_one_end_of_turn(chat):
    renderer = Renderer(chat)
    ids = renderer.answer_ids(EXAMPLE, EXAMPLE.reference)
    assert ids[-1] == chat.convert_tokens_to_ids("<|im_end|>") == renderer.end_of_turn_id
    assert ids.count(renderer.end_of_turn_id) == 1


def test_prompt_plus_answer_is_what_the_template_makes_of_the_whole_dialogue(chat):
    renderer = Renderer(chat)
    joined = renderer.prompt_ids(EXAMPLE) + renderer.answer_ids(EXAMPLE, EXAMPLE.reference)
    dialogue = [*EXAMPLE.messages, {"role": "assistant", "content": EXAMPLE.reference}]
    whole = chat.apply_chat_template(dialogue, tokenize=False)
    assert chat.decode(joined) == whole.rstrip("\n")


def test_a_system_message_comes_first_and_never_twice(chat):
    renderer = Renderer(chat, system="Be brief.")
    text = chat.decode(renderer.prompt_ids(EXAMPLE))
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>")
    own = example_of("chat", {"messages": [
        {"role": "system", "content": "Be long."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
    ]})  # fmt: skip
    assert "Be brief" not in chat.decode(renderer.prompt_ids(own))


def test_a_model_without_template_gets_the_plain_prompt_and_a_space(plain):
    renderer = Renderer(plain)
    assert plain.decode(renderer.prompt_ids(EXAMPLE)) == "Question: What is 2 + 3?\nAnswer:"
    ids = renderer.answer_ids(EXAMPLE, EXAMPLE.reference)
    assert plain.decode(ids[:-1]) == " 2 + 3 = 5.\n#### 5"
    assert ids[-1] == plain.eos_token_id


def test_the_end_of_turn_is_the_templates_not_the_tokenizers(chat):
    """As in Llama 3: the template closes turns with another token than the tokenizer's eos."""
    other = build_tokenizer(template=True)
    other.eos_token = "<|pad|>"
    assert Renderer(other).end_of_turn_id == other.convert_tokens_to_ids("<|im_end|>")


def test_a_template_that_closes_no_turn_falls_back_to_the_end_token():
    tokenizer = build_tokenizer(template=True)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    assert Renderer(tokenizer).end_of_turn_id == tokenizer.eos_token_id
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="never learn to stop"):
        _ = Renderer(tokenizer).end_of_turn_id


def test_a_template_that_refuses_a_row_is_a_sentence():
    tokenizer = build_tokenizer(template=True)
    tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(InputError, match="no system role"):
        Renderer(tokenizer).prompt_ids(EXAMPLE)


def test_a_long_post_is_cut_to_the_longest_prompt_that_fits(chat):
    """Found by bisection; here by trying every cut."""
    lines = "\n".join(f"This is line {number} of a long post." for number in range(40))
    row = {"subreddit": "a", "title": "b", "post": lines, "summary": "s"}
    example = example_of("tldr", row)
    whole = len(Renderer(chat).prompt_ids(example))
    assert Renderer(chat, max_prompt_length=whole).fit(example) is example
    for limit in (whole - 1, whole // 2, 60):
        renderer = Renderer(chat, max_prompt_length=limit)
        fitted = renderer.fit(example)
        sizes = [len(renderer.prompt_ids(cut())) for cut in example.shorter()]
        assert len(renderer.prompt_ids(fitted)) == max(size for size in sizes if size <= limit)
        assert fitted.messages[0]["content"].endswith("\n\nTL;DR:")
        assert fitted.reference == "s"


def test_what_cannot_be_cut_is_left_as_it_is_and_does_not_fit(chat):
    renderer = Renderer(chat, max_prompt_length=5)
    assert renderer.fit(EXAMPLE) is EXAMPLE
    assert not renderer.fits(renderer.prompt_ids(EXAMPLE))


def test_the_digest_follows_the_template_and_the_system_message(chat, plain):
    other = build_tokenizer(template=True)
    other.chat_template = other.chat_template.replace("\n{% endfor %}", "{% endfor %}")
    renderers = [
        Renderer(chat), Renderer(chat, "Be brief."), Renderer(plain), Renderer(other),
    ]  # fmt: skip
    digests = [renderer.digest() for renderer in renderers]
    assert len(set(digests)) == len(renderers)
    assert Renderer(build_tokenizer(template=True)).digest() == digests[0]


def test_a_template_that_writes_answered_prompts_otherwise_is_noticed(chat, plain):
    """As templates do that open a thinking block only where they ask for an answer."""
    thinking = build_tokenizer(template=True)
    ask = "<|im_start|>assistant\n"
    assert thinking.chat_template.count(ask) == 1
    thinking.chat_template = thinking.chat_template.replace(ask, ask + "<think>")
    starts = [Renderer(one).prompt_starts_dialogue() for one in (chat, plain, thinking)]
    assert starts == [True, True, False]


def test_generated_ids_get_the_templates_end_of_turn_and_cut_ones_none(chat):
    renderer = Renderer(chat)
    assert renderer.own_answer_ids([5, 6, 99], finished=True) == [5, 6, renderer.end_of_turn_id]
    assert renderer.own_answer_ids([5, 6, 99], finished=False) == [5, 6, 99]
