"""How much memory rows take in a process, in bytes a token of prompt and answer.

    python benchmarks/row_memory.py [--rows 2000] [--words 500]

Takes the steps that write and train on BASH rows apart, on rows of made-up words and the embedded
model's tokenizer, and prints what each part holds: Python's own memory (tracemalloc) and Arrow's.
No model is read; a context is the reference itself.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import sys
import tempfile
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import datasets  # noqa: F401 - not to be counted
import pyarrow as pa
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pipeline.data.load import load_examples, tokenise  # noqa: E402 - from this checkout
from pipeline.data.render import renderer_for  # noqa: E402
from pipeline.plan.load import load_recipe  # noqa: E402
from pipeline.plan.plan import make_plan  # noqa: E402
from pipeline.rows.shards import write_in_shards  # noqa: E402
from pipeline.rows.stored import ROWS  # noqa: E402
from pipeline.rows.table import dataset_of  # noqa: E402
from pipeline.stages import bash, sft  # noqa: E402
from pipeline.steps import artifact  # noqa: E402
from pipeline.steps.context import StepContext, write_spec  # noqa: E402
from pipeline.steps.record import Record  # noqa: E402


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--words", type=int, default=500)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        for part, size, tokens in measured(given.rows, given.words, Path(name)):
            print(f"{part:48} {size / tokens:6.1f} bytes a token ({tokens:,} tokens)", flush=True)


def measured(rows: int, words: int, folder: Path) -> Iterator[tuple[str, int, int]]:
    """Give what is held, its bytes, and its tokens."""
    steps = {
        step.kind: step for step in make_plan(load_recipe(recipe_of(rows, words, folder))).steps
    }
    contexts, train = (
        StepContext.read(write_spec(steps[kind], folder / "runs", processes=1, use_cpu=True))
        for kind in ("contexts", "train")
    )
    renderer = renderer_for(contexts)
    renderer.prompt_ids(load_examples(contexts.source("train"), "gsm8k")[0])  # loads what it needs
    examples = load_examples(contexts.source("train"), "gsm8k")
    tracemalloc.start()
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
    files = artifact.written_files(contexts.directory)
    record = {"metrics": {}, "files": files, "fingerprint": ""}
    artifact.write_record(contexts.directory, cast(Record, record))
    del written, token_rows, examples
    before = held()
    checked, chosen = sft.read_training_rows(train, renderer)
    dataset = dataset_of(chosen)
    assert len(checked) == len(dataset) == 2 * rows
    yield "rows to train on, checked and as a dataset", held() - before, 2 * tokens


def held() -> int:
    """Bytes that Python and Arrow hold."""
    gc.collect()
    return tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes()


def recipe_of(rows: int, words: int, folder: Path) -> Path:
    """A BASH stage from the base, on rows of which a third is the question."""
    rng = random.Random(0)

    def text(count: int) -> str:
        return " ".join(str(rng.randrange(100, 1000)) for _ in range(count))

    data = folder / "rows.jsonl"
    lines = [
        {"question": text(words // 3), "answer": f"{text(words - words // 3)} #### 1"}
        for _ in range(rows)
    ]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe = {
        "name": "rows",
        "task": "gsm8k",
        "model": "smollm2-135m-instruct",
        "data": {"train": {"source": str(data)}},
        "trainer": {"max_length": 4096},
        "stages": {"bash": {"method": "bash"}},
        "evaluate": [],
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


if __name__ == "__main__":
    main()
