"""The command that prints how often a judge agrees with people."""

import json
import sys

import pytest
from conftest import benchmark_script
from judge_servers import completion


@pytest.fixture(scope="module")
def script():
    return benchmark_script("judge_agreement")


def pair(number, labels, first="right", second="wrong"):
    people = {f"annotator{place}": label for place, label in enumerate(labels, start=1)}
    texts = {"instruction": f"Question {number}", "input": ""}
    return {"idx": number, **texts, "response1": first, "response2": second, **people}


def test_agreement_counts_pairs_with_a_winner_and_no_failure_agrees(
    script, serve, tmp_path, monkeypatch, capsys
):
    """Six pairs: three agree, one does not, in one the judge has no verdict, in one people tie."""
    rows = [
        pair(0, (1, 1, 2)), pair(1, (1, 1, 1)), pair(2, (2, 2, 0), "wrong", "right"),
        pair(3, (2, 2, 1)), pair(4, (1, 1, 1), "mute", "wrong"), pair(5, (0, 0, 1)),
    ]  # fmt: skip
    (tmp_path / "testset-v1.json").write_text(json.dumps(rows))

    def answer(body):
        asked = body["messages"][-1]["content"]
        if "mute" in asked:
            return 200, completion("?", [("?", -0.01), ("m", -9.0), ("M", -9.5)])
        first = asked.index("right") < asked.index("wrong")
        top = [("m", -0.01), ("M", -5.0)] if first else [("M", -0.01), ("m", -5.0)]
        return 200, completion("m", top)

    server = serve(answer)
    judge = f"{{engine: openai, model: stand-in, base_url: '{server.url}'}}"
    runs = ["--runs", str(tmp_path / "runs")]
    monkeypatch.setattr(sys, "argv", ["script", str(tmp_path), "--judge", judge, *runs])
    script.main()
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith("12 calls to make")
    assert said[2:5] == [
        "same winner as most people: 3 of n 5 (60.0 % [23.1, 88.2]); people say tie in 1 more pairs",
        "verdicts: 1 win, 0 tie, 4 loss, 1 unparsed, 0 errored; 12 calls made",
        "the order decides 0.0 % of n 5",
    ]
    script.main()
    assert "0 calls made" in capsys.readouterr().out


def test_the_judge_of_a_shipped_recipe_can_be_named(script):
    judge = script.read_judge("tldr-pythia-1b")
    assert judge.engine == "local" and judge.revision
    assert script.read_judge("local:m").model == "m"
