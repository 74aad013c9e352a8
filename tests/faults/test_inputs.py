"""Whatever a recipe, a data file, a judge or a model holds: a sentence or a right result.

Inputs are drawn by hypothesis, the same in every run. A sentence is an InputError, which the command
line prints without a traceback; anything else that is raised fails the test.
"""

import csv
import html
import io
import json
import re
import time
from dataclasses import asdict, replace
from decimal import Decimal

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eval.benchmarks.alpaca_files import read_annotations
from eval.graders import gsm8k
from eval.graders.length_control import length_controlled_win_rate
from eval.graders.rouge import rouge
from eval.judge.cache import ReplyCache
from eval.judge.openai import OpenAIJudge
from eval.judge.replies import reply_of
from eval.judge.template import load_template
from eval.judge.types import Failure
from eval.report.data import csv_text, json_text
from eval.report.markdown import markdown
from eval.report.page import html_page
from eval.report.samples import SampleView, StageAnswer
from eval.report.types import Report, Row
from pipeline.data.load import load_examples, load_preferences, tokenise
from pipeline.data.render import Renderer
from pipeline.data.tasks import Example
from pipeline.errors import InputError, RecipeError, visible
from pipeline.plan.load import load_recipe
from pipeline.plan.plan import make_plan

ACTING = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
SLOWEST_S = 20.0  # for one input, on a machine with other work
HOSTILE = (
    "</div><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "\x1b[31mred\x1b]0;t\a", "\x9b2J",
    "\u202etxet", "\u2066x\u2069", "\ud800", "a\udc00b", "\0", "\r\n", "| a | b |", "{{ 7 * 7 }}", "#### 5",
    "=cmd|' /C calc'!A0", "\u2028", "\ufeff", "x" * 3000, "'\"`&amp;", "#### 1/0", "#### -", "$" * 50,
)  # fmt: skip
# Characters of every kind, lone surrogates among them.
any_text = st.one_of(st.text(max_size=20), st.sampled_from(HOSTILE)) | st.text(
    st.characters(categories=["Cs", "Cc", "Cf", "Nd", "Lu"]), max_size=8
)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(10**18, 10**40), st.floats(), any_text
)
trees = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(any_text | st.integers(), inner, max_size=4)
    ),
    max_leaves=8,
)


def drawn(examples):
    """Settings of one fuzzed function: the same inputs in every run, none of them shrunk away."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


class Tally:
    """Counts inputs by what became of them, and sees to it that each was told or right, and soon."""

    def __init__(self):
        self.refused = self.right = 0

    def run(self, make, check=lambda result: None):
        begin = time.perf_counter()
        try:
            result = make()
        except InputError as error:
            assert_is_sentence(str(error))
            self.refused += 1
        else:
            check(result)
            self.right += 1
        assert time.perf_counter() - begin < SLOWEST_S

    @property
    def total(self):
        return self.refused + self.right

    @property
    def words(self):
        assert self.total
        return (
            f"{self.refused} refused in a sentence, {self.right} read right; 0 tracebacks, 0 hangs"
        )


def assert_is_sentence(words):
    assert len(words) > 15 and " " in words and "Traceback" not in words
    assert not ACTING.search(words), "a message acts on the terminal"
    assert max(map(len, words.split("\n"))) < 2100, "a message floods the terminal"


def base_recipe(tiny_model):
    return {
        "name": "tiny",
        "task": "gsm8k",
        "model": tiny_model,
        "data": {"train": {"source": "builtin:maths", "limit": 6}, "test": "builtin:maths"},
        "launch": "cpu",
        "batch_size": 4,
        "trainer": {"learning_rate": 0.001, "bf16": False},
        "judge": "reference",
        "stages": {"sft": {"method": "sft"}, "bash": {"method": "bash", "from": "sft"}},
        "evaluate": ["gsm8k"],
    }


# Recipes


def places_in(node, path=()):
    yield path
    if isinstance(node, dict):
        for key, value in node.items():
            yield from places_in(value, (*path, key))


def changed(node, path, value):
    if not path:
        return value
    return {**node, path[0]: changed(node[path[0]], path[1:], value)}


def test_a_recipe_with_anything_in_any_place_is_told_of_or_planned(tiny_model, tmp_path, injected):
    base, path, tally = base_recipe(tiny_model), tmp_path / "recipe.yaml", Tally()
    more = ("system", "lora", "seeds", "generation", "benchmarks", "published", "max_prompt_length")
    places = [place for place in places_in(base) if place] + [(key,) for key in more]
    keys = st.sampled_from(["trainer", "stages", "data", "judge", "generation", "lora", ""])

    valid = st.sampled_from([1, 2, 0.5, True, "a", "builtin:maths", "self", [0], [], {}, None])
    extras = st.none() | st.none() | st.tuples(keys, any_text, trees)

    @drawn(500)
    @given(st.sampled_from(places), valid | trees, extras)
    def fuzz(place, value, extra):
        recipe = base | {key: None for key in place[:1] if key not in base}
        recipe = changed(recipe, place, value)
        if extra is not None:
            block = recipe.get(extra[0]) if extra[0] else recipe
            if isinstance(block, dict):
                block = {**block, extra[1]: extra[2]}
                recipe = {**recipe, extra[0]: block} if extra[0] else block
        path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
        tally.run(lambda: make_plan(load_recipe(path)), lambda plan: plan.steps[0].fingerprint)

    fuzz()
    assert tally.refused > 200 and tally.right > 10
    injected("a malformed recipe", "any tree in any place", tally.total, tally.words)


YAML_PIECES = (
    "name: a", "stages:", "  sft: {method: sft}", "- ", "? ", ": ", "{", "}", "[", "]", "&a ", "*a", "<<: *a",
    "!!binary aGk=", "!!python/object/apply:os.system [true]", "!!int x", "!!bool x", "!!timestamp x", "!!set {a}",
    "2024-13-45", "0b_", "1:1:1", ".nan", "-.inf", "9" * 5000, '"\\ud800"', '"\\0"', "\t", "\n", "\n", "---\n", "%YAML 9",
    "|", ">", "'", '"', "\ufeff", "\x85", "=", "~: 1", "1: 2", "true: 3", "@", "`", "#", "\x1b[31m",
)  # fmt: skip


def test_a_file_of_pieces_of_yaml_or_bytes_is_told_of(tmp_path, injected):
    path, tally = tmp_path / "recipe.yaml", Tally()
    pieces = st.lists(st.sampled_from(YAML_PIECES), max_size=12).map("".join).map(str.encode)

    @drawn(600)
    @given(pieces | st.binary(max_size=60))
    def fuzz(data):
        path.write_bytes(data)
        tally.run(lambda: load_recipe(path))

    fuzz()
    assert tally.right == 0
    injected("a file that is no recipe", "pieces of YAML, bytes", tally.total, tally.words)


def alias_bomb(kind):
    first, last = {"lists": "[]", "mappings": "{}"}[kind]
    joined = {"lists": "{0}", "mappings": "k{1}: {0}"}[kind]
    lines = [f"a0: &a0 {first}{last}"]
    for level in range(1, 9):
        inside = ", ".join(joined.format(f"*a{level - 1}", k) for k in range(9))
        lines.append(f"a{level}: &a{level} {first}{inside}{last}")
    return "\n".join(lines)


LARGE = {
    "10 MB": "name: a\n#" + "x" * 10_000_000,
    "10 MB of keys": "".join(f"key{i}: 1\n" for i in range(900_000)),
    "an alias bomb": alias_bomb("lists"),
    "an alias bomb of mappings": alias_bomb("mappings"),
    "an alias in itself": "name: &a [*a]",
    "3000 lists in lists": "name: " + "[" * 3000 + "]" * 3000,
    "3000 mappings in mappings": "name: " + "{a: " * 3000 + "1" + "}" * 3000,
    "100,000 values": "seeds: [" + "1," * 100_000 + "]",
    "60,000 digits": "batch_size: 0x" + "f" * 60_000,
    "merges": "a: &a {x: 1}\nb: {<<: [*a, *a]}",
}


@pytest.mark.parametrize("name", LARGE)
def test_a_recipe_that_could_take_all_memory_is_refused_at_once(name, tmp_path, injected):
    """An alias bomb of 9 levels is half a kilobyte and 9^8 = 43 million values."""
    path = tmp_path / "recipe.yaml"
    path.write_text(LARGE[name])
    begin = time.perf_counter()
    with pytest.raises(InputError, match=r"over 256 kB|line \d+: ") as caught:
        load_recipe(path)
    seconds = time.perf_counter() - begin
    assert seconds < 10
    assert_is_sentence(str(caught.value))
    injected("a recipe that could take all memory", name, 1, "refused in seconds; 0 hangs")


def test_a_recipe_of_a_hundred_million_rounds_is_refused_not_planned(recipe_dict, write_recipe):
    recipe_dict["stages"]["bash"]["rounds"] = 100_000_000
    with pytest.raises(RecipeError, match="a recipe can have 10000: lower rounds"):
        load_recipe(write_recipe(recipe_dict))


@pytest.mark.parametrize("text", ["a" * 5000, "~no-such-user/x", "./" + "a" * 5000 + ".jsonl"])
@pytest.mark.parametrize("key", ["model", "launch", "data.train.source", "judge"])
def test_a_text_that_no_file_can_be_called_is_named_by_its_key(
    recipe_dict, write_recipe, key, text
):
    value = json.dumps(f"local:{text}" if key == "judge" else text)
    with pytest.raises(RecipeError, match="cannot be a path here") as caught:
        load_recipe(write_recipe(recipe_dict), [f"{key}={value}"])
    assert caught.value.problems[0].key == {"judge": "judge.model"}.get(key, key)


def test_a_date_is_text_and_not_an_object_that_no_record_can_hold(recipe_dict, write_recipe):
    recipe_dict["name"] = "2024-01-01"
    path = write_recipe(recipe_dict)
    path.write_text(path.read_text().replace("'2024-01-01'", "2024-01-01"))
    assert load_recipe(path, ["trainer.lr_scheduler_kwargs={a: 2024-01-01}"]).name == "2024-01-01"


def test_any_override_is_told_of_or_planned(tiny_model, tmp_path, injected):
    path, tally = tmp_path / "recipe.yaml", Tally()
    base = base_recipe(tiny_model)
    path.write_text(yaml.safe_dump(base, sort_keys=False))
    names = sorted({part for place in places_in(base) for part in place})
    part = st.sampled_from(names) | any_text
    key = st.lists(part, min_size=1, max_size=4).map(".".join)
    values = any_text | st.sampled_from(YAML_PIECES) | trees.map(lambda tree: yaml.safe_dump(tree))
    usual = [".".join(place) for place in places_in(base) if place]
    likely = st.sampled_from(["1", "4", "null", "true", "builtin:maths", "0.5", "{}", "[gsm8k]"])
    right = st.builds("{}={}".format, st.sampled_from(usual), likely)
    wrong = st.builds("{}={}".format, key, values) | any_text

    @drawn(500)
    @given(st.lists(right, min_size=1, max_size=1) | st.lists(right | wrong, max_size=3))
    def fuzz(given_overrides):
        tally.run(lambda: make_plan(load_recipe(path, given_overrides)))

    fuzz()
    tally.run(lambda: load_recipe(path, [".".join(["a"] * 60_000) + "=1"]))
    tally.run(lambda: load_recipe(path, [f"seeds={alias_bomb('lists')}"]))
    assert tally.refused > 200 and tally.right > 10
    injected("a malformed --set", "any key, any value, alias bomb", tally.total, tally.words)


# Data

GOOD = {
    "gsm8k": {"question": "What is 1 + 1?", "answer": "It is 2.\n#### 2"},
    "tldr": {"subreddit": "a", "title": "b", "post": "c", "summary": "d"},
    "chat": {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    "preferences": {"prompt": "a", "chosen": "b", "rejected": "c"},
}
roles = st.sampled_from(["user", "assistant", "system", "tool", "", "User"]) | trees
messages = st.lists(st.dictionaries(st.sampled_from(["role", "content", "x"]), roles | any_text), max_size=4)  # fmt: skip


@st.composite
def rows(draw, kind):
    """A good row with some fields changed, gone or added; often none."""
    row = dict(GOOD[kind])
    for name in draw(st.lists(st.sampled_from([*row, "extra"]), max_size=2)):
        change = draw(st.sampled_from(["gone", "tree", "text", "messages"]))
        if change == "gone":
            row.pop(name, None)
        else:
            row[name] = draw({"tree": trees, "text": any_text, "messages": messages}[change])
    return row


def line_of(row):
    return json.dumps(row)  # lone surrogates as \ud800, NaN as NaN


def read(path, kind):
    if kind == "preferences":
        return load_preferences({"source": str(path)}, "chat")
    return load_examples({"source": str(path)}, kind)


def is_good(row, kind):
    """Whether a row has just what its kind needs, said without the code under test."""
    if kind == "chat":
        return row.get("messages") == GOOD["chat"]["messages"]
    return all(row.get(name) == value for name, value in GOOD[kind].items())


@pytest.mark.parametrize("kind", GOOD)
def test_a_data_file_gives_all_its_rows_or_names_the_line_that_is_wrong(kind, tmp_path, injected):
    path, tally = tmp_path / "rows.jsonl", Tally()
    mess = st.sampled_from(["{", "[1]", "null", "\x00", '{"a": 1, "a": 2}', "[" * 100_000, "NaN"])

    @drawn(250)
    @given(
        st.lists(rows(kind) | mess, min_size=1, max_size=4), st.sampled_from(["\n", "\r\n"]),
        st.sampled_from(["", "\ufeff"]), st.booleans(),
    )  # fmt: skip
    def fuzz(lines, end, begin, blank):
        texts = [line if isinstance(line, str) else line_of(line) for line in lines]
        path.write_bytes((begin + (end * (1 + blank)).join(texts) + end).encode())

        def check(found):
            assert len(found) == len(lines), "a row was skipped"
            for one, row in zip(found, lines, strict=True):
                example = getattr(one, "example", one)
                assert example.reference.strip() and example.messages[-1]["content"].strip()
                (
                    example.reference.encode(),
                    json.dumps(example.messages, ensure_ascii=False).encode(),
                )
                if is_good(row, kind):
                    assert example.reference in line_of(row).replace("\\n", "\n")

        bad_before = tally.refused
        tally.run(lambda: read(path, kind), check)
        if all(not isinstance(line, str) and is_good(line, kind) for line in lines):
            assert tally.refused == bad_before, "good rows were refused"

    fuzz()
    assert tally.refused > 50 and tally.right > 20
    with pytest.raises(InputError, match=r"rows\.jsonl:2: "):
        path.write_text(line_of(GOOD[kind]) + '\n{"x": \n')
        read(path, kind)
    injected("malformed rows", f"{kind}.jsonl", tally.total + 1, tally.words)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_a_data_file_of_any_bytes_is_told_of(suffix, tmp_path, injected):
    import pandas

    path, tally = tmp_path / f"rows{suffix}", Tally()
    frame = pandas.DataFrame([GOOD["gsm8k"]] * 3)
    good = {
        ".jsonl": frame.to_json(orient="records", lines=True).encode(),
        ".json": frame.to_json(orient="records").encode(),
        ".csv": frame.to_csv(index=False).encode(),
        ".parquet": frame.to_parquet(),
    }[suffix]
    # Parquet is read by a library in C++, which some changed bytes end, so it is only cut here.
    patch = st.nothing() if suffix == ".parquet" else st.binary(min_size=1, max_size=3)
    cut = st.integers(0, len(good) - 1)

    @drawn(150)
    @given(cut, patch | st.none(), st.binary(max_size=30), st.booleans())
    def fuzz(at, piece, noise, only_noise):
        cut_off = good[:at] if piece is None else good[:at] + piece + good[at + len(piece) :]
        path.write_bytes(noise if only_noise else cut_off)
        tally.run(lambda: read(path, "gsm8k"), lambda found: len(found) <= 4)

    fuzz()
    assert tally.refused > 20
    injected("a damaged data file", f"cut, changed or random {suffix}", tally.total, tally.words)


DAMAGED = {
    "half a character": ("a.jsonl", '{"question": "a\\ud800b", "answer": "#### 2"}', r"a.jsonl:1: field 'question' holds \\ud800"),
    "half a character in a list": ("a.json", '[{"question": "a\\ud800b", "answer": "#### 2"}]', "row 1: field 'question' holds"),
    "a field twice": ("a.jsonl", '{"question": "a", "question": "b", "answer": "#### 2"}', "a.jsonl:1: .*given twice"),
    "deep nesting": ("a.jsonl", '{"x": ' + "[" * 100_000 + "]" * 100_000 + "}", "a.jsonl:1: .*nested too deeply"),
    "null": ("a.json", "null", "a.json:1: a row must be a JSON object"),
    "a list in lines": ("a.jsonl", "[1, 2]", "a.jsonl:1: a row must be a JSON object"),
    "a column twice": ("a.csv", "question,question,answer\na,b,#### 2\n", "a.csv:1: two columns"),
    "a cell too many": ("a.csv", "question,answer\na,#### 2\na,#### 2,c\n", "a.csv:3: 3 cells in 2"),
    "a cell too few": ("a.csv", "question,answer\na\n", "a.csv:2: 1 cells in 2"),
    "an open quote": ("a.csv", 'question,answer\na,#### 2\n"b', "a.csv:3: not valid CSV"),
    "only a head": ("a.csv", "question,answer\n", "no rows"),
    "no list entry": ("a.json", "[]", "no rows"),
    "UTF-16": ("a.csv", "question,answer\na,#### 2\n".encode("utf-16"), "a.csv:1: not UTF-8"),
    "no Parquet": ("a.parquet", "PAR1" + "\0" * 100 + "PAR1", "not a complete Parquet file"),
    "NUL": ("a.jsonl", "\0" * 100, "a.jsonl:1: not valid JSON"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_named_by_file_line_and_field(name, tmp_path):
    """Through `datasets` the first two lost a character, the third told no line, the next ended Python."""
    file, content, message = DAMAGED[name]
    path = tmp_path / file
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message) as caught:
        read(path, "gsm8k")
    assert_is_sentence(str(caught.value))


def test_the_word_null_and_a_number_are_text_in_a_csv_file(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("question,answer\nNA,#### 1\nnull,#### 2\n5,#### 3\n")
    found = [example.messages[0]["content"] for example in read(path, "gsm8k")]
    assert found == ["NA", "null", "5"]


def test_a_folder_names_the_file_and_line(tmp_path):
    (tmp_path / "rows").mkdir()
    for content in ('{"question": "a\\ud800", "answer": "#### 1"}', '{"x": ' + "[" * 100_000):
        (tmp_path / "rows" / "train.jsonl").write_text(line_of(GOOD["gsm8k"]) + "\n" + content)
        with pytest.raises(InputError, match=r"rows/train\.jsonl:2: "):
            read(tmp_path / "rows", "gsm8k")


def test_prompts_of_any_text_and_length_are_tokenised_counted_or_told_of(tiny_model, injected):
    from pipeline.models.load import load_tokenizer

    tokenizer, tally = load_tokenizer(tiny_model), Tally()
    text = st.text(min_size=1, max_size=400) | st.sampled_from(
        [one for one in HOSTILE if not re.search("[\ud800-\udfff]", one)]
    )

    @drawn(120)
    @given(st.lists(st.tuples(text, text), min_size=1, max_size=3), st.integers(1, 200))
    def fuzz(pairs, limit):
        examples = [
            Example("chat", [{"role": "user", "content": ask}], answer) for ask, answer in pairs
        ]
        renderer = Renderer(tokenizer, max_prompt_length=limit)

        def check(found):
            token_rows, counts = found
            assert counts["rows"] + counts["dropped"] == len(examples)
            assert all(len(row.prompt) + len(row.answer) <= 256 for row in token_rows)

        tally.run(lambda: tokenise(examples, renderer, max_length=256), check)

    fuzz()
    assert tally.refused and tally.right
    injected("prompts of any text", "over the limit, control characters", tally.total, tally.words)


@pytest.mark.parametrize("post", ["word " * 60_000, "a" + " " * 300_000 + "b", "x\n" * 150_000])
def test_a_post_as_long_as_a_book_is_cut_in_the_memory_and_time_of_one(post, tiny_model):
    """All its cuts at once are 60,000 prompts of 150 kB each, 9 GB."""
    from pipeline.models.load import load_tokenizer

    content = f"SUBREDDIT: r/a\n\nTITLE: b\n\nPOST: {post}\n\nTL;DR:"
    example = Example("tldr", [{"role": "user", "content": content}], "c")
    begin = time.perf_counter()
    fitted = Renderer(load_tokenizer(tiny_model), max_prompt_length=100).fit(example)
    assert time.perf_counter() - begin < 60
    assert fitted.messages[0]["content"].endswith("\n\nTL;DR:")
    assert len(fitted.messages[0]["content"]) < 2000


# Judges

TEMPLATE = """prompt: "{prompt} {first} {second}"
labels: [A, B]
label_request: "A or B?"
text_request: "Say [[A]] or [[B]]."
pattern: '\\[\\[(\\w)?\\]\\]'
"""


@pytest.fixture
def template(tmp_path):
    path = tmp_path / "template.yaml"
    path.write_text(TEMPLATE)
    return load_template(path)


def body(content, top):
    choice = {"message": {"content": content}, "logprobs": {"content": [{"top_logprobs": top}]}}
    return {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 1}}


def test_any_reply_of_a_server_is_a_verdict_or_a_reason(template, tmp_path, injected):
    """And what is kept of it is read back from the file as it was."""
    tokens, numbers = st.sampled_from(["A", "B", "x"]), st.floats(-20, 0)
    right = st.fixed_dictionaries({"token": tokens, "logprob": numbers})
    wrong = st.fixed_dictionaries({"token": tokens | trees, "logprob": st.floats() | trees})
    entries = st.lists(right, max_size=3) | st.lists(right | wrong, max_size=3)
    contents = any_text | trees | st.sampled_from(["[[A]]", "so [[B]]", "[[A]] [[B]]"])
    bodies = trees | st.builds(body, contents, entries | trees)
    count = {"failure": 0, "unread": 0, "verdict": 0}

    @drawn(400)
    @given(bodies, st.sampled_from(["label", "text"]))
    def fuzz(reply_body, reads):
        judge = OpenAIJudge("m", base_url="http://localhost:1/v1", reads=reads)
        reply = reply_of(reply_body, wants_logprobs=reads == "label")
        if isinstance(reply, Failure):
            assert reply.reason and not ACTING.search(visible(reply.reason))
            count["failure"] += 1
            return
        (tmp_path / "kept.jsonl").unlink(missing_ok=True)
        with ReplyCache(tmp_path / "kept.jsonl") as cache:
            cache.add("key", reply)
        assert ReplyCache(tmp_path / "kept.jsonl").replies == {"key": reply}
        reading = judge.read(reply, template)
        if reading.p_second is None:
            assert reading.reason
            count["unread"] += 1
        else:
            assert 0 <= reading.p_second <= 1
            count["verdict"] += 1

    fuzz()
    assert all(count.values()), count
    words = ", ".join(f"{times} {name}" for name, times in count.items())
    injected("a malformed judge reply", "any JSON", sum(count.values()), f"{words}; 0 tracebacks")


def test_any_line_in_a_kept_file_is_passed_over_or_a_whole_reply(template, tmp_path, injected):
    path = tmp_path / "kept.jsonl"
    good = json.dumps({"key": "good", "reply": {"text": "[[B]]"}}).encode()
    names = st.sampled_from(["text", "top_logprobs", "logits", "rouge_l", "usage"])
    reply = st.dictionaries(names, trees | any_text) | trees
    entry = st.fixed_dictionaries({"key": any_text | trees, "reply": reply}) | trees
    lines = st.lists(entry.map(json.dumps).map(str.encode) | st.binary(max_size=20), max_size=4)
    count = {"lines": 0, "kept": 0}

    @drawn(300)
    @given(lines)
    def fuzz(others):
        path.write_bytes(b"\n".join([*others, b"[" * 100_000, good]))
        kept = ReplyCache(path).replies
        assert kept["good"] == {"text": "[[B]]"}
        for found in kept.values():
            if "text" in found:
                template.read_text(found["text"])
            else:
                assert all(isinstance(value, (list, dict)) for value in found.values())
        count["lines"] += len(others) + 2
        count["kept"] += len(kept)

    fuzz()
    assert 0 < count["kept"] < count["lines"]
    outcome = f"{count['kept']} whole replies read, the others passed over; 0 tracebacks"
    injected("damaged lines of kept replies", "any JSON, bytes", count["lines"], outcome)


def test_a_group_that_matched_nothing_is_no_tie(template):
    """Of a template without a tie, the tie stood for None, which an optional group gives."""
    assert template.read_text("[[]]").p_second is None
    assert template.read_text("[[B]]").p_second == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"system": None}, "system is None, expected text"),
        ({"labels": [True, False]}, "labels is True, expected text"),
        ({"tie": "A"}, "tie equals one of the labels"),
        ({"labels": ["A", ["B"]]}, "expected text"),
    ],
)
def test_a_template_is_not_filled_with_what_yaml_makes_of_words(change, message, tmp_path):
    """`labels: [Yes, No]` is true and false in YAML, and `system:` alone was the text None."""
    path = tmp_path / "template.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(TEMPLATE) | change))
    with pytest.raises(InputError, match=message):
        load_template(path)


def test_any_template_is_told_of_or_read(tmp_path, injected):
    path, tally = tmp_path / "template.yaml", Tally()
    fields = yaml.safe_load(TEMPLATE)

    @drawn(200)
    @given(st.sampled_from([*fields, "system", "tie", "x"]), trees)
    def fuzz(name, value):
        path.write_text(yaml.safe_dump(fields | {name: value}))
        tally.run(lambda: load_template(path), lambda found: found.read_text("[[A]]"))

    fuzz()
    injected("a malformed judge template", "any tree in any field", tally.total, tally.words)


@pytest.mark.parametrize("url", ["http://[::1", "http://a:b/c", "http://a:99999/v1", "ftp://a", ""])
def test_an_address_that_is_none_is_a_sentence(url):
    with pytest.raises(InputError, match="must look like"):
        OpenAIJudge("m", base_url=url)


def test_any_file_of_annotations_is_told_of_or_read(tmp_path, injected):
    path, tally = tmp_path / "annotations.json", Tally()
    entry = {"instruction": "a", "output_1": "b", "output_2": "c", "preference": 1.5}

    @drawn(200)
    @given(st.sampled_from([*entry, "x"]), trees, st.booleans())
    def fuzz(name, value, is_list):
        content = [entry, {**entry, name: value}]
        path.write_text(json.dumps(content if is_list else value))
        tally.run(lambda: read_annotations(path))

    fuzz()
    path.write_text("[" * 100_000)
    tally.run(lambda: read_annotations(path))
    assert tally.refused and tally.right
    injected("malformed annotations", "any tree in any field", tally.total, tally.words)


# Model outputs

written = st.one_of(
    any_text,
    st.lists(st.sampled_from(HOSTILE), max_size=5).map("".join),
    st.text("0123456789.,-/#$ eE:+\\n", max_size=30),
)


def test_any_answer_is_graded_and_a_right_one_is_right(injected):
    count = 0

    @drawn(600)
    @given(written, st.booleans())
    def fuzz(answer, truncated):
        nonlocal count
        count += 1
        for how in ("strict", "flexible"):
            gsm8k.grade(answer, "It is 7.\n#### 7", how=how, truncated=truncated)
            gsm8k.lm_eval_correct(answer, "It is 7.\n#### 7", how=how)
        assert gsm8k.grade(f"{answer}\n#### 7", "#### 7") == gsm8k.Outcome.CORRECT
        number = gsm8k.extract_answer(answer)
        assert number is None or (isinstance(number, Decimal) and number.is_finite())
        scores = rouge(answer, "the cat sat on the mat")
        assert scores is not None and all(0 <= score <= 100 for score in scores.values())
        assert scores["rougeL"] == 0 or re.search("[a-zA-Z]", answer)

    fuzz()
    injected(
        "an answer of any text", "gsm8k, lm-eval's rules, ROUGE", count, "all graded; 0 tracebacks"
    )


@pytest.mark.parametrize("answer", ["1," * 300_000, "#### " * 150_000, "-" * 600_000, "$ " * 300_000, " " * 600_000, "1/" * 300_000])  # fmt: skip
def test_a_long_answer_is_graded_in_time_linear_in_its_length(answer):
    begin = time.perf_counter()
    for how in ("strict", "flexible"):
        gsm8k.grade(answer, "#### 7", how=how)
        gsm8k.lm_eval_correct(answer, "####7 " + answer, how=how)
    assert time.perf_counter() - begin < 10


def test_lm_evals_comparison_is_what_its_patterns_leave(injected):
    """The patterns of lm-eval 0.4.13 themselves, on texts short enough for them."""
    patterns, count = (r",", r"\$", r"(?s:.*)#### ", r"\.$"), 0

    @drawn(400)
    @given(st.text("#### 1.,$\na", max_size=30))
    def fuzz(text):
        nonlocal count
        count += 1
        theirs = text
        for pattern in patterns:
            theirs = re.sub(pattern, "", theirs)
        assert gsm8k._lm_eval_compared(text) == theirs.lower()

    fuzz()
    assert count >= 100


def test_any_preferences_and_lengths_give_a_win_rate_or_a_sentence(injected):
    count = {"rate": 0, "refused": 0}
    numbers = st.floats() | st.none() | st.sampled_from([1.0, 1.5, 2.0])
    lengths = st.integers(0, 10**6) | st.sampled_from([-1, float("nan"), float("inf"), 0.5])

    @drawn(150)
    @given(st.lists(st.tuples(numbers, lengths, lengths), max_size=6))
    def fuzz(columns):
        preferences, ours, theirs = zip(*columns, strict=True) if columns else ((), (), ())
        gamed = [(0.5, 0.1, 0.2), (-0.5, 0.2, 0.9)]
        try:
            found = length_controlled_win_rate(
                preferences, ours, theirs, [0.0] * len(ours), gamed, C=1.0
            )
        except ValueError as error:  # the callers put the file's name before it
            assert_is_sentence(str(error))
            count["refused"] += 1
        else:
            assert 0 <= found.win_rate <= 100
            assert found.lc_win_rate is None or 0 <= found.lc_win_rate <= 100
            count["rate"] += 1

    fuzz()
    assert all(count.values())
    outcome = f"{count['refused']} refused in a sentence, {count['rate']} rates; 0 tracebacks"
    injected("verdicts of any numbers", "win rates", sum(count.values()), outcome)


REPORT = Report(
    recipe="tiny", task="gsm8k", model="m", seeds=[0], baseline="sft", judge=None,
    asked={"gsm8k": "rows of a.jsonl"}, rows=[Row("sft", "sft", "gsm8k")], costs=[], overlaps={}, charts=[],
    rounds=[], warnings={}, versions={"trl": "1"}, machines=["cpu, host here"],
)  # fmt: skip


def test_a_report_shows_any_answer_and_none_acts(injected):
    """What a browser parses is the text with its control characters as escapes, and nothing more."""
    from html.parser import HTMLParser

    class Page(HTMLParser):
        def __init__(self, source):
            super().__init__()
            self.tags, self.words = [], []
            self.feed(source)

        def handle_starttag(self, tag, attrs):
            self.tags.append((tag, tuple(name for name, _ in attrs)))

        def handle_data(self, data):
            self.words.append(data)

    def page_of(text):
        answer = StageAnswer(text, f"wrong ({text})", cut_off=False)
        turns = [{"role": "system", "content": text}, {"role": "user", "content": f"a{text}"}]
        sample = SampleView(0, 0, turns, text, {"sft": answer})
        report = replace(REPORT, warnings={f"w {text}": ["sft"]}, model=f"m {text}")
        return html_page(report, {"gsm8k": [sample]})

    plain, plain_long = (Page(page_of(text)).tags for text in ("abc", "x" * 3000))
    count = 0

    @drawn(150)
    @given(written.filter(lambda text: text.strip()))
    def fuzz(text):
        nonlocal count
        count += 1
        source = page_of(text)
        source.encode()  # UTF-8 can hold it
        assert not ACTING.search(source)
        page = Page(source)
        assert page.tags in (plain, plain_long) or sorted(set(page.tags)) == sorted(set(plain_long))
        assert not {"script", "img", "a onclick"} & {tag for tag, _ in page.tags}
        # An HTML parser reads \r\n and a first newline as a browser does; the rest is as written.
        shown = "".join(page.words).replace("\r", "")
        assert html.unescape(visible(text)).strip() in html.unescape(shown)

    fuzz()
    injected(
        "an answer that would act on a page", "HTML, ANSI, bidi", count, "all shown, none acts"
    )


def test_markdown_csv_and_json_reports_keep_their_form_whatever_a_text_holds(injected):
    count = 0

    @drawn(250)
    @given(any_text, any_text)
    def fuzz(text, other):
        nonlocal count
        count += 1
        row = replace(REPORT.rows[0], published=text)
        report = replace(REPORT, rows=[row], model=other, warnings={text: ["sft"], other: ["sft"]})
        shown = markdown(report)
        shown.encode()
        assert not ACTING.search(shown)
        table = [line for line in shown.split("\n") if line.startswith("| ")]
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {4 if text else 3}
        warnings = shown.partition("## Warnings\n\n")[2].split("\n")
        assert len(warnings) == len({text, other})
        parsed = json.loads(json_text(report).encode())
        assert parsed | {"joined": None} == json.loads(json.dumps(asdict(report)))
        lines = list(csv.DictReader(io.StringIO(csv_text(report))))
        assert all(None not in line for line in lines)

    fuzz()
    injected("a text that would break a table", "Markdown, CSV, JSON", count, "all kept their form")


# The command itself

COMMANDS = {
    "ANSI in a key": 'name: a\n"\\e[31mred": 1\n',
    "an alias bomb": alias_bomb("lists"),
    "a python tag": "name: !!python/object/apply:os.system ['touch hacked']\n",
    "10 MB": LARGE["10 MB"],
    "a half character": 'name: "\\ud800"\n',
}


def test_the_command_ends_with_2_and_no_traceback(bashrac, tmp_path, recipe_dict, injected):
    files = []
    for number, content in enumerate(COMMANDS.values()):
        files.append(tmp_path / f"{number}.yaml")
        files[-1].write_text(content)
    rows_file = tmp_path / "rows.jsonl"
    rows_file.write_text(line_of(GOOD["gsm8k"])[:-1] + ', "x": ' + "[" * 100_000)
    recipe_dict["data"]["train"] = {"source": str(rows_file)}
    files.append(tmp_path / "rows.yaml")
    files[-1].write_text(yaml.safe_dump(recipe_dict))
    calls = [
        ["check", *files],
        ["check", "a" * 5000],
        ["plan", files[-1], "--set", "name=\x1b[31m"],
        ["evaluate", "b" * 5000, "--benchmark", "gsm8k", "--data", rows_file],
        ["report", files[-1], "--runs", "c" * 5000],
        ["copy", "demo", "d" * 5000],
    ]
    for call in calls:
        done = bashrac(*call)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr and not ACTING.search(done.stderr)
        assert len(done.stderr) < 20_000
    assert not (tmp_path / "hacked").exists()
    times, outcome = len(files) + len(calls) - 1, "exit 2; 0 tracebacks"
    injected("a wrong input to the command", "check, plan, evaluate, copy", times, outcome)
