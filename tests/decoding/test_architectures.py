"""Architectures that a fast way of reading gets wrong: all ways write what a plain loop writes.

The plain loop reads one row at a time, in whole passes without a cache.
"""

import random
from functools import partial

import pytest
import torch
from conftest import build_tokenizer
from helpers import bloom, greedy_by_definition, labels_by_definition, mix_by_definition

from pipeline.data.render import Renderer
from pipeline.decoding import probe
from pipeline.decoding.generate import Prompt, generate_answers
from pipeline.rows.contexts import mix_contexts
from pipeline.rows.corrections import Own, correct
from pipeline.rows.diagnostics import mean_loss

SIZES = {
    "vocab_size": 400, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.3,
}  # fmt: skip
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 4, "mamba_n_groups": 1}
# What the tiny models need beside SIZES; windows and chunks are shorter than the rows.
ARCHITECTURES = {
    "llama": {},
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": 8},
    "llama4_text": {
        "attention_chunk_size": 8, "intermediate_size_mlp": 64, "head_dim": 8,
        "num_local_experts": 2, "layer_types": ["chunked_attention", "full_attention"],
    },
    "mistral": {"sliding_window": 8},
    "openai-gpt": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "mamba": {"state_size": 4},
    "mamba2": {"num_heads": 4, "head_dim": 16, "state_size": 4, "n_groups": 1, "chunk_size": 8},
    "falcon_mamba": {"state_size": 4},
    "recurrent_gemma": {
        "lru_width": 32, "attention_window_size": 16, "block_types": ["recurrent", "attention"],
        "head_dim": 8,
    },
    "rwkv": {"attention_hidden_size": 32, "context_length": 512},
    "bamba": {**MAMBA, "mamba_chunk_size": 8, "attn_layer_indices": [1]},
    "zamba2": {
        "num_hidden_layers": 4, "mamba_d_state": 4, "n_mamba_heads": 2, "mamba_headdim": 32,
        "mamba_ngroups": 1, "num_mem_blocks": 1, "chunk_size": 8,
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
    },
    "jamba": {
        "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "mamba_d_state": 4,
        "mamba_dt_rank": 4,
    },
    "minimax": {
        "layer_types": ["linear_attention", "full_attention"], "num_local_experts": 2,
        "block_size": 8, "head_dim": 8,
    },
    "xlstm": {"num_heads": 4, "chunk_size": 8, "autocast_kernel_dtype": "float32"},
    "kimi_linear": {
        "num_key_value_heads": 4, "layer_types": ["linear_attention", "full_attention"],
        "linear_head_dim": 8, "linear_num_heads": 4, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8, "v_head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
    },
}  # fmt: skip
# Rotations that follow the longest row of a pass, once one is over 32 tokens.
FOLLOWING = {
    "dynamic": ("llama", {
        "max_position_embeddings": 32, "rope_parameters": {
            "rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0,
        },
    }),
    "longrope": ("phi3", {
        "original_max_position_embeddings": 32, "rope_parameters": {
            "rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
            "rope_theta": 10000.0, "original_max_position_embeddings": 32,
        },
    }),
}  # fmt: skip


def build(architecture, **more):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    options = {**SIZES, **ARCHITECTURES.get(architecture, {}), **more}
    config = AutoConfig.for_model(architecture, **options)
    return AutoModelForCausalLM.from_config(config).eval()


def rows(count=6, *, longest=30, answer=24):
    rng = random.Random(0)

    def ids(low, high):
        return [rng.randrange(3, 400) for _ in range(rng.randrange(low, high))]

    return [ids(1, longest) for _ in range(count)], [[*ids(4, answer), 2] for _ in range(count)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_way_of_reading_writes_what_a_plain_loop_writes(architecture, monkeypatch):
    model = build(architecture)
    prompts, references = rows()
    asked = [Prompt(row, 0, ids) for row, ids in enumerate(prompts)]
    answers = [greedy_by_definition(model, ids, 2, 6) for ids in prompts]
    for engine in ("auto", "transformers"):
        how = {"max_new_tokens": 6, "stop_ids": [2], "engine": engine}
        assert generate_answers(model, asked, **how) == answers, engine
    mixed = [
        mix_by_definition(model, *pair, beta=0.5, seed=3, row_id=row, excluded=(0, 2))
        for row, pair in enumerate(zip(prompts, references, strict=True))
    ]
    how = {"beta": 0.5, "seed": 3, "row_ids": range(6), "excluded_ids": (0, 2)}
    for engine in ("parallel", "sequential"):
        found = mix_contexts(
            model, prompts, references, **how, engine=engine, warn=lambda sentence: None
        )
        assert found == mixed, engine
    labels = [labels_by_definition(model, *pair) for pair in zip(prompts, references, strict=True)]
    assert correct(model, prompts, prompts, references) == labels
    monkeypatch.setattr("pipeline.rows.corrections._LOGITS", 5 * 6 * 400)
    assert correct(model, prompts, prompts, references) == labels


def test_rows_within_a_window_are_read_fast():
    """GPT-Neo and Llama 4 beside their own windows of 8: what is shorter is read many at a time."""
    for architecture in ("gpt_neo", "llama4_text", "mistral"):
        model = build(architecture)
        assert probe.can_read(model, 8) and not probe.can_read(model, 9)


def test_a_window_that_no_config_names_is_found(monkeypatch):
    """GPT-Neo's, known by its effect: rows at different columns, read to the end of the longer."""
    monkeypatch.setattr(probe, "_WINDOWS", ())
    model = build("gpt_neo")
    assert probe.can_read(model, 8)
    assert not probe.can_read(model, 40) and not probe.can_read(model, 12)


def test_a_model_is_tried_once(monkeypatch):
    """What reads rows of some length reads shorter ones, and what fails is not tried again."""
    tried, read = [], probe._reads_alike
    monkeypatch.setattr(
        probe, "_reads_alike", lambda model, size: tried.append(size) or read(model, size)
    )
    model = build("llama")
    assert all(probe.can_read(model, size) for size in (40, 40, 20, 2, 600, 900))
    assert tried == [40, 512]
    tried.clear()
    model = bloom()
    assert not any(probe.can_read(model, size) for size in (40, 40))
    assert tried == [40]


def test_kinds_of_layers_that_are_not_known_are_not_read_fast():
    model = build("llama")
    assert probe.can_read(model, 40)
    for known in ("full_attention", "sliding_attention"):
        model.config.layer_types = [known] * 2
        assert probe.can_read(model, 40)
    model.config.layer_types = ["full_attention", "spiral_attention"]
    assert not probe.can_read(model, 40)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "opt"])
def test_a_row_shifted_by_one_position_is_not_taken_for_rounding(architecture, dtype, monkeypatch):
    from pipeline.decoding.kv_cache import Reader

    model = build(architecture).to(dtype)
    assert probe.can_read(model, 40)
    read = Reader.read

    def shifted(self, ids, columns, *rest):
        handle = model.register_forward_pre_hook(
            lambda module, args, given: (
                (args, {**given, "position_ids": given["position_ids"] + 1})
                if given["position_ids"].shape[1] == 8
                else None
            ),
            with_kwargs=True,
        )
        try:
            return read(self, ids, columns, *rest)
        finally:
            handle.remove()

    monkeypatch.setattr(Reader, "read", shifted)
    probe._READABLE.clear()
    assert not probe.can_read(model, 40)


@pytest.mark.parametrize("kind", FOLLOWING)
def test_a_row_over_the_original_window_does_not_depend_on_its_company(kind):
    """Nor do short rows: every row is read as by a new model that reads nothing else."""
    architecture, more = FOLLOWING[kind]
    prompts, references = rows(longest=40)
    sizes = [len(p) + len(r) for p, r in zip(prompts, references, strict=True)]
    assert min(sizes) <= 32 < max(sizes)

    def alone(read):
        return [read(build(architecture, **more), [row])[0] for row in range(6)]

    def whole(model, places):
        given = [[each[place] for place in places] for each in (prompts, references)]
        return correct(model, given[0], given[0], given[1])

    def loss(model, places):
        own = [Own(prompts[place], references[place], place) for place in places]
        return [mean_loss(model, own, [row.answer for row in own], batch_tokens=4096)]

    def mix(model, places, **options):
        given = [[each[place] for place in places] for each in (prompts, references)]
        how = {"beta": 0.5, "seed": 3, "excluded_ids": (0, 2), "row_ids": places}
        return mix_contexts(model, *given, **how, **options)

    def answer(model, places, **options):
        asked = [Prompt(place, 0, prompts[place]) for place in places]
        return generate_answers(model, asked, max_new_tokens=6, stop_ids=[2], **options)

    model = build(architecture, **more)
    labels = []
    for p, r in zip(prompts, references, strict=True):
        with torch.no_grad():
            read = build(architecture, **more)(torch.tensor([p + r])).logits[0]
        labels.append(read[len(p) - 1 : -1].argmax(-1).tolist())
    sums = [one * len(row) for one, row in zip(alone(loss), references, strict=True)]
    mean = sum(sums) / sum(map(len, references))
    ways = [
        whole, mix, partial(mix, engine="sequential"), partial(mix, context="gold"), answer,
        partial(answer, engine="transformers"),
    ]  # fmt: skip
    expected = [alone(way) for way in ways]
    assert expected[0] == labels
    for order in (list(range(6)), list(range(6))[::-1]):
        assert loss(model, order) == [pytest.approx(mean, abs=1e-5)]
        for way, each in zip(ways, expected, strict=True):
            assert way(model, order) == [each[place] for place in order], way


def test_contexts_under_longrope_are_those_of_a_plain_loop():
    """A row that crosses the original window as it is written is read anew there."""
    architecture, more = FOLLOWING["longrope"]
    model = build(architecture, **more)
    prompts, references = rows(12, longest=14)
    assert any(len(p) < 32 < len(p) + len(r) for p, r in zip(prompts, references, strict=True))
    expected = [
        mix_by_definition(model, *pair, beta=0.5, seed=3, row_id=row, excluded=(0, 2))
        for row, pair in enumerate(zip(prompts, references, strict=True))
    ]
    how = {"beta": 0.5, "seed": 3, "row_ids": range(12), "excluded_ids": (0, 2)}
    assert mix_contexts(model, prompts, references, **how) == expected


# --- tokens that must not be written ------------------------------------------------------------


def likely(model, ids):
    """Have a model favour some tokens, wherever it writes."""
    with torch.no_grad():
        model.lm_head.weight[:, :] *= 0.2
        model.lm_head.weight[list(ids)] *= 40
    return model


def test_ids_without_a_token_are_never_written():
    """The tokenizer has 400 tokens, and the model writes 448 ids, mostly the last ones."""
    tokenizer = build_tokenizer(template=True)
    renderer = Renderer(tokenizer, vocabulary=448)
    missing = renderer.ids_without_token
    assert missing == tuple(range(len(tokenizer), 448)) and 399 not in missing
    assert Renderer(tokenizer, vocabulary=len(tokenizer)).ids_without_token == ()
    model = likely(build("llama", vocab_size=448), missing)
    prompts, references = rows()
    asked = [Prompt(row, 0, ids) for row, ids in enumerate(prompts)]

    def written(excluded):
        for temperature in (0.0, 1.0):
            for engine in ("auto", "transformers"):
                yield from generate_answers(
                    model, asked, max_new_tokens=6, stop_ids=[2], temperature=temperature,
                    engine=engine, excluded_ids=excluded,
                )  # fmt: skip
        for engine in ("parallel", "sequential"):
            yield from mix_contexts(
                model, prompts, references, beta=0.5, seed=0, row_ids=range(6), engine=engine,
                excluded_ids=(0, 2, *excluded),
            )  # fmt: skip
        for label in ("argmax", "sample"):
            yield from correct(
                model, prompts, prompts, references, label=label, excluded_ids=excluded
            )

    count = sum(token >= len(tokenizer) for ids in written(()) for token in ids)
    assert count > 100 and max(token for ids in written(missing) for token in ids) < len(tokenizer)


def test_tokens_that_are_only_marked_as_special_are_special():
    """Roles, say: transformers 5 names only those with a name in `all_special_ids`."""
    from transformers import AddedToken

    tokenizer = build_tokenizer(template=True)
    tokenizer.add_tokens([AddedToken("<|role|>", special=True), AddedToken("plain", special=False)])
    role, plain = tokenizer.convert_tokens_to_ids(["<|role|>", "plain"])
    special = Renderer(tokenizer).special_ids
    assert role in special and plain not in special
    assert set(tokenizer.all_special_ids) <= special
