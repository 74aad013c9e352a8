"""Tiny real models, real recipes, and the real command line."""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import failures
import judge_servers
import pytest
import yaml

# Fixed, for steps would adapt it to what else runs, and with it the last bits of numbers. Workers are
# as many as cores, so more than a thread each is in the way; they inherit what is set here in the
# process that starts them, which therefore notes what the user had set.
os.environ.setdefault("BASHRAC_TESTS_OMP", os.environ.get("OMP_NUM_THREADS", ""))
os.environ["OMP_NUM_THREADS"] = os.environ["BASHRAC_TESTS_OMP"] or (
    "1" if "PYTEST_XDIST_WORKER" in os.environ else str(os.cpu_count())
)
from several import alone, place  # noqa: F401 - fixtures

# A shell that starts the tests in the background has them ignore Ctrl-C, which some tests send.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
# Fixtures that start processes or train: a test that uses one is marked `launches`.
LAUNCHING = {
    "alone", "bare", "bashrac", "bashrac_without", "browser", "extended", "handed", "launched", "made",
    "place", "repository", "run_arms", "run_steps_here", "served", "stand_in", "start", "training",
}  # fmt: skip
COMMANDS = pytest.StashKey[tuple[Path, list]]()  # the folder of a test, and what ran there
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer(*, template: bool):
    """A byte-level BPE tokenizer of 400 tokens, trained on the built-in word problems."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from pipeline.data.builtin.rows import builtin_rows

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rows = builtin_rows("maths", "train", limit=50)
    tokenizer.train_from_iterator([row["question"] + row["answer"] for row in rows], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )
    if template:
        fast.chat_template = CHAT_TEMPLATE
    return fast


def save_tiny_model(
    folder: Path, *, architecture: str = "llama", template: bool = True, **more: Any
) -> str:
    """Save a random model of about 60,000 weights with its tokenizer; returns the folder.

    `more` goes over the settings of its config.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = build_tokenizer(template=template)
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if architecture in ("llama", "mistral"):
        sizes["num_key_value_heads"] = 2
    torch.manual_seed(0)
    # A wide initialisation, so that the random model is sure enough of itself to be tested.
    config = AutoConfig.for_model(architecture, **{**sizes, "initializer_range": 0.3, **more})
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def random_ids(generator, low: int, high: int) -> list[int]:
    """Between low and high - 1 token ids of the tiny models, none of them special."""
    import torch

    size = int(torch.randint(low, high, (1,), generator=generator))
    return torch.randint(3, 400, (size,), generator=generator).tolist()


def problems_of(path, *overrides) -> dict[str, str]:
    """The problems of a recipe, by key."""
    from pipeline.errors import RecipeError
    from pipeline.plan.load import load_recipe

    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return {problem.key: problem.message for problem in caught.value.problems}


def digests(folder: Path) -> dict[str, str]:
    """Relative path -> sha256 of every file below a folder."""
    from pipeline.steps.artifact import file_digest

    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in files}


def first_step(plan):
    """The first step of a plan's first stage; before it test rows are looked for in training rows."""
    return next(step for step in plan.steps if step.kind != "overlap")


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """A hub that cannot be reached, and a cache that knows the commit of one data set."""
    from pipeline.steps import identity

    def remember(repository: str, commit: str) -> None:
        refs = tmp_path / f"datasets--{repository.replace('/', '--')}" / "refs"
        refs.mkdir(parents=True)
        (refs / "main").write_text(commit)
        identity.hub_commit.cache_clear()

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return remember


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Tests keep converted models and digests to themselves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BASHRAC_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def quick_collections():
    """Trainers collect garbage often, and would each time look through all imported libraries."""
    before = len(sys.modules)
    yield
    if len(sys.modules) > before + 50:
        import hypothesis  # noqa: F401 - it looks who holds random generators, before they freeze

        gc.collect()
        gc.freeze()


def result_digests(runs: Path) -> dict[str, str]:
    """step/file -> sha256 of everything finished steps wrote, but for histories: they hold speeds."""
    found = {}
    for file in sorted(runs.glob("steps/*/record.json")):
        for name, known in json.loads(file.read_text())["files"].items():
            if name != "history.json":
                found[f"{file.parent.name}/{name}"] = known["sha256"]
    return found


def benchmark_script(name: str) -> Any:
    """A script of benchmarks/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"benchmarks/{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def imported_by(*modules: str) -> set[str]:
    """The packages that a fresh Python holds once it has imported these modules."""
    code = (
        f"import sys, {', '.join(modules)}; print(*{{name.split('.')[0] for name in sys.modules}})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def processes_naming(text: str, *, working_in: Path = Path("/")) -> list[int]:
    """Processes of this machine whose command line holds a text, of those that work in a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if text.encode() in (path / "cmdline").read_bytes() and (
                (path / "cwd").resolve().is_relative_to(working_in.resolve())
            ):
                found.append(int(path.name))
        except OSError:
            continue  # it has ended while we looked
    return found


@pytest.fixture
def injected():
    """Note what a fault did, for the table that benchmarks/reliability.py prints."""

    def note(fault: str, how: str, times: int, outcome: str) -> None:
        print(f"{fault}: {how}: {times} times: {outcome}")
        if found := os.environ.get("BASHRAC_FAULTS"):
            row = {"fault": fault, "how": how, "times": times, "outcome": outcome}
            with open(found, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    return note


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> str:
    """A tiny Llama with a chat template."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def plain_model(tmp_path_factory) -> str:
    """A tiny GPT-NeoX (the architecture of Pythia) without a chat template."""
    folder = tmp_path_factory.mktemp("models") / "neox"
    return save_tiny_model(folder, architecture="gpt_neox", template=False)


def tiny_recipe(model: str) -> dict:
    """A recipe that runs in seconds; tests change what they need."""
    return {
        "name": "tiny",
        "task": "gsm8k",
        "model": model,
        "precision": "float32",
        "data": {
            "train": {"source": "builtin:maths", "limit": 6},
            "test": {"source": "builtin:maths", "limit": 4},
            "preferences": {"source": "builtin:maths", "limit": 4},
        },
        "launch": "cpu",
        "batch_size": 4,
        "micro_batch_size": 2,
        "trainer": {"learning_rate": 0.001, "max_steps": 2, "max_length": 256},
        "generation": {"max_new_tokens": 8, "batch_tokens": 256},
        "stages": {
            "sft": {"method": "sft"},
            "bash": {"method": "bash", "from": "sft"},
            "sft-dpo": {"method": "dpo", "from": "sft"},
            "bash-dpo": {"method": "dpo", "from": "bash"},
        },
        "evaluate": ["gsm8k"],
    }


@pytest.fixture
def recipe_dict(tiny_model) -> dict:
    """The tiny recipe on the tiny Llama."""
    return tiny_recipe(tiny_model)


@pytest.fixture
def write_recipe(tmp_path):
    """Write a recipe dict to a file of this test."""

    def write(recipe: dict, name: str = "recipe.yaml") -> Path:
        path = tmp_path / name
        path.write_text(yaml.safe_dump(recipe, sort_keys=False))
        return path

    return write


@pytest.hookimpl(tryfirst=True)  # before marks are selected by
def pytest_collection_modifyitems(items):
    for item in items:
        if not LAUNCHING.isdisjoint(item.fixturenames):
            item.add_marker("launches")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    if report.failed and COMMANDS in item.stash:
        report.sections.extend(failures.sections(*item.stash[COMMANDS]))
    return report


@pytest.fixture
def bashrac(tmp_path, request):
    """Run the command line as a user would, in this test's folder; a failed test shows what ran."""
    (tmp_path / "eval.py").write_text("raise SystemExit('a file of the user was imported')")
    ran = []
    request.node.stash[COMMANDS] = (tmp_path, ran)

    def run(*arguments, env=None, timeout=500, **options) -> subprocess.CompletedProcess:
        try:
            done = subprocess.run(
                # As for the installed command, a user's eval.py is not taken for our package.
                [sys.executable, "-P", "-m", "pipeline", *map(str, arguments)],
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
                capture_output=True,
                text=True,
                timeout=timeout,
                **options,
            )
        except subprocess.TimeoutExpired as late:
            ran.append((arguments, late))
            raise
        ran.append((arguments, done))
        return done

    return run


@pytest.fixture
def run_steps_here(tmp_path):
    """Run a recipe's steps in this process; returns (plan, runs folder)."""

    def run(recipe_path, *overrides, until=None):
        from pipeline.plan.load import load_recipe
        from pipeline.plan.plan import make_plan
        from pipeline.run.worker import execute
        from pipeline.steps.context import StepContext, write_spec

        plan = make_plan(load_recipe(recipe_path, overrides))
        runs = tmp_path / "runs"
        for step in plan.steps:
            if not (step.directory(runs) / "record.json").exists():
                execute(StepContext.read(write_spec(step, runs, processes=1, use_cpu=True)))
            if until is not None and until(step):
                break
        return plan, runs

    return run


@pytest.fixture
def serve():
    """Start servers; all of them stop with the test."""
    running = []

    def start(answer=judge_servers.opinion, **options):
        server = judge_servers.Server(answer, **options)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        running.append((server, thread))
        return server

    yield start
    for server, thread in running:
        server.shutdown()
        server.server_close()
        thread.join()
