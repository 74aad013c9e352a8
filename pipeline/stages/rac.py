"""RAC: train the model to correct its own answers, with labels it predicts given the reference.

L = L_SFT(y | x, y) + lambda ( - sum_t log pi_theta(c_t | x, yhat_<t) )     (Cen et al. 2025)

Each round: the current model answers every prompt (yhat); conditioned on the reference, it predicts
the next token at every point of its answer (c, pipeline/rows/corrections.py); then stock SFT trains
on reference rows and on rows with `input_ids` = x + yhat and `labels` = c, shuffled together, as in
BASH. No external model is involved.

Decisions where the paper is silent (more in pipeline/rows/corrections.py):
1. `correction: sequence` asks the model, given x, y and yhat, to write a whole corrected answer,
   and trains plain SFT on it; `token` (the default) is the paper's.
2. An answer cut at the token limit gets no end-of-turn labels: those predicted within it are
   dropped, unless `end_cut_answers: true`.
3. Answers that are empty, or equal to the reference, are kept and counted.
4. The reference-conditioned prompt is a template of the task (pipeline/data/tasks.py) or the
   recipe's `shown_prompt`. It shows the reference with its end-of-turn token: without it, whatever
   the template puts after the reference (a line break) becomes the last label of most answers, and
   the model unlearns to stop (docs/methods.md). The step warns of such labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from pipeline.data.tasks import task_named
from pipeline.errors import Problem
from pipeline.recipe.schema import Recipe, RoundOptions
from pipeline.rows.stored import ROWS, SelfGeneratedRow
from pipeline.stages import sft
from pipeline.steps.options import CorrectionOptions

if TYPE_CHECKING:
    from pipeline.data.render import Renderer
    from pipeline.rows.correction_inputs import CorrectionInput
    from pipeline.stages.builder import Builder
    from pipeline.steps.context import StepContext
    from pipeline.steps.spec import Model


class Options(RoundOptions):
    """Keys of a `rac` stage; `temperature`, `top_k` and `top_p` apply to its free answers."""

    method: Literal["rac"]
    ratio: float = Field(default=1.0, ge=0, alias="lambda")
    label: Literal["argmax", "sample"] = "argmax"
    correction: Literal["token", "sequence"] = "token"
    min_confidence: Annotated[float, Field(ge=0, lt=1)] = 0.0
    shown_prompt: str | None = Field(default=None, min_length=1)
    end_cut_answers: bool = False

    def shown_prompt_for(self, task: str) -> str:
        """The template of the reference-conditioned prompt."""
        default = task_named(task)
        by_token = self.correction == "token"
        return self.shown_prompt or (default.shown if by_token else default.rewrite)


def check(name: str, stage: Options, recipe: Recipe) -> list[Problem]:
    """Check the placeholders of the template, and keys that apply to token-level labels only."""
    problems = []
    shown = stage.shown_prompt_for(recipe.task)
    needed = ["{prompt}", "{reference}"] + ["{answer}"] * (stage.correction == "sequence")
    missing = [place for place in needed if place not in shown]
    if missing:
        message = f"lacks {' and '.join(missing)}, where that text goes"
        problems.append(Problem(f"stages.{name}.shown_prompt", message))
    if stage.correction == "token" and "{answer}" in shown:
        message = "has {answer}, which is for correction: sequence only"
        problems.append(Problem(f"stages.{name}.shown_prompt", message))
    if stage.correction == "sequence":
        problems += [
            Problem(f"stages.{name}.{key}", "is for correction: token; this stage has sequence")
            for key in sorted(stage.model_fields_set & {"min_confidence", "end_cut_answers"})
        ]
    return problems


def plan(stage: Options, build: Builder) -> Model:
    """Three steps per round: answers, corrections, train."""
    model, recipe = build.start, build.recipe
    data = {"train": build.train_rows}
    for number in range(1, stage.rounds + 1):
        answers = build.own_answers(model, build.train_rows, number)
        corrections = build.step(
            "corrections",
            "pipeline.stages.rac:write_corrections",
            title=build.in_round("corrections", number),
            model=model,
            data=data,
            steps={"answers": answers},
            options=CorrectionOptions(
                **build.rendering(),
                correction=stage.correction,
                label=stage.label,
                min_confidence=stage.min_confidence,
                shown_prompt=stage.shown_prompt_for(recipe.task),
                end_cut_answers=stage.end_cut_answers,
                round=number,
                max_length=recipe.trainer_for(stage)["max_length"],
                max_new_tokens=recipe.generation.max_new_tokens,
                **recipe.reading,
            ),
            runtime_options=build.writing,
        )
        model = sft.train_round(build, model, corrections, number, stage.ratio)
    return model


def write_corrections(step: StepContext[CorrectionOptions]) -> None:
    """Step: write one corrected row per self-generated answer.

    Raises:
        InputError: if no answer can be corrected.
    """
    from pipeline.data.render import renderer_for
    from pipeline.models.load import load_to_read
    from pipeline.rows.correction_inputs import read_correction_inputs
    from pipeline.rows.shards import length_buckets, write_in_shards

    renderer = renderer_for(step)
    inputs = read_correction_inputs(step, renderer)
    model = load_to_read(step)
    by_sequence = step.options["correction"] == "sequence"
    write = _by_sequence if by_sequence else _by_token

    def size(item: CorrectionInput) -> int:
        longest = step.options["max_new_tokens"] if by_sequence else len(item.answer)
        return len(item.shown) + longest

    def make(inputs: Sequence[CorrectionInput]) -> Iterator[SelfGeneratedRow]:
        for group, at_once in length_buckets(inputs, size, step.runtime_options["batch_tokens"]):
            yield from write(step, model, renderer, group, at_once)

    rows = write_in_shards(
        step,
        inputs.values(),
        make,
        key=lambda item: (item.row.row_id,),
        size=size,
        row_key=lambda row: (row["id"],),
        tokens=sft.label_count,
        file_name=ROWS,
    )
    _measure(step, model, rows, inputs, renderer)


def _measure(
    step: StepContext[CorrectionOptions],
    model: Any,
    rows: Sequence[SelfGeneratedRow],
    inputs: dict[int, CorrectionInput],
    renderer: Renderer,
) -> None:
    """Record how labels compare with answers and references, and warn when they look wrong."""
    from pipeline.rows import diagnostics

    by_sequence = step.options["correction"] == "sequence"
    count = sequence_figures if by_sequence else token_figures
    figures = step.metrics.setdefault("figures", {})
    figures |= count(rows, inputs)
    if by_sequence:
        step.metrics["tokens_generated"] = sum(map(sft.label_count, rows))
        diagnostics.check_rate(step)
        return
    _check_ends(step, rows, inputs, renderer.end_of_turn_id)
    changed = figures["label differs from own token"]
    diagnostics.warn_over(
        step,
        "labels_changed",
        changed,
        f"{changed:.0%} of the labels differ from the model's own token at that position; RAC "
        "collapses when labels are far from what the model writes; raise the stage's "
        "min_confidence, or train longer before it",
    )
    diagnostics.compare_losses(
        step, model, "own", rows, {row_id: item.row for row_id, item in inputs.items()},
        way_out="raise the stage's min_confidence",
    )  # fmt: skip


def _by_token(
    step: StepContext[CorrectionOptions],
    model: Any,
    renderer: Renderer,
    inputs: Sequence[CorrectionInput],
    at_once: int,
) -> Iterator[SelfGeneratedRow]:
    from pipeline.rows.corrections import Own, iter_labels

    options = step.options
    done = iter_labels(
        model,
        [Own(item.shown, item.answer, item.row.row_id) for item in inputs],
        label=options["label"],
        min_confidence=options["min_confidence"],
        seed=step.seed_of_round(),
        batch_size=at_once,
        excluded_ids=renderer.ids_without_token,
    )
    for place, ids in done:
        item = inputs[place]
        # A model may have several stop tokens; it is trained on the template's end-of-turn token.
        allowed = item.finished or options["end_cut_answers"]
        end = renderer.end_of_turn_id if allowed else -100
        ids = [end if label in renderer.stop_ids else label for label in ids]
        yield sft.self_generated_row(item.row.row_id, item.row.prompt, item.answer, ids)


def _by_sequence(
    step: StepContext[CorrectionOptions],
    model: Any,
    renderer: Renderer,
    inputs: Sequence[CorrectionInput],
    at_once: int,
) -> Iterator[SelfGeneratedRow]:
    from pipeline.decoding.generate import Prompt, SamplingParams, iter_answers

    how = SamplingParams(
        max_new_tokens=step.options["max_new_tokens"],
        stop_ids=renderer.stop_ids,
        temperature=1.0 if step.options["label"] == "sample" else 0.0,
        # Independent of the noise of the answers being corrected.
        seed=~step.seed_of_round(),
        excluded_ids=renderer.ids_without_token,
    )
    prompts = [Prompt(item.row.row_id, 0, item.shown) for item in inputs]
    for place, ids in iter_answers(model, prompts, how, batch_size=at_once):
        item = inputs[place]
        answer = renderer.own_answer_ids(ids, finished=ids[-1] in renderer.stop_ids)
        answer = answer[: item.row.room]
        yield sft.self_generated_row(item.row.row_id, item.row.prompt, answer, answer)


def _check_ends(
    step: StepContext,
    rows: Sequence[SelfGeneratedRow],
    inputs: dict[int, CorrectionInput],
    end: int,
) -> None:
    """Count finished answers whose last label ends the turn, and warn if most do not."""
    last = [row["labels"][-1] for row in rows if inputs[row["id"]].finished]
    kept = last.count(end)
    step.metrics.setdefault("figures", {})["answers end kept"] = kept
    if kept < len(last) / 2:
        way_out = "train the stage it starts from longer, so that its answers end where they should"
        if "{reference}{end}" not in step.options["shown_prompt"]:
            way_out = (
                "write {end} right after {reference} in shown_prompt, so that the model sees where "
                "an answer ends"
            )
        step.warn(
            f"of {len(last)} finished own answers only {kept} keep the end-of-turn token as their "
            f"last label, so the model may unlearn to stop; {way_out}"
        )


def token_figures(
    rows: Sequence[SelfGeneratedRow], inputs: dict[int, CorrectionInput]
) -> Mapping[str, float]:
    """How a round's labels compare with its answers and references; shares are of labels."""
    kept = changed = as_reference = dropped = without = 0
    for row in rows:
        item = inputs[row["id"]]
        labels = row["labels"][len(item.row.prompt) :]
        dropped += labels.count(-100)
        without += labels.count(-100) == len(labels)
        for place, label in enumerate(labels):
            if label != -100:
                kept += 1
                changed += item.answer[place] != label
                as_reference += item.row.answer[place : place + 1] == [label]
    return {
        "labels": kept,
        "label differs from own token": changed / max(kept, 1),
        "label = reference's token there": as_reference / max(kept, 1),
        "labels dropped": dropped,
        "rows without a label": without,
    }


def sequence_figures(
    rows: Sequence[SelfGeneratedRow], inputs: dict[int, CorrectionInput]
) -> Mapping[str, float]:
    """Count rewritten answers that equal the original answer, or the reference, token by token."""
    pairs = [
        (row["labels"][len(inputs[row["id"]].row.prompt) :], inputs[row["id"]]) for row in rows
    ]
    return {
        "rewritten": len(rows),
        "rewritten = answer": sum(labels == item.answer for labels, item in pairs),
        "rewritten = reference": sum(labels == item.row.answer for labels, item in pairs),
    }
