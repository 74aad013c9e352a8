"""Asks a judge which of two answers is better, in both orders, and counts its verdicts.

Decisions: (1) the preference of a comparison is the mean over both orders, and there is none if one
order failed; (2) equal answers are a tie and the judge is not asked, as in AlpacaEval; (3) raw
replies are cached, keyed by the question, so verdicts can be parsed again without asking again;
failures are not cached, and the next run asks again.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from eval.graders.alpaca import official_order_is_flipped
from eval.judge.cache import ReplyCache
from eval.judge.template import Template
from eval.judge.types import (
    ORIGIN,
    Comparison,
    Engine,
    Failure,
    Judgement,
    Plan,
    Question,
    Reading,
    Reply,
    Verdict,
    VerdictOutcome,
    on_grid,
)
from pipeline.errors import InputError
from pipeline.recipe.schema import Price
from pipeline.steps.artifact import fingerprint

CHARACTERS_PER_TOKEN = 4  # of English text; an estimate, and labelled as one
_REPLY_TOKENS = {"label": 1, "text": 64, "reference": 0}
# Of one reply, in place of what its replies so far have taken; nobody can know it beforehand.
_ASSUMED_REASONING = 1000


def reply_tokens(engine: Engine, replies: Iterable[Reply] = ()) -> float:
    """Tokens that a judge writes per reply, reasoning included.

    Those of a judge that reasons are the mean over the replies given, where they were counted, or
    else an assumption.
    """
    if not getattr(engine, "reasoning", False):
        return _REPLY_TOKENS[engine.reads]
    counts = [reply.get("usage", {}).get("completion_tokens") for reply in replies]
    known = [count for count in counts if count]
    if not known:
        return _REPLY_TOKENS[engine.reads] + _ASSUMED_REASONING
    return sum(known) / len(known)


def as_given(comparison: Comparison) -> str:
    """Always show answer a first."""
    return "ab"


def alpaca_eval_order(comparison: Comparison) -> str:
    """The order that AlpacaEval's tool picks: a coin flip seeded with the instruction."""
    return "ba" if official_order_is_flipped(comparison.prompt) else "ab"


def question_key(engine: Engine, template: Template | None, question: Question) -> str:
    """SHA-256 of all that determines a reply: judge, template, prompt, both answers in order."""
    identity = {
        "judge": engine.identity(),
        "template": template.asked(engine.reads) if template is not None else None,
        "prompt": question.prompt,
        "first": question.first,
        "second": question.second,
    }
    if template is None or template.shows_reference:
        identity["reference"] = question.reference
    if template is not None and engine.keeps_labels_only:
        identity["labels"] = template.labels
    if question.repeat:
        identity["repeat"] = question.repeat
    return fingerprint(identity)


def judge(
    comparisons: Sequence[Comparison],
    engine: Engine,
    template: Template | None,
    cache_path: str | Path,
    both_orders: bool = True,
    max_calls: int | None = None,
    *,
    single_order: Callable[[Comparison], str] = as_given,
    price: Price | None = None,
    announce: Callable[[Plan], object] = lambda plan: print(f"judge: {plan}", flush=True),
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Judgement:
    """Judge all comparisons.

    Args:
        comparisons: what to judge.
        engine: the judge.
        template: the judge's prompt; the reference judge has none.
        cache_path: JSONL file of replies; only questions without a reply are asked.
        both_orders: ask each comparison in both orders and average, or in one order.
        max_calls: most questions to ask.
        single_order: returns the order, 'ab' or 'ba', if each comparison is asked once.
        price: the judge's prices, for the estimate.
        announce: called with the plan before anything is asked; prints it by default.
        progress: called with the number of questions done, and their total.

    Raises:
        ValueError: if there is nothing to judge, or two comparisons share an id.
        InputError: if more calls are needed than `max_calls`, the template does not fit the judge,
            or there is no key.
    """
    if engine.reads == "reference":
        template = None
    elif template is None:
        raise InputError("this judge needs a template")
    else:
        template.asked(engine.reads)  # raises if it does not ask for what the judge reads
    keys = _questions(comparisons, engine, template, both_orders, single_order)
    with ReplyCache(cache_path) as cache:
        plan = _plan(comparisons, keys, cache, engine, template, price)
        announce(plan)
        if max_calls is not None and plan.calls > max_calls:
            raise InputError(
                f"judging needs {plan.calls} calls and at most {max_calls} are allowed: raise "
                "--max-judge-calls, or judge fewer examples; nothing has been asked yet"
            )
        asked = [key for key in set(keys.values()) if key not in cache.replies]
        failures = _ask_missing(keys, cache, engine, template, progress)
    replies = cache.replies

    def read(question: Question) -> Reading | Failure:
        key = keys[question]
        return failures[key] if key in failures else engine.read(replies[key], template)

    verdicts = []
    for comparison in comparisons:
        orders = _orders(comparison, both_orders, single_order)
        readings = {order: read(comparison.question(order)) for order in orders}
        verdicts.append(_verdict(comparison, readings))
    used = [replies[key] for key in set(keys.values()) & replies.keys()]
    usage: Counter[str] = Counter()
    for reply in used:
        usage.update(reply.get("usage", {}))
    answered = {
        name: Counter(said for reply in used if (said := reply.get(name)) is not None)
        for name in ORIGIN
    }
    changes = {name: to for reply in used for name, to in reply.get("request_changes", {}).items()}
    calls = sum(failures[key].asked if key in failures else True for key in asked)
    cost = None
    if price is not None and all(_is_counted(reply) for reply in used):
        cost = price.of(len(used), usage["prompt_tokens"], usage["completion_tokens"])
    return Judgement(tuple(verdicts), plan, calls, usage, answered, changes, cost)


def _is_counted(reply: Reply) -> bool:
    """Whether the server said how many tokens a reply took."""
    return {"prompt_tokens", "completion_tokens"} <= reply.get("usage", {}).keys()


def _ask_missing(
    keys: Mapping[Question, str],
    cache: ReplyCache,
    engine: Engine,
    template: Template | None,
    progress: Callable[[int, int], object],
) -> dict[str, Failure]:
    """Ask the questions without a cached reply, cache the replies, and return the failures."""
    failures: dict[str, Failure] = {}
    missing = {key: question for question, key in keys.items() if key not in cache.replies}
    answered = 0

    def record(question: Question, answer: Reply | Failure) -> None:
        nonlocal answered
        answered += 1
        progress(answered, len(missing))
        if isinstance(answer, Failure):
            failures[keys[question]] = answer
        else:
            cache.add(keys[question], answer)

    if missing:
        cache.open()
        engine.ask(list(missing.values()), template, record)
    return failures


def _orders(
    comparison: Comparison, both_orders: bool, single_order: Callable[[Comparison], str]
) -> tuple[str, ...]:
    """The orders in which to judge a comparison: none if its answers are equal."""
    if comparison.a == comparison.b:
        return ()
    return ("ab", "ba") if both_orders else (single_order(comparison),)


def _questions(
    comparisons: Sequence[Comparison],
    engine: Engine,
    template: Template | None,
    both_orders: bool,
    single_order: Callable[[Comparison], str],
) -> dict[Question, str]:
    """Map every distinct question to its key."""
    if not comparisons:
        raise ValueError("there is nothing to judge: an empty evaluation is an error, not 0.0")
    repeated = [name for name, n in Counter(c.id for c in comparisons).items() if n > 1]
    if repeated:
        raise ValueError(f"comparisons share ids: {repeated[:5]}")
    if template is not None and template.shows_reference:
        without = [comparison.id for comparison in comparisons if comparison.reference is None]
        if without:
            raise InputError(
                f"template {template.name} shows the reference, but {len(without)} comparisons "
                f"have none, the first of them {without[0]}; use a template without it"
            )
    questions = (
        comparison.question(order)
        for comparison in comparisons
        for order in _orders(comparison, both_orders, single_order)
    )
    return {question: question_key(engine, template, question) for question in questions}


def _plan(
    comparisons: Sequence[Comparison],
    keys: Mapping[Question, str],
    cache: ReplyCache,
    engine: Engine,
    template: Template | None,
    price: Price | None,
) -> Plan:
    missing = {key: question for question, key in keys.items() if key not in cache.replies}
    total = len(set(keys.values()))
    cost = None
    if price is not None:
        characters = 0
        if template is not None:
            for question in missing.values():
                messages = template.messages(question, engine.reads)
                characters += sum(len(message["content"]) for message in messages)
        output_tokens = len(missing) * reply_tokens(engine, cache.replies.values())
        cost = price.of(len(missing), characters / CHARACTERS_PER_TOKEN, output_tokens)
    return Plan(len(comparisons), total, total - len(missing), len(missing), cost)


def _verdict(comparison: Comparison, readings: Mapping[str, Reading | Failure]) -> Verdict:
    """Combine the orders of one comparison into a verdict (decision 1)."""
    by_order = {
        order: None
        if isinstance(reading, Failure) or reading.p_second is None
        else (reading.p_second if order == "ab" else 1.0 - reading.p_second)
        for order, reading in readings.items()
    }
    masses = [
        reading.label_mass
        for reading in readings.values()
        if isinstance(reading, Reading) and reading.label_mass is not None
    ]
    mass = math.fsum(masses) / len(masses) if masses else None
    for kind, outcome in ((Failure, VerdictOutcome.ERRORED), (Reading, VerdictOutcome.UNPARSED)):
        for order, reading in readings.items():
            if isinstance(reading, kind) and by_order[order] is None:
                return Verdict(comparison.id, outcome, None, by_order, reading.reason, mass)
    signed = [
        reading.p_second - 0.5 if order == "ab" else 0.5 - reading.p_second
        for order, reading in readings.items()
        if isinstance(reading, Reading) and reading.p_second is not None
    ]
    above_half = on_grid(math.fsum(signed) / len(signed), bits=52) if signed else 0.0
    names = {-1: VerdictOutcome.LOSS, 0: VerdictOutcome.TIE, 1: VerdictOutcome.WIN}
    outcome = names[(above_half > 0) - (above_half < 0)]
    return Verdict(comparison.id, outcome, 0.5 + above_half, by_order, label_mass=mass)
