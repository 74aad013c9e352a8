"""RFT (Yuan et al. 2023, arXiv 2308.01825): fine-tuning on the model's own right answers.

L = -1/N sum over reference rows and S of sum_t log pi_theta(y_t | x, y_<t)

where S holds distinct, right and finished answers of the model, drawn `samples` times a prompt.
Known under several names: rejection sampling fine-tuning, STaR, ReST-EM (with `rounds`), RAFT (with
`keep: best`). Each round: the current model answers every prompt, some of the answers are kept, and
stock SFT trains on reference rows and on the kept answers, shuffled together.

Decisions:
1. `keep: right` needs a task whose answers can be graded (gsm8k, or a task file with `grade`) and
   is its default. `best`, the default elsewhere, keeps the finished answer of a prompt that is
   closest to the reference by ROUGE-L; `all` keeps every finished answer.
2. Of answers with the same equations in the same order (`distinct: equations`), which are read as
   text and never evaluated, one is kept: the one farthest, in tokens, from those kept before, as in
   the authors' code. An answer without equations stands for itself, up to white space, as every
   answer does under `distinct: text`.
3. Easy prompts have more distinct right answers than hard ones, so that without `max_per_prompt`
   they would dominate.
4. An answer cut at the token limit is never kept: it would teach no end of turn.
5. `train_from` names the stage whose weights every round's training starts from, such as a `base`
   stage (the authors train from the base model); null: the weights that wrote the answers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from pipeline.errors import InputError, Problem, suggest
from pipeline.recipe.schema import Recipe, RoundOptions
from pipeline.rows.graded import has_grader, is_right, rouge_l
from pipeline.rows.stored import ROWS, AnswerRow, SelfGeneratedRow
from pipeline.stages import sft

if TYPE_CHECKING:
    from pipeline.stages.builder import Builder
    from pipeline.steps.context import StepContext
    from pipeline.steps.options import KeptOptions, MixtureOptions
    from pipeline.steps.spec import Model

# `<<48/2=24>>` of GSM8K's references, else an expression of numbers in running text: 48 / 2 = 24.
_ANNOTATED = re.compile(r"<<([^<>]*)>>")
_NUMBER = r"\(*[$€£]?\d[\d,.]*%?\)*"
_WRITTEN = re.compile(
    rf"{_NUMBER}(?:\s*[-+*/x\u00d7\u00f7\u2212]\s*{_NUMBER})+\s*=\s*[-\u2212]?{_NUMBER}"
)
_SPELLING = str.maketrans(
    {"x": "*", "\u00d7": "*", "\u00f7": "/", "\u2212": "-"} | dict.fromkeys("$€£, \t\n")
)


class Options(RoundOptions):
    """Keys of an `rft` stage; `temperature`, `top_k` and `top_p` apply to its answers."""

    method: Literal["rft"]
    samples: int = Field(default=8, ge=1)
    temperature: float = Field(default=0.7, gt=0)
    keep: Literal["right", "best", "all"] | None = None
    distinct: Literal["equations", "text"] | None = None
    max_per_prompt: int = Field(default=4, ge=1)
    ratio: float = Field(default=1.0, ge=0, alias="lambda")
    references: bool = True
    train_from: str | None = None

    def keep_for(self, task: str) -> Literal["right", "best", "all"]:
        """Which answers to a task are kept."""
        return self.keep or ("right" if has_grader(task) else "best")


def check(name: str, stage: Options, recipe: Recipe) -> list[Problem]:
    """Keys that need a grader, that do nothing beside another, or that name a stage."""
    problems = []

    def say(key: str, message: str) -> None:
        problems.append(Problem(f"stages.{name}.{key}", message))

    if stage.keep == "right" and not has_grader(recipe.task):
        say("keep", f"right needs a grader, which task {recipe.task} lacks; write best, or all")
    if stage.keep_for(recipe.task) == "best":
        for key in sorted(stage.model_fields_set & {"distinct", "max_per_prompt"}):
            say(key, "does nothing beside keep: best, which keeps one answer a prompt; take it out")
    if not stage.references and stage.ratio == 0:
        say("lambda", "is 0 beside references: false, so there would be nothing to train on")
    if stage.train_from is not None:
        above = list(recipe.stages)[: list(recipe.stages).index(name)]
        if stage.train_from not in above:
            way_out = f"{suggest(stage.train_from, above)}; stages: {', '.join(above) or 'none'}"
            say("train_from", f'no stage "{stage.train_from}" above it{way_out}')
        elif recipe.lora_for(recipe.stages[stage.train_from]) not in (None, recipe.lora_for(stage)):
            say(
                "train_from", f"{stage.train_from} is another LoRA adapter: repeat its lora options"
            )
    return problems


def plan(stage: Options, build: Builder) -> Model:
    """Three steps per round: answers, the choice among them, train."""
    writer, task = build.start, build.recipe.task
    start = build.sibling(stage.train_from).end if stage.train_from else None
    more: MixtureOptions = {} if stage.references else {"references": False}
    options: KeptOptions = {
        **build.rendering(),
        "keep": stage.keep_for(task),
        "max_length": build.recipe.trainer_for(stage)["max_length"],
    }
    if options["keep"] != "best":
        options["distinct"] = stage.distinct or ("equations" if task == "gsm8k" else "text")
        options["max_per_prompt"] = stage.max_per_prompt
    for number in range(1, stage.rounds + 1):
        answers = build.answers(
            writer,
            source=build.train_rows,
            role="train",
            title=build.in_round(f"{stage.samples} answers a prompt", number),
            samples=stage.samples,
            sampling=stage,
            round_number=number,
        )
        kept = build.step(
            "kept",
            "pipeline.stages.rft:write_kept",
            title=build.in_round("kept answers", number),
            model=writer,
            data={"train": build.train_rows},
            steps={"answers": answers},
            options=options,
            main_process_only=True,
        )
        writer = sft.train_round(build, start or writer, kept, number, stage.ratio, more=more)
    return writer


def write_kept(step: StepContext[KeptOptions]) -> None:
    """Step: choose the answers to train on, and write each as a row whose labels are its tokens.

    Raises:
        InputError: if none is kept.
    """
    from pipeline.data.load import load_examples, tokenise
    from pipeline.data.render import renderer_for
    from pipeline.rows.stored import read_answers
    from pipeline.steps.artifact import write_rows

    options, renderer = step.options, renderer_for(step)
    examples = load_examples(step.source("train"), options["task"], step.warn, renderer)
    token_rows, _ = tokenise(examples, renderer, max_length=options["max_length"])
    asked = {row.row_id: row for row in token_rows}
    grouped: dict[int, list[AnswerRow]] = {}
    for answer in read_answers(step.input_folders()["answers"]):
        if answer["id"] in asked:  # else its prompt alone is longer than max_length
            grouped.setdefault(answer["id"], []).append(answer)
    rows: list[SelfGeneratedRow] = []
    for row_id, answers in grouped.items():
        row = asked[row_id]
        for answer in kept(answers, options):
            ids = renderer.own_answer_ids(answer["ids"], finished=True)
            if len(ids) <= row.room:
                rows.append(sft.self_generated_row(row_id, row.prompt, ids, ids))
    step.metrics["figures"] = {
        **figures(list(grouped.values()), options),
        "answers kept": len(rows),
        "prompts with an answer kept": len({row["id"] for row in rows}),
    }
    if not rows:
        raise InputError(
            f"none of the {sum(map(len, grouped.values()))} answers is kept: {_why_none(options)}"
        )
    write_rows(step.directory / ROWS, rows)


def _why_none(options: KeptOptions) -> str:
    wrong = "right and finished" if options["keep"] == "right" else "finished"
    return (
        f"none is {wrong} within max_length; train the stage it starts from longer, or raise its "
        "samples or generation.max_new_tokens"
    )


def figures(prompts: Sequence[Sequence[AnswerRow]], options: KeptOptions) -> dict[str, int]:
    """Counts over prompts and their answers; how many are right where the task has a grader."""
    every = [answer for answers in prompts for answer in answers]
    found = {
        "prompts": len(prompts),
        "answers": len(every),
        "answers cut": sum(not answer["finished"] for answer in every),
    }
    if not has_grader(options["task"]):
        return found
    right = [[is_right(answer, options["task"]) for answer in answers] for answers in prompts]
    return found | {
        "answers right": sum(map(sum, right)),
        "prompts solved never": sum(not any(one) for one in right),
        "prompts solved sometimes": sum(any(one) and not all(one) for one in right),
        "prompts solved always": sum(all(one) for one in right),
    }


def kept(answers: Sequence[AnswerRow], options: KeptOptions) -> list[AnswerRow]:
    """Return the answers to one prompt that are trained on, in the order they are kept."""
    finished = [answer for answer in answers if answer["finished"]]
    if options["keep"] == "best":
        scored = [(score, answer) for answer in finished if (score := rouge_l(answer)) is not None]
        return [max(scored, key=lambda pair: pair[0])[1]] if scored else []
    if options["keep"] == "right":
        finished = [answer for answer in finished if is_right(answer, options["task"])]
    assert "distinct" in options and "max_per_prompt" in options  # as all but `best`
    by_key: dict[Any, list[AnswerRow]] = {}
    for answer in finished:
        by_key.setdefault(_key(answer["answer"], options["distinct"]), []).append(answer)
    chosen: list[AnswerRow] = []
    for same in list(by_key.values())[: options["max_per_prompt"]]:
        chosen.append(max(same, key=lambda answer: _distance_to(chosen, answer)))
    return chosen


def _key(answer: str, distinct: str) -> Any:
    """What two answers share that count as the same one."""
    found = equations(answer) if distinct == "equations" else ()
    return found or " ".join(answer.split())


def equations(answer: str) -> tuple[str, ...]:
    """The equations of a solution, in order and in one spelling: `48/2=24`."""
    found = _ANNOTATED.findall(answer) or _WRITTEN.findall(answer)
    return tuple(one.translate(_SPELLING).rstrip(".") for one in found)


def _distance_to(chosen: Sequence[AnswerRow], answer: AnswerRow) -> int:
    """The edit distance of an answer to the nearest of those chosen; 0 where there is none."""
    return min((edit_distance(one["ids"], answer["ids"]) for one in chosen), default=0)


def edit_distance(left: Sequence[int], right: Sequence[int]) -> int:
    """Levenshtein distance between two sequences of token ids."""
    import numpy as np

    right_ids, places = np.asarray(right), np.arange(len(right) + 1)
    row = places
    for number, token in enumerate(left, start=1):
        above = np.minimum(row[1:] + 1, row[:-1] + (right_ids != token))
        # An insertion costs one more than the entry before it: a running minimum along the row.
        row = np.minimum.accumulate(np.concatenate([[number], above]) - places) + places
    return int(row[-1])
