"""The grades of `gap`: slopes, curves, agreement, accuracy by answer length. See gap.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.benchmarks.gap_steps import LOSSES, labels_of
from eval.benchmarks.results import read_answers, store
from eval.stats.measures import Measure, curve, measure
from pipeline.data.tasks import Example
from pipeline.stages import sft
from pipeline.steps import artifact

if TYPE_CHECKING:
    from pipeline.data.render import Renderer
    from pipeline.steps.context import StepContext

LENGTH = "length"
_NATS = {"unit": "nats", "better": "lower"}


@dataclass(frozen=True)
class Losses:
    """What a model lost on contexts.

    Attributes:
        ids: the rows' ids, N of them.
        rates: R rates, rising from 0.
        nats: nats a token, R lists of N.
        changed: the share of context tokens that are not the reference's, R lists of N.
    """

    ids: list[int]
    rates: list[float]
    nats: list[list[float]]
    changed: list[list[float]]

    @classmethod
    def read(cls, folder: Path) -> Losses:
        """Read what a step of losses has written."""
        rows = artifact.read_rows(folder / LOSSES)
        known = {(row["rate"], row["id"]): row for row in rows}
        rates, ids = sorted({rate for rate, _ in known}), sorted({row for _, row in known})

        def table(name: str) -> list[list[float]]:
            return [
                [known[rate, i][name] / known[rate, i]["tokens"] for i in ids] for rate in rates
            ]

        return cls(ids, rates, table("nats"), table("changed"))

    @property
    def slopes(self) -> list[float]:
        """The slope of each row."""
        return [slope(self.rates, row) for row in zip(*self.nats, strict=True)]

    @property
    def curve(self) -> dict[str, Any]:
        """One measure a rate."""
        points = zip(self.rates, self.nats, strict=True)
        return curve(self.ids, {f"{rate:g}": measure(nats, **_NATS) for rate, nats in points})


def grade(step: StepContext) -> None:
    """Step: grade what models lost on contexts; writes grades.jsonl and result.json."""
    from pipeline.data.render import renderer_for

    folders, renderer = step.input_folders(), renderer_for(step)
    own = Losses.read(folders["own"])
    agreed = _agreements(step, folders["contexts"], renderer, own.ids)
    measures = {"gap slope": measure(own.slopes, **_NATS)}
    curves = {"own": own.curve}
    if "fixed" in folders:
        fixed = Losses.read(folders["fixed"])
        measures["slope, fixed contexts"] = measure(fixed.slopes, **_NATS)
        curves["fixed"] = fixed.curve
    measures |= {
        "NLL at 0": measure(own.nats[0], **_NATS),
        "tokens changed": measure(own.changed[-1]),
        "agrees": measure([same for same, *_ in agreed], unit="tokens"),
        "agrees to the end": measure([is_whole for _, _, is_whole in agreed]),
    }
    if "scored" in folders:
        curves[LENGTH] = _by_length(folders["scored"], folders["scored answers"], renderer, step)
    grades = [
        {
            "id": row,
            "verdict": f"as the reference for {same} of {size} tokens",
            "slope": one,
            "agrees": same,
        }
        for row, one, (same, size, _) in zip(own.ids, own.slopes, agreed, strict=True)
    ]
    counts = {"read": len(grades)}
    store(step, grades=grades, measures=measures, counts=counts, curves=curves)


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the slope of the least squares line through points.

    sum (x - mean x) (y - mean y) / sum (x - mean x)^2
    """
    middle, height = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - middle) * (b - height) for a, b in zip(x, y, strict=True))
    return above / sum((a - middle) ** 2 for a in x)


def agreement(answer: Sequence[int], reference: Sequence[int]) -> int:
    """Return how many tokens an answer has before the first that is not the reference's."""
    pairs = enumerate(zip(answer, reference, strict=False))
    differs = next((place for place, (ours, theirs) in pairs if ours != theirs), None)
    return min(len(answer), len(reference)) if differs is None else differs


def is_reference(answer: Sequence[int], reference: Sequence[int], end: int) -> bool:
    """Return whether an answer is the reference; none is one that was cut, and so has no end."""
    return list(answer) == list(reference) and reference[-1] == end


def thirds(lengths: Mapping[int, int]) -> dict[str, set[int]]:
    """Return the ids in thirds by falling under two lengths, by words for their lengths.

    Ids of one length are in the same third, so that thirds may differ in size, or be one or two.
    """
    ordered = sorted(lengths.values())
    cuts = [ordered[-(-len(ordered) * part // 3) - 1] for part in (1, 2)]
    found: dict[int, set[int]] = {}
    for example, length in lengths.items():
        found.setdefault(sum(length > cut for cut in cuts), set()).add(example)
    named = {}
    for place in sorted(found):
        sizes = [lengths[example] for example in found[place]]
        named[f"{min(sizes)} to {max(sizes)}"] = found[place]
    return named


def _agreements(
    step: StepContext, contexts: Path, renderer: Renderer, ids: Sequence[int]
) -> list[tuple[int, int, bool]]:
    """Of each row how many tokens the greedy answer agrees for, of how many, and `is_reference`."""
    rows = artifact.read_rows(contexts / sft.ROWS)
    references = {row["id"]: labels_of(row) for row in rows if row["rate"] == 0}
    answers = {
        row["id"]: renderer.own_answer_ids(row["ids"], finished=row["finished"])
        for row in read_answers(step)
    }
    end = renderer.end_of_turn_id
    pairs = [(answers[i], references[i]) for i in ids]
    return [(agreement(*pair), len(pair[1]), is_reference(*pair, end)) for pair in pairs]


def _by_length(
    scored: Path, answers: Path, renderer: Renderer, step: StepContext
) -> dict[str, Any]:
    """The scores of another benchmark by the length of the reference."""
    result = artifact.read_json(scored / artifact.RESULT)
    name = result["primary"]
    scores = dict(zip(result["ids"], result["measures"][name]["scores"], strict=True))
    lengths = {}
    for row in artifact.read_rows(answers / artifact.SAMPLES):
        example = Example(step.options["task"], row["messages"], row["reference"])
        lengths[row["id"]] = len(renderer.answer_ids(example, example.reference))
    measures: dict[str, Measure] = {}
    for words, third in thirds(lengths).items():
        inside = [scores[i] if i in third else None for i in scores]
        if any(score is not None for score in inside):
            measures[words] = measure(inside, unit=result["measures"][name]["unit"])
    return curve(list(scores), measures, of=f"{result['benchmark']} {name}")
