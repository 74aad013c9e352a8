"""How the way RAC shows the reference changes its labels, on the answers of a finished demo.

    bashrac run recipes/demo.yaml --stage sft && bashrac run recipes/demo.yaml --stage rac
    python benchmarks/shown_prompt.py --runs runs

Prints, for each text, how many finished answers have a last label that ends the turn, the share of
labels that differ from the model's own token, and how often the label is the reference's token
where the own answer has so far been the reference (there the right label is known).
"""

from __future__ import annotations

import argparse
from pathlib import Path

_BEFORE = "A correct solution of the problem below:\n"
TEXTS = {
    "before the prompt": _BEFORE + "{reference}\n\n{prompt}",
    "before, with its end token": _BEFORE + "{reference}{end}\n\n{prompt}",
    "after the prompt": "{prompt}\n\nA correct solution:\n{reference}",
    "after, without words": "{prompt}\n\n{reference}",
}


def main() -> None:
    """Relabel the answers of the demo's rac stage with each text."""
    from pipeline.data.render import renderer_for
    from pipeline.data.tasks import Example
    from pipeline.models.load import load_to_read
    from pipeline.plan.load import load_recipe
    from pipeline.plan.plan import make_plan
    from pipeline.rows.corrections import correct
    from pipeline.steps.artifact import SAMPLES, read_rows
    from pipeline.steps.context import StepContext, write_spec

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    runs = parser.parse_args().runs
    plan = make_plan(load_recipe("demo"))
    planned = next(s for s in plan.stage_steps["rac", 0] if s.kind == "corrections")
    step = StepContext.read(write_spec(planned, runs, processes=1, use_cpu=True))
    renderer, model = renderer_for(step), load_to_read(step)
    own = read_rows(step.input_folders()["answers"] / SAMPLES)
    examples = [Example(step.options["task"], row["messages"], row["reference"]) for row in own]
    prompts = [renderer.prompt_ids(example) for example in examples]
    references = [renderer.answer_ids(example, example.reference) for example in examples]
    answers = [renderer.own_answer_ids(row["ids"], finished=row["finished"]) for row in own]
    for name, text in TEXTS.items():
        shown = [
            renderer.prompt_ids(example.shown(text, end=renderer.end_of_turn))
            for example in examples
        ]
        labels = correct(model, prompts, shown, answers, batch_size=32)
        print(f"{name}: {describe(labels, answers, references, own, renderer.end_of_turn_id)}")


def describe(labels, answers, references, own, end) -> str:
    """The three figures of one text."""
    last = [ids[-1] == end for ids, row in zip(labels, own, strict=True) if row["finished"]]
    pairs = [
        (a, b) for x, y in zip(labels, answers, strict=True) for a, b in zip(x, y, strict=True)
    ]
    known = right = 0
    for ids, answer, reference in zip(labels, answers, references, strict=True):
        for place in range(min(len(answer), len(reference))):
            if answer[:place] != reference[:place]:
                break
            known += 1
            right += ids[place] == reference[place]
    return (
        f"{sum(last)} of {len(last)} answers end with an end label, "
        f"{sum(a != b for a, b in pairs) / len(pairs):.1%} of {len(pairs)} labels differ, "
        f"{right} of {known} known labels right"
    )


if __name__ == "__main__":
    main()
