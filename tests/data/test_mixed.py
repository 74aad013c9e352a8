"""Several training sources, each with its share of the rows."""

import json
from collections import Counter

import pytest
from conftest import first_step, problems_of, tiny_recipe

from pipeline.data.load import load_examples
from pipeline.plan.load import load_recipe
from pipeline.plan.plan import make_plan
from pipeline.recipe.schema import Source, written_out
from pipeline.steps import artifact


@pytest.fixture
def files(tmp_path):
    """Two files of 10 and 40 rows."""
    for name, count in (("a", 10), ("b", 40)):
        rows = [{"question": f"{name}{i}", "answer": f"#### {i}"} for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return [str(tmp_path / f"{name}.jsonl") for name in "ab"]


def questions(given):
    found = load_examples(Source.model_validate(written_out("data", given)), "gsm8k")
    return [example.messages[0]["content"] for example in found]


def test_rows_are_mixed_in_their_shares_until_a_source_has_no_more(files):
    a, b = files
    found = questions([{"source": a, "share": 0.4}, {"source": b, "share": 0.6}])
    assert Counter(text[0] for text in found) == {"a": 10, "b": 16}
    assert [text for text in found if text[0] == "b"] == [f"b{i}" for i in range(16)]
    for size in range(1, len(found)):
        assert abs(sum(text[0] == "a" for text in found[:size]) - 0.4 * size) < 1
    assert found == questions([{"source": a, "share": 0.4}, {"source": b, "share": 0.6}])


def test_without_shares_all_rows_are_taken(files):
    a, b = files
    found = questions([a, {"source": b, "skip": 5, "limit": 20}])
    assert sorted(found) == sorted(
        [f"a{i}" for i in range(10)] + [f"b{i}" for i in range(5, 25)]
    )  # fmt: skip


def test_a_mixture_is_trained_on_counted_and_known_by_its_shares(
    files, tiny_model, write_recipe, run_steps_here
):
    a, b = files
    parts = [{"source": a, "share": 0.25}, {"source": b, "share": 0.75, "limit": 6}]
    recipe = {**tiny_recipe(tiny_model), "data": {"train": parts}, "evaluate": []}
    stages = ("sft", "rac", "spin")
    recipe["stages"] = {
        name: {"method": name, **({"from": "sft"} if name != "sft" else {})} for name in stages
    }
    recipe["stages"]["spin"]["prompts"] = 4
    plan, runs = run_steps_here(write_recipe(recipe))
    record = artifact.read_record(first_step(plan).directory(runs))["metrics"]
    assert record["sources"] == {a: 2, f"{b}, the first 6": 6}
    spin = next(step for step in plan.steps if (step.stage, step.kind) == ("spin", "answers"))
    counts = artifact.read_record(spin.directory(runs))["metrics"]["sources"]
    assert counts == {a: 1, f"{b}, the first 6": 3}

    def fingerprint(shares):
        for part, share in zip(parts, shares, strict=True):
            part["share"] = share
        return make_plan(load_recipe(write_recipe(recipe))).fingerprint

    assert fingerprint((0.25, 0.75)) == plan.fingerprint != fingerprint((0.5, 0.5))


@pytest.mark.parametrize(
    ("change", "key", "message"),
    [
        ({"train": [{"source": "a", "share": 0.5}, {"source": "b", "share": 0.4}]}, "data.train",
         "add up to 0.9"),
        ({"train": [{"source": "a", "share": 0.5}, "b"]}, "data.train", "one to each"),
        ({"train": ["a"]}, "data.train", "two sources or more"),
        ({"train": []}, "data.train", "two sources or more"),
        ({"train": ["a", "builtin:nothing"]}, "data.train.parts.1.source", "no built-in set"),
        ({"train": {"source": "a", "share": 0.5}}, "data.train.share", "one of several"),
        ({"test": ["a", "b"]}, "data.test", "only data.train"),
    ],
)  # fmt: skip
def test_what_is_no_mixture_is_said(files, tiny_model, write_recipe, change, key, message):
    text = json.dumps(change).replace('"a"', f'"{files[0]}"').replace('"b"', f'"{files[1]}"')
    recipe = tiny_recipe(tiny_model)
    recipe["data"] |= json.loads(text)
    assert message in problems_of(write_recipe(recipe))[key]
