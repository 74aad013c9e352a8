"""What a report holds: numbers with intervals, rows of tables, charts; report.json has them all."""

from __future__ import annotations

from dataclasses import dataclass, field

NOT_SIGNIFICANT = "not significant"


@dataclass(frozen=True)
class Cell:
    """A number with its 95 % interval, in percent unless `unit` says otherwise.

    Attributes:
        n: examples it is a mean over, in each seed.
        spread: standard deviation over seeds, None for one seed.
        better: 'higher' or 'lower'.
        seeds: how many it is a mean over.
        per_seed: what each of them measured; empty for one.
    """

    value: float
    low: float
    high: float
    n: int
    unit: str = "%"
    spread: float | None = None
    better: str = "higher"
    seeds: int = 1
    per_seed: tuple[float, ...] = ()


@dataclass(frozen=True)
class Difference:
    """A stage's number minus that of the baseline, on the same examples and seeds.

    Attributes:
        low, high: 95 % interval; of a primary measure, one that holds for all stages at once.
        n: examples that both have a score for, in each seed.
        p_value: of no difference, by the model of `eval.stats.seeds`.
        seeds: how many seeds both have finished.
        unit: of the number; '%' stands for points.
        better: 'higher' or 'lower'.
        compared: how many stages are compared at once.
        p_adjusted: `p_value`, adjusted for all of these (Holm); None where it is the only one.
        detectable: the smallest true difference that would be found four times in five.
        mcnemar: McNemar's exact p, of right and wrong answers of one seed; decides nothing.
        per_seed: the difference in each of them; empty for one.
    """

    value: float
    low: float
    high: float
    n: int
    p_value: float
    seeds: int = 1
    unit: str = "%"
    better: str = "higher"
    compared: int = 1
    p_adjusted: float | None = None
    detectable: float | None = None
    mcnemar: float | None = None
    per_seed: tuple[float, ...] = ()

    @property
    def p(self) -> float:
        """What the verdict rests on."""
        return self.p_value if self.p_adjusted is None else self.p_adjusted

    @property
    def verdict(self) -> str:
        """'better' or 'worse' where p is below 0.05; of one seed, 'ahead' or 'behind'.

        One seed compares two models: another seed of the same stages may come out otherwise.
        """
        if self.p >= 0.05:
            return NOT_SIGNIFICANT
        is_better = (self.value > 0) == (self.better == "higher")
        if self.seeds == 1:
            return "ahead" if is_better else "behind"
        return "better" if is_better else "worse"


@dataclass(frozen=True)
class Row:
    """One stage on one benchmark.

    Attributes:
        n: examples in each seed.
        seeds: how many seeds are finished.
        measures: by name, the benchmark's primary measure first.
        differences: by name, of the measures that are compared.
        counts: outcome -> examples, over all seeds.
        published: the published number, as the recipe gives it.
        own: name of the benchmark's primary measure; this stage may lack it.
        is_baseline: whether others are compared with it (in a sweep: at its own point).
        start: the stage it starts from; '' is the recipe's model.
    """

    stage: str
    method: str
    benchmark: str
    n: int | None = None
    seeds: int = 0
    measures: dict[str, Cell] = field(default_factory=dict)
    differences: dict[str, Difference] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    published: str = ""
    own: str = ""
    is_baseline: bool = False
    start: str = ""

    @property
    def primary(self) -> Cell | None:
        """The primary measure, None until a seed has it."""
        return self.measures.get(self.own)

    @property
    def difference(self) -> Difference | None:
        """The difference in the primary measure, None where nothing is compared."""
        return self.differences.get(self.own)


@dataclass(frozen=True)
class Spent:
    """Time and tokens of some steps.

    Attributes:
        seconds: wall time.
        device_seconds: wall time times the GPUs of the launch; without GPUs that of one machine.
    """

    seconds: float
    device_seconds: float
    tokens_trained: int
    tokens_generated: int

    @property
    def device_hours(self) -> float:
        """`device_seconds` in hours."""
        return self.device_seconds / 3600


@dataclass(frozen=True)
class Cost:
    """Training and row-writing of a stage, without its evaluation, mean over finished seeds.

    Attributes:
        seconds: wall time of the stage's own steps; None until a seed is finished.
        padding: its share of what training read, 0 to 1.
        peak_memory: most bytes of a step's main process, over all seeds.
        chain: the stage and those it starts from, together.
        times: seconds of `chain` over those of the baseline's, on seeds that both have finished.
    """

    stage: str
    seconds: float | None = None
    tokens_trained: int | None = None
    tokens_generated: int | None = None
    padding: float | None = None
    peak_memory: int | None = None
    chain: Spent | None = None
    times: float | None = None


@dataclass(frozen=True)
class CostSummary:
    """Time and tokens of all finished steps, each counted once, and the price of an hour.

    Attributes:
        training: training and row-writing of all stages and seeds.
        evaluation: writing and grading answers to test rows.
        device: whose hours are counted: 'GPU', 'machine', or 'device' where both took part.
    """

    training: Spent
    evaluation: Spent
    device: str
    price_per_hour: float | None = None
    currency: str = ""

    @property
    def shows_hours(self) -> bool:
        """Whether hours of devices say more than the wall time."""
        return self.device != "machine" or self.price_per_hour is not None

    def price(self, spent: Spent) -> float | None:
        """What some time costs; None without a price."""
        return None if self.price_per_hour is None else spent.device_hours * self.price_per_hour


@dataclass(frozen=True)
class ProvenanceStep:
    """A step of the plan: its readable name, its folder below runs/steps, its wall time."""

    name: str
    folder: str
    seconds: float | None


@dataclass(frozen=True)
class Provenance:
    """How to reproduce a report.

    Attributes:
        fingerprint: one digest over those of all result steps
            (`pipeline.plan.plan.Plan.fingerprint`), of several recipes together.
        recipe: as it was run, in YAML; of several recipes a document each.
        commands: those that make the results.
        commits: of the checkouts of bashrac that steps ran from.
    """

    fingerprint: str
    recipe: str
    commands: list[str]
    commits: list[str]
    steps: list[ProvenanceStep]


@dataclass(frozen=True)
class Joined:
    """Several recipes in one report.

    Attributes:
        fingerprints: recipe -> its fingerprint.
        same: stage -> the stage of an earlier recipe that takes the same steps, and stands for it.
    """

    fingerprints: dict[str, str]
    same: dict[str, str]


@dataclass(frozen=True)
class Round:
    """Figures on the rows that one step wrote.

    Attributes:
        stage: the first of the report's stages that needs the step.
        kind: contexts, corrections, pairs or gap-contexts.
        figures: counts (whole numbers), shares (between 0 and 1) and losses (named so), by name.
    """

    stage: str
    kind: str
    title: str
    seed: int
    figures: dict[str, float]


@dataclass(frozen=True)
class Point:
    """One point of a curve.

    Attributes:
        x: a number, or words where what varies is not a number.
        cell: what was measured there, with its interval.
        label: such as a stage's name.
    """

    x: float | str
    cell: Cell
    label: str = ""


@dataclass(frozen=True)
class Curve:
    """The points of one stage, or of one method at several settings."""

    name: str
    points: list[Point]


@dataclass(frozen=True)
class Chart:
    """One quantity against another, for several stages; shown as a table and as a plot.

    Attributes:
        name: unique in a report; letters, digits and '-'.
        benchmark: that it belongs to, '' for none.
        x_title: what varies, with its unit.
        y_title: what is measured, with its unit.
        note: how to read it, in a sentence or two.
        is_joined: whether the points of a curve are joined by lines.
        is_log: whether x has a logarithmic scale.
        intervals: what `low` and `high` of its numbers are; '' where they are the number itself.
        is_long: whether its table has the first, lowest and last point of each curve only.
    """

    name: str
    benchmark: str
    title: str
    x_title: str
    y_title: str
    curves: list[Curve]
    note: str = ""
    is_joined: bool = True
    is_log: bool = False
    intervals: str = "95 % intervals"
    is_long: bool = False


@dataclass(frozen=True)
class Report:
    """Everything that a recipe's finished steps say.

    Attributes:
        baseline: the stage that others are compared with.
        judge: a description of the judge.
        asked: benchmark -> a description of its test rows and of how they were answered.
        overlaps: benchmark -> what its test rows share with the training rows.
        charts: over rates, swept keys, training and costs.
        warnings: sentence -> stages whose steps warned so.
        precision: a description of what steps computed in; '' where none is known.
        bill: the cost of everything; None where nothing is finished.
        made: how to reproduce it; None for a report made by hand.
        joined: the recipes, where it is of several.
        judge_usage: benchmark -> tokens of its judge's replies as a server counted them, and their
            `cost` where a price is known.
    """

    recipe: str
    task: str
    model: str
    seeds: list[int]
    baseline: str | None
    judge: str | None
    asked: dict[str, str]
    rows: list[Row]
    costs: list[Cost]
    overlaps: dict[str, dict[str, int]]
    rounds: list[Round]
    charts: list[Chart]
    warnings: dict[str, list[str]]
    versions: dict[str, str]
    machines: list[str]
    precision: str = ""
    bill: CostSummary | None = None
    made: Provenance | None = None
    joined: Joined | None = None
    judge_usage: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def benchmarks(self) -> list[str]:
        """The benchmarks, in the recipe's order."""
        return list(dict.fromkeys(row.benchmark for row in self.rows))
