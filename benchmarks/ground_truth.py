"""Our scorers on published model outputs, beside the published numbers; no model, no network.

    python benchmarks/ground_truth.py DATA

DATA holds any of three folders, made from public repositories (a part whose files are absent is
named as left out):

alpaca_eval2/, from github.com/tatsu-lab/alpaca_eval; tables have a row an instruction, in its order:
    preferences.csv        a column a model: `preference` in the annotations.json that lies in
                           results/MODEL/weighted_alpaca_eval_gpt4_turbo/, empty where it has none
    output_lengths.csv     the same with len(output_2), and gpt4_1106_preview(baseline): len(output_1)
    published.csv          model, n, and win_rate_published and length_controlled_winrate_published
                           from the leaderboard's CSV
    instruction_difficulty.csv   index, instruction_difficulty: (logit(glm_preference) - bias) / weight
                           of a model with annotations, weights from the repository's weights CSV
    df_gamed.csv           from the hub dataset tatsu-lab/alpaca_eval, or df_gamed_recon.csv: the same
                           columns, reconstructed
    gpt4_1106_preview.model_outputs.json, text_davinci_001.annotations.json.gz   as they are
gsm8k/, from github.com/openai/grade-school-math (grade_school_math/data):
    train.jsonl, test.jsonl, and example_model_solutions.jsonl or model_solutions_6b.jsonl, which is
    the same file without the 175B models
pandalm/, from github.com/WeOpenML/PandaLM (data):
    testset-v1.json, gpt-3.5-turbo-testset-v1.json
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from eval import alpaca
from eval.contamination import benchmark_item, overlaps, training_texts
from eval.gsm8k import grade, lm_eval_correct
from eval.judge import Comparison, OpenAIJudge, ReplyCache, judge, load_template, question_key
from eval.stats import wilson_interval
from eval.types import Outcome
from pipeline.artifact import read_rows
from pipeline.tasks import example_of

BASELINE = "gpt4_1106_preview"
# In one row with every feature 0 and p = 0.5 there is nothing to learn: a fit without gamed rows.
NO_GAMED_ROWS = [(0.0, 0.0, 0.5)]


class Published(NamedTuple):
    """What AlpacaEval's repository says of a model; NaN where an instruction has no verdict."""

    n: int
    win_rate: float
    lc: float
    preferences: list[float]
    lengths: list[float]


def main() -> None:
    """Print every figure whose files are there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, metavar="DATA")
    data = parser.parse_args().data
    printed = False
    for folder, names, lines in PARTS:
        found = [next(iter(sorted((data / folder).glob(name))), None) for name in names]
        missing = [name for name, path in zip(names, found, strict=True) if path is None]
        if missing:
            print(f"left out {lines.__name__}: no {', '.join(missing)} in {folder}/", flush=True)
            continue
        for line in lines(*found):
            print(line, flush=True)
        printed = True
    if not printed:
        parser.error(f"nothing to compare in {data}: --help says what belongs there")


def win_rates(
    preferences: Path, lengths: Path, published: Path, table: Path, outputs: Path, gamed_file: Path
) -> Iterator[str]:
    """AlpacaEval's raw and length-controlled win rates."""
    models = published_models(preferences, lengths, published)
    baseline = numbers(read_table(lengths), f"{BASELINE}(baseline)")
    instructions = [row["instruction"] for row in alpaca.read_model_outputs(outputs)]
    difficulty = list(alpaca.read_difficulties(table, instructions).values())
    gamed = alpaca.read_gamed(gamed_file)

    def rates(model: Published, gamed: list | None = gamed) -> alpaca.WinRate:
        columns = model.preferences, model.lengths, baseline, difficulty
        return alpaca.length_controlled_win_rate(*columns, gamed)

    ours = {name: rates(model) for name, model in models.items()}
    raw = {name: abs(ours[name].win_rate - model.win_rate) for name, model in models.items()}
    yield f"AlpacaEval raw: {len(raw)} models, largest difference {largest(raw)}"
    whole = {name: model for name, model in models.items() if model.n == len(instructions)}
    errors = {name: off(ours[name], model) for name, model in whole.items()}
    within = {limit: sum(error <= limit for error in errors.values()) for limit in (0.01, 1e-6)}
    yield (
        f"AlpacaEval LC, gamed rows of {gamed_file.name}: {len(whole)} models with all "
        f"{len(instructions)} rows, largest difference {largest(errors)}, {within[0.01]} within "
        f"0.01 points, {within[1e-6]} within 1e-6"
    )
    for name in models.keys() - whole.keys():
        model = models[name]
        at = [place for place, p in enumerate(model.preferences) if not math.isnan(p)]
        judged = [[values[i] for i in at] for values in (*model[3:], baseline)]
        moved = alpaca.length_controlled_win_rate(*judged, difficulty[: len(at)], gamed)
        yield (
            f"AlpacaEval LC of {name}, n {len(at)}: published {model.lc:.2f}, ours with "
            f"difficulties by position {moved.lc_win_rate:.2f}, by text {ours[name].lc_win_rate:.2f}"
        )
    itself = ours[BASELINE]
    yield f"AlpacaEval baseline against itself: raw {itself.win_rate}, LC {itself.lc_win_rate}"
    without = {name: off(rates(model, NO_GAMED_ROWS), model) for name, model in whole.items()}
    given = sum(rates(model, None).lc_win_rate is not None for model in models.values())
    yield (
        f"AlpacaEval without gamed rows: an LC for {given} of {len(models)} models; fitted all the "
        f"same, largest difference {largest(without)} over {len(whole)} models"
    )


def published_models(preferences: Path, lengths: Path, published: Path) -> dict[str, Published]:
    """Read the three tables, in the order of published.csv."""
    judged, long = read_table(preferences), read_table(lengths)
    return {
        (name := row["model"]): Published(
            int(row["n"]),
            float(row["win_rate_published"]),
            float(row["length_controlled_winrate_published"]),
            numbers(judged, name),
            numbers(long, name),
        )
        for row in read_table(published)
    }


def read_table(path: Path) -> list[dict[str, str]]:
    """Read a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def numbers(rows: list[dict[str, str]], name: str) -> list[float]:
    """One column, NaN where it is empty."""
    return [float(row[name] or "nan") for row in rows]


def off(ours: alpaca.WinRate, model: Published) -> float:
    """Points between our LC and the published one."""
    assert ours.lc_win_rate is not None
    return abs(ours.lc_win_rate - model.lc)


def largest(errors: dict[str, float]) -> str:
    """The largest of them, and whose it is."""
    name = max(errors, key=errors.__getitem__)
    return f"{errors[name]:.2g} points ({name})"


def log_probabilities(path: Path) -> Iterator[str]:
    """Preferences read off stored replies of the judge, beside the stored preferences."""
    rows = [row for row in alpaca.read_annotations(path) if row["raw_completion"] is not None]
    errors = []
    for row in rows:
        flipped = alpaca.official_order_is_flipped(row["instruction"])
        found = alpaca.preference_from_logprobs(row["raw_completion"], flipped=flipped).preference
        errors.append(math.inf if found is None else abs(found - row["preference"]))
    yield (
        f"AlpacaEval preferences from stored log probabilities of {path.name.split('.')[0]}: "
        f"n {len(rows)}, largest difference {max(errors):.2g}"
    )


def solutions(path: Path) -> Iterator[str]:
    """GSM8K grades beside the published flags; these solutions announce the answer by `A:`."""
    rows = read_rows(path)
    references = ["#### " + row["ground_truth"].rsplit("A:", 1)[1].strip() for row in rows]
    for model in (name for name, value in rows[0].items() if isinstance(value, dict)):
        texts = [row[model]["solution"] for row in rows]
        agreed: Counter[str] = Counter()
        for row, text, answer in zip(rows, texts, references, strict=True):
            right = {
                how: grade(text, answer, how=how, marker="A:") is Outcome.CORRECT
                for how in ("strict", "flexible")
            }
            right["lm-eval strict"] = lm_eval_correct(text.replace("A:", "####"), answer)
            right["lm-eval flexible"] = lm_eval_correct(text, answer, how="flexible")
            agreed.update(how for how in right if right[how] == row[model]["is_correct"])
        flagged = sum(row[model]["is_correct"] for row in rows)
        yield (
            f"GSM8K {model}: n {len(rows)}, {flagged} flagged correct; agree with the flag: "
            + ", ".join(f"{how} {agreed[how]}" for how in right)
        )


def human_labels(testset: Path, replies: Path) -> Iterator[str]:
    """PandaLM's published gpt-3.5 replies, read as our own judge's, beside three people's labels."""
    rows = json.loads(testset.read_text(encoding="utf-8"))
    texts = {row["idx"]: row["gpt_result"] for row in json.loads(replies.read_text("utf-8"))}
    template = load_template("pandalm")
    engine = OpenAIJudge("gpt-3.5-turbo", base_url="https://judge.invalid/v1", reads="text")
    seen: Counter[tuple[str, str, str]] = Counter()
    comparisons = []
    with tempfile.TemporaryDirectory() as folder:
        with ReplyCache(Path(folder) / "replies.jsonl") as kept:
            for row in rows:
                prompt = f"{row['instruction']}\n\n{row['input']}".strip()
                pair = prompt, str(row["response1"]), str(row["response2"])  # some are JSON's true
                one = Comparison(str(row["idx"]), *pair, repeat=seen[pair])
                seen[pair] += 1
                key = question_key(engine, template, one.question("ab"))
                kept.add(key, {"text": texts[row["idx"]]})
                comparisons.append(one)
        found = judge(
            comparisons, engine, template, kept.path, both_orders=False, max_calls=0,
            announce=lambda plan: None,
        )  # fmt: skip
    both: Counter[tuple[str, str]] = Counter()
    for row, verdict in zip(rows, found.verdicts, strict=True):
        ((label, _),) = Counter(row[f"annotator{i}"] for i in (1, 2, 3)).most_common(1)
        both[{0: "tie", 1: "loss", 2: "win"}[label], str(verdict.outcome)] += 1
    same, n = both["win", "win"] + both["loss", "loss"], len(rows)
    low, high = (100 * end for end in (wilson_interval(same, n).low, wilson_interval(same, n).high))
    yield (
        f"PandaLM, published gpt-3.5 replies and the majority of three people: n {n}, the same "
        f"winner {same} ({100 * same / n:.1f} % [{low:.1f}, {high:.1f}]), both a tie "
        f"{both['tie', 'tie']}, no verdict in {found.counts['unparsed']}; calls made {found.calls}"
    )


def shared_words(train: Path, test: Path) -> Iterator[str]:
    """GSM8K's test problems and its training rows."""
    training, items = (
        [example_of("gsm8k", row) for row in read_rows(path)] for path in (train, test)
    )
    found = overlaps(map(training_texts, training), [benchmark_item(item) for item in items])
    yield (
        f"GSM8K test against train, {found.n} words in a row: {found.count()} of {found.items} "
        f"problems share them with one of {found.training_rows} rows ({found.count('prompt')} in "
        f"the question, {found.count('reference')} in the answer)"
    )


PARTS: list[tuple[str, list[str], Callable[..., Iterator[str]]]] = [
    (
        "alpaca_eval2",
        [
            "preferences.csv", "output_lengths.csv", "published.csv", "instruction_difficulty.csv",
            f"{BASELINE}.model_outputs.json", "df_gamed*.csv",
        ],
        win_rates,
    ),
    ("alpaca_eval2", ["text_davinci_001.annotations.json*"], log_probabilities),
    ("gsm8k", ["*model_solutions*.jsonl"], solutions),
    ("pandalm", ["testset-v1.json", "gpt-3.5-turbo-testset-v1.json"], human_labels),
    ("gsm8k", ["train.jsonl", "test.jsonl"], shared_words),
]  # fmt: skip


if __name__ == "__main__":
    main()
