"""Is decoding bound by the device or by the host? Counts what a pass costs the host.

    python benchmarks/decoding.py [--model small smollm2-135m-instruct] [--rows 24] [--limit 48]

On a GPU the host only launches operators, and a pass lasts at least as long as launching them
takes. So for free answers and for BASH contexts of word problems, in float32, plain, under a LoRA
adapter and with that adapter merged, this prints

- operators a pass launches (views, which launch nothing, are left out);
- how often a pass makes the host wait for the device: values read back, shapes that depend on
  values, tensors made of Python numbers on the device;
- passes, tokens per pass, and different shapes of passes: (rows, columns) that a pass reads, and
  the columns that decoding passes attend to;
- megabytes a pass reads, of weights and of keys and values;
- what a pass costs besides its tokens, in tokens, timed: what `_PASS_COST` of
  pipeline/decoding/jacobi.py assumes, and how wide windows of contexts are for it;
- on a GPU, tokens per second.

Only the last two depend on the device: on a CPU, decoding is counted as a GPU would run it.
`small` is a random Llama of 32 narrow layers.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pipeline.data.builtin.rows import builtin_rows  # noqa: E402 - from this checkout
from pipeline.data.render import Renderer  # noqa: E402
from pipeline.data.tasks import example_of  # noqa: E402
from pipeline.decoding import batching, noise  # noqa: E402
from pipeline.decoding.batching import without_adapter  # noqa: E402
from pipeline.decoding.generate import Prompt, generate_answers  # noqa: E402
from pipeline.decoding.graphs import Graphs  # noqa: E402
from pipeline.decoding.kv_cache import Reader  # noqa: E402
from pipeline.models.load import load_model, load_tokenizer  # noqa: E402
from pipeline.rows.contexts import mix_contexts  # noqa: E402

EMBEDDED = "smollm2-135m-instruct"
# Operators after which the host knows a value, or a shape that depends on values.
WAITS = ("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select")
INDEXING = ("aten.index", "aten.index_put", "aten.index_put_", "aten._index_put_impl_")
WIDE = 64  # the widest window of a context
# Each makes a token an end in 1 of 40 cases, so that random answers differ in length.
RANDOM_STOPS = range(3, 49152, 40)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", nargs="+", default=["small", EMBEDDED])
    parser.add_argument("--adapters", nargs="+", default=["none", "unmerged", "merged"])
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--limit", type=int, default=48, help="most tokens of an answer")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    head = ("model", "work", "adapter", "operators", "waits", "passes", "tokens a pass", "shapes",
            "columns", "weights MB", "cache MB", "fixed cost", "tokens/s")  # fmt: skip
    print(f"| {' | '.join(head)} |\n|{' --- |' * len(head)}")
    for name in given.model:
        rows = read_rows(given.rows, random=name == "small")
        for adapter in given.adapters:
            model = build(name, adapter).to(given.device).eval()
            cost = fixed_cost(model, given.batch_size)
            for work in (answers, contexts):
                decode = partial(work, model, rows, given)
                *counts, speed = measure(model, decode)
                cells = [name, work.__name__, adapter, *counts, f"{cost:.0f}", speed]
                print(f"| {' | '.join(cells)} |", flush=True)
    where = torch.cuda.get_device_name() if given.device == "cuda" else platform.machine()
    print(f"({given.rows} rows, {given.batch_size} at a time, {where}, {os.cpu_count()} cores, "
          f"torch {torch.__version__})")  # fmt: skip


class Rows(NamedTuple):
    """Word problems as token ids, and the ids that end an answer."""

    prompts: list[list[int]]
    references: list[list[int]]
    stops: Sequence[int]


def read_rows(count: int, *, random: bool) -> Rows:
    """The first word problems; `random` says whether a random model answers them."""
    renderer = Renderer(load_tokenizer(EMBEDDED))
    found = [example_of("gsm8k", row) for row in builtin_rows("maths", "train", limit=count)]
    prompts = [renderer.prompt_ids(example) for example in found]
    references = [renderer.answer_ids(example, example.reference) for example in found]
    return Rows(prompts, references, tuple(RANDOM_STOPS) if random else renderer.stop_ids)


def answers(model: Any, rows: Rows, given: argparse.Namespace) -> int:
    """Answer them; returns how many tokens that makes."""
    asked = [Prompt(row, 0, ids) for row, ids in enumerate(rows.prompts)]
    found = generate_answers(
        model, asked, max_new_tokens=given.limit, stop_ids=rows.stops, temperature=1.0,
        batch_size=given.batch_size,
    )  # fmt: skip
    return sum(map(len, found))


def contexts(model: Any, rows: Rows, given: argparse.Namespace) -> int:
    """Mix contexts of them; returns how many tokens that makes."""
    mixed = mix_contexts(
        model, rows.prompts, rows.references, beta=0.2, seed=0, row_ids=range(given.rows),
        batch_size=given.batch_size, excluded_ids=rows.stops[:1],
    )  # fmt: skip
    return sum(map(len, mixed))


def build(name: str, adapter: str) -> Any:
    """A model, plain, under an adapter, or with the adapter merged."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    if name == "small":
        model: Any = LlamaForCausalLM(LlamaConfig(
            vocab_size=49152, hidden_size=64, intermediate_size=128, num_hidden_layers=32,
            num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
        ))  # fmt: skip
    else:
        model = load_model(name)
    if adapter != "none":
        model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear"))
    return model.merge_and_unload() if adapter == "merged" else model


def measure(model: Any, decode: Callable[[], int]) -> list[str]:
    """Run some decoding, counted, and return the cells of its row."""
    with counted_as_on_gpu():
        decode()  # what is done once is not counted
        count = Count()
        with count.passes_of(model), Operators(count), Values(count):
            tokens = decode()
    passes = len(count.passes)
    weights = sum(each.nbytes for each in without_adapter(model).parameters())
    cells = [
        f"{count.a_pass('operators'):,.0f}",
        f"{count.a_pass('waits'):.2f}",
        str(passes),
        f"{tokens / passes:.1f}",
        str(len({shape[:2] for shape in count.shapes})),
        str(len({shape[2] for shape in count.shapes})),
        f"{weights / 1e6:,.0f}",
        f"{statistics.mean(count.cache_bytes) / 1e6:.1f}",
    ]
    return [*cells, f"{rate(model, decode):,.0f}" if model.device.type == "cuda" else "-"]


@torch.no_grad()
def fixed_cost(model: Any, slots: int) -> float:
    """What a pass costs besides its tokens, in tokens: the medians of a narrow and a wide pass."""
    took = {}
    with Reader(model, slots, 2 * WIDE) as reader:
        for width in (1, WIDE):
            ids_BW = torch.zeros(slots, width, dtype=torch.long, device=model.device)
            columns_BW = torch.arange(WIDE, WIDE + width, device=model.device).expand(slots, -1)
            inside_BW = torch.ones_like(ids_BW, dtype=torch.bool)
            seconds = []
            for _ in range(6):
                began = now(model)
                reader.read(ids_BW, columns_BW, inside_BW, 2 * WIDE)
                seconds.append(now(model) - began)
            took[width] = statistics.median(seconds[1:])
    a_token = (took[WIDE] - took[1]) / (slots * (WIDE - 1))
    return took[1] / a_token - slots


def rate(model: Any, decode: Callable[[], int]) -> float:
    """Tokens per second, uncounted."""
    began = now(model)
    tokens = decode()
    return tokens / (now(model) - began)


def now(model: Any) -> float:
    """Seconds, once a GPU has finished."""
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


@contextmanager
def counted_as_on_gpu() -> Iterator[None]:
    """Decode as on a GPU, whatever there is, every operator launched by itself."""
    paces, at_once = dict(batching._PACES), noise._AT_ONCE_CPU
    batching._PACES.clear()
    noise._AT_ONCE_CPU, Graphs.works = noise._AT_ONCE, False
    try:
        yield
    finally:
        Graphs.works = True
        batching._PACES.update(paces)
        noise._AT_ONCE_CPU = at_once


@dataclass
class Count:
    """What was counted so far, and, for each pass, what it was as the pass began."""

    operators: int = 0
    waits: int = 0
    passes: list[dict[str, int]] = field(default_factory=list)
    shapes: list[tuple[int, int, int]] = field(default_factory=list)
    cache_bytes: list[int] = field(default_factory=list)

    def a_pass(self, name: str) -> float:
        """The mean from the first pass to the last one."""
        first, last = self.passes[0][name], self.passes[-1][name]
        return (last - first) / max(len(self.passes) - 1, 1)

    @contextmanager
    def passes_of(self, model: Any) -> Iterator[None]:
        """Note every forward pass of a model."""
        inner = without_adapter(model)
        config = inner.config
        size = config.hidden_size // config.num_attention_heads * config.num_key_value_heads
        a_column = 2 * config.num_hidden_layers * size * inner.dtype.itemsize

        def note(_: Any, __: Any, given: dict[str, Any]) -> None:
            self.passes.append({"operators": self.operators, "waits": self.waits})
            rows, width = given["input_ids"].shape
            shown = given["attention_mask"].shape[-1]
            self.shapes.append((rows, width, shown))
            self.cache_bytes.append(rows * shown * a_column)

        hook = inner.register_forward_pre_hook(note, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()


class Operators(TorchDispatchMode):
    """Counts operators, and those that make the host wait."""

    def __init__(self, count: Count):
        super().__init__()
        self.count = count

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = [one.alias_info for one in func._schema.returns]
        if not any(alias is not None and not alias.is_write for alias in returned):
            self.count.operators += 1
        name = str(func.overloadpacket)
        masks = [one for one in args[1] if one is not None] if name in INDEXING else []
        # A mask of truths becomes indices on the host's side; indices given as a list lie there.
        if name in WAITS or any(one.dtype == torch.bool for one in masks):
            self.count.waits += 1
        return func(*args, **(kwargs or {}))


class Values(TorchFunctionMode):
    """Counts what operators do not show on a CPU: values read as lists, and lists made tensors."""

    def __init__(self, count: Count):
        super().__init__()
        self.count = count

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        listed = func in (torch.Tensor.tolist, torch.Tensor.cpu)
        # By keyword a device is named of what is there already, or is not waited for.
        placed = func is torch.Tensor.to and any(isinstance(one, torch.device) for one in args)
        copied = placed or (func is torch.tensor and kwargs.get("device") is not None)
        by_list = func in (torch.Tensor.__setitem__, torch.Tensor.__getitem__) and any(
            isinstance(one, list) for one in (args[1] if isinstance(args[1], tuple) else args[1:2])
        )
        self.count.waits += bool(listed or copied or by_list)
        return func(*args, **kwargs)


if __name__ == "__main__":
    main()
