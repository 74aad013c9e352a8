"""Shared words against cases worked out by hand and against a search that compares everything."""

import json
import re

import pytest
from conftest import SHARED, imported_by
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.benchmarks.overlap import benchmark_item, training_texts
from eval.graders.overlap import BenchmarkItem, Overlap, overlaps, words_of
from pipeline.data.load import load_examples
from pipeline.data.tasks import Example, PreferencePair
from pipeline.errors import InputError
from pipeline.recipe.schema import Source
from pipeline.run.worker import execute
from pipeline.steps import artifact
from pipeline.steps.context import StepContext
from pipeline.steps.identity import data_identity

TEXT = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
WORDS = TEXT.split()


def numbered(prefix, count):
    """Return a text of words that occur nowhere else."""
    return " ".join(f"{prefix}{number}" for number in range(count))


def search(training, *items, n=13):
    """Compare rows of texts with (prompt, reference) items."""
    return overlaps(training, [BenchmarkItem((prompt,), answer) for prompt, answer in items], n=n)


# --- words --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's 16-3=13, OK?", ["it", "s", "16", "3", "13", "ok"]),
        ("snake_case  \t\n\x1f Ünder", ["snake_case", "ünder"]),
        ("Cafe\u0301 \uff21\uff22 \ufb01t", ["café", "ab", "fit"]),
        ("\u2026 \u2014 !", []),
        ("", []),
    ],
    ids=["ascii", "underscore and spaces", "NFKC", "no word", "empty"],
)
def test_words_are_runs_of_word_characters(text, words):
    assert words_of(text) == words


@settings(deadline=None)
@given(st.text(st.characters(max_codepoint=127)))
def test_the_fast_way_for_ascii_gives_the_same_words(text):
    assert words_of(text) == re.findall(r"\w+", text.lower())


# --- what is shared, by hand --------------------------------------------------------------------


def test_thirteen_shared_words_are_found_and_twelve_are_not():
    """Words 1 to 13 of 15 stand in the training row between others; then only 1 to 12."""
    for count, found in ((13, 1), (12, 0)):
        row = [f"{numbered('a', 5)} {' '.join(WORDS[:count])} {numbered('b', 5)}"]
        assert search([row], (TEXT, numbered("r", 13))).count() == found


@pytest.mark.parametrize("before", range(15))
@pytest.mark.parametrize("after", [0, 1, 6])
def test_shared_words_are_found_wherever_they_stand(before, after):
    row = [" ".join([numbered("a", before), *WORDS[1:14], numbered("b", after)])]
    found = search([row], (numbered("p", 13), f"{numbered('c', before % 4)} {TEXT}"))
    assert found.found == (Overlap(0, "reference", 1, 1, " ".join(WORDS[1:14])),)


def test_punctuation_case_and_line_breaks_hide_nothing():
    row = [TEXT.upper().replace(" ", ",\n\u2014 ")]
    (overlap,) = search([row], (TEXT, numbered("r", 13))).found
    assert overlap.words == " ".join(WORDS[:13])


def test_words_across_the_border_of_two_texts_are_not_in_a_row():
    halves = [" ".join(WORDS[:7]), " ".join(WORDS[7:])]
    assert search([halves], (TEXT, numbered("r", 13))).found == ()
    item = BenchmarkItem((numbered("p", 13) + " " + halves[0], halves[1] + numbered("q", 13)), TEXT)
    assert overlaps([[TEXT]], [item]).count("prompt") == 0
    assert overlaps([[TEXT]], [item]).count("reference") == 1


def test_a_short_text_is_compared_whole():
    """Nine words: found as a whole text in other spelling, not as part of a longer or shorter."""
    nine = " ".join(WORDS[:9])
    for row, found in ((nine.title() + "!", 1), (TEXT, 0), (" ".join(WORDS[:8]), 0)):
        result = search([[numbered("a", 20), row]], (nine, numbered("r", 13)))
        assert (result.count(), result.short) == (found, 1)
    assert search([["nothing"]], (" ".join(WORDS[:12]), "7"), (TEXT, TEXT)).short == 1


def test_a_text_without_words_shares_nothing_and_is_short():
    result = search([["?"], [""]], ("!", numbered("r", 13)))
    assert (result.count(), result.short) == (0, 1)


def test_counts_rows_and_parts_are_right():
    """Item 0's prompt is in rows 2 and 4, its reference in 4; item 2's reference in 3.

    Row 4 has the prompt three times and still is one row.
    """
    answer, other = numbered("answer", 14), numbered("other", 13)
    training = [
        [numbered("a", 30)],
        [f"{TEXT} {numbered('b', 3)}", "no"],
        [numbered("c", 9), f"so {other}"],
        [f"{TEXT} {TEXT}", TEXT, f"{answer} end"],
    ]
    items = [(TEXT, answer), (numbered("q", 13), numbered("r", 13)), (numbered("s", 13), other)]
    result = search(training, *items)
    assert result.found == (
        Overlap(0, "prompt", 2, 2, " ".join(WORDS[:13])),
        Overlap(0, "reference", 1, 4, " ".join(answer.split()[:13])),
        Overlap(2, "reference", 1, 3, other),
    )
    assert (result.items, result.training_rows, result.short) == (3, 4, 0)
    assert (result.count(), result.count("prompt"), result.count("reference")) == (2, 1, 2)


def test_a_phrase_that_many_items_have_is_found_in_each():
    phrase = " ".join(WORDS[:13])
    items = [(f"{phrase} {numbered(f'p{i}x', 3)}", numbered(f"r{i}x", 13)) for i in range(4)]
    training = [[numbered("a", 13)], [phrase], [items[2][0]]]
    assert search(training, *items).found == tuple(
        Overlap(item, "prompt", 2, 2, phrase) for item in range(4)
    )


def test_no_training_rows_share_nothing():
    result = search([], (TEXT, TEXT))
    assert (result.training_rows, result.items, result.found) == (0, 1, ())


def test_training_rows_are_read_one_at_a_time():
    """A row is dropped before the next is asked for, so any number of rows fits in memory."""
    result = search(([f"{number} {TEXT}"] for number in range(3)), (TEXT, numbered("r", 13)))
    assert result.found[0].training_rows == 3


def test_no_words_in_a_row_are_refused():
    with pytest.raises(ValueError, match="n is 0, valid is at least 1"):
        search([[TEXT]], (TEXT, TEXT), n=0)


# --- against a search that compares everything --------------------------------------------------


def shares(text, training_text, n):
    """Whether two texts share n words in a row, or the first is shorter and equals the second."""
    ours, theirs = text.split(), training_text.split()
    if len(ours) < n:
        return bool(ours) and ours == theirs
    return any(
        ours[i : i + n] == theirs[j : j + n]
        for i in range(len(ours) - n + 1)
        for j in range(len(theirs) - n + 1)
    )


# Two words, so that much is shared and repeated; the size leaves room for several blocks.
few_words = st.lists(st.sampled_from(["x", "y"]), max_size=22).map(" ".join)
rows_of_texts = st.lists(st.lists(few_words, max_size=3), max_size=6)
benchmark_items = st.builds(
    BenchmarkItem, st.lists(few_words, min_size=1, max_size=2).map(tuple), few_words
)


@settings(deadline=None, max_examples=300)
@given(rows_of_texts, st.lists(benchmark_items, max_size=5), st.integers(1, 9))
def test_the_result_is_that_of_comparing_everything(training, items, n):
    result = overlaps(iter(training), items, n=n)
    expected = {}
    for position, item in enumerate(items):
        for where, texts in (("prompt", item.prompt), ("reference", (item.reference,))):
            rows = [
                number
                for number, row in enumerate(training, start=1)
                if any(shares(text, other, n) for text in texts for other in row)
            ]
            if rows:
                expected[position, where] = (len(rows), rows[0])
    found = {(one.item, one.where): (one.training_rows, one.first_row) for one in result.found}
    assert found == expected
    assert list(found) == sorted(found)
    for one in result.found:
        item = items[one.item]
        texts = item.prompt if one.where == "prompt" else (item.reference,)
        assert any(f" {one.words} " in f" {text} " for text in texts)
        assert any(f" {one.words} " in f" {text} " for text in training[one.first_row - 1])
        assert len(one.words.split()) == n or one.words in texts
    assert result.short == sum(
        any(len(text.split()) < n for text in (*item.prompt, item.reference)) for item in items
    )


# --- rows ---------------------------------------------------------------------------------------


def test_system_messages_are_neither_training_nor_test_text():
    messages = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": "why"},
    ]
    row = Example("chat", messages, "because")
    assert training_texts(row) == ["hello", "hi", "why", "because"]
    assert benchmark_item(row) == BenchmarkItem(("hello", "hi", "why"), "because")
    pair = PreferencePair(row, "because", "no")
    assert training_texts(pair) == ["hello", "hi", "why", "because", "no"]


# --- the step -----------------------------------------------------------------------------------


def make_step(folder, inputs, *, task="gsm8k", test_task="gsm8k") -> StepContext:
    """Write the step's specification as a plan would, over rows or sources, and read it."""
    sources = {}
    for role, rows in inputs.items():
        if isinstance(rows, list):
            path = folder / f"{role}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            rows = {"source": str(path)}
        source = Source.model_validate(rows)
        sources[role] = source.model_copy(update={"split": source.split_for(role)})
    options = {"task": task, "test_task": test_task, "n": 13}
    known = {role: data_identity(source, role=role) for role, source in sources.items()}
    spec = {
        "kind": "overlap",
        "run": "eval.contamination:check_overlap",
        "title": "overlap",
        "stage": "overlap",
        "seed": 0,
        "options": options,
        "inputs": known,
        "locations": {role: source.model_dump() for role, source in sources.items()},
    }
    written = {"spec": spec, "launch": {"processes": 1, "use_cpu": True}}
    artifact.write_json(folder / "step" / "step.json", written)
    return StepContext.read(folder / "step" / "step.json")


def problem(question, answer="#### 1"):
    return {"question": question, "answer": answer}


def listed(item, where, training_rows, source, row, words):
    return {
        "id": item,
        "where": where,
        "training_rows": training_rows,
        "first_source": source,
        "first_row": row,
        "words": words,
    }


def read_result(step):
    return artifact.read_json(step.directory / artifact.RESULT)


def test_the_step_lists_what_is_shared_and_warns(tmp_path):
    """Item 1's prompt is in training row 2 and preference 2, item 2's reference in preference 1.

    The references "#### 1" of items 0 and 1 are short, and equal to those of all training rows.
    """
    answer = numbered("why", 13) + "\n#### 4"
    pairs = [
        {"prompt": "a?", "chosen": answer, "rejected": "no"},
        {"prompt": TEXT, "chosen": "yes", "rejected": "no"},
    ]
    step = make_step(
        tmp_path,
        {
            "train": [problem(numbered("a", 20)), problem(TEXT + "?"), problem(numbered("b", 20))],
            "preferences": pairs,
            "test": [problem(numbered("p", 13)), problem(TEXT), problem(numbered("q", 13), answer)],
        },
    )
    execute(step)
    assert artifact.read_rows(step.directory / "overlaps.jsonl") == [
        listed(0, "reference", 3, "train", 1, "1"),
        listed(1, "prompt", 2, "train", 2, " ".join(WORDS[:13])),
        listed(1, "reference", 3, "train", 1, "1"),
        listed(2, "reference", 1, "preferences", 1, numbered("why", 13)),
    ]
    assert read_result(step) == {
        "n": 3,
        "training_rows": 5,
        "ngram": 13,
        "items": 3,
        "prompts": 1,
        "references": 3,
        "short": 2,
    }
    assert artifact.is_finished(step.directory)
    assert artifact.read_json(step.directory / artifact.RECORD)["metrics"]["warnings"] == [
        "3 of 3 test items share 13 words in a row (or the whole of a shorter text) with training "
        f"rows; they are listed in {step.directory / 'overlaps.jsonl'}"
    ]


def test_a_training_row_is_named_by_its_place_in_the_file(tmp_path):
    rows = [problem(numbered("a", 20)), problem(numbered("b", 20)), problem(TEXT)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = {"train": {"source": str(path), "skip": 1}, "test": [problem(TEXT, "#### 2")]}
    step = make_step(tmp_path, sources)
    execute(step)
    (found,) = artifact.read_rows(step.directory / "overlaps.jsonl")
    assert (found["first_row"], read_result(step)["training_rows"]) == (3, 2)


def test_items_are_numbered_as_answers_where_rows_are_left_out(
    recipe_dict, write_recipe, run_steps_here, tmp_path
):
    """The tiny model's template writes no tools, so of the test rows the second is left out; of the

    training rows the first, which is empty, and the third. Lines without a row count as lines.
    """

    def said(question, answer, **more):
        turns = (("user", question), ("assistant", answer))
        messages = [{"role": role, "content": text} for role, text in turns]
        return json.dumps({"messages": messages, **more}) + "\n"

    tools = {"tools": [{"type": "function", "function": {"name": "f"}}]}
    train = [said("a", " "), "\n", said(numbered("a", 20), "b"), said(TEXT, "c", **tools)]
    test = [said(numbered("p", 20), "d"), said("q", "e", **tools), said(TEXT, "f")]
    for name, lines in (("train", [*train, said(TEXT, "g")]), ("test", test)):
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    recipe_dict |= {"task": "chat", "stages": {"sft": {"method": "sft"}}, "evaluate": ["rouge"]}
    recipe_dict["data"] = {
        name: {"source": str(tmp_path / f"{name}.jsonl"), "skip_unusable": True}
        for name in ("train", "test")
    }
    plan, runs = run_steps_here(write_recipe(recipe_dict))
    folders = {step.kind: step.directory(runs) for step in plan.steps}
    answers = artifact.read_rows(folders["answers"] / artifact.SAMPLES)
    (found,) = artifact.read_rows(folders["overlap"] / "overlaps.jsonl")
    assert [row["messages"][0]["content"] for row in answers if row["id"] == found["id"]] == [TEXT]
    assert (found["first_row"], found["training_rows"]) == (5, 1), "the line of the file"


def test_a_row_of_a_mixture_is_named_by_its_own_file(tmp_path):
    for name, rows in (("one", [problem("a"), problem("b")]), ("two", [problem(TEXT)])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parts = [{"source": str(tmp_path / f"{name}.jsonl")} for name in ("one", "two")]
    train = {"source": "one + two", "parts": parts}
    step = make_step(tmp_path, {"train": train, "test": [problem(TEXT, "#### 2")]})
    execute(step)
    (found,) = artifact.read_rows(step.directory / "overlaps.jsonl")
    assert (found["first_source"], found["first_row"]) == (f"train ({tmp_path}/two.jsonl)", 1)


def test_the_step_without_overlap_is_silent(tmp_path):
    rows = {"train": [problem(numbered("a", 20))], "test": [problem(TEXT, "#### 2")]}
    step = make_step(tmp_path, rows)
    execute(step)
    assert "warnings" not in step.metrics
    assert artifact.read_rows(step.directory / "overlaps.jsonl") == []
    assert read_result(step) == {
        "n": 1,
        "training_rows": 1,
        "ngram": 13,
        "items": 0,
        "prompts": 0,
        "references": 0,
        "short": 1,
    }


def test_the_step_compares_rows_of_different_tasks(tmp_path):
    post = {"subreddit": "s", "title": "t", "post": TEXT, "summary": numbered("s", 13)}
    rows = {"preferences": [{"prompt": TEXT, "chosen": "a", "rejected": "b"}], "test": [post]}
    step = make_step(tmp_path, rows, task="chat", test_task="tldr")
    execute(step)
    (row,) = artifact.read_rows(step.directory / "overlaps.jsonl")
    assert (row["where"], row["first_source"], row["words"]) == (
        "prompt",
        "preferences",
        " ".join(WORDS[:13]),
    )
    assert step.metrics["warnings"][0].startswith("1 of 1 test items shares 13 words in a row with")


def test_the_step_finds_every_row_of_a_test_set_that_was_trained_on(tmp_path):
    same = {"source": "builtin:maths", "split": "test", "limit": 20}
    step = make_step(tmp_path, {"train": same, "test": same})
    execute(step)
    assert read_result(step)["prompts"] == 20


def test_the_step_without_training_rows_is_an_error_not_no_overlap(tmp_path):
    step = make_step(tmp_path, {"test": [problem(TEXT)]})
    with pytest.raises(InputError, match="no training rows to compare the test items with"):
        execute(step)
    assert not (step.directory / artifact.RESULT).exists()


def test_the_module_imports_nothing_heavy():
    heavy = {"torch", "datasets", "numpy", "transformers", "pydantic"}
    assert not heavy & imported_by("eval.benchmarks.overlap")


# --- real data ----------------------------------------------------------------------------------


@pytest.mark.skipif(not (SHARED / "gsm8k").is_dir(), reason="needs ../shared/data/gsm8k")
def test_gsm8k_test_and_train_share_what_a_plain_search_finds():
    """A set of all 13-grams of each side, which share no code with the index; no text is short
    and equal to a training text.
    """

    def grams(example):
        for text in (example.messages[0]["content"], example.reference):
            words = words_of(text)
            yield {tuple(words[i : i + 13]) for i in range(len(words) - 12)}

    folder = SHARED / "gsm8k"
    train = load_examples({"source": str(folder / "train.jsonl")}, "gsm8k")
    test = load_examples({"source": str(folder / "test.jsonl")}, "gsm8k")
    trained = {gram for example in train for part in grams(example) for gram in part}
    expected = {
        (position, where)
        for position, example in enumerate(test)
        for where, part in zip(("prompt", "reference"), grams(example), strict=True)
        if part & trained
    }
    result = overlaps(map(training_texts, train), [benchmark_item(example) for example in test])
    assert {(one.item, one.where) for one in result.found} == expected
    assert (result.items, result.training_rows) == (1319, 7473)
    assert (result.count("prompt"), result.count("reference")) == (3, 6)
