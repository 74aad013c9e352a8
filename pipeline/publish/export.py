"""`bashrac merge`: a finished stage as a plain transformers model.

Decisions: (1) an adapter is merged in float32, into what its base meant in training (see
pipeline/models/quantize.py), and the sum is written in the dtype of the base's config, as whoever
loads the base expects it; `--dtype float32` rounds nothing; (2) the weights of a stage without an
adapter are copied as they are, unless `--dtype` asks for another; (3) the generation config stops
where bashrac's own generation stops.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import InputError
from pipeline.publish.config import CONFIG, corrected_config
from pipeline.publish.stage import FinishedStage
from pipeline.steps import artifact


def write_model(found: FinishedStage, out: Path, *, dtype: str | None = None) -> str:
    """Write a finished stage's weights, tokenizer and generation config as one plain folder.

    Args:
        found: the stage.
        out: the folder, which must not exist; it appears only when complete.
        dtype: of the weights (decisions 1 and 2).

    Returns:
        A sentence: what was written, and how to load it.

    Raises:
        InputError: when `out` exists, or a model does not load.
    """
    if out.exists():
        raise InputError(f"{out} exists; choose another name, nothing is overwritten")
    with _quiet(), artifact.atomic_folder(out) as temporary:
        how = _write_weights(found, temporary, dtype)
        if config := corrected_config(found, artifact.read_json(temporary / CONFIG)):
            (temporary / CONFIG).write_bytes(config)
        _write_rest(found, temporary)
    return (
        f"{out} written: stage {found.name} of {found.plan.recipe.name}, seed {found.seed}, {how}\n"
        f"load it: transformers.AutoModelForCausalLM.from_pretrained({str(out)!r}), "
        f"or bashrac evaluate {out} --benchmark NAME"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what libraries print while loading; errors are still raised."""
    import logging
    import warnings

    from transformers.utils import logging as of_transformers

    of_transformers.disable_progress_bar()
    for library in ("transformers", "bitsandbytes"):
        logging.getLogger(library).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft's use of transformers
        yield


def _write_weights(found: FinishedStage, folder: Path, dtype: str | None) -> str:
    """Write weights and config; return how they were made."""
    import torch

    from pipeline.models.load import Terms, load_config, load_merged, load_model
    from pipeline.models.locate import locate

    recipe, trust = found.plan.recipe, found.trust
    if found.model.adapter is None:
        place = locate(str(found.folder))
        if dtype is None:
            shutil.copytree(place, folder, dirs_exist_ok=True)
            return "copied"
        load_model(place, trust=trust, dtype=dtype).save_pretrained(folder)
        return f"in {dtype}"
    terms: Terms = {"revision": found.revision, "trust": trust}
    model = load_merged(found.base, adapter=str(found.folder), quantize=recipe.quantize, **terms)
    own = load_config(found.base, **terms).dtype
    chosen = getattr(torch, dtype) if dtype else own or torch.float32
    model.to(chosen).save_pretrained(folder)
    base = f"{found.base} dequantised from {recipe.quantize}" if recipe.quantize else found.base
    return f"its adapter merged into {base}, in {str(chosen).removeprefix('torch.')}"


def _write_rest(found: FinishedStage, folder: Path) -> None:
    """Write the tokenizer that was trained with, and a generation config (decision 3)."""
    from transformers import AutoTokenizer, GenerationConfig

    from pipeline.data.render import Renderer
    from pipeline.models.load import end_ids
    from pipeline.models.locate import locate

    trust = found.trust
    tokenizer = AutoTokenizer.from_pretrained(
        locate(str(found.folder)), trust_remote_code=trust.code
    )
    tokenizer.save_pretrained(folder)
    ends = end_ids(found.base, revision=found.revision, trust=trust)
    generation = GenerationConfig.from_pretrained(folder)
    generation.eos_token_id = Renderer(tokenizer, end_ids=ends).stop_ids
    generation._from_model_config = False  # else the model config's end token overrides it
    generation.pad_token_id = tokenizer.pad_token_id
    generation.save_pretrained(folder)
