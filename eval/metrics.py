"""GSM8K accuracy, AlpacaEval win rates and ROUGE as metrics of the `evaluate` library, offline.

`GSM8KAccuracy().compute(predictions=solutions, references=answers)`; `add`, `add_batch`,
`evaluate.combine` and pickling work as for any of its metrics. They compute what the functions of
`eval.graders.gsm8k`, `eval.graders.alpaca` and `eval.graders.rouge` do, and this is the one
module that imports `evaluate`, which takes seconds.

An evaluation of nothing is a ValueError everywhere, never 0.0, and so are predictions and
references that differ in number, or a text that is None.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import datasets
import evaluate

from eval.graders import length_control
from eval.graders.alpaca import score, why_not_controlled
from eval.graders.gsm8k import REFERENCE_MARKER, grade
from eval.graders.rouge import MEASURES, rouge
from eval.stats.intervals import wilson_interval
from eval.stats.seeds import mean_over_seeds
from eval.stats.types import Tally

__all__ = ["GSM8KAccuracy", "LengthControlledWinRate", "Rouge", "WinRate"]

_TEXT, _NUMBER = datasets.Value("string"), datasets.Value("float64")
_TEXTS = {"predictions": _TEXT, "references": _TEXT}
_ANSWERS = {
    "predictions": {"output": _TEXT, "preference": _NUMBER},
    "references": {"instruction": _TEXT, "output": _TEXT},
}


class _InMemory(evaluate.Metric, ABC):
    """Keeps inputs in memory unless told otherwise, where `evaluate` would write a cache file.

    Abstract, because `evaluate.load` of a file takes the first metric in it that is not.
    """

    def __init__(self, config_name: str | None = None, keep_in_memory: bool = True, **options: Any):
        super().__init__(config_name, keep_in_memory=keep_in_memory, **options)

    @abstractmethod
    def _info(self) -> evaluate.MetricInfo:
        """Describe the metric and its inputs; `evaluate` calls it."""

    def _described(
        self, description: str, citation: str, features: Mapping[str, Any]
    ) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=description,
            citation=citation,
            # `evaluate` appends it to the docstring of compute.
            inputs_description=f"\n\n{self.__doc__ or ''}",
            features=datasets.Features(features),
        )


class GSM8KAccuracy(_InMemory):
    """Accuracy of the final numbers of solutions, read strictly and flexibly.

    Predictions are solutions, references GSM8K answers with their `#### n`, or numbers. Options of
    `compute`: `marker`, what announces the answer in a solution (`####`); `truncated`, one flag a
    prediction, whether its generation stopped at the token limit.

    It returns accuracies as fractions and counts of examples:

    - `n`, and `level` of the Wilson intervals;
    - `accuracy_strict` with its interval `low`, `high`, `unparsed_strict`, `truncated_strict`;
    - `accuracy_flexible` with `low_flexible`, `high_flexible`, `unparsed_flexible` and
      `truncated_flexible`.

    ValueError: a reference has no number, marker is empty, or there is not one flag a prediction.
    """

    def _info(self) -> evaluate.MetricInfo:
        return self._described(
            "Accuracy of final numbers on GSM8K, strict and flexible.",
            "Cobbe et al. (2021), Training Verifiers to Solve Math Word Problems, arXiv:2110.14168",
            _TEXTS,
        )

    def _compute(
        self,
        *,
        predictions: Sequence[str],
        references: Sequence[str],
        marker: str = REFERENCE_MARKER,
        truncated: Iterable[bool] | None = None,
    ) -> dict[str, float]:
        _check_texts(predictions=predictions, references=references)
        flags = [False] * len(predictions) if truncated is None else list(truncated)
        if len(flags) != len(predictions):
            raise ValueError(
                f"truncated has {len(flags)} flags for {len(predictions)} predictions: give one a "
                "prediction, or None where all are complete"
            )
        strict, flexible = (
            Tally.count(
                grade(text, reference, how=how, marker=marker, truncated=flag)
                for text, reference, flag in zip(predictions, references, flags, strict=True)
            )
            for how in ("strict", "flexible")
        )
        interval = wilson_interval(strict.correct, strict.n)
        interval_flexible = wilson_interval(flexible.correct, flexible.n)
        return {
            "n": strict.n,
            "level": interval.level,
            "accuracy_strict": strict.accuracy,
            "low": interval.low,
            "high": interval.high,
            "unparsed_strict": strict.unparsed,
            "truncated_strict": strict.truncated,
            "accuracy_flexible": flexible.accuracy,
            "low_flexible": interval_flexible.low,
            "high_flexible": interval_flexible.high,
            "unparsed_flexible": flexible.unparsed,
            "truncated_flexible": flexible.truncated,
        }


class WinRate(_InMemory):
    """How often a judge prefers a model's answers to AlpacaEval's baseline's.

    One dict an instruction: predictions with the model's `output` and the `preference` for it in
    [1, 2] (NaN for no verdict), references with the `instruction` and
    the baseline's `output`. `compute` takes no options.

    It returns `n`, the judged instructions, and in percent `win_rate`, `standard_error` (None for
    n = 1), and the interval `low`, `high` of `level`.

    ValueError: an instruction is there twice, a preference is out of range, or none is judged.
    """

    def _info(self) -> evaluate.MetricInfo:
        return self._described(
            "Win rate against AlpacaEval's baseline.",
            "Li et al. (2023), AlpacaEval: An Automatic Evaluator of Instruction-following Models",
            _ANSWERS,
        )

    def _compute(
        self, *, predictions: Sequence[Mapping[str, Any]], references: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        rows = _annotations(predictions, references)
        return _raw_win_rate(rows, score(rows, None))


class LengthControlledWinRate(_InMemory):
    """AlpacaEval 2's win rate at equal lengths, beside the raw one.

    Predictions and references are those of `WinRate`. Options of `compute`, as for
    `eval.graders.alpaca.score`: `difficulties` by instruction text, the `gamed` rows, and
    `resamples` of the interval (1000; 0 for none). `force` fits the regression on fewer than 200
    judged instructions too.

    It returns what `WinRate` does, and in percent `lc_win_rate` with its bootstrap interval
    `lc_low`, `lc_high`; `C`, the inverse strength of the penalty; and `reason`. Where there is no
    length-controlled win rate, `reason` says why and the others are None. There is none without
    difficulties or gamed rows and, as in reports, none below 200 judged instructions: the number
    is then typically 3 points off or more, and its interval does not say so
    (`benchmarks/few_instructions.py`).

    ValueError: as `WinRate`, or an instruction has no difficulty, or an option is out of range.
    """

    def _info(self) -> evaluate.MetricInfo:
        return self._described(
            "Length-controlled win rate against AlpacaEval's baseline.",
            "Dubois et al. (2024), Length-Controlled AlpacaEval, arXiv:2404.04475",
            _ANSWERS,
        )

    def _compute(
        self,
        *,
        predictions: Sequence[Mapping[str, Any]],
        references: Sequence[Mapping[str, Any]],
        difficulties: Mapping[str, float] | None = None,
        gamed: Sequence[Sequence[float]] | None = None,
        resamples: int = 1000,
        force: bool = False,
    ) -> dict[str, Any]:
        rows = _annotations(predictions, references)
        result = score(rows, difficulties, gamed, resamples=resamples)
        reason = result.reason if force else why_not_controlled(result)
        interval = None if reason else result.lc_interval
        return {
            **_raw_win_rate(rows, result),
            "lc_win_rate": None if reason else result.lc_win_rate,
            "lc_low": None if interval is None else interval.low,
            "lc_high": None if interval is None else interval.high,
            "C": None if reason else result.C,
            "reason": reason,
        }


class Rouge(_InMemory):
    """ROUGE-1, ROUGE-2 and ROUGE-L of texts against one reference each, stemmed.

    Predictions and references are texts. `compute` takes no options.

    It returns plain means of F measures in percent, `rouge1`, `rouge2` and `rougeL`, each with its
    interval over pairs (`rouge1_low`, `rouge1_high` and so on) of `level`; `n`, the pairs
    behind them; and `left_out`, the pairs left out because ROUGE reads nothing in the reference.
    An empty prediction scores 0 and is not left out.

    ValueError: ROUGE reads nothing in any of the references.
    """

    def _info(self) -> evaluate.MetricInfo:
        return self._described(
            "ROUGE-1, ROUGE-2 and ROUGE-L, means of stemmed F measures with intervals.",
            "Lin (2004), ROUGE: A Package for Automatic Evaluation of Summaries, ACL W04-1013",
            _TEXTS,
        )

    def _compute(
        self, *, predictions: Sequence[str], references: Sequence[str]
    ) -> dict[str, float]:
        _check_texts(predictions=predictions, references=references)
        pairs = [rouge(*pair) for pair in zip(predictions, references, strict=True)]
        scored = [pair for pair in pairs if pair is not None]
        if not scored:
            raise ValueError(
                f"none of {len(pairs)} references holds a letter or digit for ROUGE to read, "
                "and an empty evaluation is an error, not 0.0: give at least one that has"
            )
        values: dict[str, float] = {"n": len(scored), "left_out": len(pairs) - len(scored)}
        for measure in MEASURES:
            summary = mean_over_seeds([[pair[measure] / 100 for pair in scored]], shares=True)
            values[measure] = 100 * summary.value
            values[f"{measure}_low"] = 100 * summary.low
            values[f"{measure}_high"] = 100 * summary.high
            values["level"] = 0.95
        return values


def _check_texts(**columns: Iterable[str | None]) -> None:
    """Refuse texts that are not there; `evaluate` itself looks at the first one only."""
    for name, texts in columns.items():
        for row, text in enumerate(texts):
            if text is None:
                raise ValueError(f"{name}[{row}] has None for a text: a model's silence is ''")


def _annotations(
    predictions: Sequence[Mapping[str, Any]], references: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return the rows as `eval.graders.alpaca.score` takes them."""
    _check_texts(
        predictions=(prediction["output"] for prediction in predictions),
        references=(reference["output"] for reference in references),
        instructions=(reference["instruction"] for reference in references),
    )
    if any(prediction["preference"] == 0 for prediction in predictions):
        raise ValueError(
            "a preference is 0, valid are numbers in [1, 2]: a probability of the model's answer "
            "is 1 less than its preference, and a tie is 1.5"
        )
    return [
        {
            "instruction": reference["instruction"],
            "output_1": reference["output"],
            "output_2": prediction["output"],
            "preference": prediction["preference"],
        }
        for prediction, reference in zip(predictions, references, strict=True)
    ]


def _raw_win_rate(
    rows: Sequence[Mapping[str, Any]], result: length_control.WinRate
) -> dict[str, Any]:
    """Return the raw win rate of judged rows with its interval, in percent."""
    judged = [row["preference"] for row in rows if row["preference"] is not None]
    shares = [preference - 1 for preference in judged if not math.isnan(preference)]
    found = mean_over_seeds([shares], verdicts=True)
    return {
        "n": result.n,
        "win_rate": result.win_rate,
        "standard_error": result.standard_error,
        "low": 100 * found.low,
        "high": 100 * found.high,
        "level": 0.95,
    }
