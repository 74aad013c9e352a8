"""recovery: whether a model still answers right after tokens that it should not have written.

BASH and RAC claim to teach a model to go on from its own, imperfect tokens; this asks it to. A
greedy answer to a held-out row is cut, some of the tokens before the cut are replaced by others
that the model finds likely, and the model continues from there:

    A(k) = share of answers that are right in the end, after k replaced tokens

Decisions:
1. Answers are cut after a quarter, half and three quarters of their tokens (`cuts`).
2. k tokens before the cut are replaced, from left to right: each is drawn from the writer's own
   distribution given the tokens before it, replaced ones included, but is never the token that
   stood there and never a special token. Tokens are chosen at random places (`where: spread`) or
   are the last ones (`end`); those of a smaller k are among those of a larger one. An answer with
   fewer than k tokens before the cut has all of them replaced.
3. Places and noise depend on (0, row, position): stages and training seeds are paired.
4. The continuation is greedy and the whole answer has the usual token limit, so that k = 0 gives
   the answer again, exactly so in float32. How often it does not is recorded.
5. With `fixed: STAGE` every stage also continues the beginnings that this stage wrote, so that only
   how they go on differs, not what they go on from.
6. A row is one example: its score is the mean over cuts (and over k above 0 for the main number).
   `kept` and `repaired` are that number among rows that were right without replaced tokens, and
   among the others (of several seeds: in every seed); between stages they compare different rows
   unless beginnings are fixed.
7. Whether a digit was replaced is told at the smallest k only: with many tokens one nearly always
   is, so that larger k would be compared with smaller ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from statistics import mean
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict, cast

from pydantic import Field

from eval.benchmarks import registry
from eval.benchmarks.results import answers_to_grade, store
from eval.benchmarks.types import Benchmark, Options
from eval.stats.measures import Curve, Measure, curve, measure
from pipeline.data.tasks import Example
from pipeline.errors import Problem, suggest
from pipeline.recipe.schema import Recipe, Source
from pipeline.rows.graded import has_grader, is_right
from pipeline.rows.stored import ROWS, AnswerRow, Grade, read_answers
from pipeline.steps.artifact import SAMPLES, read_rows
from pipeline.steps.options import BeginningOptions, ContinuationOptions, TaskGradeOptions

if TYPE_CHECKING:
    from pipeline.data.render import Renderer
    from pipeline.decoding.sampling import Sampling
    from pipeline.stages.builder import Builder
    from pipeline.steps.context import StepContext
    from pipeline.steps.spec import Model, StepSpec

NAME = "recovery"
DEFAULT_ROWS = 64
_NOISE_SEED = 0
Key = tuple[int, int, int]  # row, number of the cut, k


class Beginning(TypedDict):
    """The tokens before a cut, some of them replaced (`rows.jsonl` of recovery-beginnings).

    Attributes:
        prompt: ids of the prompt.
        ids: ids of the answer's tokens up to the cut.
        replaced: how many of them were replaced; below k where there are too few.
        digits: whether a replaced or a replacing token holds a digit.
    """

    id: int
    cut: int
    k: int
    prompt: list[int]
    ids: list[int]
    replaced: int
    digits: bool


class Continuation(TypedDict):
    """A continued answer (`samples.jsonl` of recovery-answers), with what its beginning was."""

    id: int
    cut: int
    k: int
    replaced: int
    digits: bool
    ids: list[int]
    answer: str
    finished: bool
    written: int  # tokens after the beginning


class RecoveryGrade(Grade):
    """Of a row: whether its continued answers are right, by k and cut."""

    right: dict[int, list[bool]]


class RecoveryOptions(Options):
    """Keys of `recovery`.

    Attributes:
        limit: use the first rows only; by default 64, or the limit of `data`.
        cuts: where answers are cut, as shares of their tokens, rising.
        replaced: how many tokens before a cut are replaced, rising.
        where: whether those are at random places or the last ones.
        fixed: a stage whose beginnings all stages continue too.
    """

    limit: int | None = Field(default=None, ge=1)
    cuts: list[Annotated[float, Field(gt=0, lt=1)]] = Field(default=[0.25, 0.5, 0.75], min_length=1)
    replaced: list[Annotated[int, Field(ge=1)]] = Field(default=[1, 2, 4, 8], min_length=1)
    where: Literal["spread", "end"] = "spread"
    fixed: str | None = None


def check(recipe: Recipe) -> list[Problem]:
    """Check that answers can be graded, that lists rise, and that the fixed stage exists."""
    given, problems = options_of(recipe), []
    if not has_grader(recipe.task):
        message = f"{NAME} needs a task that grades answers; {recipe.task} does not, use gap"
        problems.append(Problem("evaluate", message))
    if given.temperature:
        message = "must be 0: answers and what continues them are greedy; take it out"
        problems.append(Problem(f"benchmarks.{NAME}.temperature", message))
    for key in ("cuts", "replaced"):
        values = getattr(given, key)
        if any(low >= high for low, high in pairwise(values)):
            problems.append(Problem(f"benchmarks.{NAME}.{key}", f"{values} must increase"))
    if given.fixed is not None and given.fixed not in recipe.stages:
        stages = list(recipe.stages)
        message = (
            f'no stage "{given.fixed}"{suggest(given.fixed, stages)}; stages: {", ".join(stages)}'
        )
        problems.append(Problem(f"benchmarks.{NAME}.fixed", message))
    return problems


def options_of(recipe: Recipe) -> RecoveryOptions:
    """The benchmark's keys."""
    options = registry.options_of(recipe, NAME)
    assert isinstance(options, RecoveryOptions)
    return options


def plan(build: Builder, model: Model) -> StepSpec:
    """Answers, beginnings and continuations of the stage itself, those of the fixed stage, grades.

    For the fixed stage itself both are the same steps, which run once.
    """
    answers, beginnings = _beginnings(build, model)
    steps = {
        "answers": answers,
        "own": _continuations(build, model, beginnings, "own beginnings"),
    }
    if (fixed := options_of(build.recipe).fixed) is not None:
        writer = build.sibling(fixed)
        _, written = _beginnings(writer, writer.end)
        steps["fixed"] = _continuations(build, model, written, f"beginnings of {fixed}")
    return build.step(
        NAME,
        BENCHMARK.run,
        title=f"grade {NAME}",
        options=TaskGradeOptions(grader=BENCHMARK.version, task=build.recipe.task),
        steps=steps,
        main_process_only=True,
    )


def _beginnings(build: Builder, model: Model) -> tuple[StepSpec, StepSpec]:
    """Add the steps in which a model answers, and in which it replaces tokens of its answers."""
    recipe, given = build.recipe, options_of(build.recipe)
    source = registry.test_source(recipe, NAME)
    assert source is not None  # the recipe has been checked
    keys = {} if given.data is None else {"test": f"benchmarks.{NAME}.data"}
    answers = build.answers(
        model,
        source=_first_rows(given, source),
        role="test",
        title=f"answers for {NAME}",
        max_new_tokens=given.max_new_tokens,
        max_prompt_length=given.max_prompt_length,
        keys=keys,
    )
    beginnings = build.step(
        "recovery-beginnings",
        "eval.benchmarks.recovery:write_beginnings",
        title=f"beginnings for {NAME}",
        model=model,
        steps={"answers": answers},
        options=BeginningOptions(
            **build.rendering(),
            cuts=given.cuts,
            replaced=given.replaced,
            where=given.where,
            noise_seed=_NOISE_SEED,
            **recipe.reading,
        ),
        runtime_options=build.writing,
    )
    return answers, beginnings


def _first_rows(given: RecoveryOptions, source: Source) -> Source:
    own = None if given.data is None else given.data.limit
    return source.limited(given.limit or own or DEFAULT_ROWS)


def _continuations(build: Builder, model: Model, beginnings: StepSpec, whose: str) -> StepSpec:
    """Add the step in which a model continues beginnings."""
    given = options_of(build.recipe)
    return build.step(
        "recovery-answers",
        "eval.benchmarks.recovery:write_continuations",
        title=f"continuations of {whose}",
        model=model,
        steps={"beginnings": beginnings},
        options=ContinuationOptions(
            **build.rendering(),
            max_new_tokens=given.max_new_tokens or build.recipe.generation.max_new_tokens,
            **build.recipe.reading,
        ),
        runtime_options=build.writing,
    )


def write_beginnings(step: StepContext[BeginningOptions]) -> None:
    """Step: cut every answer and replace tokens before the cut, at every cut and k; k = 0 none."""
    from pipeline.data.render import renderer_for
    from pipeline.models.load import load_to_read
    from pipeline.rows.shards import length_buckets, write_in_shards

    options, renderer = step.options, renderer_for(step)
    model = load_to_read(step)
    cut = [
        _cut(answer, number, share, renderer, step)
        for answer in read_answers(step.input_folders()["answers"])
        for number, share in enumerate(options["cuts"])
    ]

    def make(items: Sequence[Beginning]) -> Iterator[Beginning]:
        for group, at_once in length_buckets(items, _size, step.runtime_options["batch_tokens"]):
            yield from replace_tokens(
                model,
                group,
                renderer,
                where=options["where"],
                seed=options["noise_seed"],
                batch_size=at_once,
            )

    rows = write_in_shards(
        step,
        [_at(row, k) for row in cut for k in (0, *options["replaced"])],
        make,
        key=_key,
        size=_size,
        row_key=_key,
        tokens=lambda row: row["replaced"],
        file_name=ROWS,
    )
    step.metrics |= {"rows": len(rows), "tokens_generated": sum(row["replaced"] for row in rows)}


def _cut(
    answer: AnswerRow,
    number: int,
    share: float,
    renderer: Renderer,
    step: StepContext[BeginningOptions],
) -> Beginning:
    example = Example(
        step.options["task"], answer["messages"], answer["reference"], tools=answer.get("tools")
    )
    ids = [token for token in answer["ids"] if token not in renderer.stop_ids]
    return {
        "id": answer["id"],
        "cut": number,
        "k": 0,
        "prompt": renderer.prompt_ids(example),
        "ids": ids[: int(share * len(ids))],
        "replaced": 0,
        "digits": False,
    }


def _at(row: Beginning, k: int) -> Beginning:
    return {**row, "k": k}


def _key(row: Beginning | Mapping[str, Any]) -> Key:
    return row["id"], row["cut"], row["k"]


def _size(row: Beginning) -> int:
    return len(row["prompt"]) + len(row["ids"])


def replace_tokens(
    model: Any,
    rows: Sequence[Beginning],
    renderer: Renderer,
    *,
    where: str,
    seed: int,
    batch_size: int,
) -> Iterator[Beginning]:
    """Replace k tokens of each beginning by other likely ones (decision 2).

    Args:
        model: the writer.
        rows: beginnings as they were written; `k` says how many tokens to replace.
        renderer: knows the special tokens and the ids without a token.
        where: 'spread' or 'end'.
        seed: with row id and position it determines places and tokens.
        batch_size: rows per forward pass; it does not change the result.
    """
    import torch

    from pipeline.decoding import noise
    from pipeline.decoding.jacobi import Row
    from pipeline.rows.contexts import fill

    excluded = tuple({*renderer.special_ids, *renderer.stop_ids, *renderer.ids_without_token})
    places = [_places(row, excluded, where, seed) for row in rows]
    # The noise of a place is the same at every cut and k, and so is the token that stands there.
    before: dict[int, int] = {}
    touched = []
    for row, replaced in zip(rows, places, strict=True):
        key_N = noise.keys(
            seed, torch.tensor(row["id"]), torch.tensor(replaced), stream=noise.SAMPLE
        )
        before |= zip(key_N.tolist(), (row["ids"][at] for at in replaced), strict=True)
        mask = torch.zeros(len(row["ids"]), dtype=torch.bool)
        mask[replaced] = True
        touched.append(Row(row["prompt"], row["ids"], row["id"], mask))
    numbers = [number for number, replaced in enumerate(places) if replaced]
    done = fill(
        model,
        [touched[number] for number in numbers],
        _others(before, seed, excluded),
        engine="parallel",
        context="mixed",
        batch_size=batch_size,
        warn=lambda sentence: None,
    )
    new = {numbers[place]: ids for place, ids in done}
    for number, row in enumerate(rows):
        ids = new.get(number, row["ids"])
        changed = [token for at in places[number] for token in (row["ids"][at], ids[at])]
        digits = any(character.isdigit() for character in renderer.tokenizer.decode(changed))
        yield {**row, "ids": ids, "replaced": len(places[number]), "digits": digits}


def _others(before: Mapping[int, int], seed: int, excluded: tuple[int, ...]) -> Sampling:
    """Sampling at temperature 1 that never draws the token that stood at a place.

    `before` maps the noise key of a place to that token.
    """
    import torch

    from pipeline.decoding.sampling import Sampling

    keys = sorted(before)
    held = {"cpu": (torch.tensor(keys), torch.tensor([before[key] for key in keys]))}

    class Others(Sampling):
        def noisy(self, logits_NV: torch.Tensor, key_N: torch.Tensor) -> torch.Tensor:
            # Keys of other places, which a pass may hold, change nothing.
            scores_NV = super().noisy(logits_NV, key_N)
            device = str(key_N.device)
            if device not in held:  # once: for a new tensor the host waits for a GPU
                held[device] = held["cpu"][0].to(device), held["cpu"][1].to(device)
            known, stood = held[device]
            at_N = torch.searchsorted(known, key_N).clamp(max=len(known) - 1)
            token_N1, is_known_N1 = stood[at_N, None], (known[at_N] == key_N)[:, None]
            kept_N1 = scores_NV.gather(1, token_N1).masked_fill(is_known_N1, float("-inf"))
            return scores_NV.scatter(1, token_N1, kept_N1)

    return Others(seed, temperature=1.0, excluded_ids=excluded)


def _places(row: Beginning, excluded: Sequence[int], where: str, seed: int) -> list[int]:
    """The positions to replace, rising; those of a smaller k are among them."""
    import torch

    from pipeline.decoding import noise

    if not row["k"]:
        return []
    free = [place for place, token in enumerate(row["ids"]) if token not in excluded]
    if where == "end":
        return free[len(free) - row["k"] :] if row["k"] < len(free) else free
    drawn = noise.keys(seed, torch.tensor(row["id"]), torch.tensor(free), stream=noise.REPLACE)
    order = noise.uniform(drawn).argsort().tolist() if free else []
    return sorted(free[place] for place in order[: row["k"]])


def write_continuations(step: StepContext[ContinuationOptions]) -> None:
    """Step: continue every beginning greedily, to the usual length of a whole answer."""
    from pipeline.data.render import renderer_for
    from pipeline.decoding.generate import Prompt, SamplingParams, iter_answers
    from pipeline.models.load import load_to_read
    from pipeline.rows.shards import length_buckets, write_in_shards

    renderer, model = renderer_for(step), load_to_read(step)
    written = cast(list[Beginning], read_rows(step.input_folders()["beginnings"] / ROWS))
    limit = step.options["max_new_tokens"]

    def room(row: Beginning) -> int:
        return max(limit - len(row["ids"]), 1)

    def size(row: Beginning) -> int:
        return _size(row) + room(row)

    def make(rows: Sequence[Beginning]) -> Iterator[Continuation]:
        for group, at_once in length_buckets(rows, size, step.runtime_options["batch_tokens"]):
            how = SamplingParams(
                max_new_tokens=max(map(room, group)),
                stop_ids=renderer.stop_ids,
                excluded_ids=renderer.ids_without_token,
            )
            prompts = [
                Prompt(row["id"], 0, row["prompt"] + row["ids"], limit=room(row)) for row in group
            ]
            for place, ids in iter_answers(model, prompts, how, batch_size=at_once):
                row = group[place]
                whole = row["ids"] + ids
                yield {
                    "id": row["id"],
                    "cut": row["cut"],
                    "k": row["k"],
                    "replaced": row["replaced"],
                    "digits": row["digits"],
                    "ids": whole,
                    "answer": renderer.answer_text(whole),
                    "finished": whole[-1] in renderer.stop_ids,
                    "written": len(whole) - len(row["ids"]),
                }

    rows = write_in_shards(
        step,
        written,
        make,
        key=_key,
        size=size,
        row_key=_key,
        tokens=lambda row: row["written"],
        file_name=SAMPLES,
    )
    step.metrics |= {"rows": len(rows), "tokens_generated": sum(row["written"] for row in rows)}


def grade(step: StepContext[TaskGradeOptions]) -> None:
    """Step: grade the continued answers; writes grades.jsonl and result.json."""
    folders, task = step.input_folders(), step.options["task"]
    answers = {row["id"]: row for row in answers_to_grade(step)}
    own = _right(read_rows(folders["own"] / SAMPLES), answers, task)
    same = [
        row["ids"] == answers[row["id"]]["ids"]
        for row in read_rows(folders["own"] / SAMPLES)
        if row["k"] == 0
    ]
    step.metrics["figures"] = {
        "answers continued without a change": len(same),
        "not continued to the same answer": same.count(False),
    }
    measures, curves = _measures(own, ""), {"own": _curve(own)}
    if "fixed" in folders:
        fixed = _right(read_rows(folders["fixed"] / SAMPLES), answers, task)
        measures |= _measures(fixed, ", fixed")
        curves["fixed"] = _curve(fixed)
    grades = [
        RecoveryGrade(
            id=row_id,
            verdict=f"{sum(found)} of {len(found)} right",
            right={k: own.by_k[k][row_id] for k in own.by_k},
        )
        for row_id in own.ids
        if (found := [one for k in own.above_0 for one in own.by_k[k][row_id]])
    ]
    store(step, grades=grades, measures=measures, counts={"continued": len(grades)}, curves=curves)


class Right:
    """Which continued answers are right.

    Attributes:
        ids: row ids.
        by_k: k -> row id -> whether the answer is right, by cut.
        digits: row id -> whether the answer is right, of those for which a digit was replaced at
            the smallest k.
        words: the same, of those for which other tokens were.
    """

    def __init__(self, ids: list[int], replaced: list[int]):
        self.ids = ids
        self.by_k: dict[int, dict[int, list[bool]]] = {k: {i: [] for i in ids} for k in replaced}
        self.digits: dict[int, list[bool]] = {i: [] for i in ids}
        self.words: dict[int, list[bool]] = {i: [] for i in ids}

    @property
    def above_0(self) -> list[int]:
        """Every k but 0."""
        return [k for k in self.by_k if k]

    def at(self, *ks: int) -> list[float]:
        """The score of each row: the mean over cuts and these k."""
        return [mean(right for k in ks for right in self.by_k[k][i]) for i in self.ids]


def _right(rows: list[Any], answers: Mapping[int, AnswerRow], task: str) -> Right:
    found = Right(sorted({row["id"] for row in rows}), sorted({row["k"] for row in rows}))
    for row in rows:
        whole = cast(AnswerRow, {**answers[row["id"]], **row})
        right = is_right(whole, task)
        found.by_k[row["k"]][row["id"]].append(right)
        if row["replaced"] and row["k"] == found.above_0[0]:
            (found.digits if row["digits"] else found.words)[row["id"]].append(right)
    return found


def _measures(found: Right, suffix: str) -> dict[str, Measure]:
    """The main number, A(k) for every k, and the main number for some of the rows."""
    whole, at_0 = found.at(*found.above_0), found.at(0)
    parts: dict[str, list[float | None]] = {
        "kept": [score if was == 1 else None for score, was in zip(whole, at_0, strict=True)],
        "repaired": [score if was < 1 else None for score, was in zip(whole, at_0, strict=True)],
        "digits replaced": [mean(found.digits[i]) if found.digits[i] else None for i in found.ids],
        "no digits replaced": [mean(found.words[i]) if found.words[i] else None for i in found.ids],
    }
    return {
        f"recovery{suffix}": measure(whole),
        **{f"right at {k}{suffix}": measure(found.at(k)) for k in found.by_k},
        **{
            f"{name}{suffix}": measure(scores)
            for name, scores in parts.items()
            if any(score is not None for score in scores)
        },
    }


def _curve(found: Right) -> Curve:
    return curve(found.ids, {str(k): measure(found.at(k)) for k in found.by_k})


BENCHMARK = Benchmark(
    run="eval.benchmarks.recovery:grade", options=RecoveryOptions, check=check, plan=plan
)
