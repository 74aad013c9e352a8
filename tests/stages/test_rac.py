"""RAC as a stage: rows, figures, rounds, and what the loss is."""

import pytest
import torch
from conftest import problems_of
from helpers import hand_loss, model_that_ends_turns, steps_of

from pipeline.data.render import Renderer
from pipeline.data.tasks import TASKS, Example, example_of
from pipeline.models.load import load_model, load_tokenizer
from pipeline.plan.load import load_recipe
from pipeline.plan.plan import make_plan
from pipeline.rows.correction_inputs import CorrectionInput, read_correction_inputs
from pipeline.rows.corrections import correct
from pipeline.rows.stored import ROWS
from pipeline.stages import rac, sft
from pipeline.steps import artifact
from pipeline.steps.context import StepContext, write_spec


@pytest.fixture
def recipe(recipe_dict):
    """RAC straight from the base model, so that its rows can be made again by hand."""
    recipe_dict["stages"] = {"rac": {"method": "rac"}}
    recipe_dict["evaluate"] = []
    return recipe_dict


def rows_and_answers(plan, runs):
    steps = steps_of(plan, "rac")
    rows = artifact.read_rows(steps["corrections"].directory(runs) / ROWS)
    answers = artifact.read_rows(steps["answers"].directory(runs) / artifact.SAMPLES)
    record = artifact.read_record(steps["corrections"].directory(runs))
    return rows, answers, record


def answer_part(row):
    """(context ids, labels) after the prompt, which is as long as the row's leading -100."""
    size = next(i for i, label in enumerate(row["labels"]) if label != -100)
    return row["input_ids"][size:], row["labels"][size:]


def test_a_row_is_x_plus_own_answer_with_the_shown_models_labels(
    recipe, write_recipe, run_steps_here
):
    plan, runs = run_steps_here(write_recipe(recipe))
    rows, answers, _ = rows_and_answers(plan, runs)
    model, renderer = load_model(recipe["model"]), Renderer(load_tokenizer(recipe["model"]))
    assert [row["id"] for row in rows] == list(range(6))
    for row, own in zip(rows, answers, strict=True):
        example = Example("gsm8k", own["messages"], own["reference"])
        shown = renderer.prompt_ids(example.shown(TASKS["gsm8k"].shown, end="<|im_end|>"))
        plain = renderer.prompt_ids(example)
        assert row["input_ids"] == plain + own["ids"] and not own["finished"]
        assert shown.count(2) == plain.count(2) + 1, "the reference is shown with its end"
        labels = correct(model, [plain], [shown], [own["ids"]])[0]
        cut = [-100 if label == 2 else label for label in labels]  # no end for a cut answer
        assert row["labels"] == [-100] * len(plain) + cut


def test_the_step_trains_the_loss_of_the_paper(recipe, write_recipe, run_steps_here):
    """With lambda 1 and all rows in one batch the first loss is the token mean over both kinds:

    (x + y, y) and (x + yhat, c), by hand, one row at a time.
    """
    recipe["batch_size"] = recipe["micro_batch_size"] = 12
    recipe["trainer"]["max_steps"] = 1
    plan, runs = run_steps_here(write_recipe(recipe))
    rows, answers, _ = rows_and_answers(plan, runs)
    renderer = Renderer(load_tokenizer(recipe["model"]))
    gold = []
    for own in answers:
        example = Example("gsm8k", own["messages"], own["reference"])
        ids = renderer.answer_ids(example, own["reference"])
        gold.append(sft.training_row(renderer.prompt_ids(example), ids, ids))
    expected = hand_loss(load_model(recipe["model"]), gold + rows)
    metrics = artifact.read_record(steps_of(plan, "rac")["train"].directory(runs))["metrics"]
    assert metrics["first_loss"] == pytest.approx(expected, rel=1e-4)
    assert metrics["data"]["self_generated_rows"] == 6


def drafts_of(answers, references):
    from pipeline.data.load import TokenRow

    example = example_of("gsm8k", {"question": "q", "answer": "#### 1"})
    return {
        number: CorrectionInput(TokenRow(number, [1], reference, example), answer, True, [1, 1])
        for number, (answer, reference) in enumerate(zip(answers, references, strict=True))
    }


def test_figures_of_labels_by_hand():
    """Own answer 5 6 7, reference 5 6 2, labels 5 8 -100: of 2 labels one differs from the own

    token, one is the reference's token at its place, and one label was dropped. The second answer is
    longer than its reference: its third label has no token of the reference at its place.
    """
    drafts = drafts_of([[5, 6, 7], [9, 9, 2], [8]], [[5, 6, 2], [9, 2], [9, 2]])
    labels = [[5, 8, -100], [9, 2, 2], [-100]]
    rows = [
        {"id": number, **sft.training_row([1], draft.answer, labels[number])}
        for number, draft in drafts.items()
    ]
    assert rac.token_figures(rows, drafts) == {
        "labels": 5,
        "label differs from own token": 2 / 5,
        "label = reference's token there": 3 / 5,
        "labels dropped": 2,
        "rows without a label": 1,
    }


def test_figures_of_rewritten_answers_by_hand():
    drafts = drafts_of([[5, 2], [6, 2], [7, 2]], [[5, 2], [9, 2], [8, 2]])
    rows = [
        {"id": number, **sft.training_row([1], ids, ids)}
        for number, ids in enumerate([[5, 2], [9, 2], [7, 2]])
    ]
    figures = {"rewritten": 3, "rewritten = answer": 2, "rewritten = reference": 2}
    assert rac.sequence_figures(rows, drafts) == figures


def test_own_answers_are_counted_by_hand():
    from pipeline.rows.answers import answer_figures

    row = {"reference": "#### 5", "answer": "#### 5", "ids": [8, 2], "finished": True}
    rows = [row, row | {"finished": False}, row | {"answer": "", "ids": [2]}, row | {"answer": "x"}]
    assert answer_figures(rows) == {
        "answers": 4, "answers empty": 1, "answers = reference": 1, "answers cut": 1,
    }  # fmt: skip


def test_rows_whose_labels_are_all_dropped_are_not_trained_on(recipe, write_recipe, run_steps_here):
    """A batch of nothing else would have a loss of 0 / 0. Here one limit drops some, one all."""
    from pipeline.errors import InputError

    recipe["stages"]["rac"]["min_confidence"] = 0.999
    with pytest.raises(InputError, match="none of the 6 self-generated rows has a label left"):
        run_steps_here(write_recipe(recipe))
    recipe["generation"]["max_new_tokens"] = 1
    model, renderer = load_model(recipe["model"]), Renderer(load_tokenizer(recipe["model"]))
    plan, runs = run_steps_here(write_recipe(recipe), until=lambda step: step.kind == "answers")
    sure = []
    for own in artifact.read_rows(plan.steps[0].directory(runs) / artifact.SAMPLES):
        example = Example("gsm8k", own["messages"], own["reference"])
        ids = renderer.prompt_ids(example.shown(TASKS["gsm8k"].shown, end="<|im_end|>"))
        with torch.no_grad():
            sure.append(model(torch.tensor([ids])).logits[0, -1].softmax(-1).max().item())
    recipe["stages"]["rac"]["min_confidence"] = sum(sorted(sure)[2:4]) / 2
    plan, runs = run_steps_here(write_recipe(recipe))
    metrics = artifact.read_record(steps_of(plan, "rac")["train"].directory(runs))["metrics"]
    assert metrics["data"]["self_generated_rows"] == 3
    assert "3 of 6 self-generated rows have no label" in metrics["warnings"][0]


def test_answers_over_the_models_window_with_the_reference_shown_are_counted(
    recipe, write_recipe, run_steps_here, tmp_path
):
    """The window of 512 holds the prompt and the answer, but not the reference a second time."""
    import json

    rows = [
        {
            "question": "What is 1 + 1?",
            "answer": "1 + 1 is 2. " * (40 if number else 1) + "\n#### 2",
        }
        for number in range(2)
    ]
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    recipe["data"]["train"] = {"source": str(path)}
    recipe["stages"]["rac"]["shown_prompt"] = "{reference} {reference} {prompt}"
    plan, runs = run_steps_here(write_recipe(recipe))
    written, _, record = rows_and_answers(plan, runs)
    assert [row["id"] for row in written] == [0]
    assert "1 of 2 self-generated answers are not corrected" in record["metrics"]["warnings"][0]


@pytest.mark.parametrize("allowed", [False, True])
def test_a_cut_answer_gets_no_end_of_turn_label_unless_asked(
    recipe, write_recipe, run_steps_here, tiny_model, tmp_path, allowed
):
    recipe["model"] = model_that_ends_turns(tiny_model, tmp_path / "ends")
    recipe["data"]["train"]["limit"] = 24
    recipe["stages"]["rac"] |= {"end_cut_answers": allowed, "min_confidence": 0.0}
    plan, runs = run_steps_here(write_recipe(recipe), until=lambda step: step.kind == "corrections")
    rows, answers, record = rows_and_answers(plan, runs)
    finished = {own["id"]: own["finished"] for own in answers}
    assert 0 < sum(finished.values()) < 24, "the test needs both kinds"
    ended = [row for row in rows if 2 in row["labels"]]
    assert any(finished[row["id"]] for row in ended)
    assert any(not finished[row["id"]] for row in ended) == allowed
    assert (record["metrics"]["figures"]["labels dropped"] > 0) != allowed
    assert record["metrics"]["figures"]["answers cut"] == 24 - sum(finished.values())


def test_sequence_corrections_are_plain_rows_of_what_the_model_rewrote(
    recipe, write_recipe, run_steps_here
):
    """The rewriting prompt holds question, reference and own answer; the row has the plain prompt."""
    recipe["stages"]["rac"]["correction"] = "sequence"
    plan, runs = run_steps_here(write_recipe(recipe))
    rows, answers, record = rows_and_answers(plan, runs)
    model, renderer = load_model(recipe["model"]), Renderer(load_tokenizer(recipe["model"]))
    for row, own in zip(rows, answers, strict=True):
        example = Example("gsm8k", own["messages"], own["reference"])
        template = load_recipe(write_recipe(recipe)).stages["rac"].shown_prompt_for("gsm8k")
        shown = example.shown(template, answer=own["answer"], end="<|im_end|>")
        text = shown.messages[-1]["content"]
        for part in (example.messages[-1]["content"], own["reference"], own["answer"]):
            assert part in text
        ids = renderer.prompt_ids(shown)
        expected = []
        while len(expected) < 8 and 2 not in expected:
            with torch.no_grad():
                expected.append(int(model(torch.tensor([ids + expected])).logits[0, -1].argmax()))
        assert answer_part(row) == (expected, expected)
        assert row["input_ids"][: -len(expected)] == renderer.prompt_ids(example)
    assert record["metrics"]["figures"]["rewritten"] == 6
    assert record["metrics"]["tokens_generated"] == sum(len(answer_part(row)[0]) for row in rows)


def test_rounds_answer_anew_with_the_model_of_the_round_before(recipe, write_recipe):
    recipe["stages"]["rac"] |= {"rounds": 2, "label": "sample", "temperature": 0.7, "top_k": 5}
    steps = make_plan(load_recipe(write_recipe(recipe))).steps
    kinds = ["answers", "corrections", "train"]
    assert [step.kind for step in steps] == kinds * 2
    first, second = steps[:3], steps[3:]
    assert second[0].inputs["base"] is first[2] and second[1].inputs["base"] is first[2]
    assert second[1].inputs["answers"] is second[0] and second[2].inputs["rows"] is second[1]
    assert [step.options["round"] for step in (*first[:2], *second[:2])] == [1, 1, 2, 2]
    assert first[0].options["temperature"] == 0.7 and first[0].options["top_k"] == 5
    assert second[0].title == "own answers, round 2"


def test_rac_and_spin_share_the_answers_of_the_stage_they_start_from(recipe, write_recipe):
    recipe["stages"] = {
        "sft": {"method": "sft"},
        "rac": {"method": "rac", "from": "sft"},
        "spin": {"method": "spin", "from": "sft"},
    }
    kinds = [step.kind for step in make_plan(load_recipe(write_recipe(recipe))).steps]
    assert kinds.count("answers") == 1


def test_the_recipes_own_shown_prompt_is_what_the_model_reads(
    recipe, write_recipe, run_steps_here, tmp_path
):
    other = "{reference} answers {prompt}"
    plain_plan, runs = run_steps_here(write_recipe(recipe))
    recipe["stages"]["rac"]["shown_prompt"] = other
    path = write_recipe(recipe, "other.yaml")
    plan, _ = run_steps_here(path)
    assert rows_and_answers(plan, runs)[0] != rows_and_answers(plain_plan, runs)[0]
    step = StepContext.read(
        write_spec(steps_of(plan, "rac")["corrections"], runs, processes=1, use_cpu=True)
    )
    renderer = Renderer(load_tokenizer(recipe["model"]))
    drafts = read_correction_inputs(step, renderer)
    assert len(drafts) == 6 and "warnings" not in step.metrics
    for draft in drafts.values():
        content = (
            f"{draft.row.example.reference} answers {draft.row.example.messages[-1]['content']}"
        )
        message = [{"role": "user", "content": content}]
        assert draft.shown == renderer.prompt_ids(Example("gsm8k", message, "-"))


@pytest.mark.parametrize(
    ("options", "key", "message"),
    [
        ({"shown_prompt": "{prompt}"}, "shown_prompt", "lacks {reference}"),
        ({"shown_prompt": "{prompt} {reference}", "correction": "sequence"}, "shown_prompt", "lacks {answer}"),
        ({"shown_prompt": "{prompt}{reference}{answer}"}, "shown_prompt", "for correction: sequence"),
        ({"correction": "sequence", "min_confidence": 0.1}, "min_confidence", "for correction: token"),
        ({"min_confidence": 1.0}, "min_confidence", "less than 1"),
        ({"label": "best"}, "label", "argmax"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_named(recipe, write_recipe, options, key, message):
    recipe["stages"]["rac"] |= options
    assert message in problems_of(write_recipe(recipe))[f"stages.rac.{key}"]


@pytest.mark.parametrize("shown", [TASKS["gsm8k"].shown, "{reference}\n{prompt}"])
@pytest.mark.parametrize(("last", "kept", "warns"), [([2, 2, 9], 2, False), ([2, 9, 9], 1, True)])
def test_a_stage_whose_labels_mostly_do_not_end_turns_warns(last, kept, warns, shown):
    """Three finished answers, and a cut one that is not looked at. The prompts of built-in tasks

    show the end of the reference, so there it is no advice to show it.
    """
    from types import SimpleNamespace

    warnings = []
    step = SimpleNamespace(
        metrics={"figures": {}}, warn=warnings.append, options={"shown_prompt": shown}
    )
    drafts = drafts_of([[5, 2]] * 4, [[5, 2]] * 4)
    drafts[3] = CorrectionInput(drafts[3].row, [5, 6], False, [1])
    rows = [
        {"id": number, **sft.training_row([1], drafts[number].answer, [5, label])}
        for number, label in enumerate([*last, 9])
    ]
    rac._check_ends(step, rows, drafts, 2)
    assert step.metrics["figures"] == {"answers end kept": kept}
    assert bool(warnings) == warns
    assert all(f"of 3 finished own answers only {kept}" in warning for warning in warnings)
    assert all(("write {end}" in warning) == ("{end}" not in shown) for warning in warnings)
