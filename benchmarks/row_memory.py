"""How much memory rows take in a process, in bytes a token.

    python benchmarks/row_memory.py [--rows 2000] [--words 500]

Takes the steps that write rows, read them back and train on them apart, on rows of made-up words, a
random model of 8 dimensions and the embedded model's tokenizer. Prints what each part holds when it
is done, or the most it holds on the way: Python's own memory (tracemalloc) and Arrow's, over the
tokens of the rows it reads. Answers and contexts are the reference itself, which costs the model
least; half of the answers are wrong.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import sys
import tempfile
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import datasets  # noqa: F401 - not to be counted
import pyarrow as pa
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import eval.graders.gsm8k  # noqa: E402 - its patterns are not to be counted
import eval.stats.seeds  # noqa: E402, F401 - nor this
from eval.benchmarks import gap, gsm8k  # noqa: E402 - from this checkout
from pipeline.data.load import load_examples, tokenise  # noqa: E402
from pipeline.data.render import Renderer, renderer_for  # noqa: E402
from pipeline.models.embedded import embedded_model  # noqa: E402
from pipeline.plan.load import load_recipe  # noqa: E402
from pipeline.plan.plan import make_plan  # noqa: E402
from pipeline.rows.correction_inputs import read_correction_inputs  # noqa: E402
from pipeline.rows.pairs import read_pairs  # noqa: E402
from pipeline.rows.shards import write_in_shards  # noqa: E402
from pipeline.rows.stored import ROWS  # noqa: E402
from pipeline.rows.table import dataset_of, dataset_of_pairs  # noqa: E402
from pipeline.stages import bash, dpo, sft  # noqa: E402
from pipeline.steps import artifact  # noqa: E402
from pipeline.steps.context import StepContext, write_spec  # noqa: E402
from pipeline.steps.record import Record  # noqa: E402

RATES = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
Part = tuple[str, int, int]  # what it is, its bytes, its tokens


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--words", type=int, default=500)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = tiny_model(folder / "model")
        for part, size, tokens in measured(model, given.rows, given.words, folder):
            print(f"{part:56} {size / tokens:6.1f} bytes a token ({tokens:,} tokens)", flush=True)


def measured(model: str, rows: int, words: int, folder: Path) -> Iterator[Part]:
    """Give what is held, its bytes, and its tokens."""
    plan = make_plan(load_recipe(recipe_of(model, rows, words, folder)))
    steps = {
        (step.stage, step.kind): StepContext.read(
            write_spec(step, folder / "runs", processes=1, use_cpu=True)
        )
        for step in reversed(plan.steps)  # so that the first of a kind stays
    }
    renderer = renderer_for(steps["bash", "contexts"])
    source = steps["bash", "contexts"].source("train")
    renderer.prompt_ids(load_examples(source, "gsm8k")[0])  # loads what it needs
    tracemalloc.start()
    yield from of_contexts(steps["bash", "contexts"], steps["bash", "train"], renderer)
    yield from of_corrections(steps["rac", "answers"], steps["rac", "corrections"], renderer)
    dpo_steps = (steps["dpo", kind] for kind in ("answers", "pairs", "train"))
    yield from of_pairs(*dpo_steps, renderer=renderer)
    yield from of_grades(steps["base", "answers"], steps["base", "gsm8k"], renderer)
    kinds = ("answers", "gap-contexts", "gap-losses", "gap")
    yield from of_gap(*(steps["base", kind] for kind in kinds), renderer=renderer)


def of_contexts(contexts: StepContext, train: StepContext, renderer: Renderer) -> Iterator[Part]:
    """BASH: rows to write contexts for, contexts, and both to train on."""
    examples = load_examples(contexts.source("train"), "gsm8k")
    before = held()
    token_rows, _ = tokenise(examples, renderer, max_length=4096)
    tokens = sum(map(bash.row_size, token_rows))
    yield "rows to write contexts for, tokenised", held() - before, tokens

    def make(items: Sequence[Any]) -> Iterator[Any]:
        for row in items:
            yield sft.self_generated_row(row.row_id, row.prompt, row.answer, row.answer)

    before = held()
    written = write_in_shards(
        contexts, token_rows, make, key=lambda row: (row.row_id,), size=bash.row_size,
        row_key=lambda row: (row["id"],), tokens=sft.label_count, file_name=ROWS,
    )  # fmt: skip
    yield "written contexts, as the step holds them", held() - before, tokens
    finish(contexts)
    del written, token_rows, examples
    before = held()
    checked, chosen = sft.read_training_rows(train, renderer)
    dataset = dataset_of(chosen)
    assert len(checked) == len(dataset)
    yield "rows to train on, checked and as a dataset", held() - before, 2 * tokens


def of_corrections(
    answers: StepContext, corrections: StepContext, renderer: Renderer
) -> Iterator[Part]:
    """RAC: answers, and the prompts that show the reference, which hold about as much again."""
    tokens = store_answers(answers, renderer)
    before = held()
    inputs, most = at_most(lambda: read_correction_inputs(corrections, renderer))
    now = held() - before
    tokens += sum(len(item.shown) + len(item.row.prompt) for item in inputs.values())
    yield "answers to correct, with their prompts", now, tokens
    yield "answers to correct, with their prompts, at most", most, tokens


def of_pairs(
    answers: StepContext, pairs: StepContext, train: StepContext, *, renderer: Renderer
) -> Iterator[Part]:
    """DPO on pairs from own answers."""
    tokens = store_answers(answers, renderer)
    _, most = at_most(lambda: dpo.write_pairs(pairs))
    yield "answers made into pairs, at most", most, tokens
    finish(pairs)
    before = held()
    rows = read_pairs(train, renderer)
    dataset = dataset_of_pairs(rows)
    assert len(dataset) == len(rows)
    tokens = sum(map(sum, rows.sizes))
    yield "pairs to train on, checked and as a dataset", held() - before, tokens


def of_grades(answers: StepContext, grades: StepContext, renderer: Renderer) -> Iterator[Part]:
    """Answers that a benchmark grades."""
    tokens = store_answers(answers, renderer)
    _, most = at_most(lambda: gsm8k.grade_answers(grades))
    finish(grades)
    yield "answers graded (gsm8k), at most", most, tokens


def of_gap(
    answers: StepContext, contexts: StepContext, losses: StepContext, grades: StepContext,
    *, renderer: Renderer,
) -> Iterator[Part]:  # fmt: skip
    """`gap`: contexts at several rates, losses on them, and both graded."""
    store_answers(answers, renderer)
    examples = load_examples(contexts.source("test"), "gsm8k")
    token_rows, _ = tokenise(examples, renderer, max_length=4096)
    tokens = len(RATES) * sum(map(bash.row_size, token_rows))
    store(contexts, ROWS, (
        {**sft.self_generated_row(row.row_id, row.prompt, row.answer, row.answer), "rate": rate}
        for row in token_rows for rate in RATES
    ))  # fmt: skip
    del examples, token_rows
    _, most = at_most(lambda: gap.write_losses(losses))
    yield "contexts read for their losses (gap), at most", most, tokens
    finish(losses)
    _, most = at_most(lambda: gap.grade(grades))
    yield "contexts, losses and answers graded (gap), at most", most, tokens


def store_answers(step: StepContext, renderer: Renderer) -> int:
    """Write a step's answers and return their tokens."""
    role = "train" if "train" in step.locations else "test"
    examples = load_examples(step.source(role), "gsm8k")
    tokens = 0

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal tokens
        for number, example in enumerate(examples):
            for sample in range(step.options["samples"]):
                answer = example.reference + " #### 2" * (sample % 2)
                ids = renderer.answer_ids(example, answer)
                tokens += len(ids)
                yield {
                    "id": number, "sample": sample, "messages": example.messages,
                    "reference": example.reference, "answer": answer, "ids": ids, "finished": True,
                }  # fmt: skip

    store(step, artifact.SAMPLES, rows())
    return tokens


def store(step: StepContext, name: str, rows: Iterable[dict[str, Any]]) -> None:
    """Write a step's rows and finish it."""
    artifact.write_rows(step.directory / name, rows)
    finish(step)


def finish(step: StepContext) -> None:
    """Write a step's record."""
    files = artifact.written_files(step.directory)
    record = {"metrics": {}, "files": files, "fingerprint": ""}
    artifact.write_record(step.directory, cast(Record, record))


def held() -> int:
    """Bytes that Python and Arrow hold."""
    gc.collect()
    return tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes()


def at_most(work: Callable[[], Any]) -> tuple[Any, int]:
    """What a function returns, and the most bytes that Python holds meanwhile."""
    gc.collect()
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    found = work()
    return found, tracemalloc.get_traced_memory()[1] - before


def recipe_of(model: str, rows: int, words: int, folder: Path) -> Path:
    """Stages from the base, on rows of which a third is the question."""
    rng = random.Random(0)

    def text(count: int) -> str:
        return " ".join(str(rng.randrange(100, 1000)) for _ in range(count))

    data = folder / "rows.jsonl"
    lines = [
        {"question": text(words // 3), "answer": f"{text(words - words // 3)} #### 1"}
        for _ in range(rows)
    ]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = {"source": str(data)}
    recipe = {
        "name": "rows",
        "task": "gsm8k",
        "model": model,
        "data": {"train": source, "test": source, "preferences": "self"},
        "trainer": {"max_length": 4096},
        "stages": {
            "base": {"method": "base"},
            "bash": {"method": "bash"},
            "rac": {"method": "rac"},
            "dpo": {"method": "dpo"},
        },
        "evaluate": ["gsm8k", "gap"],
        "benchmarks": {"gap": {"limit": rows, "rates": RATES}},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def tiny_model(folder: Path) -> str:
    """Save a random model with the embedded model's tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    tokenizer = AutoTokenizer.from_pretrained(embedded_model())
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, max_position_embeddings=8192, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


if __name__ == "__main__":
    main()
