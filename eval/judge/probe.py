"""One question to a judge before anything is trained: what it refuses is known by its answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eval.judge.openai import OpenAIJudge
from eval.judge.step import describe_judge, engine_for
from eval.judge.types import Failure, Question, Reply
from pipeline.errors import InputError

if TYPE_CHECKING:
    from eval.judge.template import Template
    from pipeline.recipe.schema import Judge

_QUESTION = Question("What is the capital of France?", "Paris.", "I do not know.", "Paris.")


def check_judge(settings: Judge, template: Template) -> None:
    """Ask an endpoint one easy question, as all others will be asked.

    Raises:
        InputError: when there is no usable reply, with what the server said, and whether the other
            way of reading one (`judge.reads`) works.
    """
    reason = _problem(settings, template)
    if reason is None:
        return
    other = "text" if settings.reads == "label" else "label"
    asks = template.text_request if other == "text" else template.label_request
    way_out = f"mend judge in the recipe, or take another template for judge.reads: {other}"
    if asks is not None:
        again = _problem(settings.model_copy(update={"reads": other}), template)
        way_out = (
            f"with judge.reads: {other} it answers; write that"
            if again is None
            else f"with judge.reads: {other} it fails too ({again})"
        )
    raise InputError(
        f"the judge {describe_judge(settings)} was asked one question before anything is trained, "
        f"and gave no verdict: {reason}; {way_out}"
    )


def _problem(settings: Judge, template: Template) -> str | None:
    """Why a judge gives no verdict on the question, or None where it does."""
    engine = engine_for(settings)
    assert isinstance(engine, OpenAIJudge)
    replies: list[Reply | Failure] = []
    try:
        engine.ask([_QUESTION], template, lambda _, reply: replies.append(reply))
    except InputError as error:
        return str(error)
    (reply,) = replies
    if isinstance(reply, Failure):
        return reply.reason
    reading = engine.read(reply, template)
    return None if reading.p_second is not None else reading.reason
