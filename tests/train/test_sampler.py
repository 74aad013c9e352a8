"""Which rows are read together, and what of that is padding, in real trainings of tiny models."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from conftest import ROOT, random_ids
from torch.utils.data import BatchSampler

from pipeline.data.render import renderer_for
from pipeline.plan.load import load_recipe
from pipeline.plan.plan import make_plan
from pipeline.rows.table import Answer, PairTable
from pipeline.run.worker import execute
from pipeline.stages import dpo, sft
from pipeline.steps import artifact
from pipeline.steps.artifact import SPEC
from pipeline.steps.context import StepContext, write_spec
from pipeline.train.sampler import LengthGroups, describe_padding, grouped_by_length
from pipeline.train.trainer import _Progress, fit

LORA = {"r": 4, "target_modules": "all-linear"}


def order_of(lengths, batch_size, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return grouped_by_length(torch.tensor(lengths), batch_size, generator).tolist()


def padding_of(passes):
    """Positions and the share of padding of passes, each a list of sequence lengths."""
    positions = sum(len(one) * max(one) for one in passes)
    return positions, 1 - sum(map(sum, passes)) / positions


def passes_of(items, rows):
    return [items[start : start + rows] for start in range(0, len(items), rows)]


def many_lengths(count, low=20, high=400):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(low, high, (count,), generator=generator).tolist()


@pytest.fixture
def training(recipe_dict, write_recipe, tmp_path):
    """A training step of 44 rows, the longest ten times the shortest, 8 an optimizer step."""
    data = tmp_path / "train.jsonl"
    sizes = torch.randperm(44, generator=torch.Generator().manual_seed(1)).tolist()
    lines = [{"question": "?", "answer": "1 + 1 = 2, " * size + "#### 2"} for size in sizes]
    data.write_text("\n".join(map(json.dumps, lines)))

    def make(folder="runs", *, processes=1, **change):
        trainer = {"num_train_epochs": 2, "max_length": 512, "bf16": False, "learning_rate": 0.01}
        trainer |= {"save_steps": 1, "logging_steps": 1}
        recipe = recipe_dict | {
            "stages": {"sft": {"method": "sft"}},
            "evaluate": [],
            "batch_size": 8,
            "micro_batch_size": 4,
            **change,
            "data": {"train": {"source": str(data)}} | change.get("data", {}),
            "trainer": trainer | change.get("trainer", {}),
        }
        step = make_plan(load_recipe(write_recipe(recipe))).steps[-1]
        spec = write_spec(step, tmp_path / folder, processes=processes, use_cpu=True)
        return StepContext.read(spec)

    return make


def make_trainer(step):
    renderer = renderer_for(step)
    rows = sft.read_training_rows(step, renderer)[1]
    return sft.make_trainer(step, rows, renderer.tokenizer), rows


def read_passes(trainer):
    """The rows that come into each pass, as the trainer's collator gets them."""
    seen, collate = [], trainer.data_collator

    def watch(examples):
        seen.append([example["input_ids"] for example in examples])
        return collate(examples)

    trainer.data_collator = watch
    return seen


def metrics_of(step):
    return artifact.read_record(step.directory)["metrics"]


# --- the order ----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 4, 7, 8, 13, 32, 48])
@pytest.mark.parametrize("rows", [1, 3, 8, 50, 331])
def test_every_row_is_read_once_an_epoch(rows, batch_size):
    orders = [order_of(many_lengths(rows), batch_size, seed=seed) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] and sorted(orders[0]) == sorted(orders[2]) == list(range(rows))
    assert rows <= max(batch_size, 8) or orders[0] != orders[2]


@pytest.mark.parametrize(
    ("batch_size", "rows_a_pass", "most"),
    [(8, 1, 0), (8, 2, 0.03), (8, 8, 0.03), (32, 4, 0.03), (32, 8, 0.03), (64, 16, 0.05),
     # More rows than are grouped: the batch is at least sorted (28 % without).
     (64, 32, 0.22)],
)  # fmt: skip
def test_passes_hold_similar_lengths_however_a_batch_is_split(batch_size, rows_a_pass, most):
    lengths = many_lengths(1000)
    order = order_of(lengths, batch_size)
    _, share = padding_of(passes_of([lengths[row] for row in order], rows_a_pass))
    _, unordered = padding_of(passes_of(lengths, rows_a_pass))
    assert share <= most and unordered >= 8 * min(most, 0.05) / 2


def test_a_larger_batch_holds_rows_of_several_lengths_and_batches_come_in_no_order():
    """Sorted, 64 of 1,000 rows would lie within a 16th of all lengths."""
    lengths = many_lengths(1000)
    order = order_of(lengths, 64)
    batches = passes_of([lengths[row] for row in order], 64)[:-1]
    spreads = sorted(max(batch) - min(batch) for batch in batches)
    assert spreads[len(spreads) // 2] > 190
    means = torch.tensor([sum(batch) / 64 for batch in batches[1:]])
    assert abs(torch.corrcoef(torch.stack([means, torch.arange(len(means)) * 1.0]))[0, 1]) < 0.6
    assert max(batches[0]) > 0.95 * max(lengths), "too little memory shows at once"


def test_rows_of_one_length_meet_by_chance_only():
    """A reference and its BASH context: sorted by length alone, most would share a batch."""
    lengths = many_lengths(192, 66, 122)
    together = 0
    for seed in range(20):
        batch = {row: place // 8 for place, row in enumerate(order_of(lengths * 2, 8, seed=seed))}
        together += sum(batch[row] == batch[row + 192] for row in range(192))
    assert together / (20 * 192) < 0.25


def test_the_rows_of_a_step_do_not_depend_on_processes():
    lengths = many_lengths(64)
    sampler = LengthGroups(lengths, batch_size=16, seed=3, epoch=lambda: 1)
    alone = passes_of(list(sampler), 16)
    shards = [
        passes_of(list(BatchSamplerShard(BatchSampler(sampler, 4, False), 2, process)), 2)
        for process in range(2)
    ]
    together = [
        sorted(row for micro in (*one, *other) for row in micro)
        for one, other in zip(*shards, strict=True)
    ]
    assert together == [sorted(batch) for batch in alone]
    other = LengthGroups(lengths, batch_size=16, seed=3, epoch=lambda: 2)
    assert passes_of(list(other), 16) != alone


# --- trainings ----------------------------------------------------------------------------------


@pytest.mark.parametrize("multiple", [None, 64], ids=["", "padded to 64s"])
@pytest.mark.parametrize("strategy", ["group_by_length", "random"])
def test_the_share_of_padding_is_that_of_what_was_read(training, capsys, strategy, multiple):
    """By hand: every sequence of a pass takes as many positions as the longest, rounded up."""
    options = {"train_sampling_strategy": strategy, "pad_to_multiple_of": multiple}
    step = training(trainer={key: value for key, value in options.items() if value})
    trainer, rows = make_trainer(step)
    seen = read_passes(trainer)
    fit(step, trainer, tokens_per_epoch=1)
    for epoch in (seen[:11], seen[11:]):
        ids = [row for one in epoch for row in one]
        assert sorted(ids) == sorted(row["input_ids"] for row in rows)
    assert seen[:11] != seen[11:]
    lengths = [[len(row) for row in one] for one in seen]
    unit = multiple or 1
    positions = sum(len(one) * -(-max(one) // unit) * unit for one in lengths)
    share = 1 - sum(map(sum, lengths)) / positions
    assert step.metrics["padding_share"] == pytest.approx(share, abs=1e-4)
    log = capsys.readouterr().out
    assert f"padding: {100 * share:.1f} % of {positions:,} positions read" in log
    if multiple is None:
        assert share < 0.1 if strategy == "group_by_length" else share > 0.25
        assert ("group_by_length" in log) == (strategy == "random")


def test_grouping_is_the_default_and_random_is_the_stock_order(training):
    """Stock: accelerate draws each epoch's order with a generator of seed + epoch."""
    default, named = training(), training(trainer={"train_sampling_strategy": "group_by_length"})
    shuffled = training(trainer={"train_sampling_strategy": "random"})
    assert default.spec.fingerprint == named.spec.fingerprint != shuffled.spec.fingerprint
    orders = []
    for step in (default, shuffled):
        trainer, rows = make_trainer(step)
        ids = [row["input_ids"] for row in rows]
        seen = read_passes(trainer)
        list(trainer.get_train_dataloader())
        orders.append([ids.index(row) for one in seen for row in one])
    lengths = [len(row) for row in ids]
    assert orders[0] == order_of(lengths, 8)
    stock = torch.randperm(44, generator=torch.Generator().manual_seed(0))
    assert orders[1] == stock.tolist()


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_pairs_are_grouped_by_the_longer_side(training, capsys, lora):
    """Half the pairs have a long chosen side, half a long rejected one, of 10 to 200 tokens.

    Passes of the reference model, which with LoRA are the same model's, do not count.
    """
    generator = torch.Generator().manual_seed(2)
    pairs = PairTable()
    for number in range(64):
        ids = [random_ids(generator, *span) for span in ((10, 201), (4, 10))]
        sides = [Answer([*one, 2], whole=True) for one in (ids if number % 2 else reversed(ids))]
        pairs.add(f"pair {number + 1}", [5, 6], *sides)
    preferences = {"data": {"preferences": {"source": "builtin:maths", "limit": 4}}}
    step = training(**preferences, stages={"dpo": {"method": "dpo"}}, lora=lora)
    trainer = dpo.make_trainer(step, pairs, renderer_for(step).tokenizer)
    fit(step, trainer, tokens_per_epoch=1)
    longer = [max(len(side.input_ids) for side in pair) for pair in pairs]
    passes = []
    for epoch in range(2):
        order = LengthGroups(longer, batch_size=8, seed=0, epoch=lambda epoch=epoch: epoch)
        for one in passes_of(list(order), 4):
            passes.append([len(side.input_ids) for row in one for side in pairs[row]])
    positions, share = padding_of(passes)
    _, least = padding_of([[len(side.input_ids) for side in pair] for pair in pairs])
    assert step.metrics["padding_share"] == pytest.approx(share, abs=1e-4)
    assert f"of {positions:,} positions read, {100 * least:.1f} % for" in capsys.readouterr().out
    assert 0.4 < least < share < least + 0.04


def stopped_at(step, number):
    """Run a step until an optimizer step, with the checkpoint of the one before."""
    told = _Progress.on_step_end

    def stop(self, args, state, control, **more):
        told(self, args, state, control, **more)
        if state.global_step == number:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(_Progress, "on_step_end", stop)
        execute(step)
    return step


@pytest.mark.parametrize("number", [4, 7, 9])
def test_a_training_stopped_in_any_epoch_resumes_to_the_same_rows_and_share(training, number):
    """Two epochs of 6 steps; the checkpoint of step 6 is where the second begins."""
    execute(unbroken := training("unbroken"))
    broken = stopped_at(training("broken"), number)
    assert (broken.directory / "checkpoints" / f"checkpoint-{number - 1}").is_dir()
    execute(StepContext.read(broken.directory / SPEC))
    records = [artifact.read_record(step.directory) for step in (unbroken, broken)]
    weights = [record["files"]["model/model.safetensors"] for record in records]
    assert weights[0] == weights[1]
    shares = [record["metrics"]["padding_share"] for record in records]
    assert shares[0] == shares[1] > 0


def test_two_processes_go_on_with_the_rows_of_one_and_count_together(training, tmp_path):
    """Stopped in the second epoch of one process; passes of 4 rows either way.

    40 rows, so that the last batch of an epoch needs no row twice.
    """
    rows = {"data": {"train": {"source": training().locations["train"]["source"], "limit": 40}}}
    execute(alone := training("alone", **rows))
    broken = stopped_at(training("two", **rows), 8)
    training("two", processes=2, **rows)
    script = tmp_path / "step_and_tell.py"
    script.write_text(
        "import sys\n"
        "from torch import distributed\n"
        "from pipeline.cli.main import main\n"
        "code = main(sys.argv[1:])\n"
        "print('still in the group' if distributed.is_initialized() else 'left the group')\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
         "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
         "--main_process_port", "0", str(script), "step", str(broken.directory / SPEC)],
        capture_output=True, text=True, timeout=500,
        env={**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true",
             "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("left the group") == 2
    assert "resuming from" in done.stdout and done.stdout.count("padding:") == 1
    assert metrics_of(broken)["padding_share"] == metrics_of(alone)["padding_share"]
    histories = [
        [entry["loss"] for entry in artifact.read_json(step.directory / "history.json") if "loss" in entry]
        for step in (alone, broken)
    ]  # fmt: skip
    assert histories[0] == pytest.approx(histories[1], rel=1e-4)


# --- words --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "least", "strategy", "rows", "words"),
    [
        (0.04, 0.0, "group_by_length", 8, "padding: 4.0 % of 1,234 positions read"),
        (0.2, 0.0, "group_by_length", 1, "padding: 20.0 % of 1,234 positions read"),
        (0.2, 0.0, "group_by_length", 8,
         "padding: 20.0 % of 1,234 positions read; less with a micro_batch_size below 8"),
        (0.2, 0.15, "random", 8,
         "padding: 20.0 % of 1,234 positions read, 15.0 % for the shorter sides of pairs alone; less "
         "with trainer: {train_sampling_strategy: group_by_length} or a micro_batch_size below 8"),
    ],
)  # fmt: skip
def test_much_padding_comes_with_what_to_do(share, least, strategy, rows, words):
    args = SimpleNamespace(train_sampling_strategy=strategy, per_device_train_batch_size=rows)
    assert describe_padding(share, 1234, least, args) == words
