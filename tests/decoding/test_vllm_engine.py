"""The engine vllm, over a stand-in for vLLM in tests/stand_in (and over vLLM where there is one)."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, random_ids

from pipeline.decoding import vllm_worker
from pipeline.decoding.generate import Prompt, generate_answers
from pipeline.decoding.vllm_engine import VllmEngine, seeds_of
from pipeline.decoding.vllm_process import PYTHON, check_vllm, child_environment
from pipeline.errors import InputError, StepFailedError
from pipeline.models.load import load_model, load_tokenizer
from pipeline.steps import artifact

STAND_IN = ROOT / "tests" / "stand_in"
REAL = os.environ.get(PYTHON)
LAUNCH = {
    "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500", "ACCELERATE_MIXED_PRECISION": "bf16",
    "TORCHELASTIC_RUN_ID": "none",
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def stand_in():
    """Let the process find the stand-in for vLLM, whatever this machine has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(STAND_IN))
        patch.delenv(PYTHON, raising=False)
        yield


@pytest.fixture(scope="module")
def other_habits(tiny_model, tmp_path_factory):
    """The tiny model, but its generation config would write other answers and end them early."""
    from transformers import GenerationConfig

    folder = str(tmp_path_factory.mktemp("models") / "habits")
    model = load_model(tiny_model)
    reached = generate_answers(model, prompts_of(6), max_new_tokens=12, stop_ids=[2])
    model.generation_config = GenerationConfig(
        eos_token_id=reached[0][2], repetition_penalty=5.0, pad_token_id=0
    )
    model.save_pretrained(folder)
    load_tokenizer(tiny_model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def engine(other_habits):
    """One process for the tests that only ask."""
    with VllmEngine(other_habits, dtype="float32") as engine:
        yield engine


@pytest.fixture
def notes(tmp_path, monkeypatch):
    """Read what the stand-in was given, once it was asked."""
    path = tmp_path / "notes.json"
    monkeypatch.setenv("STAND_IN_NOTES", str(path))

    def read(*, patience=60):
        end = time.monotonic() + patience
        while time.monotonic() < end:
            try:
                return json.loads(path.read_text())
            except (OSError, ValueError):  # not there yet, or half of it
                time.sleep(0.05)
        raise AssertionError("the stand-in was never asked")

    return read


def prompts_of(count):
    generator = torch.Generator().manual_seed(1)
    return [Prompt(row_id, 0, random_ids(generator, 3, 20)) for row_id in range(count)]


def save_adapter(base, folder, **options):
    """A LoRA adapter, as training saves it, that changes answers."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    lora = {"r": 4, "lora_alpha": 64, "target_modules": "all-linear", "init_lora_weights": False}
    model = get_peft_model(load_model(base), LoraConfig(task_type="CAUSAL_LM", **lora | options))
    model.save_pretrained(str(folder))
    load_tokenizer(base).save_pretrained(folder)
    return str(folder)


def is_running(pid):
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return bool(state.stdout.strip()) and not state.stdout.startswith("Z")


def ends(pid, *, within):
    end = time.monotonic() + within
    while is_running(pid):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


# --- answers --------------------------------------------------------------------------------------


def test_greedy_answers_are_those_of_generate_answers(engine, other_habits):
    """Though the model's own generation config asks for others, and for an early end."""
    prompts, how = prompts_of(6), {"max_new_tokens": 12, "stop_ids": [2]}
    assert engine.answer(prompts, **how) == generate_answers(
        load_model(other_habits), prompts, **how
    )


def test_an_answer_ends_with_its_stop_token_or_at_the_limit(engine):
    prompts = prompts_of(6)
    free = engine.answer(prompts, max_new_tokens=12, stop_ids=[2])
    stop = free[0][3]  # a token the first answer is known to reach
    answers = engine.answer(prompts, max_new_tokens=12, stop_ids=[2, stop])
    assert answers[0] == free[0][: free[0].index(stop) + 1]
    assert all({2, stop}.isdisjoint(answer[:-1]) for answer in answers)
    cut = [answer for answer in answers if answer[-1] not in (2, stop)]
    assert cut and all(len(answer) == 12 for answer in cut)


def test_a_stop_text_ends_an_answer_and_is_part_of_it(engine, other_habits):
    tokenizer, prompts = load_tokenizer(other_habits), prompts_of(6)
    how = {"max_new_tokens": 12, "stop_ids": [2]}
    free = engine.answer(prompts, **how)
    texts = [tokenizer.decode([token_id]) for token_id in free[0]]
    place = next(place for place, text in enumerate(texts) if place > 1 and text.isalnum())
    answers = engine.answer(prompts, **how, stop_text=texts[place])
    assert texts[place] in tokenizer.decode(answers[0]) and len(answers[0]) <= place + 1 < 12
    assert answers == generate_answers(
        load_model(other_habits), prompts, **how, stop_text=texts[place], tokenizer=tokenizer
    )


def test_a_sample_depends_on_seed_row_and_number_not_on_its_company(engine):
    prompts = prompts_of(5)
    how = {"max_new_tokens": 8, "stop_ids": [2], "temperature": 1.0, "seed": 3}
    together = engine.answer(prompts, **how)
    assert engine.answer(prompts[::-1], **how) == together[::-1]
    assert [engine.answer([prompt], **how)[0] for prompt in prompts] == together
    assert engine.answer(prompts, **{**how, "seed": 4}) != together
    second = [Prompt(prompt.row_id, 1, prompt.ids) for prompt in prompts]
    assert engine.answer(second, **how) != together


def test_sampling_options_reach_vllm(engine):
    """The likeliest token alone is left by a top-k of 1, and by a tiny nucleus."""
    prompts, how = prompts_of(4), {"max_new_tokens": 6, "stop_ids": [2]}
    greedy = engine.answer(prompts, **how)
    assert engine.answer(prompts, **how, temperature=1.0, top_k=1) == greedy
    assert engine.answer(prompts, **how, temperature=1.0, top_p=1e-6) == greedy
    assert engine.answer(prompts, **how, temperature=1.0) != greedy


def test_excluded_tokens_are_not_written(engine):
    prompts, how = prompts_of(4), {"max_new_tokens": 6, "stop_ids": [2]}
    free = {token for answer in engine.answer(prompts, **how) for token in answer}
    for temperature in (0.0, 1.0):
        rest = engine.answer(prompts, **how, temperature=temperature, excluded_ids=sorted(free))
        assert free.isdisjoint(token for answer in rest for token in answer)


def test_seeds_are_distinct_and_never_negative():
    prompts = [Prompt(row_id, sample, [3]) for row_id in range(100) for sample in range(10)]
    seeds = seeds_of(prompts, 0)
    assert len(set(seeds)) == 1000 and min(seeds) >= 0 and max(seeds) < 1 << 63
    assert not set(seeds) & set(seeds_of(prompts, 1))


def test_nothing_is_asked_where_there_is_no_prompt():
    with VllmEngine("/no/such/folder") as engine:
        assert engine.answer([], max_new_tokens=3, stop_ids=[2]) == []
        assert engine.version is None


def test_an_answer_that_vllm_would_cut_short_is_refused(tiny_model):
    with VllmEngine(tiny_model, dtype="float32", longest=12) as engine:
        prompts = [Prompt(0, 0, [5] * 8)]
        assert len(engine.answer(prompts, max_new_tokens=4, stop_ids=[0])[0]) == 4
        with pytest.raises(ValueError, match="take 13 tokens, more than the window of 12"):
            engine.answer(prompts, max_new_tokens=5, stop_ids=[0])


# --- adapters -------------------------------------------------------------------------------------


def test_an_adapter_is_read_over_its_base_or_by_its_own_folder(tiny_model, tmp_path, notes):
    adapter = save_adapter(tiny_model, tmp_path / "step" / "model")
    prompts, how = prompts_of(4), {"max_new_tokens": 8, "stop_ids": [2]}
    expected = generate_answers(load_model(tiny_model, adapter=adapter), prompts, **how)
    assert expected != generate_answers(load_model(tiny_model), prompts, **how)
    with VllmEngine(tiny_model, adapter=str(tmp_path / "step"), dtype="float32") as engine:
        assert engine.answer(prompts, **how) == expected
    seen = notes()
    assert seen["adapter"] == adapter and seen["llm"]["enable_lora"]
    assert seen["llm"]["max_lora_rank"] == 8
    with VllmEngine(adapter, dtype="float32") as engine:
        assert engine.answer(prompts, **how) == expected
    assert notes()["adapter"] == adapter and notes()["llm"]["model"] == tiny_model


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"r": 513}, "up to rank 512, and .* has 513"),
        ({"r": 8, "rank_pattern": {"q_proj": 600}}, "has 600"),
        ({"r": 8, "use_dora": True}, "adapters with use_dora"),
        ({"r": 8, "modules_to_save": ["lm_head"], "bias": "all"}, "with modules_to_save and bias"),
    ],
)
def test_an_adapter_vllm_cannot_read_is_an_error_at_once(tiny_model, tmp_path, config, words):
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": tiny_model, **config})
    )
    with pytest.raises(InputError, match=words):
        VllmEngine(tiny_model, adapter=str(tmp_path))


def test_an_adapter_on_an_adapter_is_an_error(tiny_model, tmp_path):
    adapter = save_adapter(tiny_model, tmp_path)
    with pytest.raises(InputError, match="vLLM takes only one; merge it"):
        VllmEngine(adapter, adapter=adapter)


# --- the process ----------------------------------------------------------------------------------


def test_the_process_is_told_nothing_of_our_launch(tiny_model, monkeypatch, notes):
    for name, value in LAUNCH.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "7")
    monkeypatch.setenv("STAND_IN_DOES", "echo")
    with VllmEngine(tiny_model, dtype="float32", longest=64) as engine:
        engine.answer(prompts_of(1), max_new_tokens=1, stop_ids=[2])
    seen = notes()
    assert not LAUNCH.keys() & seen["environment"].keys()
    assert engine.version == "0.32.0"
    assert seen["environment"]["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert seen["environment"]["VLLM_CPU_KVCACHE_SPACE"] == "7"  # the user's goes before ours
    assert str(ROOT / "pipeline") not in seen["path"]
    assert seen["llm"]["max_model_len"] == 64 and seen["llm"]["dtype"] == "float32"


@pytest.mark.parametrize(
    ("environment", "cuda", "devices"),
    [
        ({}, True, None),
        ({"LOCAL_RANK": "2"}, True, "2"),
        ({"LOCAL_RANK": "1", "CUDA_VISIBLE_DEVICES": "4, 6"}, True, "6"),
        ({"LOCAL_RANK": "0", "CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}, True, "GPU-a"),
        ({"LOCAL_RANK": "1"}, False, None),
        ({"CUDA_VISIBLE_DEVICES": "4,6"}, True, "4,6"),
    ],
)
def test_the_process_sees_the_gpu_of_our_rank_only(environment, cuda, devices):
    assert child_environment(environment, cuda=cuda).get("CUDA_VISIBLE_DEVICES") == devices


@pytest.mark.parametrize(
    ("free", "share"), [(80, 0.9), (40, 0.47), (None, None)], ids=["free", "shared", "cpu"]
)
def test_vllm_takes_no_more_of_a_gpu_than_is_free(monkeypatch, free, share):
    """Of 80 GB; on a CPU it is told nothing of a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: free is not None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, 80))
    assert vllm_worker._for_device().get("gpu_memory_utilization") == (
        share and pytest.approx(share)
    )


def test_a_rank_without_a_gpu_is_an_error():
    environment = {"LOCAL_RANK": "2", "CUDA_VISIBLE_DEVICES": "4,6"}
    with pytest.raises(InputError, match=r"process 2 .* no GPU in CUDA_VISIBLE_DEVICES=4,6"):
        child_environment(environment, cuda=True)


def test_a_closed_engine_leaves_neither_process_nor_log_unless_asked(
    tiny_model, tmp_path, monkeypatch, notes
):
    monkeypatch.setenv("STAND_IN_DOES", "echo")
    kept = tmp_path / "vllm.log"
    for log in (None, kept):
        with VllmEngine(tiny_model, dtype="float32", log=log) as engine:
            engine.answer(prompts_of(1), max_new_tokens=1, stop_ids=[2])
            pid, written = notes()["pid"], engine._worker.log
            assert is_running(pid) and "INFO 1 prompts" in written.read_text()
        assert not is_running(pid) and written.exists() == (log is not None)


def test_an_interrupt_ends_the_process_in_the_middle_of_an_answer(tiny_model, monkeypatch, notes):
    monkeypatch.setenv("STAND_IN_DOES", "sleep")

    def interrupt():
        notes()
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt, daemon=True)
    with pytest.raises(KeyboardInterrupt), VllmEngine(tiny_model) as engine:
        thread.start()
        engine.answer(prompts_of(1), max_new_tokens=1, stop_ids=[2])
    thread.join()
    assert not is_running(notes()["pid"])


@pytest.mark.parametrize("does", ["echo", "sleep"])
def test_the_process_ends_when_its_parent_is_killed(tiny_model, tmp_path, notes, does):
    """Waiting for a question, or in the middle of an answer."""
    code = (
        "import sys, time\n"
        "from pipeline.decoding.generate import Prompt\n"
        "from pipeline.decoding.vllm_engine import VllmEngine\n"
        "from pathlib import Path\n"
        "engine = VllmEngine(sys.argv[1], log=Path(sys.argv[2]))\n"
        "engine.answer([Prompt(0, 0, [5, 6])], max_new_tokens=1, stop_ids=[2])\n"
        "print('answered', flush=True)\n"
        "time.sleep(600)\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{STAND_IN}"}
    parent = subprocess.Popen(
        [sys.executable, "-c", code, tiny_model, str(tmp_path / "vllm.log")],
        env={**environment, "STAND_IN_DOES": does},
        stdout=subprocess.PIPE,
    )
    try:
        pid = notes()["pid"]
        if does == "echo":
            assert parent.stdout.readline() == b"answered\n"
        assert is_running(pid)
    finally:
        parent.kill()
        parent.communicate()
    assert ends(pid, within=30)


# --- failures -------------------------------------------------------------------------------------


@pytest.mark.timeout(60)
def test_a_process_that_is_killed_is_an_error_with_its_last_lines(tiny_model, monkeypatch):
    """Though a child of it lives on and holds its pipes open; the child is ended too."""
    monkeypatch.setenv("STAND_IN_DOES", "die")
    with pytest.raises(StepFailedError) as caught, VllmEngine(tiny_model) as engine:
        engine.answer(prompts_of(1), max_new_tokens=1, stop_ids=[2])
    sentence = str(caught.value)
    assert "failed while it answered: it was killed by SIGKILL, often for lack of mem" in sentence
    assert "the GPU has fallen off the bus" in sentence
    log = Path(sentence.split("its log: ")[1].split("\n")[0])
    child = log.read_text().split("child ")[1].split("\n")[0]
    log.unlink()
    assert ends(child, within=10)


def test_an_exception_of_vllm_is_an_error_that_names_it(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("STAND_IN_DOES", "raise")
    log = tmp_path / "vllm.log"
    with VllmEngine(tiny_model, log=log) as engine:
        with pytest.raises(StepFailedError, match="while it answered: RuntimeError: no kernel im"):
            engine.answer(prompts_of(1), max_new_tokens=1, stop_ids=[2])
        assert "Traceback" in log.read_text()
        monkeypatch.setenv("STAND_IN_DOES", "echo")  # asked again it starts anew
        assert engine.answer(prompts_of(1), max_new_tokens=1, stop_ids=[2])


def test_a_model_that_vllm_does_not_load_is_an_error_that_says_so(tiny_model, tmp_path):
    log = tmp_path / "vllm.log"
    with (
        VllmEngine(tiny_model, longest=513, log=log) as engine,
        pytest.raises(StepFailedError, match="it loaded the model: ValueError: max_model_len") as e,
    ):
        engine.answer(prompts_of(1), max_new_tokens=1, stop_ids=[2])
    assert str(log) in str(e.value) and "engine: auto" in str(e.value)


def test_an_interpreter_without_vllm_is_an_error_with_ways_out(tiny_model, tmp_path, monkeypatch):
    check_vllm()  # the stand-in is there
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv(PYTHON, str(python))
    words = rf"needs the package vllm, which {python} does not have; .*{PYTHON}.* engine: auto"
    with pytest.raises(InputError, match=words):
        check_vllm()
    with VllmEngine(tiny_model) as engine, pytest.raises(InputError, match=words):
        engine.answer(prompts_of(1), max_new_tokens=1, stop_ids=[2])


def test_an_interpreter_that_is_not_there_is_an_error_that_names_it(monkeypatch):
    monkeypatch.setenv(PYTHON, "/no/such/python")
    with pytest.raises(InputError, match=rf"{PYTHON} names /no/such/python, which cannot be run"):
        check_vllm()


def test_the_engine_imports_neither_torch_nor_vllm():
    code = "import sys, pipeline.decoding.vllm_engine; print({'torch', 'vllm'} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{STAND_IN}"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.stdout == "set()\n", done.stderr


# --- vLLM itself ----------------------------------------------------------------------------------


@pytest.mark.skipif(not REAL, reason=f"{PYTHON} names no interpreter with vLLM")
@pytest.mark.parametrize("adapted", [False, True], ids=["base", "adapter"])
def test_vllm_itself_writes_the_greedy_answers_of_generate_answers(adapted, tmp_path, monkeypatch):
    """In float32. A sum in another order may turn a near tie, so one answer of eight may differ."""
    monkeypatch.setenv(PYTHON, REAL)
    monkeypatch.delenv("PYTHONPATH")
    base = "smollm2-135m-instruct"
    adapter = None
    if adapted:
        adapter = save_adapter(base, tmp_path, init_lora_weights="gaussian")
    tokenizer = load_tokenizer(base)
    prompts = [
        Prompt(number, 0, tokenizer(f"{number} apples and {number} pears are")["input_ids"])
        for number in range(8)
    ]
    how = {"max_new_tokens": 16, "stop_ids": [2]}
    with VllmEngine(base, adapter=adapter, dtype="float32", longest=64) as engine:
        found = engine.answer(prompts, **how)
        drawn = engine.answer(prompts, **how, temperature=1.0, seed=1)
        assert engine.answer(prompts, **how, temperature=1.0, seed=2) != drawn
    expected = generate_answers(load_model(base, adapter=adapter), prompts, **how)
    assert sum(a == b for a, b in zip(found, expected, strict=True)) >= 7


# --- as a step ----------------------------------------------------------------------------------


def test_a_stage_answered_by_vllm_is_another_result_with_rows_of_the_same_shape(
    recipe_dict, write_recipe, run_steps_here
):
    recipe_dict |= {"stages": {"base": {"method": "base"}}, "evaluate": ["gsm8k"]}
    written, records = [], []
    for name in ("auto", "vllm"):
        recipe_dict["generation"]["engine"] = name
        plan, runs = run_steps_here(write_recipe(recipe_dict))
        step = next(step for step in plan.steps if step.kind == "answers")
        written.append(artifact.read_rows(step.directory(runs) / artifact.SAMPLES))
        records.append(artifact.read_record(step.directory(runs)))
        assert not list(step.directory(runs).glob("*vllm*"))
    assert written[0] == written[1]  # greedy, in float32
    assert records[0]["fingerprint"] != records[1]["fingerprint"]
    assert "vllm" in records[1]["metrics"] and "vllm" not in records[0]["metrics"]


def test_a_run_that_needs_vllm_says_so_before_it_trains(
    bashrac, recipe_dict, write_recipe, tmp_path, monkeypatch
):
    monkeypatch.delenv("PYTHONPATH")
    recipe_dict["generation"]["engine"] = "vllm"
    done = bashrac("run", write_recipe(recipe_dict), "--runs", "runs")
    assert done.returncode == 2 and "engine: vllm needs the package vllm" in done.stderr
    assert not (tmp_path / "runs" / "steps").exists()
