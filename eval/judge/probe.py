"""Asks a judge one question before anything is trained, to find problems early."""

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
    """Ask an endpoint one easy question, in the same way as all later ones.

    Raises:
        InputError: if there is no usable reply, with the server's message, and whether the other
            value of `judge.reads` works.
    """
    reason = _problem(settings, template)
    if reason is None:
        return
    if settings.reasoning:
        raise InputError(f"{_asked(settings)}: {reason}; fix judge in the recipe")
    other = "text" if settings.reads == "label" else "label"
    asks = template.text_request if other == "text" else template.label_request
    way_out = f"fix judge in the recipe, or use another template for judge.reads: {other}"
    if asks is not None:
        again = _problem(settings.model_copy(update={"reads": other}), template)
        way_out = (
            f"it works with judge.reads: {other}; write that"
            if again is None
            else f"it also fails with judge.reads: {other} ({again})"
        )
    raise InputError(f"{_asked(settings)}: {reason}; {way_out}")


def _asked(settings: Judge) -> str:
    return (
        f"the judge {describe_judge(settings)} was asked one question before anything is trained, "
        "and gave no verdict"
    )


def _problem(settings: Judge, template: Template) -> str | None:
    """Why a judge gives no verdict on the question, or None if it does."""
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
