"""How often a judge prefers the answer that people prefer, on PandaLM's labels.

    python benchmarks/judge_agreement.py DATA/pandalm --judge local:MODEL
    python benchmarks/judge_agreement.py DATA/pandalm --judge tldr-pythia-1b    # the recipe's judge

DATA/pandalm holds testset-v1.json of github.com/WeOpenML/PandaLM: 999 pairs of answers with the
labels of three people. Both orders are asked. Where most people say tie, nobody can agree with a
winner, so agreement is of the other pairs; a tie of the judge or a missing verdict agrees with
nobody. Replies are kept in --runs, so a second call asks only what is new.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.judge.compare import judge
from eval.judge.step import describe_judge, engine_for, replies_file
from eval.judge.template import load_template
from eval.judge.types import Comparison, Judgement
from eval.stats.intervals import wilson_interval
from pipeline.plan.load import load_recipe
from pipeline.recipe import shipped
from pipeline.recipe.schema import Judge, written_out
from pipeline.recipe.strict_yaml import read_yaml

_MAJORITY = {0: "tie", 1: "loss", 2: "win"}  # as seen from the second response


def main() -> None:
    """Ask, and print the agreement."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--judge", required=True, help="as in a recipe, or a shipped recipe's name")
    parser.add_argument("--template", default="alpaca_eval_2")
    parser.add_argument("--limit", type=int, help="only the first so many pairs")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    given = parser.parse_args()
    rows = json.loads((given.data / "testset-v1.json").read_text(encoding="utf-8"))[: given.limit]
    settings = read_judge(given.judge)
    engine = engine_for(settings)
    found = judge(
        [comparison_of(row) for row in rows],
        engine,
        load_template(given.template),
        replies_file(given.runs, engine.identity()),
        both_orders=settings.orders == "both",
        price=settings.price,
    )
    print(f"{describe_judge(settings)}, template {given.template}")
    print("\n".join(agreement(rows, found)))


def read_judge(text: str) -> Judge:
    """A judge in a recipe's words, or that of a shipped recipe."""
    if text in shipped.recipe_names():
        found = load_recipe(text).judge
        assert found is not None, f"{text} has no judge"
        return found
    return Judge.model_validate(written_out("judge", read_yaml(text)))


def comparison_of(row: dict[str, Any]) -> Comparison:
    """One pair; three responses are JSON's true."""
    prompt = f"{row['instruction']}\n\n{row['input']}".strip()
    return Comparison(str(row["idx"]), prompt, str(row["response1"]), str(row["response2"]))


def agreement(rows: Sequence[dict[str, Any]], found: Judgement) -> list[str]:
    """Lines with the agreement, n and its interval, and what the judge said at all."""
    both: Counter[tuple[str, str]] = Counter()
    for row, verdict in zip(rows, found.verdicts, strict=True):
        votes = Counter(row[f"annotator{number}"] for number in (1, 2, 3))
        both[_MAJORITY[votes.most_common(1)[0][0]], str(verdict.outcome)] += 1
    same = both["win", "win"] + both["loss", "loss"]
    n = sum(count for (people, _), count in both.items() if people != "tie")
    ends = wilson_interval(same, n)
    bias = found.position_bias
    counted = ", ".join(f"{count} {name}" for name, count in found.counts.items())
    lines = [
        f"same winner as most people: {same} of n {n} "
        f"({100 * same / n:.1f} % [{100 * ends.low:.1f}, {100 * ends.high:.1f}]); "
        f"people say tie in {len(rows) - n} more pairs",
        f"verdicts: {counted}; {found.calls} calls made",
    ]
    if bias is not None:
        lines.append(f"the order decides {100 * bias:.1f} % of n {found.judged_both_ways}")
    masses = [one.label_mass for one in found.verdicts if one.label_mass is not None]
    if masses:
        lines.append(f"label mass {sum(masses) / len(masses):.3f} of n {len(masses)}")
    return lines


if __name__ == "__main__":
    main()
