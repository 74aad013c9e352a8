"""Our scorers on published model outputs, beside the published numbers: no model, no network.

    python benchmarks/ground_truth.py DATA

DATA holds folders made from public repositories; a part whose files are absent is left out.

alpaca_eval2/, from github.com/tatsu-lab/alpaca_eval (tables: a row an instruction, in its order):
    preferences.csv     a column a model: `preference` of its annotations.json in
                        results/MODEL/weighted_alpaca_eval_gpt4_turbo/, empty where there is none
    output_lengths.csv  the same with len(output_2); gpt4_1106_preview(baseline) is len(output_1)
    published.csv       model, n, and from the leaderboard's CSV win_rate_published and
                        length_controlled_winrate_published
    instruction_difficulty.csv  index, instruction_difficulty: (logit(glm_preference) - bias) /
                        weight, from one model's annotations and the published weights
    df_gamed.csv        of the hub dataset tatsu-lab/alpaca_eval, or a reconstruction of it with
                        the same columns, df_gamed_recon.csv
    gpt4_1106_preview.model_outputs.json, text_davinci_001.annotations.json(.gz)
gsm8k/, from github.com/openai/grade-school-math: train.jsonl, test.jsonl and
    example_model_solutions.jsonl (or model_solutions_6b.jsonl: its 6B models)
pandalm/, from github.com/WeOpenML/PandaLM: testset-v1.json, gpt-3.5-turbo-testset-v1.json
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

from eval.benchmarks import alpaca_files
from eval.benchmarks.overlap import benchmark_item, overlaps, training_texts
from eval.graders.alpaca import official_order_is_flipped, preference_from_logprobs
from eval.graders.gsm8k import grade, lm_eval_correct
from eval.graders.length_control import WinRate
from eval.graders.length_control import length_controlled_win_rate as rate
from eval.judge.cache import ReplyCache
from eval.judge.compare import judge, question_key
from eval.judge.openai import OpenAIJudge
from eval.judge.template import load_template
from eval.judge.types import Comparison
from eval.stats.intervals import wilson_interval
from eval.stats.types import Outcome
from pipeline.data.tasks import example_of
from pipeline.steps.artifact import read_rows

BASELINE = "gpt4_1106_preview"
GRID = [10 ** (-4 + 8 * k / 9) for k in range(10)]  # of C, in AlpacaEval's cross-validation
# One row with every feature 0 and p = 0.5 teaches nothing: the fit is one without gamed rows.
NO_GAMED_ROWS = [(0.0, 0.0, 0.5)]


class Published(NamedTuple):
    """A model in AlpacaEval's repository: its numbers, preferences and both answers' lengths."""

    n: int
    win_rate: float
    lc: float
    columns: tuple[list[float], list[float], list[float]]


def main() -> None:
    """Print every figure whose files are there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, metavar="DATA")
    data = parser.parse_args().data
    printed = False
    for lines, folder, names in PARTS:
        paths = {name: min((data / folder).glob(name), default=None) for name in names.split()}
        if missing := [name for name, path in paths.items() if path is None]:
            print(f"left out: {lines.__name__}, for want of {', '.join(missing)} in {folder}/")
            continue
        for line in lines(*paths.values()):
            print(line, flush=True)
        printed = True
    if not printed:
        parser.error(f"nothing to compare in {data}; --help says what belongs there")


def win_rates(
    preferences: Path, lengths: Path, published: Path, table: Path, outputs: Path, gamed_file: Path
) -> Iterator[str]:
    """AlpacaEval's raw and length-controlled win rates."""
    models = read_models(preferences, lengths, published)
    instructions = [row["instruction"] for row in alpaca_files.read_model_outputs(outputs)]
    difficulty = list(alpaca_files.read_difficulties(table, instructions).values())
    gamed = alpaca_files.read_gamed(gamed_file)
    ours = {name: rate(*model.columns, difficulty, gamed) for name, model in models.items()}
    raw = {name: abs(ours[name].win_rate - model.win_rate) for name, model in models.items()}
    yield f"AlpacaEval raw: {len(raw)} models, largest difference {largest(raw)}"
    whole = {name: model for name, model in models.items() if model.n == len(instructions)}
    errors = {name: off(ours[name], model) for name, model in whole.items()}
    others = [model for name, model in whole.items() if errors[name] > 1e-6]
    explained = sum(
        any(off(rate(*model.columns, difficulty, gamed, c), model) <= 1e-6 for c in GRID)
        for model in others
    )
    yield (
        f"AlpacaEval LC, gamed rows of {gamed_file.name}: {len(whole)} models with all "
        f"{len(instructions)} rows, largest difference {largest(errors)}; "
        f"{sum(error <= 0.01 for error in errors.values())} within 0.01 points, "
        f"{len(whole) - len(others)} within 1e-6; {explained} of the other {len(others)} within "
        "1e-6 at another C of the grid"
    )
    for name, model in models.items():
        if name not in whole:
            moved = by_position(model, difficulty, gamed).lc_win_rate
            nearest = min(off(by_position(model, difficulty, gamed, c), model) for c in GRID)
            yield (
                f"AlpacaEval LC of {name}, n {model.n}: published {model.lc:.2f}; ours with "
                f"difficulties by position {moved:.2f} (at the nearest C of the grid "
                f"{nearest:.1g} off), by text {ours[name].lc_win_rate:.2f}"
            )
    itself = ours[BASELINE]
    yield f"AlpacaEval baseline against itself: raw {itself.win_rate}, LC {itself.lc_win_rate}"
    given = [rate(*model.columns, difficulty).lc_win_rate for model in models.values()]
    without = {m: off(rate(*whole[m].columns, difficulty, NO_GAMED_ROWS), whole[m]) for m in whole}
    yield (
        f"AlpacaEval without gamed rows: no LC for {given.count(None)} of {len(models)} models; "
        f"fitted all the same, largest difference {largest(without)} over {len(whole)} models"
    )


def by_position(
    model: Published,
    difficulty: list[float],
    gamed: list[tuple[float, ...]],
    c: float | None = None,
) -> WinRate:
    """Leave out the rows without a verdict first, then look difficulties up by position."""
    at = [place for place, p in enumerate(model.columns[0]) if not math.isnan(p)]
    judged, ours, baseline = ([column[place] for place in at] for column in model.columns)
    return rate(judged, ours, baseline, difficulty[: len(at)], gamed, c)


def read_models(preferences: Path, lengths: Path, published: Path) -> dict[str, Published]:
    """Read the three tables, in the order of published.csv; NaN where a cell is empty."""

    def read(path: Path) -> list[dict[str, str]]:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def column(rows: list[dict[str, str]], name: str) -> list[float]:
        return [float(row[name] or "nan") for row in rows]

    judged, long = read(preferences), read(lengths)
    baseline = column(long, f"{BASELINE}(baseline)")
    numbers = "win_rate_published", "length_controlled_winrate_published"
    models = {}
    for row in read(published):
        columns = column(judged, row["model"]), column(long, row["model"]), baseline
        win_rate, lc = (float(row[number]) for number in numbers)
        models[row["model"]] = Published(int(row["n"]), win_rate, lc, columns)
    return models


def off(ours: WinRate, model: Published) -> float:
    """Points between our LC and the published one."""
    assert ours.lc_win_rate is not None
    return abs(ours.lc_win_rate - model.lc)


def largest(errors: dict[str, float]) -> str:
    """The largest error, and whose it is."""
    name = max(errors, key=errors.__getitem__)
    return f"{errors[name]:.3g} points ({name})"


def log_probabilities(path: Path) -> Iterator[str]:
    """Preferences read off the judge's stored replies, beside the stored preferences."""
    rows = [row for row in alpaca_files.read_annotations(path) if row["raw_completion"] is not None]
    errors = []
    for row in rows:
        flipped = official_order_is_flipped(row["instruction"])
        found = preference_from_logprobs(row["raw_completion"], flipped=flipped).preference
        errors.append(math.inf if found is None else abs(found - row["preference"]))
    yield (
        f"AlpacaEval preferences read off the log probabilities in {path.name}: n {len(rows)}, "
        f"largest difference {max(errors):.3g}"
    )


def solutions(path: Path) -> Iterator[str]:
    """GSM8K grades beside the published flags; the solutions write `A:` where GSM8K has `####`."""
    rows = read_rows(path)
    for model in (name for name, value in rows[0].items() if isinstance(value, dict)):
        agreed: Counter[str] = Counter()
        for row in rows:
            answer = "#### " + row["ground_truth"].rsplit("A:", 1)[1].strip()
            text, flag = row[model]["solution"], row[model]["is_correct"]
            for how in ("strict", "flexible"):
                ours = grade(text, answer, how=how, marker="A:") is Outcome.CORRECT
                theirs = lm_eval_correct(text.replace("A:", "####"), answer, how=how)
                agreed.update({how: ours == flag, f"lm-eval {how}": theirs == flag})
        flagged = sum(row[model]["is_correct"] for row in rows)
        yield (
            f"GSM8K {model}: n {len(rows)}, {flagged} flagged correct; same as the flag: "
            + ", ".join(f"{how} {count}" for how, count in agreed.items())
        )


def human_labels(testset: Path, replies: Path) -> Iterator[str]:
    """PandaLM's published gpt-3.5 replies, read by our judge, beside the labels of three people."""
    rows = json.loads(testset.read_text(encoding="utf-8"))
    said = {row["idx"]: row["gpt_result"] for row in json.loads(replies.read_text("utf-8"))}
    template = load_template("pandalm")
    engine = OpenAIJudge("gpt-3.5-turbo", base_url="https://judge.invalid/v1", reads="text")
    seen: Counter[tuple[str, str, str]] = Counter()
    pairs = []
    with tempfile.TemporaryDirectory() as folder:
        with ReplyCache(Path(folder) / "replies.jsonl") as kept:
            for row in rows:
                prompt = f"{row['instruction']}\n\n{row['input']}".strip()
                texts = prompt, str(row["response1"]), str(row["response2"])  # some are JSON's true
                # Some pairs are there twice and were judged anew.
                pairs.append(Comparison(str(row["idx"]), *texts, repeat=seen[texts]))
                seen[texts] += 1
                key = question_key(engine, template, pairs[-1].question("ab"))
                kept.add(key, {"text": said[row["idx"]]})
        found = judge(pairs, engine, template, kept.path, False, 0, announce=lambda plan: None)
    both: Counter[tuple[str, str]] = Counter()
    for row, verdict in zip(rows, found.verdicts, strict=True):
        majority = Counter(row[f"annotator{i}"] for i in (1, 2, 3)).most_common(1)[0][0]
        both[{0: "tie", 1: "loss", 2: "win"}[majority], str(verdict.outcome)] += 1
    same, n = both["win", "win"] + both["loss", "loss"], len(rows)
    ends = wilson_interval(same, n)
    yield (
        f"PandaLM, published gpt-3.5 replies and the majority of three people: n {n}, same winner "
        f"{same} ({100 * same / n:.1f} % [{100 * ends.low:.1f}, {100 * ends.high:.1f}]), both a "
        f"tie {both['tie', 'tie']}; no verdict in {found.counts['unparsed']} replies, "
        f"{found.calls} calls made"
    )


def shared_words(train: Path, test: Path) -> Iterator[str]:
    """Words that GSM8K's test problems share with its training rows."""
    training, items = (
        [example_of("gsm8k", row) for row in read_rows(path)] for path in (train, test)
    )
    found = overlaps(map(training_texts, training), [benchmark_item(item) for item in items])
    yield (
        f"GSM8K test against train, {found.n} words in a row: {found.count()} of {found.items} "
        f"problems share them with one of {found.training_rows} rows ({found.count('prompt')} in "
        f"the question, {found.count('reference')} in the answer)"
    )


_TABLES = "preferences.csv output_lengths.csv published.csv instruction_difficulty.csv"
PARTS: list[tuple[Callable[..., Iterator[str]], str, str]] = [
    (win_rates, "alpaca_eval2", f"{_TABLES} {BASELINE}.model_outputs.json df_gamed*.csv"),
    (log_probabilities, "alpaca_eval2", "text_davinci_001.annotations.json*"),
    (solutions, "gsm8k", "*model_solutions*.jsonl"),
    (human_labels, "pandalm", "testset-v1.json gpt-3.5-turbo-testset-v1.json"),
    (shared_words, "gsm8k", "train.jsonl test.jsonl"),
]


if __name__ == "__main__":
    main()
