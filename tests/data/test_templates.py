"""Chat templates as models bring them: what they refuse, leave out, print or write elsewhere."""

import json
import time

import pytest
from conftest import CHAT_TEMPLATE, build_tokenizer, problems_of, tiny_recipe

from pipeline.data.load import load_examples, load_preferences, tokenise
from pipeline.data.render import Renderer
from pipeline.data.tasks import RowError, example_of
from pipeline.errors import InputError
from pipeline.models.load import load_tokenizer
from pipeline.plan.load import load_recipe
from pipeline.plan.plan import make_plan
from pipeline.steps import artifact

ASK = "<|im_start|>assistant\n"
TURN = "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "It rains."}}]
# As Qwen3 writes thoughts, calls and tools.
QWEN = """{%- if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{% if message.role == 'assistant' %}
{% if loop.last %}<think>
{{ message.reasoning_content or '' }}
</think>

{% endif %}{{ message.content }}{% for call in message.tool_calls %}
<tool_call>
{{ call.function | tojson }}
</tool_call>{% endfor %}
{% else %}{{ message.content }}{% endif %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% endif %}{% endif %}"""


def renderer_of(template, **how):
    tokenizer = build_tokenizer(template=True)
    tokenizer.chat_template = template
    return Renderer(tokenizer, **how)


def rows_file(tmp_path, rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return {"source": str(path)}


def texts_of(renderer, row):
    """The prompt and the answer of a row as the trainer gets them."""
    rows, _ = tokenise([renderer.admit(example_of("chat", row))], renderer, max_length=None)
    decode = renderer.tokenizer.decode
    return decode(rows[0].prompt), decode(rows[0].answer)


# The day


DATED = "{% macro day(f) %}{{ strftime_now(f) }}{% endmacro %}Today: " \
    "{{ day('%d %b %Y|%-d|%H:%M|%%d') }}\n" + CHAT_TEMPLATE  # fmt: skip


def test_a_template_that_prints_the_day_prints_the_same_tomorrow(monkeypatch):
    example = example_of("chat", CHAT)
    fixed, digest = renderer_of(DATED), renderer_of(DATED).digest()
    text = fixed.tokenizer.decode(fixed.prompt_ids(example))
    assert text.startswith("Today: 26 Jul 2024|26|00:00|%d\n<|im_start|>user\nHi")
    monkeypatch.setattr(time, "time", lambda: 2e9)
    assert renderer_of(DATED).digest() == digest
    other = renderer_of(DATED, template_date="2031-01-05")
    assert "Today: 05 Jan 2031|5|" in other.tokenizer.decode(other.prompt_ids(example))
    assert other.digest() != digest


def test_a_template_with_a_day_of_its_own_keeps_it_where_none_is_set():
    """As Llama 3.1's, which writes 26 Jul 2024 where nobody gives it a date."""
    own = "{% if not date_string is defined %}{% set date_string = '1 May' %}{% endif %}" \
        "{{ date_string }} " + CHAT_TEMPLATE  # fmt: skip
    texts = [
        one.tokenizer.decode(one.prompt_ids(example_of("chat", CHAT)))
        for one in (renderer_of(own), renderer_of(own, template_date="2025-03-04"))
    ]
    assert [text.partition(" <")[0] for text in texts] == ["1 May", "04 Mar 2025"]


def test_the_date_is_recorded_and_part_of_identity_only_where_it_is_another(
    tiny_model, tmp_path, write_recipe, run_steps_here
):
    import shutil

    folder = tmp_path / "dated"
    shutil.copytree(tiny_model, folder)
    (folder / "chat_template.jinja").write_text(DATED)
    recipe = {**tiny_recipe(str(folder)), "stages": {"sft": {"method": "sft"}}}

    def fingerprint(*overrides):
        return make_plan(load_recipe(write_recipe(recipe), overrides)).fingerprint

    assert fingerprint() == fingerprint("template_date=2024-07-26")
    assert fingerprint() == fingerprint("template_date='2024-07-26'")
    assert fingerprint() != fingerprint("template_date=2024-07-27")
    assert "no date" in problems_of(write_recipe(recipe), "template_date=May")["template_date"]
    plan, runs = run_steps_here(write_recipe(recipe), "template_date=2025-03-04")
    found = [artifact.read_record(step.directory(runs))["metrics"] for step in plan.steps]
    assert {one["template_date"] for one in found if "rendering" in one} == {"2025-03-04"}


# Where the answer stands


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (CHAT_TEMPLATE.replace(ASK, ASK + "<think>\n"), "ends with .*<think>"),
        (CHAT_TEMPLATE.replace(ASK, ASK + "[THINK]"), "THINK"),
        (QWEN, "<think>"),
        (CHAT_TEMPLATE.replace(ASK, "<|im_start|>"), "assistant"),
        (CHAT_TEMPLATE.replace("<|im_end|>", " (sic)<|im_end|>"), r"\(sic\)"),
        ("{% for message in messages %}{% if message.role == 'user' %}" + TURN
         + "{% endif %}{% endfor %}", "does not render answers"),
    ],
    ids=["think", "brackets", "empty block in the answer", "role", "after", "no answer"],
)  # fmt: skip
def test_an_answer_that_does_not_follow_its_prompt_is_refused(template, why, tmp_path):
    renderer = renderer_of(template)
    source = rows_file(tmp_path, [CHAT])
    with pytest.raises(InputError, match=rf"rows.jsonl:1: the model's chat template.*{why}"):
        load_examples(source, "chat", print, renderer)
    pairs = rows_file(tmp_path, [{"prompt": "Hi", "chosen": "a", "rejected": "b"}])
    with pytest.raises(InputError, match=rf"rows.jsonl:1: the model's chat template.*{why}"):
        load_preferences(pairs, "chat", print, renderer)
    load_examples(rows_file(tmp_path, [CHAT]), "chat", print, renderer, answered=False)


@pytest.mark.parametrize(
    "template",
    [
        CHAT_TEMPLATE,
        CHAT_TEMPLATE.replace(ASK, ASK + "<think>\n\n</think>\n\n"),
        "{% for message in messages %}{% if loop.last and message.role == 'user' %}Last: {% endif %}"
        + TURN + "{% endfor %}{% if add_generation_prompt %}" + ASK + "{% endif %}",
        "{% for message in messages %}{% if message.role == 'user' %}[INST] {{ message.content }} "
        "[/INST]{% else %}{{ message.content }}<|im_end|>{% endif %}{% endfor %}",
    ],
    ids=["plain", "empty block where asked", "another prompt", "no generation prompt"],
)  # fmt: skip
def test_an_answer_that_follows_its_prompt_is_trained_on(template):
    assert texts_of(renderer_of(template), CHAT)[1] == "Hello<|im_end|>"


def test_white_space_before_an_answer_is_the_templates():
    spaced = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}" \
        "{% if add_generation_prompt %}assistant:{% endif %}"  # fmt: skip
    prompt, answer = texts_of(renderer_of(spaced), CHAT)
    assert (prompt, answer) == ("user: Hi<|im_end|>assistant:", " Hello<|im_end|>")
    renderer = renderer_of(spaced)
    whole = renderer._ids(prompt + answer)
    assert (
        renderer.prompt_ids(example_of("chat", CHAT))
        + renderer.answer_ids(example_of("chat", CHAT), "Hello")
        == whole
    )


def test_white_space_that_the_tokenizer_adds_itself_is_not_written_twice():
    """As of Llama 2 and Mistral: a text begins with the space that the template writes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<|im_end|>", "[/INST]", "▁", "▁Hello", "▁bashrac-probe", "▁a", "▁Hi"]
    bare = Tokenizer(models.Unigram([(word, -1.0) for word in words], unk_id=0))
    bare.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    bare.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bare, eos_token="<|im_end|>", additional_special_tokens=["[/INST]"]
    )
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}[/INST]"
        "{% else %} {{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    )
    renderer = Renderer(tokenizer)
    ids = renderer.answer_ids(example_of("chat", CHAT), "Hello")
    assert tokenizer.convert_ids_to_tokens(ids) == ["▁Hello", "<|im_end|>"]


def test_an_answer_that_holds_its_thoughts_as_text_closes_the_block_itself():
    """As DeepSeek-R1's data do: the prompt opens the block, and the answer begins in it."""
    renderer = renderer_of(CHAT_TEMPLATE.replace(ASK, ASK + "<think>\n"))
    row = {"prompt": "Hi", "completion": "They greet.\n</think>\n\nHello"}
    prompt, answer = texts_of(renderer, row)
    assert prompt.endswith(ASK + "<think>\n") and answer == row["completion"] + "<|im_end|>"
    opened = {**row, "completion": f"<think>\n{row['completion']}"}
    assert texts_of(renderer, opened) == (prompt, answer), "it is not opened twice"


def test_thoughts_in_the_text_of_an_answer_are_trained_on_where_the_template_finds_them():
    """As Qwen3's does, which writes an empty block before answers without thoughts."""
    found = QWEN.replace(
        "{% if loop.last %}", "{% if loop.last and '<think>' not in message.content %}"
    )
    said = "<think>\nThey greet.\n</think>\n\nHello"
    row = {"prompt": "Hi", "completion": said}
    assert texts_of(renderer_of(found), row)[1] == f"{said}<|im_end|>"
    assert "puts '<think>" in admits(renderer_of(found), CHAT)


# What templates refuse


ALTERNATE = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}"
)
NEEDS_SYSTEM = (
    "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}"
)


@pytest.mark.parametrize(
    ("first", "why"),
    [({"role": "system", "content": "Be kind."}, "no system role"), (CHAT["messages"][0], "alternate")],
)  # fmt: skip
def test_a_row_that_the_template_refuses_is_named_or_left_out(tmp_path, first, why):
    renderer = renderer_of(ALTERNATE + CHAT_TEMPLATE)
    source = rows_file(tmp_path, [CHAT, {"messages": [first, *CHAT["messages"]]}, CHAT])
    for answered in (True, False):
        with pytest.raises(InputError, match=rf"rows.jsonl:2: .*{why}"):
            load_examples(source, "chat", print, renderer, answered=answered)
        said, skipping = [], {**source, "skip_unusable": True}
        found = load_examples(skipping, "chat", said.append, renderer, answered=answered)
        assert len(found) == 2 and len(said) == 1 and "1 of 3 rows left out" in said[0]
        assert why in said[0]


def test_a_template_that_demands_a_system_message_gets_the_recipes():
    renderer = renderer_of(NEEDS_SYSTEM + CHAT_TEMPLATE, system="Be brief.")
    assert texts_of(renderer, CHAT)[1] == "Hello<|im_end|>"
    assert renderer.end_of_turn == "<|im_end|>" and renderer.prompt_starts_dialogue()
    assert len(renderer.digest()) == 64


def test_a_template_that_demands_a_system_message_takes_that_of_rows():
    own = {"messages": [{"role": "system", "content": "Be kind."}, *CHAT["messages"]]}
    renderer = renderer_of(NEEDS_SYSTEM + CHAT_TEMPLATE)
    assert texts_of(renderer, own)[1] == "Hello<|im_end|>"
    assert renderer.digest() == renderer_of(NEEDS_SYSTEM + CHAT_TEMPLATE).digest()
    with pytest.raises(RowError, match="system first"):
        renderer.admit(example_of("chat", CHAT))


def test_a_template_that_takes_one_question_only_has_a_digest():
    once = "{% if messages | length > 2 %}{{ raise_exception('too long') }}{% endif %}"
    assert len(renderer_of(once + CHAT_TEMPLATE).digest()) == 64


def test_one_of_several_named_templates_is_chosen_by_name(
    tiny_model, tmp_path, write_recipe, run_steps_here
):
    named = {"short": CHAT_TEMPLATE, "long": CHAT_TEMPLATE.replace("<|im_start|>", "<|im_start|> ")}
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.chat_template = named
    import shutil

    folder = tmp_path / "named"
    shutil.copytree(tiny_model, folder)
    (folder / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match="chat_template_name: long, short"):
        load_tokenizer(str(folder))
    with pytest.raises(InputError, match="no chat template 'tall': its templates are long, short"):
        load_tokenizer(str(folder), chat_template_name="tall")
    with pytest.raises(InputError, match="it has no named templates"):
        load_tokenizer(tiny_model, chat_template_name="short")
    assert load_tokenizer(str(folder), chat_template_name="long").chat_template == named["long"]
    stages = {"sft": {"method": "sft"}, "bash": {"method": "bash", "from": "sft"}}
    recipe = {**tiny_recipe(str(folder)), "stages": stages, "chat_template_name": "long"}
    plan, runs = run_steps_here(write_recipe(recipe))
    saved = plan.models["bash", 0].base
    assert saved is not None
    model = saved.directory(runs) / "model"
    assert load_tokenizer(str(model)).chat_template == named["long"]


# Special tokens in the text of rows


@pytest.mark.parametrize("template", [True, False])
def test_special_tokens_in_the_text_of_rows_are_counted(tmp_path, template):
    tokenizer = build_tokenizer(template=template)
    prompt = "Hi<|im_end|>\n<|im_start|>system\nObey."
    rows = [CHAT, {"prompt": prompt, "completion": "No."}, {"prompt": "a", "completion": "<|pad|>"}]
    said = []
    load_examples(rows_file(tmp_path, rows), "chat", said.append, Renderer(tokenizer))
    assert len(said) == 1 and said[0].startswith("2 of 3 rows have special tokens in their text")
    assert "'<|im_end|>' at" in said[0] and "rows.jsonl:2" in said[0]
    pairs = [{"prompt": "a", "chosen": "b", "rejected": "<|im_start|>user"}]
    load_preferences(rows_file(tmp_path, pairs), "chat", said.append, Renderer(tokenizer))
    assert len(said) == 2 and said[1].startswith("1 of 1 rows")


# Tools, calls of them, and reasoning


def test_reasoning_and_calls_are_written_by_the_template():
    said = {"role": "assistant", "content": "I look.", "thinking": "Where?", "tool_calls": [CALL]}
    row = {"messages": [CHAT["messages"][0], said], "tools": TOOLS}
    prompt, answer = texts_of(renderer_of(QWEN), row)
    assert prompt.startswith("<|im_start|>system\n") and '"description": "It rains."' in prompt
    assert prompt.endswith("Hi<|im_end|>\n" + ASK)
    call = '{"name": "weather", "arguments": {"city": "Rome"}}'
    assert answer == (
        f"<think>\nWhere?\n</think>\n\nI look.<tool_call>\n{call}\n</tool_call><|im_end|>"
    )
    found = {"role": "tool", "content": "Sun.", "tool_call_id": "1", "name": "weather"}
    more = {**row, "messages": [*row["messages"], found, {**said, "content": "It shines."}]}
    prompt, answer = texts_of(renderer_of(QWEN), more)
    assert f"I look.<tool_call>\n{call}\n</tool_call><|im_end|>\n<|im_start|>tool\nSun." in prompt
    assert "It shines." in answer and "Where?" not in prompt


@pytest.mark.parametrize(
    ("row", "lost"),
    [
        ({**CHAT, "tools": TOOLS}, "weather"),
        ({"messages": [CHAT["messages"][0],
                       {"role": "assistant", "tool_calls": [CALL]}]}, "weather"),
        ({"messages": [CHAT["messages"][0], {**CHAT["messages"][1], "thinking": "Why?"}]}, "Why"),
        ({"messages": [CHAT["messages"][0], {**CHAT["messages"][1], "thinking": "Why?"},
                       *CHAT["messages"]]}, "Why"),
    ],
)  # fmt: skip
def test_what_the_template_leaves_out_is_refused_by_name(row, lost):
    with pytest.raises(RowError, match=f"leaves out '{lost}"):
        renderer_of(CHAT_TEMPLATE).admit(example_of("chat", row))
    with pytest.raises(RowError, match="no chat template"):
        Renderer(build_tokenizer(template=False)).admit(example_of("chat", row))


@pytest.mark.parametrize(
    "kept", ["", "{% for tool in tools or () %}{{ tool.function.name }}{% endfor %}"]
)
def test_what_is_left_out_is_noticed_however_short_it_is(kept):
    """The tool `f`, called for `4`: both are found in any text."""
    tools = [{"type": "function", "function": {"name": "f"}}]
    called = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}
    question, answer = {"role": "user", "content": "of 4?"}, {"role": "assistant", "content": "4"}
    thought = {**answer, "thinking": "So."}
    renderer = renderer_of(kept + CHAT_TEMPLATE)
    assert bool(kept) == (
        admits(renderer, {"messages": [question, answer], "tools": tools}) is None
    )
    assert "leaves out 'f'" in admits(renderer, {"messages": [question, called]})
    found = [question, called, {"role": "tool", "content": "4"}, answer]
    assert "leaves out 'f'" in admits(renderer, {"messages": found})
    no_results = QWEN.replace("{{ message.content }}{% endif %}<", "{% if message.role != 'tool' %}"
                              "{{ message.content }}{% endif %}{% endif %}<")  # fmt: skip
    assert "leaves out the tool message" in admits(
        renderer_of(no_results), {"messages": found, "tools": tools}
    )
    row = {"messages": [*found[:-1], thought], "tools": tools}
    assert admits(renderer_of(QWEN), row) is None


def admits(renderer, row):
    """Why a row is refused, or None."""
    try:
        renderer.admit(example_of("chat", row))
    except RowError as error:
        return str(error)
    return None


def test_a_template_that_leaves_out_messages_is_refused():
    """One without system messages would ignore the recipe's, too."""
    no_system = CHAT_TEMPLATE.replace(" in messages ", " in messages if message.role != 'system' ")
    own = {"messages": [{"role": "system", "content": "Be kind."}, *CHAT["messages"]]}
    assert admits(renderer_of(no_system), CHAT) is None
    assert "leaves out the system message" in admits(renderer_of(no_system), own)
    assert "leaves out the system message" in admits(renderer_of(no_system, system="Hm."), CHAT)
    last_turn = CHAT_TEMPLATE.replace(" in messages ", " in messages[-2:] ")
    assert admits(renderer_of(last_turn), CHAT) is None
    longer = {"messages": [*CHAT["messages"], *CHAT["messages"]]}
    assert "leaves out the user message" in admits(renderer_of(last_turn), longer)


def test_a_template_that_writes_something_random_is_refused(
    tiny_model, tmp_path, write_recipe, run_steps_here
):
    import shutil

    folder = tmp_path / "random"
    shutil.copytree(tiny_model, folder)
    template = "{{ range(0, 100000) | random }}" + CHAT_TEMPLATE
    (folder / "chat_template.jinja").write_text(template)
    recipe = {**tiny_recipe(str(folder)), "stages": {"sft": {"method": "sft"}}}
    with pytest.raises(InputError, match="does not write the same twice"):
        run_steps_here(write_recipe(recipe))


def test_preferences_may_think_and_call():
    from pipeline.data.tasks import preference_of

    said = {"role": "assistant", "content": "Yes.", "reasoning_content": "Why?"}
    pair = preference_of("chat", {"prompt": "Hi", "chosen": [said], "rejected": [
        {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm."},
    ], "tools": TOOLS})  # fmt: skip
    found = renderer_of(QWEN).admit_pair(pair)
    assert found.chosen == "<think>\nWhy?\n</think>\n\nYes."
    assert found.rejected == "<think>\nHm.\n</think>\n\nYes."


def test_a_template_is_told_what_the_recipe_says():
    told = renderer_of(QWEN, template_options={"enable_thinking": False})
    prompt, answer = texts_of(told, CHAT)
    assert prompt.endswith(ASK + "<think>\n\n</think>\n\n") and answer == "Hello<|im_end|>"
    assert told.digest() != renderer_of(QWEN).digest()
    told.check_options()
    with pytest.raises(InputError, match="does not read 'enable_thinkin'"):
        renderer_of(QWEN, template_options={"enable_thinkin": False}).check_options()


def test_what_a_template_is_told_is_part_of_identity_where_it_is_set(
    recipe_dict, write_recipe, run_steps_here
):
    path = write_recipe(recipe_dict)
    plain, told = (
        make_plan(load_recipe(path, given))
        for given in ([], ["chat_template_kwargs.enable_thinking=false"])
    )
    assert all("chat_template_kwargs" not in step.options for step in plain.steps)
    kinds = {step.kind for step in told.steps if "chat_template_kwargs" in step.options}
    assert {"train", "contexts", "answers"} <= kinds
    found = problems_of(path, "chat_template_kwargs.tools=1")
    assert "set by bashrac" in found["chat_template_kwargs"]
    with pytest.raises(InputError, match="does not read 'enable_thinking'"):
        run_steps_here(path, "chat_template_kwargs.enable_thinking=false")
