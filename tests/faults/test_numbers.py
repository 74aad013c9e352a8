"""Numbers that go wrong, made to go wrong: the step stops with the cause, or warns with the count."""

import json
import math
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import save_tiny_model

from pipeline.errors import InputError, StepFailedError
from pipeline.models.load import load_model
from pipeline.rows.stored import ROWS
from pipeline.steps import artifact

END = 2


@pytest.fixture
def recipe(recipe_dict):
    """A function that gives a recipe of one stage and no evaluation."""

    def make(method, **options):
        stage = {"method": method, **options}
        return recipe_dict | {"stages": {method: stage}, "evaluate": []}

    return make


def model_without_memory(folder: Path, *, end: float) -> str:
    """A model that ends its turn with a given probability, whatever it has read.

    GPT-NeoX with a last layer norm of weight 0 and bias (1, 0, ...) gives logits W[:, 0] everywhere;
    all tokens but the end share the rest.
    """
    model = load_model(save_tiny_model(folder, architecture="gpt_neox"))
    probability = torch.full((model.config.vocab_size,), (1 - end) / 399)
    probability[END] = end
    with torch.no_grad():
        model.gpt_neox.final_layer_norm.weight.zero_()
        model.gpt_neox.final_layer_norm.bias.copy_(torch.eye(32)[0])
        model.lm_head.weight.zero_()
        model.lm_head.weight[:, 0] = probability.log().clamp(min=-100)
    model.save_pretrained(folder)
    return str(folder)


def metrics_of(plan, runs, kind):
    """The metrics of the first step of a kind."""
    step = next(step for step in plan.steps if step.kind == kind)
    return artifact.read_record(step.directory(runs))["metrics"]


def warned(metrics, words):
    """How many warnings of a step hold the words."""
    return sum(words in warning for warning in metrics.get("warnings", []))


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_a_learning_rate_that_diverges_stops_the_step(
    recipe, write_recipe, run_steps_here, tmp_path, injected, method
):
    """The weights become infinite after one step, so the second loss is NaN."""
    found = recipe(method)
    found["trainer"] |= {"learning_rate": 1.0e30, "max_steps": 4, "max_grad_norm": 0.0}
    with pytest.raises(StepFailedError, match=r"(?i)infinite or NaN|NaN or infinite|diverged"):
        run_steps_here(write_recipe(found))
    assert not list(tmp_path.glob("runs/steps/train-*/record.json"))
    injected("NaN loss", f"a learning rate of 1e30 in {method}", 1, "stops, and leaves no result")


@pytest.mark.parametrize("method", ["bash", "rac"])
def test_weights_that_give_nan_stop_the_step_that_reads_them(
    recipe, write_recipe, run_steps_here, tmp_path, injected, method
):
    found = recipe(method)
    folder = tmp_path / "nan"
    model = load_model(save_tiny_model(folder))
    with torch.no_grad():
        model.lm_head.weight[9] = math.nan
    model.save_pretrained(folder)
    found["model"] = str(folder)
    with pytest.raises(StepFailedError, match=r"NaN or infinite: .* precision: float32"):
        run_steps_here(write_recipe(found))
    injected("NaN weights", f"a model with NaN in its output layer, {method}", 1, "stops")


def test_answers_that_are_all_empty_stop_the_command(
    recipe, write_recipe, bashrac, tmp_path, injected
):
    found = recipe("rac") | {"model": model_without_memory(tmp_path / "mute", end=1.0)}
    done = bashrac("run", write_recipe(found))
    assert done.returncode == 2, done.stdout + done.stderr
    assert "all 6 own answers are empty" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not list(tmp_path.glob("runs/steps/*/record.json"))
    injected("all answers empty", "a model that only ends its turn, rac", 1, "stops, exit code 2")


@pytest.mark.parametrize(("method", "options"), [("spin", {}), ("dpo", {"pairs": "self"})])
def test_answers_that_are_all_empty_make_no_pairs(
    recipe, write_recipe, run_steps_here, tmp_path, injected, method, options
):
    found = recipe(method, **options)
    found["model"] = model_without_memory(tmp_path / "mute", end=1.0)
    for _ in range(2):  # the second finds the answers and says the same
        with pytest.raises(InputError, match=r"own answers are empty: .* `from`"):
            run_steps_here(write_recipe(found))
    injected("all answers empty", f"a model that only ends its turn, {method}", 2, "stops")


def test_answers_that_are_mostly_empty_are_counted(
    recipe, write_recipe, run_steps_here, tmp_path, injected
):
    """At nine ends in ten tokens, 60 answers are all or mostly, but not all, empty (0.9 ^ 60 = 0.2 %)."""
    found = recipe("rac") | {"model": model_without_memory(tmp_path / "quiet", end=0.9)}
    found["data"]["train"]["limit"] = 60
    plan, runs = run_steps_here(write_recipe(found))
    metrics = metrics_of(plan, runs, "answers")
    empty = metrics_of(plan, runs, "corrections")["figures"]["answers empty"]
    assert 30 < empty < 60
    assert warned(metrics, f"{empty} of 60 own answers are empty") == 1
    assert warned(metrics, "(warn_at.answers_empty: 0.5)") == 1
    injected("answers mostly empty", "a model that mostly ends its turn", 1, "warns with the count")


@pytest.mark.parametrize(
    ("method", "options", "count"),
    [("rac", {}, 6), ("spin", {}, 6), ("dpo", {"pairs": "self", "samples": 2}, 12)],
)
def test_answers_that_are_all_cut_are_counted_and_trained_on(
    recipe, write_recipe, run_steps_here, injected, method, options, count
):
    found = recipe(method, **options)
    found["generation"]["max_new_tokens"] = 1
    plan, runs = run_steps_here(write_recipe(found))
    words = f"{count} of {count} own answers are cut at generation.max_new_tokens 1"
    assert warned(metrics_of(plan, runs, "answers"), words) == 1
    assert metrics_of(plan, runs, "train")["optimizer_steps"] == 2
    injected("all answers cut", f"max_new_tokens 1, {method}", 1, "warns with the count")


def test_labels_that_are_all_dropped_stop_the_step(recipe, write_recipe, run_steps_here, injected):
    with pytest.raises(InputError, match="none of the 6 self-generated rows has a label left"):
        run_steps_here(write_recipe(recipe("rac", min_confidence=0.9999)))
    injected("no label left", "min_confidence 0.9999", 1, "stops")


@pytest.mark.parametrize(
    ("task", "row", "words"),
    [
        ("gsm8k", {"question": "What is 1 + 1?", "answer": " "}, "'answer' is empty"),
        (
            "chat",
            {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": ""}]},
            "'messages' message 1 (assistant) has no text",
        ),
        ("tldr", None, "it has no rows"),
    ],
)
def test_a_row_without_an_answer_is_named(
    recipe, write_recipe, run_steps_here, tmp_path, injected, task, row, words
):
    path = tmp_path / "train.jsonl"
    path.write_text((json.dumps(row) if row else "\n") + "\n")
    found = recipe("sft") | {"task": task, "data": {"train": {"source": str(path)}}}
    with pytest.raises(InputError) as caught:
        run_steps_here(write_recipe(found))
    assert words in str(caught.value) and "train.jsonl" in str(caught.value)
    injected("empty answer", f"a row of {task} without one", 1, "stops, and names file and line")


THRESHOLDS = [
    ("bash", "contexts", "tokens_changed", 0.01, "context tokens differ from the reference"),
    ("bash", "contexts", "loss_ratio", 0.01, "the loss on mixed rows is"),
    (
        "rac",
        "corrections",
        "labels_changed",
        0.01,
        "of the labels differ from the model's own token",
    ),
    ("rac", "corrections", "loss_ratio", 0.01, "the loss on own rows is"),
    ("rac", "answers", "answers_cut", 0.01, "own answers are cut"),
]


@pytest.mark.parametrize(("method", "kind", "key", "low", "words"), THRESHOLDS)
def test_a_figure_over_its_threshold_warns_and_only_then(
    recipe, write_recipe, run_steps_here, injected, method, kind, key, low, words
):
    high = 100.0 if key == "loss_ratio" else 1.0
    for seed, (value, times) in enumerate([(low, 1), (None, 0), (high, 0)]):
        found = recipe(method) | {"seeds": [seed], "warn_at": {key: value}}
        plan, runs = run_steps_here(write_recipe(found), until=lambda step: step.kind == kind)
        metrics = metrics_of(plan, runs, kind)
        assert warned(metrics, words) == warned(metrics, f"(warn_at.{key}:") == times
    injected("failure signature", f"{key} of {method} over its threshold", 1, "warns")


@pytest.mark.parametrize("method", ["bash", "rac"])
def test_the_loss_figures_are_those_of_the_rows(recipe, write_recipe, run_steps_here, method):
    """The loss on own rows by hand, and the one on reference rows: all six are among the first ones."""
    from helpers import hand_loss

    found = recipe(method)
    kind = {"bash": "contexts", "rac": "corrections"}[method]
    plan, runs = run_steps_here(write_recipe(found), until=lambda step: step.kind == kind)
    step = next(step for step in plan.steps if step.kind == kind)
    rows = artifact.read_rows(step.directory(runs) / ROWS)
    figures = metrics_of(plan, runs, kind)["figures"]
    name = {"bash": "mixed", "rac": "own"}[method]
    model = load_model(found["model"])
    assert figures[f"loss on {name} rows"] == pytest.approx(hand_loss(model, rows), rel=1e-5)
    ratio = figures[f"loss on {name} rows"] / figures["loss on reference rows"]
    assert figures["loss ratio"] == pytest.approx(ratio)
    if method == "bash":
        gold = [
            {"input_ids": [a if b == -100 else b for a, b in zip(*pair, strict=True)],
             "labels": pair[1]}
            for pair in ((row["input_ids"], row["labels"]) for row in rows)
        ]  # fmt: skip
        assert figures["loss on reference rows"] == pytest.approx(hand_loss(model, gold), rel=1e-5)


@pytest.fixture
def stall(tmp_path):
    """Hold this process up, once, after half of 24 answers: for four times what these have taken."""
    over, slept = threading.Event(), []

    def sleep(*_):
        slept.append(time.sleep(4 * (time.monotonic() - began[0])))

    def watch():
        while not over.wait(0.01):
            done = len(list(tmp_path.glob("runs/steps/answers-*/shards/*.jsonl")))
            began.extend([time.monotonic()] * (done > 0 and not began))
            if done >= 12:
                return signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)

    began, before = [], signal.signal(signal.SIGUSR1, sleep)
    watcher = threading.Thread(target=watch)
    watcher.start()
    yield slept
    over.set()
    watcher.join()
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("threshold", [0.5, None])
def test_a_step_that_stalls_while_it_generates_warns(
    recipe, write_recipe, run_steps_here, monkeypatch, injected, stall, threshold
):
    """N answers, half in t, half in t', and 4 t between: the mean is N / (5 t + t') a second, the best

    at least N / 2 in the shorter of t and t', so the mean is at most a third of it.

    Windows and shards are made short, so that there are several in a second.
    """
    found = recipe("spin") | {"warn_at": {"generation_rate": threshold}}
    found["data"]["train"]["limit"] = 24
    found["generation"] |= {"max_new_tokens": 24, "batch_tokens": 1}
    monkeypatch.setattr("pipeline.rows.shards._WINDOW_SECONDS", 0.1)
    monkeypatch.setattr("pipeline.rows.shards._SECONDS_BETWEEN_SHARDS", 0.0)
    plan, runs = run_steps_here(write_recipe(found), until=lambda step: step.kind == "answers")
    metrics = metrics_of(plan, runs, "answers")
    rate = metrics["tokens_per_second"]
    assert len(stall) == 1 and rate["windows"] >= 3
    assert rate["mean"] < rate["best"] / 2
    assert warned(metrics, "(warn_at.generation_rate: 0.5)") == (threshold is not None)
    injected("under-used device", "a process held up while it generates", 1, "warns")


@pytest.mark.parametrize("ratio", [0, 0.05])
def test_no_self_generated_row_is_said_where_some_were_asked_for(
    recipe, write_recipe, run_steps_here, injected, ratio
):
    """0.05 of 6 rows rounds to none; 0 asks for none."""
    plan, runs = run_steps_here(write_recipe(recipe("bash", **{"lambda": ratio})))
    metrics = metrics_of(plan, runs, "train")
    assert metrics["data"]["self_generated_rows"] == 0
    assert warned(metrics, "lambda 0.05 selects none of the 6 self-generated rows") == (ratio > 0)
    if ratio:
        injected("no self-generated row", "lambda 0.05 of 6 rows", 1, "warns")


@pytest.mark.parametrize(
    ("method", "options"),
    [("sft", {}), ("bash", {}), ("rac", {}), ("spin", {}), ("dpo", {"pairs": "self"})],
)
def test_one_row_in_a_batch_of_many_trains(
    recipe, write_recipe, run_steps_here, injected, method, options
):
    found = recipe(method, **options)
    found["data"]["train"]["limit"] = 1
    found |= {"batch_size": 16, "micro_batch_size": 8}
    plan, runs = run_steps_here(write_recipe(found))
    assert math.isfinite(metrics_of(plan, runs, "train")["last_loss"])
    injected("fewer rows than a batch", f"one row and batch_size 16, {method}", 1, "trains")
