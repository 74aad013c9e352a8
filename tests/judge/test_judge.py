"""Judges: what is asked, how replies are read and kept, and what never becomes a score."""

import asyncio
import gzip
import json
import logging
import math
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest
from conftest import ROOT, SHARED, imported_by
from judge_servers import Served, completion, needs_serve, opinion, wait_for

from eval.judge.cache import ReplyCache
from eval.judge.compare import alpaca_eval_order, judge, question_key
from eval.judge.local import LocalJudge, ReferenceJudge
from eval.judge.openai import OpenAIJudge, read_logprobs
from eval.judge.template import Template, load_template
from eval.judge.types import Comparison, Question, VerdictOutcome
from pipeline.errors import BashracError, InputError
from pipeline.recipe.schema import Price

CANARY = "sk-canary-5f0c1d7e9b"
SHIPPED = [
    "alpaca_eval_2",
    "pandalm",
    "tldr_dpo_concise",
    "tldr_dpo_simple",
    "tldr_summarize_from_feedback",
]
LABELS = Template("tiny", "{prompt}|{first}|{second}", ("A", "B"), "A or B?", "A or B, in words?")


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    """Tests neither need nor see a key of the machine they run on."""
    for name in ("OPENAI_API_KEY", "BASHRAC_JUDGE_KEY", "OPENAI_LOG"):
        monkeypatch.delenv(name, raising=False)


def quiet(plan):
    """Take the announcement and say nothing."""


def pairs(n):
    return [Comparison(f"{i}", f"question {i}", f"answer {i}", f"reply {i}") for i in range(n)]


def swapped(comparisons):
    return [Comparison(c.id, c.prompt, c.b, c.a, c.reference) for c in comparisons]


# --- a server on loopback that speaks the protocol ----------------------------------------------


def engine_for(server, **options):
    return OpenAIJudge("stand-in", base_url=server.url, **{"max_retries": 0, **options})


# --- templates ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_template_shows_each_text_once_and_in_order(name):
    template = load_template(name)
    question = Question("the PROMPT text", "the FIRST text", "the SECOND text")
    for reads in ("label", "text"):
        if getattr(template, f"{reads}_request") is None:
            continue
        user = template.messages(question, reads)[-1]["content"]
        places = [user.index(text) for text in ("PROMPT", "FIRST", "SECOND")]
        assert places == sorted(places)
        assert [user.count(text) for text in ("PROMPT", "FIRST", "SECOND")] == [1, 1, 1]
        assert "{" not in user


def test_every_template_file_is_tested_and_ours():
    assert sorted(path.stem for path in (ROOT / "eval" / "judge" / "prompts").iterdir()) == SHIPPED


def test_braces_in_the_data_stay_as_they_are():
    """A prompt that holds a placeholder must not be given an answer."""
    question = Question("{second} {first} {0} {x!r} %s \\1", "{prompt}", '{"a": {}} {reference}')
    user = LABELS.messages(question, "label")[-1]["content"]
    assert user == '{second} {first} {0} {x!r} %s \\1|{prompt}|{"a": {}} {reference}\n\nA or B?'


TEMPLATE = "prompt: '{prompt} {first} {second}'\nlabels: [A, B]\nlabel_request: A or B?\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(TEMPLATE.replace("{first}", ""), r"lacks \{first\}", id="missing"),
        pytest.param(TEMPLATE.replace("{first}", "{first} {frist}"), "frist", id="unknown"),
        pytest.param(TEMPLATE + "system: '{prompt}'", "system has", id="in-system"),
        pytest.param(TEMPLATE.replace("[A, B]", "[A, A]"), "two different", id="same-labels"),
        pytest.param(TEMPLATE.replace("[A, B]", "A"), "two different", id="one-label"),
        pytest.param(
            TEMPLATE.replace("label_request", "lable_request"), "valid keys are", id="typo"
        ),
        pytest.param(TEMPLATE + "pattern: '('", "not a valid regular expression", id="pattern"),
        pytest.param(TEMPLATE + "pattern: 'A|B'", "expected one", id="no-group"),
        pytest.param(TEMPLATE.replace("label_request", "text_request"), "needs", id="no-pattern"),
        pytest.param("prompt: [", "not valid YAML", id="no-yaml"),
        pytest.param("just text", "valid keys are", id="no-mapping"),
    ],
)
def test_a_template_that_cannot_work_is_refused_with_its_file(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        load_template(path)
    assert "mine.yaml" in str(caught.value)


def test_a_template_of_the_user_keeps_json_braces(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(TEMPLATE.replace("{prompt}", '{"instruction": "{prompt}"}'))
    asked = load_template(path).messages(Question("p", "1", "2"), "label")
    assert asked == [{"role": "user", "content": '{"instruction": "p"} 1 2\n\nA or B?'}]


def test_a_name_nobody_knows_gets_the_names_there_are():
    with pytest.raises(InputError, match="did you mean tldr_dpo_simple"):
        load_template("tldr_dpo_simpel")


def test_a_template_that_does_not_ask_for_labels_is_refused_before_anything_is_asked(
    serve, tmp_path
):
    server = serve()
    with pytest.raises(InputError, match="pandalm has no label_request"):
        judge(pairs(1), engine_for(server), load_template("pandalm"), tmp_path / "c.jsonl")
    assert server.asked == 0


def test_a_template_that_shows_the_reference_needs_one(serve, tmp_path):
    server = serve()
    template = Template("gold", "{prompt}{reference}{first}{second}", ("A", "B"), "?")
    with pytest.raises(InputError, match="1 comparisons have none"):
        judge(pairs(1), engine_for(server), template, tmp_path / "c.jsonl")
    with_reference = [Comparison("0", "p", "a", "b", "gold")]
    judge(with_reference, engine_for(server), template, tmp_path / "c.jsonl", announce=quiet)
    assert server.bodies[0]["messages"][0]["content"].startswith("pgold")


# --- what servers do ----------------------------------------------------------------------------

WORDS = Template(
    "words", "{prompt}|{first}|{second}", ("A", "B"), "A or B?", "End in [[A]] or [[B]].",
    pattern=r"\[\[(.*?)\]\]",
)  # fmt: skip


def refusal(message, **more):
    """An error as OpenAI words it."""
    return 400, {"error": {"message": message, "type": "invalid_request_error", **more}}


def said(text, finish_reason="stop", **more):
    body = completion(text)
    body["choices"][0]["finish_reason"] = finish_reason
    return 200, {**body, **more}


def test_a_text_that_was_cut_is_asked_for_again_with_more_tokens(serve, tmp_path):
    """What was quoted while it thought is no verdict; the tokens of both requests are counted."""

    def answer(body):
        if body["max_tokens"] < 4096:
            return said("<think>I am to end in [[A]] or [[B]].", "length")
        return said("<think>[[A]]?</think>[[B]]", "stop")

    server = serve(answer)
    found = judge(
        pairs(3), engine_for(server, reads="text", concurrency=1), WORDS, tmp_path / "c",
        announce=quiet,
    )  # fmt: skip
    assert found.counts["tie"] == 3 and found.calls == 6
    limits = [body["max_tokens"] for body in server.bodies]
    assert limits == [256, 1024, *[4096] * 6]  # the limit that was enough is kept
    assert found.usage["completion_tokens"] == 8
    assert found.answered["finish_reason"] == {"stop": 6}


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_text_that_stays_cut_is_an_error_and_is_not_kept(serve, tmp_path, name):
    server = serve(lambda body: said("[[A]] is what I would", "length"))
    engine = engine_for(server, reads="text", request={name: 99})
    found = judge(pairs(1), engine, WORDS, tmp_path / "c", announce=quiet)
    assert found.counts["errored"] == 1 and server.asked == 2
    assert "cut at 99 tokens" in found.verdicts[0].reason
    assert "judge.request: {max_tokens: N}" in found.verdicts[0].reason
    assert (tmp_path / "c").read_bytes() == b""
    longest = engine_for(serve(lambda body: said("", "length")), reads="text")
    found = judge(pairs(1), longest, WORDS, tmp_path / "d", announce=quiet)
    assert "cut at 16384 tokens" in found.verdicts[0].reason


def test_a_server_that_refuses_more_tokens_says_so(serve, tmp_path):
    def answer(body):
        if body["max_tokens"] > 256:
            return refusal("max_tokens is too large: at most 512", param="max_tokens")
        return said("[[A]]", "length")

    found = judge(
        pairs(1), engine_for(serve(answer), reads="text"), WORDS, tmp_path / "c", announce=quiet
    )
    assert found.counts["errored"] == 1
    assert found.verdicts[0].reason.startswith("the reply was cut at 256 tokens; HTTP 400: ")


@pytest.mark.parametrize("reads", ["label", "text"])
def test_a_filtered_reply_is_an_error_and_is_not_kept(serve, tmp_path, reads):
    def answer(body):
        reply = completion("[[A]]", [("A", -0.1), ("B", -3.0)])
        reply["choices"][0]["finish_reason"] = "content_filter"
        return 200, reply

    engine = engine_for(serve(answer), reads=reads)
    found = judge(pairs(1), engine, WORDS, tmp_path / "c", announce=quiet)
    assert found.counts["errored"] == 1 and "content_filter" in found.verdicts[0].reason
    assert (tmp_path / "c").read_bytes() == b""


@pytest.mark.parametrize(
    "message",
    [
        {"content": "", "reasoning_content": "I prefer [[A]]."},
        {"content": None, "refusal": "I cannot compare these."},
        {"content": [{"type": "thinking", "text": "[[A]]"}, {"type": "text", "text": "Hm."}]},
    ],
    ids=["reasoning-field", "refusal-field", "parts"],
)
def test_a_reply_without_a_verdict_is_unparsed_whatever_was_thought(serve, tmp_path, message):
    def answer(body):
        reply = completion("")
        reply["choices"][0]["message"] = {"role": "assistant", **message}
        return 200, reply

    engine = engine_for(serve(answer), reads="text")
    found = judge(pairs(1), engine, WORDS, tmp_path / "c", announce=quiet)
    assert found.counts["unparsed"] == 1


def of_o_series(body):
    """Refuses one field at a time, in OpenAI's words."""
    if "max_tokens" in body:
        hint = "Use 'max_completion_tokens' instead."
        return refusal(
            f"Unsupported parameter: 'max_tokens' is not supported with this model. {hint}",
            param="max_tokens", code="unsupported_parameter",
        )  # fmt: skip
    if "temperature" in body:
        return refusal(
            "Unsupported value: 'temperature' does not support 0.0 with this model.",
            param="temperature", code="unsupported_value",
        )  # fmt: skip
    return said("[[B]]")


def of_strict_schema(body):
    """As servers that check requests with pydantic say it."""
    for name in ("max_tokens", "temperature"):
        if name in body:
            detail = [{"loc": ["body", name], "msg": "Extra inputs are not permitted"}]
            return 422, {"detail": detail}
    return said("[[B]]")


@pytest.mark.parametrize("answer", [of_o_series, of_strict_schema])
@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_refused_field_is_renamed_or_left_out_once_and_recorded(
    serve, tmp_path, answer, concurrency
):
    server = serve(answer)
    engine = engine_for(server, reads="text", concurrency=concurrency)
    found = judge(pairs(4), engine, WORDS, tmp_path / "c", announce=quiet)
    assert found.counts["tie"] == 4 and found.calls == 8
    assert server.asked == 10 if concurrency == 1 else server.asked <= 8 + 2 * concurrency
    assert server.bodies[-1]["max_completion_tokens"] == 256
    changes = {"max_tokens": "max_completion_tokens", "temperature": None}
    assert found.changes == found.summary()["request_changes"] == changes
    again = judge(pairs(4), engine_for(server, reads="text"), WORDS, tmp_path / "c", announce=quiet)
    assert (again.calls, again.changes) == (0, changes)


def test_of_two_fields_that_exclude_each_other_one_is_left_out(serve, tmp_path):
    def answer(body):
        if {"temperature", "top_p"} <= body.keys():
            return refusal("`temperature` and `top_p` cannot both be specified for this model.")
        return said("[[A]]")

    engine = engine_for(serve(answer), reads="text", request={"top_p": 0.9})
    found = judge(pairs(1), engine, WORDS, tmp_path / "c", announce=quiet)
    assert found.changes == {"top_p": None} and found.n == 1


@pytest.mark.parametrize(
    "answer",
    [
        refusal("Unsupported parameter: 'logprobs' is not supported with this model."),
        refusal("This model does not support logprobs.", param="top_logprobs"),
        (403, {"error": {"message": "You are not allowed to request logprobs from this model"}}),
    ],
)
@pytest.mark.parametrize("concurrency", [1, 8])
def test_a_server_that_refuses_logprobs_ends_the_run_with_the_way_out(
    serve, tmp_path, answer, concurrency
):
    server = serve(lambda body: answer)
    engine = engine_for(server, concurrency=concurrency)
    with pytest.raises(InputError, match=r"stand-in at .* judge\.reads: text"):
        judge(pairs(20), engine, WORDS, tmp_path / "c", announce=quiet)
    assert server.asked <= concurrency


# --- judges that reason first -------------------------------------------------------------------


def reasoned(verdict="[[B]]", finish_reason="stop", written=90, reasoning=80, **message):
    """A reply as OpenAI's reasoning models give it: the reasoning is counted, not shown."""
    status, body = said(verdict, finish_reason)
    body["choices"][0]["message"].update(message)
    body["usage"] = {
        "prompt_tokens": 10, "completion_tokens": written,
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }  # fmt: skip
    return status, body


def reasoning_engine(server, **options):
    return engine_for(server, **{"reads": "text", "reasoning": True, **options})


def test_a_judge_that_reasons_is_sent_a_limit_with_room_and_no_temperature(serve, tmp_path):
    """And the tokens of its reasoning are recorded with each reply, and summed."""
    server = serve(lambda body: reasoned(reasoning_content="At first [[A]] looks better."))
    found = judge(pairs(2), reasoning_engine(server), WORDS, tmp_path / "c", announce=quiet)
    assert found.counts["tie"] == 2 and found.calls == server.asked == 4
    assert {
        body.keys() - {"model", "messages"} == {"max_completion_tokens"} for body in server.bodies
    } == {True}
    assert server.bodies[0]["max_completion_tokens"] == 4096
    usage = {"prompt_tokens": 10, "completion_tokens": 90, "reasoning_tokens": 80}
    with ReplyCache(tmp_path / "c") as kept:
        assert [reply["usage"] for reply in kept.replies.values()] == [usage] * 4
    assert found.summary()["usage"] == {name: 4 * count for name, count in usage.items()}
    again = judge(pairs(2), reasoning_engine(server), WORDS, tmp_path / "c", announce=quiet)
    assert (again.calls, again.usage, again.verdicts) == (0, found.usage, found.verdicts)


def test_reasoning_in_the_text_is_left_out(serve, tmp_path):
    server = serve(lambda body: reasoned("<think>[[A]]? No.</think>[[B]]"))
    engine = reasoning_engine(server)
    found = judge(pairs(1), engine, WORDS, tmp_path / "c", both_orders=False, announce=quiet)
    assert found.counts["win"] == 1


def test_a_reply_cut_while_reasoning_is_asked_again_with_twice_the_room(serve, tmp_path):
    """Its verdict is not read, and what it cost counts."""

    def answer(body):
        if body["max_completion_tokens"] < 16384:
            limit = body["max_completion_tokens"]
            return reasoned("[[A]]", "length", written=limit, reasoning=limit)
        return reasoned("[[B]]")

    server = serve(answer)
    engine = reasoning_engine(server)
    found = judge(pairs(1), engine, WORDS, tmp_path / "c", both_orders=False, announce=quiet)
    assert [body["max_completion_tokens"] for body in server.bodies] == [4096, 8192, 16384]
    assert found.counts["win"] == 1 and found.calls == 1
    assert found.usage["reasoning_tokens"] == 4096 + 8192 + 80


@pytest.mark.parametrize(
    ("first", "asked"),
    [(None, [4096, 8192, 16384, 32768]), (20000, [20000, 32768]), (40000, [40000])],
)
def test_a_reply_that_stays_cut_is_an_error_at_the_stated_bound(serve, tmp_path, first, asked):
    server = serve(lambda body: reasoned("[[A]]", "length"))
    request = {} if first is None else {"max_completion_tokens": first}
    engine = reasoning_engine(server, request=request)
    found = judge(pairs(1), engine, WORDS, tmp_path / "c", both_orders=False, announce=quiet)
    assert [body["max_completion_tokens"] for body in server.bodies] == asked
    assert found.counts["errored"] == 1 and (tmp_path / "c").read_bytes() == b""
    assert f"cut at {asked[-1]} tokens" in found.verdicts[0].reason
    assert "judge.request: {max_completion_tokens: N}" in found.verdicts[0].reason


def test_a_temperature_that_the_recipe_sets_is_left_out_where_it_is_refused(serve, tmp_path):
    def answer(body):
        refused = of_o_series(body)
        return refused if refused[0] == 400 else reasoned()

    server = serve(answer)
    engine = reasoning_engine(server, request={"temperature": 0.6, "reasoning_effort": "low"})
    found = judge(pairs(1), engine, WORDS, tmp_path / "c", announce=quiet)
    assert found.changes == {"temperature": None} and found.counts["tie"] == 1
    assert server.bodies[0]["temperature"] == 0.6 and "temperature" not in server.bodies[-1]
    assert {body["reasoning_effort"] for body in server.bodies} == {"low"}


def test_a_server_that_knows_only_max_tokens_is_sent_that(serve, tmp_path):
    def answer(body):
        if "max_completion_tokens" in body:
            return refusal("Unrecognized request argument supplied: max_completion_tokens")
        return reasoned() if body["max_tokens"] > 4096 else reasoned("[[A]]", "length")

    server = serve(answer)
    engine = reasoning_engine(server, concurrency=1)
    found = judge(pairs(1), engine, WORDS, tmp_path / "c", announce=quiet)
    assert found.changes == {"max_completion_tokens": "max_tokens"} and found.counts["tie"] == 1
    assert [body.get("max_tokens") for body in server.bodies] == [None, 4096, 8192, 8192]


def test_a_server_that_refuses_both_limits_is_not_asked_for_ever(serve, tmp_path):
    def answer(body):
        (name,) = {"max_tokens", "max_completion_tokens"} & body.keys()
        return refusal(f"Unsupported parameter: '{name}'.", param=name)

    server = serve(answer)
    found = judge(pairs(1), reasoning_engine(server), WORDS, tmp_path / "c", announce=quiet)
    assert found.counts["errored"] == 1 and server.asked <= 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reads": "label"}, "gives no log probabilities of a label"),
        ({"request": {"logprobs": True}}, "has logprobs"),
        ({"request": {"max_tokens": 500}}, "write max_completion_tokens"),
        ({"request": {"max_completion_tokens": None}}, "has to leave room for reasoning"),
    ],
)
def test_what_a_judge_that_reasons_cannot_do_is_refused(serve, options, message):
    with pytest.raises(InputError, match=message):
        reasoning_engine(serve(), **options)


def test_reasoning_is_part_of_a_judges_identity_only_where_it_is_on(serve):
    server = serve()
    plain, on = engine_for(server, reads="text").identity(), reasoning_engine(server).identity()
    assert "reasoning" not in plain
    assert on["reasoning"] is True and on["request"] == {"max_completion_tokens": 4096}
    more = reasoning_engine(server, request={"max_completion_tokens": 9000}).identity()
    assert more != on


def test_the_cost_of_reasoning_is_assumed_until_replies_have_measured_it(serve, tmp_path):
    """64 tokens of text and 1,000 of reasoning; then the mean of what came back, 90 tokens."""
    server = serve(lambda body: reasoned())
    price, path = Price(per_million_output_tokens=1e6), tmp_path / "c"

    def asked(n):
        engine = reasoning_engine(server)
        return judge(pairs(n), engine, WORDS, path, price=price, announce=quiet)

    first, more = asked(2), asked(5)
    assert first.plan.cost == 4 * 1064 and first.cost == 4 * 90
    assert more.plan.calls == 6 and more.plan.cost == 6 * 90 and more.cost == 10 * 90
    assert more.summary()["cost"] == 900


def test_an_error_about_something_else_changes_nothing(serve, tmp_path):
    """Of the values of a field, or with its name in the data."""
    server = serve(lambda body: refusal("max_tokens is too large: 99", param="max_tokens"))
    found = judge(pairs(1), engine_for(server, reads="text"), WORDS, tmp_path / "c", announce=quiet)
    assert found.counts["errored"] == 1 and not found.changes and server.asked == 2
    assert "too large" in found.verdicts[0].reason


@pytest.mark.parametrize("path", ["/chat/completions", "/chat/completions/", "/completions"])
def test_an_address_with_the_path_of_a_request_is_refused_with_the_right_one(path):
    with pytest.raises(InputError, match=r"must end before .*: write https://host/v1$"):
        OpenAIJudge("m", base_url=f"https://host/v1{path}")


@pytest.mark.parametrize("status", [404, 405])
def test_an_address_without_v1_is_told_apart_from_a_model_that_is_not_there(
    serve, tmp_path, status
):
    server = serve(lambda body: (status, {"detail": "Not Found"}))
    bare = server.url.removesuffix("/v1")
    reasons = []
    for url in (bare, server.url):
        engine = OpenAIJudge("stand-in", base_url=url, max_retries=0)
        found = judge(pairs(1), engine, LABELS, tmp_path / "c", announce=quiet)
        reasons.append(found.verdicts[0].reason)
    assert f"try judge.base_url: {server.url}" in reasons[0]
    assert "is judge.base_url right?" in reasons[1]
    unknown = serve(lambda body: (404, {"error": {"message": "The model `x` does not exist"}}))
    found = judge(pairs(1), engine_for(unknown), LABELS, tmp_path / "c", announce=quiet)
    assert "base_url" not in found.verdicts[0].reason
    page = serve(lambda body: (200, b"<html>Welcome</html>"))
    engine = OpenAIJudge("m", base_url=page.url.removesuffix("/v1"), max_retries=0)
    found = judge(pairs(1), engine, LABELS, tmp_path / "c", announce=quiet)
    assert f"try judge.base_url: {page.url}" in found.verdicts[0].reason


@pytest.mark.parametrize(
    ("asked", "served", "same"),
    [
        ("gpt-4.1", "gpt-4.1", True),
        ("gpt-4.1", "gpt-4.1-2025-04-14", True),
        ("gpt-4", "gpt-4-0613", True),
        ("gpt-4.1-2025-04-14", "gpt-4.1", True),
        ("openai/gpt-4.1", "gpt-4.1-2025-04-14", True),
        ("claude-sonnet-4", "claude-sonnet-4-20250514", True),
        ("mistral-large-latest", "mistral-large-2411", True),
        ("meta-llama/Llama-3.1-8B-Instruct", "/models/llama-3.1-8b-instruct", True),
        ("llama3", "llama3:latest", True),
        ("/tmp/model", "/tmp/model@main", True),
        ("gpt-4.1", "gpt-4.1-mini", False),
        ("gpt-4.1", "gpt-4.1-mini-2025-04-14", False),
        ("gpt-4.1-2025-04-14", "gpt-4.1-2025-08-01", False),
        ("gpt-4", "gpt-4-turbo-2024-04-09", False),
        ("qwen3:8b", "qwen3:14b", False),
        ("my-judge", "gpt-4o", False),
    ],
)
def test_a_snapshot_is_the_model_asked_and_a_sibling_is_not(serve, tmp_path, asked, served, same):
    def answer(body):
        return 200, {**completion("A", [("A", -0.1), ("B", -3.0)]), "model": served}

    server = serve(answer)
    engine = OpenAIJudge(asked, base_url=server.url, max_retries=0)
    found = judge(pairs(1), engine, LABELS, tmp_path / "c", announce=quiet)
    assert (found.n, found.counts["errored"]) == ((1, 0) if same else (0, 1))
    if same:
        assert found.answered["model"] == {served: 2}
        return
    assert f"judge.served_model: {served}" in found.verdicts[0].reason
    engine = OpenAIJudge(asked, base_url=server.url, max_retries=0, served_model=served)
    assert judge(pairs(1), engine, LABELS, tmp_path / "c", announce=quiet).n == 1


def test_what_answered_is_recorded_and_kept(serve, tmp_path):
    def answer(body):
        status, reply = opinion(body)
        return status, {**reply, "model": "stand-in-2025-01-02", "system_fingerprint": "fp_1"}

    server = serve(answer)
    expected = {
        "model": {"stand-in-2025-01-02": 4},
        "finish_reason": {"stop": 4},
        "system_fingerprint": {"fp_1": 4},
    }
    for calls in (4, 0):
        found = judge(pairs(2), engine_for(server), LABELS, tmp_path / "c", announce=quiet)
        assert found.calls == calls and found.summary()["answered"] == expected
    assert found.changes == {}


def test_minus_infinity_of_another_token_is_a_reply(serve, tmp_path):
    top = [("A", -0.1), ("B", -3.0), ("x", -math.inf), ("y", None)]
    server = serve(lambda body: (200, completion("A", top)))
    found = judge(pairs(1), engine_for(server), LABELS, tmp_path / "c", announce=quiet)
    assert found.n == 1 and found.counts["errored"] == 0
    assert judge(pairs(1), engine_for(server), LABELS, tmp_path / "c", announce=quiet).calls == 0


# --- text replies -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "reply", "p_second"),
    [
        ("tldr_dpo_simple", "Comparison: A is clearer.\nPreferred: A", 0.0),
        ("tldr_dpo_simple", "Comparison: B is clearer.\nPreferred: B", 1.0),
        ("tldr_dpo_simple", 'Comparison: ...\n\nPreferred: "B"', 1.0),
        ("tldr_dpo_simple", "**Preferred:** B.", 1.0),
        ("tldr_dpo_concise", "preferred: <A>\n", 0.0),
        ("tldr_dpo_concise", "Preferred: A\nPreferred: A", 0.0),
        ("tldr_dpo_concise", "Preferred: A\nNo, I was wrong.\nPreferred: B", 1.0),
        ("tldr_dpo_concise", "Preferred: A\nOr neither.\nPreferred: Both", None),
        ("tldr_dpo_concise", "I must end in\nPreferred: <A or B>\nSo:\nPreferred: B", 1.0),
        ("tldr_dpo_concise", "<think>\nPreferred: A\n</think>\n\nPreferred: B", 1.0),
        ("tldr_dpo_concise", "Preferred: A is wrong.\n</think>\nPreferred: B", 1.0),
        ("tldr_dpo_concise", "<think>\nPreferred: A\nPreferred: B", None),
        ("tldr_dpo_concise", "[THINK]\nPreferred: A\n[/THINK]Preferred: B", 1.0),
        ("tldr_dpo_concise", "<reasoning>Preferred: A</reasoning>\nPreferred: B", 1.0),
        (
            "tldr_dpo_concise",
            "<|channel|>analysis<|message|>Preferred: A\n<|channel|>final<|message|>Preferred: B",
            1.0,
        ),
        ("alpaca_eval_2", "<think>m or M?</think>\nM", 1.0),
        ("pandalm", "<think>\nBoth say 4.\n</think>\n\nTie\nEqual.", 0.5),
        ("tldr_dpo_concise", "Preferred: A or B", None),
        ("tldr_dpo_concise", "Preferred: A better one is B", None),
        ("tldr_dpo_concise", "Preferred: a", None),
        ("tldr_dpo_concise", "Preferred: Both", None),
        ("tldr_summarize_from_feedback", "A", None),
        ("tldr_summarize_from_feedback", "I would say that A is preferred", None),
        ("tldr_summarize_from_feedback", "", None),
        ("alpaca_eval_2", "m", 0.0),
        ("alpaca_eval_2", " M\n", 1.0),
        ("alpaca_eval_2", '"M".', 1.0),
        ("alpaca_eval_2", "mM", None),
        ("alpaca_eval_2", "Model m", None),
        ("pandalm", "1", 0.0),
        ("pandalm", "2\nIt is longer.", 1.0),
        ("pandalm", "Tie\nBoth are equal, 1 and 2.", 0.5),
        ("pandalm", "garbage", None),
        ("pandalm", "12", None),
        ("pandalm", "1 or 2", None),
    ],
)
def test_a_text_reply_counts_only_with_one_clear_verdict(template, reply, p_second):
    reading = load_template(template).read_text(reply)
    assert reading.p_second == p_second
    assert bool(reading.reason) == (p_second is None)


# --- log probabilities --------------------------------------------------------------------------


def test_a_preference_is_the_second_labels_share_of_both():
    """exp(-1) / (exp(-1) + exp(-3)) = 1 / (1 + exp(-2)), whatever the other tokens have."""
    reading = read_logprobs([("The", -2.0), ("B", -0.3), ("A", -2.3)], ("A", "B"))
    assert reading.label_mass == pytest.approx(math.exp(-0.3) + math.exp(-2.3))
    assert reading.p_second == pytest.approx(1 / (1 + math.exp(-2)), abs=1e-15)


@pytest.mark.parametrize(
    ("top", "p_second"),
    [
        pytest.param([("A", -0.01), ("The", -9.0)], 0.0, id="the-other-can-only-be-rarer"),
        pytest.param([("B", -0.01), ("The", -9.0)], 1.0, id="second-only"),
        pytest.param([("The", -0.01), ("A", -9.0)], None, id="the-other-may-be-as-likely"),
        pytest.param([("The", -0.01), ("A", -6.0), ("So", -9.0)], None, id="not-negligible"),
        pytest.param([("The", -0.01), ("a", -6.0)], None, id="neither"),
        pytest.param([("A", -9999.0), ("B", 0.0)], 1.0, id="no-overflow"),
        pytest.param([("A", 0.0), ("B", -9999.0)], 0.0, id="no-overflow-either-way"),
        pytest.param([("A", -0.0)], 0.0, id="certain-and-alone"),
        pytest.param([("B", -0.005)], 1.0, id="too-little-left-over"),
        pytest.param([("A", -0.05)], None, id="enough-left-over-to-matter"),
    ],
)
def test_a_label_that_is_not_listed_is_nought_or_nothing(top, p_second):
    assert read_logprobs(top, ("A", "B")).p_second == p_second


@pytest.mark.parametrize(
    ("top", "mass"),
    [
        pytest.param([("I", -0.00001), ("A", -12.43), ("B", -14.43)], 4.5e-6, id="refusal"),
        pytest.param([("<think>", -0.001), ("A", -8.0), ("B", -8.0)], 6.7e-4, id="thinks-first"),
        pytest.param([("Both", -0.7), ("A", -1.5), ("B", -1.5)], 0.446, id="just-below-half"),
        pytest.param([("I", -0.1), ("x", -3.0)], 0.0, id="no-label"),
    ],
)
def test_labels_with_less_than_half_of_the_probability_are_no_verdict(top, mass):
    reading = read_logprobs(top, ("A", "B"))
    assert reading.p_second is None and reading.reason
    assert reading.label_mass == pytest.approx(mass, rel=0.01)


@pytest.mark.parametrize(
    ("labels", "top", "first", "second"),
    [
        pytest.param(("A", "B"), ["A", " A", "\nA", "B"], 3, 1, id="white-space"),
        pytest.param(("A", "B"), ["A", "a", " b", "B"], 2, 2, id="case"),
        pytest.param(("m", "M"), ["m", " m", "M", "The"], 2, 1, id="case-tells-them-apart"),
        pytest.param((" A", " B"), ["A", " A", "B", "An"], 2, 1, id="labels-with-spaces"),
        pytest.param(("1", "2"), ["1", "2", "12", " 2"], 1, 2, id="digits"),
    ],
)
def test_variants_of_a_label_are_summed(labels, top, first, second):
    """Each token has a quarter, so P(second) = second / (first + second)."""
    reading = read_logprobs([(token, math.log(0.25)) for token in top], labels)
    assert reading.p_second == pytest.approx(second / (first + second))
    assert reading.label_mass == pytest.approx((first + second) / 4)


def test_a_token_without_a_log_probability_matters_only_where_it_is_a_label():
    rest = [("A", -0.1), ("B", -3.0)]
    assert read_logprobs([*rest, ("The", None)], ("A", "B")) == read_logprobs(rest, ("A", "B"))
    reading = read_logprobs([("A", -0.1), (" b", None), ("The", -9.0)], ("A", "B"))
    assert reading.p_second is None and "'B'" in reading.reason


needs_alpaca = pytest.mark.skipif(
    not (SHARED / "alpaca_eval2").is_dir(), reason=f"no data at {SHARED / 'alpaca_eval2'}"
)


@needs_alpaca
def test_published_log_probabilities_come_out_at_the_published_preferences(tmp_path):
    """803 annotations of text_davinci_001, in the order the official tool asked them.

    Three pairs of equal answers were not asked and stand as ties (1.5); the published win rate is
    2.764005231108344.
    """
    name = SHARED / "alpaca_eval2" / "text_davinci_001.annotations.json.gz"
    rows = json.loads(gzip.decompress(name.read_bytes()))
    template = load_template("alpaca_eval_2")
    engine = OpenAIJudge("gpt-4-1106-preview", base_url="https://judge.invalid/v1")
    comparisons = [
        Comparison(str(i), row["instruction"], row["output_1"], row["output_2"])
        for i, row in enumerate(rows)
    ]
    cache = tmp_path / "cache.jsonl"
    with ReplyCache(cache) as kept:
        for row, comparison in zip(rows, comparisons, strict=True):
            if row["raw_completion"] is None:
                assert row["output_1"] == row["output_2"]
                continue
            top = row["raw_completion"]["logprobs"]["content"][0]["top_logprobs"]
            pair = [[entry["token"], entry["logprob"]] for entry in top]
            key = question_key(engine, template, comparison.question(alpaca_eval_order(comparison)))
            kept.add(key, {"top_logprobs": pair})
    found = judge(
        comparisons,
        engine,
        template,
        cache,
        both_orders=False,
        max_calls=0,
        single_order=alpaca_eval_order,
        announce=quiet,
    )
    assert found.calls == 0 and found.n == len(rows) == 803
    pairs = zip(rows, found.verdicts, strict=True)
    differences = sorted(abs(verdict.preference + 1 - row["preference"]) for row, verdict in pairs)
    # One reply also lists " M", at 8e-8, which the official rule leaves out.
    assert differences[-2] < 1e-9 and differences[-1] < 1.1e-9
    assert found.win_rate == pytest.approx(2.764005231108344, abs=1e-6)
    assert found.position_bias is None


# --- an endpoint: what is sent, averaged, counted -----------------------------------------------


def test_both_orders_are_asked_and_averaged(serve, tmp_path):
    """Shown (a, b): P(second) = 0.9, so 0.9 for b. Shown (b, a): 0.6, so 0.4 for b. Mean 0.65."""

    def answer(body):
        share = 0.9 if body["messages"][-1]["content"].startswith("p|a|b") else 0.6
        return 200, completion("B", [("A", math.log(1 - share)), ("B", math.log(share))])

    server = serve(answer)
    found = judge(
        [Comparison("x", "p", "a", "b")], engine_for(server), LABELS, tmp_path / "c", announce=quiet
    )
    verdict = found.verdicts[0]
    assert verdict.outcome is VerdictOutcome.WIN
    assert verdict.preference == pytest.approx(0.65) and found.win_rate == pytest.approx(65.0)
    assert verdict.by_order == {"ab": pytest.approx(0.9), "ba": pytest.approx(0.4)}
    assert verdict.flips and found.position_bias == 1.0
    assert found.usage == {"prompt_tokens": 20, "completion_tokens": 2}
    request = server.bodies[0]
    assert (request["max_tokens"], request["logprobs"], request["top_logprobs"]) == (1, True, 20)
    assert request["temperature"] == 0.0 and request["model"] == "stand-in"


def test_one_order_is_asked_once_and_has_no_position_bias(serve, tmp_path):
    server = serve()
    found = judge(
        pairs(4), engine_for(server), LABELS, tmp_path / "c", both_orders=False, announce=quiet
    )
    assert (found.calls, server.asked, found.position_bias) == (4, 4, None)
    shown = {body["messages"][0]["content"].split("\n")[0] for body in server.bodies}
    assert shown == {f"question {i}|answer {i}|reply {i}" for i in range(4)}


def test_swapping_a_and_b_everywhere_gives_exactly_100_minus_the_win_rate(serve, tmp_path):
    """Also where the swapped pairs are asked anew: nothing is taken from the other run's cache."""
    server = serve()
    for n in (1, 3, 7, 61):
        comparisons = pairs(n)
        rates = {}
        for name, those in (("as-given", comparisons), ("swapped", swapped(comparisons))):
            cache = tmp_path / f"{name}-{n}"
            found = judge(those, engine_for(server), LABELS, cache, announce=quiet)
            rates[name] = found.win_rate
            assert found.calls == 2 * n
        assert rates["swapped"] == 100 - rates["as-given"]
        assert rates["as-given"] != 50
    again = judge(
        swapped(pairs(61)), engine_for(server), LABELS, tmp_path / "as-given-61", announce=quiet
    )
    assert again.calls == 0 and again.win_rate == rates["swapped"]


def test_wins_and_losses_without_ties_have_wilsons_interval_both_ways_round(tmp_path):
    """3 of 3 lost: a bootstrap would say that 0 is certain."""
    from eval.stats.intervals import wilson_interval

    rows = [Comparison(str(i), "p", "one two", f"one {i}", "one two") for i in range(3)]
    lost, won = (
        judge(pairs, ReferenceJudge(), None, tmp_path / "c", announce=quiet)
        for pairs in (rows, swapped(rows))
    )
    expected = wilson_interval(0, 3)
    assert (lost.win_rate, lost.interval.low) == (0.0, 0.0)
    assert lost.interval.high == pytest.approx(100 * expected.high)
    assert (won.win_rate, won.interval.high) == (100.0, 100.0)
    assert won.interval.low == 100 - lost.interval.high


def test_no_more_requests_are_in_flight_than_allowed(serve, tmp_path):
    server = serve(delay=0.05)
    judge(pairs(12), engine_for(server, concurrency=3), LABELS, tmp_path / "c", announce=quiet)
    assert server.most_in_flight == 3 and server.asked == 24


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(serve, tmp_path, status):
    seen = Counter()

    def answer(body):
        content = body["messages"][0]["content"]
        seen[content] += 1
        return opinion(body) if seen[content] > 2 else (status, {"error": {"message": "busy"}})

    server = serve(answer)
    found = judge(
        pairs(2), engine_for(server, max_retries=2), LABELS, tmp_path / "c", announce=quiet
    )
    assert found.n == 2 and found.counts["errored"] == 0
    assert (found.calls, server.asked) == (4, 12)


def test_a_server_that_stays_silent_is_an_error_after_its_time(serve, tmp_path):
    server = serve(delay=6.0)
    start = time.monotonic()
    found = judge(
        pairs(1), engine_for(server, timeout_s=0.2), LABELS, tmp_path / "c", announce=quiet
    )
    assert time.monotonic() - start < 5
    assert found.counts == {"win": 0, "tie": 0, "loss": 0, "unparsed": 0, "errored": 1}
    assert found.win_rate is None and found.interval is None and found.position_bias is None
    assert "timed out" in found.verdicts[0].reason


NESTED = b"[" * 100_000


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"<html>busy</html>", id="html"),
        pytest.param(b'{"choices": [', id="cut-off"),
        pytest.param(b"\xff\xfe", id="no-text"),
        pytest.param(NESTED, id="nested"),
        pytest.param(b"null", id="null"),
        pytest.param({}, id="no-choices"),
        pytest.param({"choices": []}, id="empty-choices"),
        pytest.param({"choices": [{"message": None}]}, id="no-message"),
        pytest.param({"choices": {"0": 1}}, id="choices-no-list"),
        pytest.param(completion("A"), id="logprobs-ignored"),
        pytest.param(completion("A", [("A", None)]), id="logprob-null"),
        pytest.param({**completion("A", [("A", -0.1), ("B", -3.0)]), "model": "b"}, id="model"),
        pytest.param(completion("A", [("A", float("nan")), ("B", -1.0)]), id="logprob-nan"),
        pytest.param(completion("A", [("A", 0.5), ("B", 0.4)]), id="probabilities-for-logprobs"),
        pytest.param(completion("A", [("A", "-1")]), id="logprob-text"),
        pytest.param(completion("A", [("A", -(10**400))]), id="logprob-huge"),
        pytest.param(completion("A", [(None, -1.0)]), id="token-null"),
    ],
)
def test_a_malformed_answer_is_an_error_and_not_a_score(serve, tmp_path, body):
    server = serve(lambda _: (200, body))
    found = judge(pairs(2), engine_for(server), LABELS, tmp_path / "c", announce=quiet)
    assert found.counts["errored"] == 2 and found.win_rate is None
    assert all(verdict.reason for verdict in found.verdicts)
    assert (tmp_path / "c").read_bytes() == b""


def test_a_connection_cut_mid_answer_is_an_error(tmp_path):
    listener = socket.create_server(("127.0.0.1", 0))

    def cut():
        for _ in range(2):
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{")

    thread = threading.Thread(target=cut)
    thread.start()
    engine = OpenAIJudge(
        "x", base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", max_retries=0, concurrency=1
    )
    found = judge(pairs(1), engine, LABELS, tmp_path / "c", announce=quiet)
    thread.join()
    listener.close()
    assert found.counts["errored"] == 1 and "Connection" in found.verdicts[0].reason


def test_text_that_no_request_can_carry_is_an_error_of_its_row_alone(serve, tmp_path):
    server = serve()
    rows = [Comparison("lone surrogate", "\ud800", "a", "b"), *pairs(2)]
    found = judge(rows, engine_for(server), LABELS, tmp_path / "c", announce=quiet)
    assert found.counts["errored"] == 1 and found.n == 2
    assert "Unicode" in found.verdicts[0].reason


def test_a_comparison_with_one_failed_order_is_not_scored(serve, tmp_path):
    """Row 0 errs in one order; row 1 is unparsed in one; row 2 both: an error may mend, so errored."""

    def answer(body):
        content = body["messages"][0]["content"]
        if content.startswith(("question 0|answer", "question 2|answer")):
            return 400, {"error": {"message": "no"}}
        if content.startswith(("question 1|reply", "question 2|reply")):
            return 200, completion("hm", [("hm", -0.1)])
        return opinion(body)

    server = serve(answer)
    found = judge(pairs(4), engine_for(server), LABELS, tmp_path / "c", announce=quiet)
    outcomes = [str(verdict.outcome) for verdict in found.verdicts[:3]]
    assert outcomes == ["errored", "unparsed", "errored"]
    assert (found.n, found.judged_both_ways) == (1, 1)
    assert sum(found.counts.values()) == 4
    assert found.win_rate == pytest.approx(100 * found.verdicts[3].preference, abs=1e-10)
    summary = found.summary()
    assert (summary["n"], summary["judged"]) == (4, 1)
    assert sum(summary["reasons"].values()) == 3
    assert summary["interval"]["low"] <= summary["win_rate"] <= summary["interval"]["high"]
    json.dumps(summary, allow_nan=False)


def test_a_server_that_only_fails_is_left_alone_after_a_while(serve, tmp_path):
    """4 failures in a row; the 2 requests in flight then may end, the rest of 40 is not asked."""
    server = serve(lambda _: (400, {"error": {"message": "no such model"}}))
    found = judge(
        pairs(20),
        engine_for(server, give_up_after=4, concurrency=2),
        LABELS,
        tmp_path / "c",
        announce=quiet,
    )
    assert 4 <= server.asked <= 5 and found.calls == server.asked
    assert found.counts["errored"] == 20
    assert "not asked after" in found.verdicts[-1].reason
    assert "no such model" in found.verdicts[-1].reason


def test_equal_answers_are_a_tie_and_not_asked(serve, tmp_path):
    server = serve()
    found = judge(
        [Comparison("x", "p", "a", "a")], engine_for(server), LABELS, tmp_path / "c", announce=quiet
    )
    assert (found.calls, server.asked, found.win_rate) == (0, 0, 50.0)
    assert found.counts["tie"] == 1 and found.position_bias is None


def test_nothing_to_judge_and_repeated_ids_are_errors(tmp_path):
    with pytest.raises(ValueError, match="empty evaluation"):
        judge([], ReferenceJudge(), None, tmp_path / "c", announce=quiet)
    with pytest.raises(ValueError, match="share ids"):
        judge([*pairs(1), *pairs(1)], ReferenceJudge(), None, tmp_path / "c", announce=quiet)


def test_a_judge_can_be_asked_from_a_running_event_loop(serve, tmp_path):
    server = serve()

    async def notebook():
        return judge(pairs(1), engine_for(server), LABELS, tmp_path / "c", announce=quiet)

    assert asyncio.run(notebook()).n == 1


# --- spending -----------------------------------------------------------------------------------


def test_calls_and_cost_are_said_before_anything_is_asked(serve, tmp_path):
    """3 pairs, 6 questions of 4 * 8 + 4 = 36 characters, 9 tokens each, 54 in all; 6 tokens back."""
    server = serve()
    rows = [Comparison(str(i), "12345678", "12345678"[:7] + str(i), "1234567a") for i in range(3)]
    template = Template("t", "{prompt}{first}{second}", ("A", "B"), "1234567890")
    lines = []
    price = Price(per_call=0.5, per_million_input_tokens=1e6, per_million_output_tokens=2e6)

    def announce(plan):
        lines.append((str(plan), server.asked))

    found = judge(
        rows, engine_for(server), template, tmp_path / "c", price=price, announce=announce
    )
    assert found.plan.cost == pytest.approx(6 * 0.5 + 54 + 6 * 2)
    line = "3 comparisons, 6 questions: 0 answered before, 6 calls to make, estimated cost 69.00"
    assert lines == [(line, 0)]
    again = judge(rows, engine_for(server), template, tmp_path / "c", price=price, announce=quiet)
    assert (again.plan.calls, again.plan.cached, again.plan.cost) == (0, 6, 0.0)
    assert server.asked == 6


def test_more_calls_than_allowed_are_refused_and_none_is_made(serve, tmp_path):
    server = serve()
    engine = engine_for(server)
    with pytest.raises(InputError, match=r"needs 10 calls and at most 9 .*--max-judge-calls"):
        judge(pairs(5), engine, LABELS, tmp_path / "c", max_calls=9, announce=quiet)
    assert server.asked == 0 and not (tmp_path / "c").exists()
    assert judge(pairs(4), engine, LABELS, tmp_path / "c", max_calls=8, announce=quiet).calls == 8
    assert judge(pairs(5), engine, LABELS, tmp_path / "c", max_calls=2, announce=quiet).calls == 2


# --- the cache ----------------------------------------------------------------------------------


def test_a_second_run_asks_nothing_and_says_the_same(serve, tmp_path):
    server = serve()
    first = judge(pairs(5), engine_for(server), LABELS, tmp_path / "c", announce=quiet)
    second = judge(pairs(5), engine_for(server), LABELS, tmp_path / "c", announce=quiet)
    assert second.verdicts == first.verdicts and second.usage == first.usage
    assert (first.calls, second.calls, second.plan.cached) == (10, 0, 10)


def test_a_local_judge_is_asked_again_where_the_labels_are_others(tiny_model, tmp_path):
    """Its replies are two numbers, of the labels they were asked for."""
    first, second = (
        judge(
            pairs(2), LocalJudge(tiny_model), Template("t", "{prompt}|{first}|{second}", labels, "Which?"), tmp_path / "c",
            announce=quiet,
        )
        for labels in (("a", "b"), ("e", "o"))
    )  # fmt: skip
    assert (first.calls, second.calls) == (4, 4)


@pytest.mark.parametrize("name", ["model", "messages", "stream", "extra_headers", "extra_body"])
def test_a_request_holds_nothing_that_is_ours_or_could_be_a_key(serve, name):
    with pytest.raises(InputError, match=r"judge\.request must not set"):
        engine_for(serve(), request={name: "x"})


def test_any_other_field_reaches_the_server(serve, tmp_path):
    """top_k is none of OpenAI's, but many servers know it."""
    server = serve()
    engine = engine_for(server, request={"top_k": 1})
    judge(pairs(1), engine, LABELS, tmp_path / "c", announce=quiet)
    assert server.bodies[0]["top_k"] == 1 and server.bodies[0]["top_logprobs"] == 20


def test_a_key_with_typographic_quotes_is_named_as_the_fault(serve, tmp_path, monkeypatch):
    monkeypatch.setenv("BASHRAC_JUDGE_KEY", "\u201csk-abc\u201d")
    server = serve()
    with pytest.raises(InputError, match="the judge's key has a character"):
        judge(pairs(1), engine_for(server), LABELS, tmp_path / "c", announce=quiet)
    assert server.asked == 0


def test_whatever_decides_a_reply_decides_its_key():
    engine = OpenAIJudge("m", base_url="http://127.0.0.1:1/v1")
    question = Question("p", "a", "b")
    others = [
        (engine, LABELS, Question("q", "a", "b")),
        (engine, LABELS, Question("p", "b", "a")),
        (engine, LABELS, Question("p", "a", "b", repeat=1)),
        (engine, LABELS, Question("pa", "", "b")),
        (engine, Template("tiny", "{prompt}{first}{second}", ("A", "B"), "A or B?"), question),
        (OpenAIJudge("n", base_url="http://127.0.0.1:1/v1"), LABELS, question),
        (OpenAIJudge("m", base_url="http://127.0.0.1:2/v1"), LABELS, question),
        (OpenAIJudge("m", base_url="http://127.0.0.1:1/v1", reads="text"), LABELS, question),
        (OpenAIJudge("m", base_url="http://127.0.0.1:1/v1", request={"seed": 1}), LABELS, question),
        (ReferenceJudge(), None, Question("p", "a", "b", "r")),
        (ReferenceJudge(), None, Question("p", "a", "b", "s")),
    ]
    keys = [question_key(engine, LABELS, question), *(question_key(*other) for other in others)]
    assert len(set(keys)) == len(keys)
    hurried = OpenAIJudge("m", base_url="http://127.0.0.1:1/v1/", timeout_s=1, concurrency=2)
    assert question_key(hurried, LABELS, question) == keys[0]
    assert question_key(engine, LABELS, Question("p", "a", "b", "unseen")) == keys[0]


def test_a_torn_last_line_is_passed_over_and_asked_again(serve, tmp_path):
    server, path = serve(), tmp_path / "c"
    whole = judge(pairs(5), engine_for(server), LABELS, path, announce=quiet)
    data = path.read_bytes()
    path.write_bytes(data[:-9])
    again = judge(pairs(5), engine_for(server), LABELS, path, announce=quiet)
    assert again.calls == 1 and again.verdicts == whole.verdicts
    assert judge(pairs(5), engine_for(server), LABELS, path, announce=quiet).calls == 0
    assert len(path.read_bytes().splitlines()) == 11


@pytest.mark.parametrize("damage", [b"\xff\xfe\n", b"[]\n", b'{"key": 1}\n', b"\n\n", b'"key"\n'])
def test_lines_that_are_no_replies_are_passed_over(serve, tmp_path, damage):
    server, path = serve(), tmp_path / "c"
    judge(pairs(2), engine_for(server), LABELS, path, announce=quiet)
    path.write_bytes(damage + path.read_bytes())
    assert judge(pairs(2), engine_for(server), LABELS, path, announce=quiet).calls == 0


def test_a_cache_that_cannot_be_written_is_found_before_anything_is_asked(serve, tmp_path):
    server = serve()
    (tmp_path / "file").write_text("")
    with pytest.raises(BashracError, match="cannot write"):
        judge(pairs(1), engine_for(server), LABELS, tmp_path / "file" / "c", announce=quiet)
    assert server.asked == 0


def test_a_reply_that_the_disk_has_no_room_for_ends_the_run_and_is_asked_again(serve, tmp_path):
    """A limit on the file's size stands for the full disk: it cuts a line off in the same way."""
    server, path = serve(), tmp_path / "c"
    whole = judge(pairs(3), engine_for(server), LABELS, tmp_path / "whole", announce=quiet)
    room = (tmp_path / "whole").stat().st_size // 2 + 7
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(BashracError, match="cannot write"):
            judge(pairs(3), engine_for(server), LABELS, path, announce=quiet)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.stat().st_size == room
    kept = len(ReplyCache(path).replies)
    again = judge(pairs(3), engine_for(server), LABELS, path, announce=quiet)
    assert 0 < kept < 6 and again.calls == 6 - kept and again.verdicts == whole.verdicts


def test_a_judge_killed_mid_run_keeps_every_reply_it_was_given(serve, tmp_path):
    """SIGKILL while it asks; the next run asks exactly what has no line yet."""
    server, path = serve(delay=0.02), tmp_path / "c"
    code = (
        "import sys\n"
        "from eval.judge.compare import judge\n"
        "from eval.judge.openai import OpenAIJudge\n"
        "from eval.judge.template import Template\n"
        "from eval.judge.types import Comparison\n"
        "rows = [Comparison(f'{i}', f'question {i}', f'answer {i}', f'reply {i}') for i in range(40)]\n"
        "engine = OpenAIJudge('stand-in', base_url=sys.argv[1], concurrency=2)\n"
        "template = Template('tiny', '{prompt}|{first}|{second}', ('A', 'B'), 'A or B?')\n"
        "judge(rows, engine, template, sys.argv[2])\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, server.url, str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
    )
    wait_for(lambda: path.exists() and path.read_bytes().count(b"\n") >= 5)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    kept = len(ReplyCache(path).replies)
    assert 5 <= kept < 80
    found = judge(pairs(40), engine_for(server), LABELS, path, announce=quiet)
    assert (found.plan.cached, found.calls, found.n) == (kept, 80 - kept, 40)


@pytest.mark.parametrize("variable", ["OPENAI_API_KEY", "BASHRAC_JUDGE_KEY"])
@pytest.mark.parametrize("reads", ["label", "text"])
def test_the_key_is_sent_and_appears_nowhere_else(
    serve, tmp_path, monkeypatch, caplog, capfd, variable, reads
):
    """The server repeats it wherever it can: in replies, tokens and errors."""
    monkeypatch.setenv(variable, CANARY)
    caplog.set_level(logging.DEBUG)
    seen = Counter()

    def answer(body):
        seen["requests"] += 1
        if seen["requests"] % 3 == 0:
            return 401, {"error": {"message": f"wrong key {CANARY}", "code": CANARY}}
        if seen["requests"] % 3 == 1:
            return 400, f"Bearer {CANARY}".encode()
        return 200, completion(CANARY, [("A", -0.1), ("B", -3.0), (CANARY, -4.0)])

    server, cache = serve(answer), tmp_path / "cache.jsonl"
    engine = engine_for(server, reads=reads, concurrency=1)
    found = judge(pairs(9), engine, LABELS, cache, both_orders=False)
    assert set(server.authorizations) == {f"Bearer {CANARY}"}
    assert found.counts["errored"] == 6 and found.n + found.counts["unparsed"] == 3
    out, err = capfd.readouterr()
    places = [
        cache.read_text(), caplog.text, out, err, repr(found), json.dumps(found.summary()),
        repr(engine), repr(vars(engine)), json.dumps(engine.identity()),
    ]  # fmt: skip
    assert not any(CANARY in place for place in places)
    assert "[key]" in cache.read_text()


def test_without_a_key_only_a_server_on_this_machine_is_asked(serve, tmp_path):
    engine = OpenAIJudge("m", base_url="https://judge.invalid/v1")
    with pytest.raises(InputError, match="OPENAI_API_KEY"):
        judge(pairs(1), engine, LABELS, tmp_path / "c", announce=quiet)
    assert judge(pairs(1), engine_for(serve()), LABELS, tmp_path / "c", announce=quiet).n == 1


@pytest.mark.parametrize(
    "url",
    [f"https://u:{CANARY}@host/v1", f"https://host/v1?key={CANARY}", "host:80/v1", "", "file:///x"],
)
def test_an_address_that_could_hold_a_key_or_is_none_is_refused(url):
    with pytest.raises(InputError, match="base URL") as caught:
        OpenAIJudge("m", base_url=url)
    assert CANARY not in str(caught.value)


# --- a local model ------------------------------------------------------------------------------


def label_template(**options):
    return Template("tiny", "{prompt}|{first}|{second}", ("A", "B"), "A or B?", **options)


@pytest.fixture(scope="module")
def decided(tmp_path_factory):
    """A model whose next token is nearly always A or B, which one depending on what it is shown."""
    import torch
    from conftest import save_tiny_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name = save_tiny_model(tmp_path_factory.mktemp("decided") / "model", architecture="gpt_neox")
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(name),
        AutoTokenizer.from_pretrained(name),
    )
    with torch.no_grad():
        model.gpt_neox.final_layer_norm.bias.fill_(1.0)
        model.get_output_embeddings().weight[tokenizer.convert_tokens_to_ids(["A", "B"])] += 1.0
    model.save_pretrained(name)
    return name


def ids_like(tokenizer, letter):
    """The tokens that are a letter, white space and case aside."""
    return [i for i in range(len(tokenizer)) if tokenizer.decode([i]).strip().lower() == letter]


def test_a_local_judges_preference_equals_a_hand_computation(decided, tmp_path):
    """The prompt as the chat template writes it, one forward pass, one softmax, two labels."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(decided, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(decided)
    a, b = (ids_like(tokenizer, letter) for letter in "ab")

    def by_hand(first, second):
        text = (
            "<|im_start|>system\nBe fair.<|im_end|>\n"
            f"<|im_start|>user\nSum?|{first}|{second}\n\nA or B?<|im_end|>\n<|im_start|>assistant\n"
        )
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        with torch.no_grad():
            shares = model(ids).logits[0, -1].softmax(0)
        return (shares[b].sum() / (shares[a].sum() + shares[b].sum())).item()

    rows = [Comparison(str(i), "Sum?", f"{i} + 1", f"{i + 2} apples") for i in range(3)]
    engine = LocalJudge(decided, device="cpu")
    template = label_template(system="Be fair.")
    found = judge(rows, engine, template, tmp_path / "c", announce=quiet)
    for row, verdict in zip(rows, found.verdicts, strict=True):
        expected = (by_hand(row.a, row.b) + 1 - by_hand(row.b, row.a)) / 2
        assert verdict.preference == pytest.approx(expected, abs=1e-6)
        assert verdict.preference != 0.5 and verdict.label_mass > 0.9
    other = judge(
        swapped(rows),
        LocalJudge(decided, device="cpu"),
        template,
        tmp_path / "d",
        announce=quiet,
    )
    assert other.calls == 6 and other.win_rate == 100 - found.win_rate
    assert judge(rows, engine, template, tmp_path / "c", announce=quiet).calls == 0


def test_a_local_judge_that_would_say_something_else_gives_no_verdict(tiny_model, tmp_path):
    """The labels of a random model have next to nothing, and one of them more than the other."""
    engine = LocalJudge(tiny_model, device="cpu")
    found = judge(pairs(2), engine, LABELS, tmp_path / "c", announce=quiet)
    assert found.counts["unparsed"] == 2 and found.win_rate is None
    assert "of the probability" in found.verdicts[0].reason
    assert 0 < found.verdicts[0].label_mass < 0.5


@pytest.mark.parametrize("tied", [False, True])
def test_label_logits_of_a_bfloat16_judge_are_float32(tmp_path, tied):
    """Its last hidden state times its output layer, computed in float32, as log probabilities."""
    import torch
    from conftest import save_tiny_model
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    folder = save_tiny_model(tmp_path / "model")
    if tied:
        config = AutoConfig.from_pretrained(folder, tie_word_embeddings=True)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    engine = LocalJudge(folder, dtype="bfloat16", device="cpu")
    replies = []
    question = Question("Sum?", "1 + 1", "2 apples")
    engine.ask([question], LABELS, lambda _, reply: replies.append(reply["logprobs"]))

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    messages = LABELS.messages(question, "label")
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
    assert (embeddings[0].weight is embeddings[1].weight) == tied
    with torch.no_grad():
        hidden = model.model(ids).last_hidden_state[0, -1].float()
        coarse = model(ids).logits[0, -1]
    fine = hidden @ model.get_output_embeddings().weight.float().T

    def by_label(logits):
        logprobs = logits.log_softmax(0)
        return [logprobs[ids_like(tokenizer, letter)].logsumexp(0).item() for letter in "ab"]

    assert replies[0] == pytest.approx(by_label(fine), rel=1e-5)
    assert replies[0] != pytest.approx(by_label(coarse.float()), rel=1e-5)


def test_a_judge_in_4_bits_reads_with_them_and_its_label_logits_are_float32(decided, tmp_path):
    """The key is part of a judge's identity where it is set, and nowhere else."""
    import torch

    from pipeline.models.load import load_model

    engine = LocalJudge(decided, dtype="bfloat16", quantize="nf4", device="cpu")
    replies = []
    question = Question("Sum?", "1 + 1", "2 apples")
    engine.ask([question], label_template(), lambda _, reply: replies.append(reply))
    model = load_model(decided, dtype="bfloat16", quantize="nf4").eval()
    ids = engine._prompt_ids(question, label_template())
    with torch.no_grad():
        hidden = model.base_model(torch.tensor([ids]), use_cache=False).last_hidden_state[0, -1]
        logits = hidden.float() @ model.get_output_embeddings().weight.float().T
    labels = engine._label_ids(label_template())
    expected = [logits.log_softmax(-1)[those].logsumexp(-1).item() for those in labels]
    assert replies[0]["logprobs"] == pytest.approx(expected, abs=1e-4)
    assert replies[0]["usage"] == {"prompt_tokens": len(ids)}
    plain = LocalJudge(decided, dtype="bfloat16").identity()
    assert "quantize" not in plain and engine.identity() == {**plain, "quantize": "nf4"}


def test_a_local_judge_is_checked_by_its_tokenizer_alone(decided, tmp_path, monkeypatch):
    """Before anything is trained: it must be there, have its labels, and not start by reasoning."""
    from shutil import copytree

    folder = copytree(decided, tmp_path / "judge")
    (folder / "model.safetensors").unlink()
    LocalJudge(str(folder)).check(label_template())
    with pytest.raises(InputError, match="must be one token"):
        LocalJudge(str(folder)).check(Template("t", "{prompt}{first}{second}", ("Yes", "No"), "?"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    for file in (folder / "chat_template.jinja",):
        template = file.read_text() if file.is_file() else config["chat_template"]
        file.write_text(template + "{% if add_generation_prompt %}<think>\n{% endif %}")
    with pytest.raises(InputError, match="begins every answer with reasoning"):
        LocalJudge(str(folder)).check(label_template())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    absent = LocalJudge("nobody/nothing", revision="0123456789abcdef0123456789abcdef01234567")
    with pytest.raises(InputError, match="nobody/nothing"):
        absent.check(label_template())


def test_labels_that_are_not_one_token_each_are_refused(tiny_model, plain_model, tmp_path):
    words = Template("words", "{prompt}|{first}|{second}", ("first", "second"), "?")
    for model, template in ((tiny_model, words), (plain_model, LABELS)):
        with pytest.raises(InputError, match="each must be one token"):
            judge(
                pairs(1), LocalJudge(model, device="cpu"), template, tmp_path / "c", announce=quiet
            )


def test_a_prompt_longer_than_the_judges_window_is_an_error_of_its_row(decided, tmp_path):
    rows = [Comparison("long", "z" * 900, "a", "b"), *pairs(1)]
    found = judge(rows, LocalJudge(decided, device="cpu"), LABELS, tmp_path / "c", announce=quiet)
    assert found.verdicts[0].outcome is VerdictOutcome.ERRORED
    assert found.n == 1 and "but the judge reads 512" in found.verdicts[0].reason


def test_a_judge_whose_weights_are_broken_gives_errors_and_no_scores(tmp_path):
    import torch
    from conftest import save_tiny_model
    from transformers import AutoModelForCausalLM

    folder = save_tiny_model(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.lm_head.weight.data.fill_(torch.nan)
    model.save_pretrained(folder)
    found = judge(
        pairs(2), LocalJudge(folder, device="cpu"), LABELS, tmp_path / "c", announce=quiet
    )
    assert found.counts["errored"] == 2 and "nan" in found.verdicts[0].reason


def test_a_model_that_takes_no_system_message_gets_it_with_the_users(tmp_path):
    from conftest import save_tiny_model
    from transformers import AutoTokenizer

    folder = save_tiny_model(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    refuses = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    )
    tokenizer.chat_template = refuses + tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    engine = LocalJudge(folder, device="cpu")
    replies = []
    question = Question("p", "a", "b")
    for template in (
        label_template(system="Be fair."),
        Template("one", "Be fair.\n\n{prompt}|{first}|{second}", ("A", "B"), "A or B?"),
    ):
        engine.ask([question], template, lambda _, reply: replies.append(reply))
    assert replies[0] == replies[1]


# --- ROUGE-L against a reference ----------------------------------------------------------------


def test_the_reference_judge_follows_rouge_l_by_hand(tmp_path):
    """Reference "the cat sat on the mat", 6 words.

    a "the cat sat": common 3, P 3/3, R 3/6, F 2/3. b "the dog sat on the mat": common 5, P 5/6,
    R 5/6, F 5/6: b wins. "the cats sat" stems to a's words: a tie with a. "nothing": F 0.
    """
    reference = "the cat sat on the mat"
    rows = [
        Comparison("win", "p", "the cat sat", "the dog sat on the mat", reference),
        Comparison("tie", "p", "the cat sat", "The cats sat!", reference),
        Comparison("loss", "p", "the cat sat", "nothing", reference),
        Comparison("both nothing", "p", "none", "nothing", reference),
    ]
    found = judge(rows, ReferenceJudge(), None, tmp_path / "c", announce=quiet)
    assert [str(verdict.outcome) for verdict in found.verdicts] == ["win", "tie", "loss", "tie"]
    assert [verdict.preference for verdict in found.verdicts] == [1.0, 0.5, 0.0, 0.5]
    assert (found.win_rate, found.position_bias, found.judged_both_ways) == (50.0, 0.0, 4)
    lines = [reply["rouge_l"] for reply in ReplyCache(tmp_path / "c").replies.values()]
    assert lines[0] == [pytest.approx(2 / 3), pytest.approx(5 / 6)]
    other = judge(swapped(rows), ReferenceJudge(), None, tmp_path / "d", announce=quiet)
    assert other.win_rate == 100 - found.win_rate


def test_without_a_reference_that_rouge_can_read_there_is_no_verdict(tmp_path):
    rows = [Comparison("none", "p", "a", "b"), Comparison("signs", "p", "猫", "犬", "🐈 …")]
    found = judge(rows, ReferenceJudge(), None, tmp_path / "c", announce=quiet)
    assert found.counts["errored"] == 2 and found.win_rate is None


# --- published judgements of human-judged pairs -------------------------------------------------


@pytest.mark.skipif(not (SHARED / "pandalm").is_dir(), reason=f"no data at {SHARED / 'pandalm'}")
def test_pandalms_published_judgements_agree_with_people_on_69_3_percent_without_a_call(tmp_path):
    """Judge and majority name the same better response on 692 of all 999 pairs: 69.3 %.

    There a tie agrees with nothing. On 5 more pairs both say tie (697, 69.8 %). The authors' own
    script prints 71.07 %: it reads the 25 replies without a verdict ("garbage") as ties, and 13 of
    those agree. With us they are unparsed. 99 pairs occur earlier in the set with the same texts
    and were judged anew, not always alike: `repeat`.
    """

    def read(name):
        return json.loads((SHARED / "pandalm" / name).read_text(encoding="utf-8"))

    rows = read("testset-v1.json")
    published = {row["idx"]: row["gpt_result"] for row in read("gpt-3.5-turbo-testset-v1.json")}
    seen = Counter()
    comparisons = []
    for row in rows:
        prompt = f"{row['instruction']}\n\n{row['input']}".strip()
        texts = (prompt, str(row["response1"]), str(row["response2"]))  # three are JSON's true
        comparisons.append(Comparison(str(row["idx"]), *texts, repeat=seen[texts]))
        seen[texts] += 1
    template = load_template("pandalm")
    engine = OpenAIJudge("gpt-3.5-turbo", base_url="https://judge.invalid/v1", reads="text")
    cache = tmp_path / "cache.jsonl"
    with ReplyCache(cache) as kept:
        for row, comparison in zip(rows, comparisons, strict=True):
            key = question_key(engine, template, comparison.question("ab"))
            kept.add(key, {"text": published[row["idx"]]})
    found = judge(
        comparisons, engine, template, cache, both_orders=False, max_calls=0, announce=quiet
    )
    assert (found.calls, found.plan.cached) == (0, 999)
    assert found.counts == {"win": 476, "tie": 38, "loss": 460, "unparsed": 25, "errored": 0}
    both = Counter()
    for row, verdict in zip(rows, found.verdicts, strict=True):
        votes = Counter(row[f"annotator{i}"] for i in (1, 2, 3))
        majority, count = votes.most_common(1)[0]
        assert count >= 2
        both[{0: "tie", 1: "loss", 2: "win"}[majority], str(verdict.outcome)] += 1
    same_winner = both["win", "win"] + both["loss", "loss"]
    assert same_winner == 692 and round(100 * same_winner / 999, 1) == 69.3
    assert same_winner + both["tie", "tie"] == 697
    as_their_script = same_winner + both["tie", "tie"] + both["tie", "unparsed"]
    assert round(100 * as_their_script / 999, 2) == 71.07


# --- a real OpenAI-compatible server ------------------------------------------------------------


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The server, with a model that answers anything with the letter m."""
    import torch
    from conftest import CHAT_TEMPLATE, save_tiny_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("served")
    name = save_tiny_model(folder / "model", architecture="gpt_neox")
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(name),
        AutoTokenizer.from_pretrained(name),
    )
    assert tokenizer.chat_template == CHAT_TEMPLATE
    with torch.no_grad():
        model.gpt_neox.final_layer_norm.weight.zero_()
        model.gpt_neox.final_layer_norm.bias.fill_(1.0)
        model.get_output_embeddings().weight.zero_()
        model.get_output_embeddings().weight[tokenizer.convert_tokens_to_ids("m")] = 1.0
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids("m")  # and then ends
    model.save_pretrained(name)
    server = Served(name, folder / "log")
    server.start()
    yield server
    server.kill()


@needs_serve
def test_a_real_server_is_asked_by_text_end_to_end(served, tmp_path):
    """A judge that says m whatever it is shown prefers what it is shown first: ties, bias 1."""
    engine = OpenAIJudge(served.model, base_url=served.url, reads="text")
    template = load_template("alpaca_eval_2")
    found = judge(pairs(3), engine, template, tmp_path / "c", announce=quiet)
    assert found.counts["tie"] == 3 and found.win_rate == 50.0
    assert found.position_bias == 1.0 and found.usage["completion_tokens"] == 6
    once = judge(pairs(3), engine, template, tmp_path / "c", both_orders=False, announce=quiet)
    assert (once.calls, once.win_rate) == (0, 0.0)


@needs_serve
def test_a_real_server_that_ignores_logprobs_is_an_error_and_not_a_score(served, tmp_path):
    engine = OpenAIJudge(served.model, base_url=served.url)
    found = judge(pairs(2), engine, load_template("alpaca_eval_2"), tmp_path / "c", announce=quiet)
    assert found.counts["errored"] == 2 and found.win_rate is None
    assert "ignored logprobs" in found.verdicts[0].reason


@needs_serve
def test_killing_a_real_server_mid_run_loses_nothing(served, tmp_path):
    """The re-run, with the server back, asks exactly what has no reply yet."""
    path, template = tmp_path / "c", load_template("alpaca_eval_2")

    def lines():
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def kill_soon():
        wait_for(lambda: lines() >= 4)
        served.kill()

    options = {"reads": "text", "concurrency": 1}
    engine = OpenAIJudge(
        served.model, base_url=served.url, max_retries=0, give_up_after=3, **options
    )
    killer = threading.Thread(target=kill_soon)
    killer.start()
    broken = judge(pairs(100), engine, template, path, announce=quiet)
    killer.join()
    kept = lines()
    assert 4 <= kept < 200 and broken.calls == kept + 3
    assert broken.counts["errored"] == 100 - kept // 2 and broken.n == kept // 2
    served.start()
    few = pairs(kept // 2 + 3)
    mended = judge(
        few,
        OpenAIJudge(served.model, base_url=served.url, **options),
        template,
        path,
        announce=quiet,
    )
    assert (mended.plan.cached, mended.calls, mended.n) == (kept, 2 * len(few) - kept, len(few))


# --- weight -------------------------------------------------------------------------------------


def test_importing_the_judge_imports_no_client_and_no_model_library():
    loaded = imported_by("eval.judge.compare")
    heavy = {
        "openai",
        "torch",
        "transformers",
        "rouge_score",
        "nltk",
        "numpy",
        "httpx2",
        "datasets",
    }
    assert "eval" in loaded and not heavy & loaded
