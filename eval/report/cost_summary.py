"""Tables and notes on what stages cost, for Markdown, the page and model cards."""

from __future__ import annotations

from eval.report.text import count
from eval.report.types import Cost, CostSummary, Report

OWN_HEAD = ["stage", "time", "tokens trained", "padding", "tokens written", "peak memory"]
_COST_NOTE = (
    "Training and row-writing, without evaluation, mean over finished seeds. Padding: its share of "
    "all positions that training read. Tokens written: of answers, and of contexts whole, the "
    "reference's tokens in them too. Peak memory: of a step's main process."
)


def has_costs(report: Report) -> bool:
    """Whether any stage trains or writes rows."""
    return any(cost.seconds != 0 for cost in report.costs)


def format_own(cost: Cost, longest: float | None = None) -> list[str]:
    """What the stage itself took: the cells below OWN_HEAD, without its name.

    Args:
        cost: of the stage.
        longest: seconds that decide the unit of time, the same in a whole table.
    """
    if cost.seconds is None:
        return ["not finished", *[""] * (len(OWN_HEAD) - 2)]
    padding = "" if cost.padding is None else f"{100 * cost.padding:.1f} %"
    memory = "" if cost.peak_memory is None else f"{cost.peak_memory / 1e9:.1f} GB"
    time = format_time(cost.seconds, cost.seconds if longest is None else longest)
    return [time, count(cost.tokens_trained), padding, count(cost.tokens_generated), memory]


def own_table(report: Report) -> tuple[list[str], list[list[str]]]:
    """Head and body of what each stage itself took."""
    longest = max((cost.seconds or 0 for cost in report.costs), default=0)
    return OWN_HEAD, [[cost.stage, *format_own(cost, longest)] for cost in report.costs]


def chain_table(report: Report) -> tuple[list[str], list[list[str]]]:
    """Head and body of what each stage took with those it starts from."""
    bill = report.bill
    has_times = any(cost.times for cost in report.costs)
    head = ["stage", "time in all", *([f"times {report.baseline}"] if has_times else [])]
    head += ["trained in all", "written in all"]
    head += [f"{bill.device}-hours"] if bill and bill.shows_hours else []
    head += [bill.currency or "price"] if bill and bill.price_per_hour is not None else []
    longest = max((cost.chain.seconds for cost in report.costs if cost.chain), default=0)
    body = []
    for cost in report.costs:
        if (chain := cost.chain) is None:
            body.append([cost.stage, "not finished", *[""] * (len(head) - 2)])
            continue
        line = [cost.stage, format_time(chain.seconds, longest)]
        line += [f"{cost.times:.2f}" if cost.times is not None else ""] if has_times else []
        line += [count(chain.tokens_trained), count(chain.tokens_generated)]
        line += [f"{chain.device_hours:.2f}"] if bill and bill.shows_hours else []
        price = bill and bill.price(chain)
        line += [] if price is None else [f"{price:,.2f}"]
        body.append(line)
    return head, body


def cost_notes(report: Report) -> list[str]:
    """What the tables count, how far times can be compared, and what everything took."""
    note = "In all: with the stages it starts from; a step that stages share counts in each."
    if report.bill is not None and report.bill.device == "device":
        note += " A device is a GPU, or the machine of a step that ran without."
    if len(report.machines) > 1:
        note += " Steps ran on different machines, so compare tokens rather than times."
    return [_COST_NOTE, note, *([bill_note(report.bill)] if report.bill else [])]


def bill_note(bill: CostSummary) -> str:
    """What everything took, evaluation beside training."""
    parts = {"training and row-writing": bill.training, "evaluation": bill.evaluation}
    longest = max(spent.seconds for spent in parts.values())
    words = []
    for name, spent in parts.items():
        more = [f"{spent.device_hours:.2f} {bill.device}-hours"] if bill.shows_hours else []
        if (price := bill.price(spent)) is not None:
            more.append(f"{price:,.2f} {bill.currency}".rstrip())
        in_brackets = f" ({', '.join(more)})" if more else ""
        words.append(f"{name} {format_time(spent.seconds, longest)}{in_brackets}")
    rate = ""
    if bill.price_per_hour is not None:
        money = f"{bill.price_per_hour:g} {bill.currency}".rstrip()
        rate = f" At {money} an hour of a {bill.device}."
    return f"All finished steps of these stages, in all seeds, each once: {', '.join(words)}.{rate}"


def format_time(seconds: float, longest: float) -> str:
    """A time in seconds, minutes or hours, whichever suits the longest of its table."""
    if longest < 1200:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if longest < 4 * 3600 else f"{seconds / 3600:.2f} h"
