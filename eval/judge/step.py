"""Judges in evaluation steps: from a recipe's `judge:` to verdicts on stored answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eval.judge.compare import alpaca_eval_order, judge
from eval.judge.template import Template, load_template
from eval.stats.measures import Measure, measure
from pipeline.errors import InputError, StepFailedError
from pipeline.recipe.schema import Judge
from pipeline.rows.stored import AnswerRow, Grade
from pipeline.steps.artifact import fingerprint
from pipeline.steps.context import changed_error
from pipeline.steps.identity import forget

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from eval.judge.types import Comparison, Engine, Judgement, Plan, Verdict
    from pipeline.steps.context import StepContext
    from pipeline.steps.options import JudgedGradeOptions


class JudgedGrade(Grade):
    """A judge's verdict on an answer; see `Verdict`."""

    outcome: str
    preference: float | None
    by_order: dict[str, float | None]
    reason: str
    label_mass: float | None
    truncated: bool


REPLIES = "judge"  # a folder in the runs folder: judges' replies, shared by all recipes
_FEW = 0.05
_OFTEN = 0.5


def replies_file(runs: Path, judge: Mapping[str, Any]) -> Path:
    """Where the replies of a judge are kept: a file each, since it is read as a whole."""
    return runs / REPLIES / f"{fingerprint(judge)[:16]}.jsonl"


def engine_for(settings: Judge, *, device: str | None = None) -> Engine:
    """Return the judge of a recipe; nothing is loaded or asked yet.

    Raises:
        InputError: if its model is missing or not allowed, or its base URL is invalid.
    """
    # Imported here because the endpoint's client would slow `plan` and `report` down by a tenth.
    from eval.judge.local import LocalJudge, ReferenceJudge
    from eval.judge.openai import OpenAIJudge

    if settings.reasoning and settings.engine != "openai":
        raise InputError(
            f"reasoning: true is for engine openai, and this judge is {settings.engine}: a local "
            "judge says its label at once; remove reasoning"
        )
    if settings.quantize is not None and settings.engine != "local":
        raise InputError("quantize is of a judge in this process, engine local; remove it")
    if settings.engine == "reference":
        if settings.model is not None:
            raise InputError(
                "engine reference compares with the reference answer and takes no model"
            )
        return ReferenceJudge()
    if settings.model is None:
        raise InputError(
            f"the model is missing: write {settings.engine}:MODEL, or add the key model"
        )
    if settings.engine == "local":
        if settings.reads == "text":
            raise InputError("a local judge reads labels only; remove reads: text")
        return LocalJudge(
            settings.model,
            revision=settings.revision,
            dtype=settings.dtype,
            quantize=settings.quantize,
            device=device,
        )
    return OpenAIJudge(
        settings.model,
        base_url=settings.base_url,
        reads=settings.reads,
        concurrency=settings.concurrency,
        timeout_s=settings.timeout_s,
        max_retries=settings.max_retries,
        request=settings.request,
        served_model=settings.served_model,
        reasoning=settings.reasoning,
    )


def template_for(settings: Judge, options: Any) -> Template | None:
    """Return a benchmark's template, None for the reference judge.

    Raises:
        InputError: if there is no such template, or it does not ask for what the judge reads.
    """
    if settings.engine == "reference":
        return None
    template = load_template(options.template)
    template.asked(settings.reads)
    return template


def describe_judge(settings: Judge) -> str:
    """The judge's description in tables."""
    if settings.engine == "reference":
        return (
            "ROUGE-L with the reference answer, which is one of the two, so that only an equal "
            "answer does not lose (a smoke test, no judge of quality)"
        )
    where = f" at {settings.base_url}" if settings.engine == "openai" else ", in process"
    if settings.revision is not None and settings.engine == "local":
        where = f" ({settings.revision[:12]}){where}"
    if settings.quantize is not None:
        where += f" in 4 bits ({settings.quantize})"
    if settings.reasoning:
        where += ", reasons first"
    orders = "both orders"
    if settings.orders == "one":
        orders = "one order, so position bias is not measured"
    return f"{settings.model}{where}, reads {settings.reads}, {orders}"


def judge_comparisons(
    step: StepContext[JudgedGradeOptions], comparisons: Sequence[Comparison]
) -> Judgement:
    """Judge a step's comparisons, within the calls that are left.

    Replies are stored in the runs folder as they arrive, so a step that is run again after a
    failure asks only for the rest.

    Raises:
        StepFailedError: if more than `max_errors` comparisons got no reply, or none has a verdict.
        InputError: if more calls are needed than allowed, there is no key, or the judge has changed
            since the step was planned.
    """
    settings = Judge.model_validate(step.runtime_options["judge"])
    template = step.options["template"]
    if template is not None:
        template = Template(**{**template, "labels": tuple(template["labels"])})
    engine = engine_for(settings, device=step.device.type)
    forget()
    if fingerprint(engine.identity()) != fingerprint(step.options["judge"]):
        raise changed_error(f"the judge {settings.model}")
    unit = "judge calls"

    def announce(plan: Plan) -> None:
        nonlocal unit
        print(f"judge: {plan}", flush=True)
        unit += "" if plan.cost is None else f" (estimated cost {plan.cost:.2f})"
        step.progress(0, plan.calls, unit)

    judgement = judge(
        comparisons,
        engine,
        template,
        replies_file(step.directory.parent.parent, step.options["judge"]),
        both_orders=step.options["orders"] == "both",
        max_calls=None if settings.engine == "reference" else step.launch.judge_calls_left,
        single_order=alpaca_eval_order,
        price=settings.price,
        announce=announce,
        progress=lambda done, total: step.progress(done, total, unit),
    )
    step.metrics["judge_calls"] = judgement.calls
    step.metrics["judgement"] = judgement.summary()
    if settings.engine == "local":  # for `plan --estimate`
        share = judgement.calls / max(judgement.plan.questions, 1)
        step.metrics["tokens_read"] = round(share * judgement.usage.get("prompt_tokens", 0))
    _check_failures(step, judgement, settings)
    _warn_of_replies(step, judgement)
    return judgement


def judged_measures(judgement: Judgement) -> dict[str, Measure]:
    """Win rate, share of comparisons whose winner changes with the order, mean label mass.

    The second needs both orders, the last needs probabilities.
    """
    interval = judgement.interval
    assert judgement.win_rate is not None and interval is not None  # see _check_failures
    preferences = [verdict.preference for verdict in judgement.verdicts]
    win_rate = measure(preferences, verdicts=True)
    win_rate["value"] = judgement.win_rate
    win_rate["low"], win_rate["high"] = interval.low, interval.high
    measures: dict[str, Measure] = {"win rate": win_rate}
    if judgement.judged_both_ways:
        measures["order decides"] = measure([verdict.flips for verdict in judgement.verdicts])
    masses = [verdict.label_mass for verdict in judgement.verdicts]
    if any(mass is not None for mass in masses):
        measures["label mass"] = measure(masses)
    return measures


def judged_grades(samples: Sequence[AnswerRow], judgement: Judgement) -> list[JudgedGrade]:
    """One row per example, with the judge's verdict."""
    return [
        {
            "id": sample["id"],
            "verdict": _format_verdict(verdict),
            "outcome": verdict.outcome.value,
            "preference": verdict.preference,
            "by_order": dict(verdict.by_order),
            "reason": verdict.reason,
            "label_mass": verdict.label_mass,
            "truncated": not sample["finished"],
        }
        for sample, verdict in zip(samples, judgement.verdicts, strict=True)
    ]


def _format_verdict(verdict: Verdict) -> str:
    if verdict.preference is None:
        return f"no verdict: {verdict.reason}"
    is_certain = verdict.preference in (0.0, 0.5, 1.0)
    return verdict.outcome.value + ("" if is_certain else f" ({verdict.preference:.2f})")


def _check_failures(step: StepContext, judgement: Judgement, settings: Judge) -> None:
    counts, total = judgement.counts, len(judgement.verdicts)
    reasons = [verdict.reason for verdict in judgement.verdicts if verdict.reason]
    if counts["errored"] > settings.max_errors or counts["errored"] == total:
        reason = next(v.reason for v in judgement.verdicts if v.outcome == "errored")
        raise StepFailedError(
            f"{counts['errored']} of {total} comparisons have no usable reply from the judge "
            f"(first: {reason}). Replies are kept: once the cause is fixed, the same command asks "
            "for the missing ones only; judge.max_errors allows some, which are counted and left "
            "unscored"
        )
    if not judgement.n:
        raise StepFailedError(
            f"none of {total} comparisons has a verdict, and an empty evaluation is an error, not "
            f"0.0 (first: {reasons[0]}); choose another judge or template"
        )
    if (judgement.position_bias or 0) > _OFTEN:
        step.warn(
            f"the order of the answers decides {judgement.position_bias:.0%} of the judge's "
            "verdicts, so its win rate says little; choose a better judge"
        )
    unscored = counts["errored"] + counts["unparsed"]
    if unscored > _FEW * total:
        step.warn(
            f"{unscored} of {total} comparisons have no verdict and are left out of the win rate "
            f"(first: {reasons[0]})"
        )


def _warn_of_replies(step: StepContext, judgement: Judgement) -> None:
    """Warn if the server changed the request, or if several models answered."""
    if judgement.changes:
        changed = ", ".join(
            f"{name} was {'left out' if other is None else f'sent as {other}'}"
            for name, other in sorted(judgement.changes.items())
        )
        step.warn(f"the judge's server refused part of the request: {changed}")
    models = judgement.answered.get("model", {})
    if len(models) > 1:
        listed = ", ".join(f"{model} ({times})" for model, times in sorted(models.items()))
        step.warn(f"the judge's replies are from several models: {listed}")
