"""Evidence that BASH rows and their loss are those of the paper, on what the steps write."""

import json
import os
import socket
import subprocess
import sys
from collections import Counter

import pytest
import torch
from conftest import ROOT, first_step, save_tiny_model
from helpers import steps_of
from scipy.stats import chisquare

from pipeline.decoding import noise
from pipeline.models.load import load_model
from pipeline.rows.contexts import mix_contexts, replaced_positions
from pipeline.rows.stored import ROWS
from pipeline.run.worker import execute
from pipeline.steps import artifact
from pipeline.steps.artifact import SPEC
from pipeline.steps.context import StepContext, write_spec

SPECIAL = (0, 1, 2)  # the tiny tokenizer's padding, start and end of turn


@pytest.fixture
def write_contexts(recipe_dict, write_recipe, run_steps_here):
    """Run the contexts step of a bash stage on the base model; returns (step, rows)."""

    def run(limit, **stage):
        recipe_dict["data"]["train"]["limit"] = limit
        recipe_dict["stages"] = {"bash": {"method": "bash", **stage}}
        path = write_recipe(recipe_dict)
        plan, runs = run_steps_here(path, until=lambda step: step.kind == "contexts")
        directory = first_step(plan).directory(runs)
        return StepContext.read(directory / SPEC), artifact.read_rows(directory / ROWS)

    return run


def parts(row):
    """Return a row's prompt x, context g and reference y."""
    size = sum(label == -100 for label in row["labels"])
    return row["input_ids"][:size], row["input_ids"][size:], row["labels"][size:]


def next_logits(model, ids):
    """The model's logits after these ids, from a pass over them alone."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1].double()


def softmax_without(logits, excluded):
    logits = logits.clone()
    logits[list(excluded)] = float("-inf")
    return logits.softmax(-1)


def test_a_mixed_row_at_beta_0_is_the_sft_row_and_trains_the_same_first_loss(
    recipe_dict, write_recipe, run_steps_here
):
    """With lambda 1 each SFT row is in the batch twice; a mean of doubled values is the same."""
    recipe_dict["batch_size"] = recipe_dict["micro_batch_size"] = 12  # 6 + 6 rows: one batch
    recipe_dict["trainer"]["max_steps"] = 1
    recipe_dict["evaluate"] = []
    recipe_dict["stages"] = {
        "sft": {"method": "sft"},
        "bash-0": {"method": "bash", "beta": 0.0},
        "bash-1": {"method": "bash", "beta": 1.0},
    }
    plan, runs = run_steps_here(write_recipe(recipe_dict))
    losses = {}
    for stage in recipe_dict["stages"]:
        folders = {kind: step.directory(runs) for kind, step in steps_of(plan, stage).items()}
        losses[stage] = artifact.read_record(folders["train"])["metrics"]["first_loss"]
        rows = artifact.read_rows(folders["contexts"] / ROWS) if stage != "sft" else []
        assert all((g == y) == (stage == "bash-0") for _, g, y in map(parts, rows))
    assert losses["bash-0"] == pytest.approx(losses["sft"], rel=1e-5)
    assert losses["bash-1"] != pytest.approx(losses["sft"], rel=1e-3)


@pytest.mark.parametrize("beta", [0.2, 1.0])
def test_the_loss_of_a_mixed_row_is_of_the_reference_given_the_mixed_prefix(
    recipe_dict, write_contexts, beta
):
    """-1/T sum_t log pi(y_t | x, g_<t): position t has a pass of its own, over x and g_<t only."""
    _, rows = write_contexts(limit=2, beta=beta)
    model = load_model(recipe_dict["model"])
    for row in rows:
        x, g, y = parts(row)
        by_hand = [
            -next_logits(model, x + g[:t]).log_softmax(-1)[y[t]].item() for t in range(len(y))
        ]
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        with torch.no_grad():
            loss = model(ids, labels=labels).loss.item()
            on_gold = model(torch.tensor([x + y]), labels=labels).loss.item()
        assert loss == pytest.approx(sum(by_hand) / len(by_hand), rel=1e-5)
        assert on_gold != pytest.approx(loss, rel=1e-3)


def test_at_beta_1_a_written_row_is_the_models_own_but_for_what_must_stay(
    recipe_dict, write_contexts
):
    """g_t = argmax(log pi(. | x, g_<t) + Gumbel noise of (seed, row, t)), one pass a position."""
    step, rows = write_contexts(limit=3, beta=1.0)
    model = load_model(recipe_dict["model"])
    for row in rows:
        x, g, y = parts(row)
        for t in range(len(y) - 1):
            key = noise.keys(
                step.seed_of_round(), torch.tensor([row["id"]]), torch.tensor(t),
                stream=noise.SAMPLE,
            )  # fmt: skip
            own = softmax_without(next_logits(model, x + g[:t]), SPECIAL).log()
            assert g[t] == int((own + noise.gumbel(key, len(own))[0]).argmax())
        assert len(g) == len(y) and g[-1] == y[-1] == 2
        assert sum(a != b for a, b in zip(g, y, strict=True)) > 0.8 * len(y)


def test_special_tokens_are_never_replaced_or_sampled_in_a_written_row(
    recipe_dict, write_contexts, tmp_path
):
    """Every second word of these references is special. With `excluded_ids: []` both happen."""
    answer = "So <|im_start|> it <|pad|> is <|im_end|> " * 9 + "\n#### 5"
    rows = [{"question": f"{number} + 1?", "answer": answer} for number in range(20)]
    data = tmp_path / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe_dict["data"]["train"]["source"] = str(data)

    def replaced_and_sampled(**stage):
        _, rows = write_contexts(20, beta=1.0, **stage)
        changed = [
            (old, new)
            for _, g, y in map(parts, rows)
            for old, new in zip(y, g, strict=True)
            if old != new
        ]
        assert len(changed) > 500
        return sum(old in SPECIAL for old, _ in changed), sum(new in SPECIAL for _, new in changed)

    assert replaced_and_sampled() == (0, 0)
    assert min(replaced_and_sampled(excluded_ids=[])) > 0


def p_value(counts, probabilities):
    """Chi-square test of counts, cells with an expected count under 5 pooled into one."""
    expected = probabilities * counts.sum() / probabilities.sum()
    rare = expected < 5
    assert (~rare).sum() > 4, "too few samples to tell distributions apart"
    both = [torch.cat([cells[~rare], cells[rare].sum()[None]]) for cells in (counts, expected)]
    return chisquare(*(cells.numpy() for cells in both)).pvalue


PROMPT, REFERENCE = [5, 90, 17, 230], [40, 300, 77, 120, 60, 2]


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def same_row_mixed_often(request, tmp_path_factory):
    """One row under 8000 row ids, mixed by a model of doubled logits, which has favourites.

    One of them, the likeliest first token, is excluded, so that leaving it out must show.
    """
    folder = save_tiny_model(tmp_path_factory.mktemp("peaked"))
    model = load_model(folder, dtype=request.param)
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    excluded = (0, 2, int(next_logits(model, PROMPT).argmax()))
    common = {"beta": 0.5, "seed": 0, "excluded_ids": excluded}
    references, row_ids = [REFERENCE] * 8000, range(8000)
    mixed = mix_contexts(
        model, [PROMPT] * 8000, references, row_ids=row_ids, **common, batch_size=1000
    )
    replaced = torch.stack([replaced_positions(REFERENCE, row, **common) for row in row_ids])
    return model, torch.tensor(mixed), replaced, excluded


@pytest.mark.parametrize("position", [0, 1, 3])
def test_sampled_tokens_follow_the_softmax_at_their_mixed_prefix(same_row_mixed_often, position):
    """Among the rows replaced here, those of the commonest prefix that is not the reference's.

    The same counts refute the softmax after the reference's prefix (or, at the first position,
    where all prefixes are empty, that of the whole vocabulary) and a temperature of 1.3.
    """
    model, mixed, replaced, excluded = same_row_mixed_often
    rows = mixed[replaced[:, position]]
    prefixes = Counter(map(tuple, rows[:, :position].tolist()))
    gold = REFERENCE[:position]
    prefix = next(list(p) for p, _ in prefixes.most_common() if list(p) != gold or not position)
    here = (rows[:, :position] == torch.tensor(prefix, dtype=torch.long)).all(dim=1)
    counts = torch.bincount(rows[here, position], minlength=400).double()
    logits = next_logits(model, PROMPT + prefix)
    assert p_value(counts, softmax_without(logits, excluded)) > 1e-3
    assert counts[list(excluded)].sum() == 0
    if position:
        wrong = softmax_without(next_logits(model, PROMPT + gold), excluded)
    else:
        wrong = logits.softmax(-1)
    assert p_value(counts, wrong) < 1e-6
    assert p_value(counts, softmax_without(logits / 1.3, excluded)) < 1e-6


def test_the_share_of_replaced_positions_in_a_row_file_is_beta(recipe_dict, write_contexts):
    """The share of n replaceable positions has standard error sqrt(beta (1 - beta) / n) < 0.01.

    Replaced need not mean changed: given x and g_<t, position t changes with probability
    q_t = beta (1 - pi(y_t | x, g_<t)), so the number of changes less sum q_t has mean 0 and
    variance E sum q_t (1 - q_t). Both are held to 3 standard errors.
    """
    beta = 0.2
    step, rows = write_contexts(limit=60, beta=beta)
    references = [y for _, _, y in map(parts, rows)]
    chosen = [
        replaced_positions(
            reference, row["id"], beta=beta, seed=step.seed_of_round(), excluded_ids=SPECIAL
        )
        for reference, row in zip(references, rows, strict=True)
    ]
    n = sum(len(y) - 1 for y in references)
    error = (beta * (1 - beta) / n) ** 0.5
    assert error < 0.01 and abs(torch.cat(chosen).sum().item() / n - beta) < 3 * error
    model = load_model(recipe_dict["model"])
    changes = expected = variance = 0.0
    for row, is_chosen in zip(rows, chosen, strict=True):
        x, g, y = parts(row)
        changed = torch.tensor(g) != torch.tensor(y)
        assert not (changed & ~is_chosen[: len(y)]).any()
        with torch.no_grad():
            logits = model(torch.tensor([row["input_ids"]])).logits[0, len(x) - 1 : -2].double()
        logits[:, list(SPECIAL)] = float("-inf")
        said = logits.softmax(-1).gather(1, torch.tensor(y[:-1])[:, None])[:, 0]
        chance = beta * (1 - said)
        changes += changed.sum().item()
        expected += chance.sum().item()
        variance += (chance * (1 - chance)).sum().item()
    assert abs(changes - expected) < 3 * variance**0.5


def rows_recipe(recipe_dict):
    """Stages whose rows are all written by the base model, however training rounds."""
    recipe_dict["trainer"]["max_steps"] = 1
    recipe_dict["evaluate"] = []
    recipe_dict["stages"] = {"bash": {"method": "bash", "beta": 0.5}, "rac": {"method": "rac"}}
    return recipe_dict


def row_files(runs):
    """What the steps wrote: 'contexts-FINGERPRINT/rows.jsonl' and so on -> bytes."""
    names = (ROWS, artifact.SAMPLES)
    files = [path for name in names for path in runs.glob(f"steps/*/{name}")]
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in files}


def test_batches_of_one_row_of_a_few_and_of_all_write_the_same_bytes(
    recipe_dict, write_recipe, tmp_path
):
    from pipeline.plan.load import load_recipe
    from pipeline.plan.plan import make_plan

    rows_recipe(recipe_dict)["data"]["train"]["limit"] = 9
    written = []
    for tokens in (1, 200, 5000):
        recipe_dict["generation"]["batch_tokens"] = tokens
        plan = make_plan(load_recipe(write_recipe(recipe_dict)))
        runs = tmp_path / f"batches-of-{tokens}"
        for step in plan.steps:
            if step.kind != "train":
                execute(StepContext.read(write_spec(step, runs, processes=1, use_cpu=True)))
        written.append(row_files(runs))
    kinds = sorted(name.split("-")[0] for name in written[0])
    assert kinds == ["answers", "contexts", "corrections"]
    assert written[0] == written[1] == written[2]


def test_1_and_2_processes_write_the_same_bytes(bashrac, recipe_dict, write_recipe, tmp_path):
    """`--multi_gpu` with ACCELERATE_USE_CPU: with `--cpu` accelerate would start one process."""
    path = write_recipe(rows_recipe(recipe_dict))
    single = bashrac("run", path, "--runs", "one")
    assert single.returncode == 0, single.stdout + single.stderr
    folder = tmp_path / "elsewhere"  # not beside the eval.py that the fixture put there
    folder.mkdir()
    root = str(ROOT)
    cpu = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    for stage in ("bash", "rac"):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        two = subprocess.run(
            [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes",
             "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
             "--main_process_port", str(port), "-m", "pipeline", "run", str(path), "--stage",
             stage, "--runs", str(tmp_path / "two")],
            cwd=folder, env={**os.environ, **cpu}, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert two.returncode == 0, two.stdout + two.stderr
    for name, processes in (("one", 1), ("two", 2)):
        records = list(tmp_path.glob(f"{name}/steps/*/record.json"))
        assert [artifact.read_json(record)["processes"] for record in records] == [processes] * 5
    files = row_files(tmp_path / "one")
    kinds = sorted(name.split("-")[0] for name in files)
    assert kinds == ["answers", "contexts", "corrections"]
    assert row_files(tmp_path / "two") == files
