"""The loss of rows a model wrote, the rate at which it wrote them, and when either warns."""

import pytest
import torch
from conftest import problems_of, random_ids

from pipeline.models.load import load_model
from pipeline.plan.load import load_recipe
from pipeline.plan.plan import make_plan
from pipeline.recipe.schema import WarnAt
from pipeline.rows import shards
from pipeline.rows.corrections import Own
from pipeline.rows.diagnostics import mean_loss


def random_rows(count):
    """Prompts, contexts and labels that are all different; about a third of the labels is left out."""
    generator = torch.Generator().manual_seed(0)
    rows, labels = [], []
    for number in range(count):
        rows.append(Own(random_ids(generator, 1, 30), random_ids(generator, 1, 20), number))
        size = len(rows[-1].answer)
        said = torch.randint(3, 400, (size,), generator=generator)
        said[torch.rand(size, generator=generator) < 0.3] = -100
        labels.append([7, *said.tolist()[1:]])  # at least one
    return rows, labels


@pytest.mark.parametrize("architecture", ["tiny_model", "plain_model"])
def test_the_loss_of_rows_is_that_of_transformers(request, architecture):
    """transformers' own loss of each row, a mean over its labels, weighted by how many these are."""
    model = load_model(request.getfixturevalue(architecture)).eval()
    rows, labels = random_rows(9)
    total = count = 0
    for row, said in zip(rows, labels, strict=True):
        ids = torch.tensor([row.shown + row.answer])
        with torch.no_grad():
            loss = model(ids, labels=torch.tensor([[-100] * len(row.shown) + said])).loss.item()
        kept = sum(label != -100 for label in said)
        total, count = total + loss * kept, count + kept
    assert mean_loss(model, rows, labels, batch_tokens=4096) == pytest.approx(
        total / count, abs=1e-5
    )


@pytest.mark.parametrize("batch_tokens", [1, 100, 4096])
@pytest.mark.parametrize("logits", [1000, 1 << 26])
def test_neither_memory_limit_changes_the_loss(tiny_model, monkeypatch, batch_tokens, logits):
    model = load_model(tiny_model).eval()
    rows, labels = random_rows(5)
    whole = mean_loss(model, rows, labels, batch_tokens=4096)
    monkeypatch.setattr("pipeline.rows.corrections._LOGITS", logits)
    assert mean_loss(model, rows, labels, batch_tokens=batch_tokens) == pytest.approx(
        whole, abs=1e-5
    )


def rate_of(rows, at_once):
    """The figures after rows of (seconds, tokens)."""
    rate = shards.Rate(at_once)
    for now, tokens in rows:
        rate.add(tokens, now)
    return rate.figures() if rate.windows else None


def test_a_steady_rate_is_its_own_best_and_loading_does_not_count():
    """Loading takes 100 s; then four rows of 50 tokens are done together every 5 s: 40 a second."""
    rows = [(100 + 5 * burst, 50) for burst in range(1, 20) for _ in range(4)]
    assert rate_of(rows, at_once=4) == {"mean": 40.0, "best": 40.0, "windows": 9}


def test_rows_that_end_together_are_no_high_rate():
    """Eight rows of 100 tokens, done within a second once a minute, are 800 tokens in 60 s."""
    rows = [(60 * burst + 0.1 * row, 100) for burst in range(1, 8) for row in range(8)]
    found = rate_of(rows, at_once=8)
    assert found["best"] == pytest.approx(800 / 60, rel=0.02)
    assert found["mean"] == pytest.approx(800 / 60, rel=0.02)


def test_a_stall_lowers_the_mean_and_not_the_best():
    """10 tokens a second for 50 s, none for 60 s, then 10 a second again: the best stays 10."""
    seconds = [*range(1, 51), *range(111, 161)]
    found = rate_of([(second, 10) for second in seconds], at_once=1)
    assert found["best"] == 10.0
    assert found["mean"] == pytest.approx(990 / 159, abs=0.1)


def test_a_step_of_a_few_seconds_has_no_rate():
    assert rate_of([(second, 10) for second in range(1, 9)], at_once=1) is None
    assert rate_of([(100 + second, 10) for second in range(50)], at_once=50) is None


@pytest.mark.parametrize("key", WarnAt.model_fields)
def test_a_threshold_is_no_part_of_any_steps_identity(recipe_dict, write_recipe, key):
    recipe_dict["stages"]["rac"] = {"method": "rac", "from": "sft"}
    path = write_recipe(recipe_dict)
    before = make_plan(load_recipe(path))
    for value in ("0.25", "null"):
        after = make_plan(load_recipe(path, [f"warn_at.{key}={value}"]))
        assert [a.fingerprint for a in before.steps] == [b.fingerprint for b in after.steps]
        told = [
            step.runtime_options["warn_at"][key]
            for step in after.steps
            if "warn_at" in step.runtime_options
        ]
        assert set(told) == {0.25 if value == "0.25" else None}
        kinds = {step.kind for step in after.steps if "warn_at" in step.runtime_options}
        assert kinds == {"answers", "contexts", "corrections"}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("answers_cut", 1.5, "less than or equal to 1"),
        ("loss_ratio", 0, "greater than 0"),
        ("label_changed", 0.5, "did you mean labels_changed?"),
        ("tokens_changed", "half", "must be a number"),
    ],
)
def test_a_wrong_threshold_is_named(recipe_dict, write_recipe, key, value, message):
    path = write_recipe(recipe_dict | {"warn_at": {key: value}})
    assert message in problems_of(path)[f"warn_at.{key}"]
