"""The precision that a step computes in: chosen where it runs, unless the recipe names one.

`precision: auto`, the default, takes what the hardware computes natively:

| hardware                                           | precision                         |
| -------------------------------------------------- | --------------------------------- |
| CUDA of compute capability 8.0 and newer, ROCm     | bfloat16                          |
| older CUDA (T4, V100, RTX 20)                      | float16, training scales its loss |
| CPU with avx512_bf16 or amx_bf16 (x86), bf16 (ARM) | bfloat16                          |
| any other CPU                                      | float32                           |
| XPU with bfloat16 conversions                      | bfloat16                          |
| any other XPU; MPS, of which torch does not say    | float32                           |

It decides what training computes in (autocast), how a base frozen under an adapter is stored, and
how a model that writes rows or answers is stored. Trained weights are float32 in every precision:
in bfloat16 an update of 1e-5 of a weight is lost. What `auto` chooses is not part of a step's
identity, as no hardware is, but noted in its record. A precision that the recipe names is part of
it. The older keys that it replaces (`dtype`, `generation.dtype`, `trainer.bf16`, `trainer.fp16`)
take precedence where they are given.

Only functions that ask the hardware import torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pipeline.errors import InputError
from pipeline.recipe.schema import AUTOCAST, named_autocast

if TYPE_CHECKING:
    from pipeline.recipe.schema import Recipe
    from pipeline.recipe.shipped import Launch
    from pipeline.steps.spec import StepSpec

# The cause of scores, losses and weights that are NaN or infinite, and the way out.
NOT_FINITE = (
    "the model's weights are damaged, or its numbers are too large for the precision; try "
    "precision: float32, or start from another model"
)
_NATIVE_ON_CPUS = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")
_REFUSED = (
    "float16 is asked for (precision, dtype, generation.dtype or trainer.fp16), but on the CPU of "
    "this launch it is slow and overflows; write precision: auto, or float32, or launch on a GPU"
)
_NAMED = "the recipe says so"


@dataclass(frozen=True)
class Hardware:
    """What a device computes natively.

    Attributes:
        device: its kind, as torch calls it: cuda, cpu, mps, xpu.
        best: the precision that suits it best.
        why: the reason, to be printed after `best`.
        natively: the precisions it computes without emulation.
    """

    device: str
    best: str
    why: str
    natively: tuple[str, ...]


@dataclass(frozen=True)
class Precision:
    """The precision of a step.

    Attributes:
        compute: of its matrix products.
        weights: of the weights it loads.
        autocast: training's mixed precision; None where it computes in the dtype of the weights.
        why: the reason for `compute`.
    """

    compute: str
    weights: str
    autocast: str | None
    why: str

    @property
    def short(self) -> str:
        """Such as 'bfloat16 over float32 weights'."""
        kept = "" if self.weights == self.compute else f" over {self.weights} weights"
        return f"{self.compute}{kept}"

    @property
    def words(self) -> str:
        """Such as 'bfloat16 over float32 weights (this CPU has avx512_bf16)'."""
        return f"{self.short} ({self.why})"


def hardware(device: str) -> Hardware:
    """What a kind of device of this machine computes natively (the table above)."""
    import torch

    with_bfloat16 = ("bfloat16", "float16", "float32")
    if device == "cuda":
        name = torch.cuda.get_device_name()
        # By default torch counts emulation as support; it is slow and takes more memory.
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Hardware(device, "bfloat16", f"native on {name}", with_bfloat16)
        why = f"{name} has no native bfloat16"
        return Hardware(device, "float16", why, ("float16", "float32"))
    if device == "cpu":
        # Older versions of torch do not say what a CPU has.
        known = getattr(torch.cpu, "get_capabilities", dict)()
        if found := next((name for name in _NATIVE_ON_CPUS if known.get(name)), None):
            return Hardware(device, "bfloat16", f"this CPU has {found}", ("bfloat16", "float32"))
        why = "this CPU has no native bfloat16" if known else "this torch tells nothing of the CPU"
        return Hardware(device, "float32", why, ("float32",))
    if device == "xpu" and torch.xpu.is_bf16_supported(including_emulation=False):
        return Hardware(device, "bfloat16", "native on this XPU", with_bfloat16)
    why = f"torch names no native bfloat16 of this {device.upper()}"
    return Hardware(device, "float32", why, ("float16", "float32"))


def hardware_of_launch(*, use_cpu: bool) -> Hardware:
    """The hardware of a launch; without a GPU here to ask, that of a recent one."""
    import torch

    if use_cpu:
        return hardware("cpu")
    if (found := torch.accelerator.current_accelerator(check_available=True)) is not None:
        return hardware(found.type)
    why = "as on GPUs with native bfloat16; there is none here to ask"
    return Hardware("cuda", "bfloat16", why, ("bfloat16", "float16", "float32"))


def choose(options: Mapping[str, Any], found: Hardware) -> Precision:
    """The precision of a step.

    Args:
        options: of the step: `dtype`, and of a training step `trainer` and `lora`.
        found: what it runs on.

    Raises:
        InputError: for float16 on a CPU, and for float16 weights whose training scales no loss.
    """
    if found.device == "cpu" and _asks_float16(options):
        raise InputError(_REFUSED)
    asked, trainer = options["dtype"], options.get("trainer")
    weights = found.best if asked == "auto" else asked
    if trainer is None:
        return Precision(weights, weights, None, found.why if asked == "auto" else _NAMED)
    named = named_autocast(trainer)
    autocast = _sixteen(named or found.best)
    scaled = options["lora"] is not None and autocast == "float16"
    if asked == "auto" and (options["lora"] is None or (weights == "float16" and not scaled)):
        weights = "float32"
    elif weights == "float16" and not scaled:
        raise InputError(
            "dtype: float16 would train without scaling the loss, and small gradients would be 0; "
            "take it out: precision: float16 scales the loss and trains float32 weights"
        )
    # Without autocast the weights decide.
    is_named = named if autocast or weights == "float32" else None
    is_named = is_named or (not autocast and asked != "auto")
    return Precision(autocast or weights, weights, autocast, _NAMED if is_named else found.why)


def of_earlier_version(options: Mapping[str, Any]) -> Precision:
    """The precision of a step whose record names none: `auto` was bfloat16 on any hardware."""
    why = "made by an earlier version"
    try:
        return choose(options, Hardware("any", "bfloat16", why, ()))
    except InputError:  # it trained float16 weights, as the recipe said
        return Precision("float16", "float16", None, why)


def read_precision(known: Any) -> Precision | None:
    """The precision that a record or progress file holds, or None."""
    try:
        return Precision(**known)
    except TypeError:
        return None


def warning(precision: Precision, found: Hardware) -> str | None:
    """Return a warning about a precision that the hardware only emulates, or None.

    Raises:
        InputError: for one that it cannot even emulate.
    """
    emulated = {precision.compute, precision.weights} - set(found.natively)
    if not emulated:
        return None
    (name,) = emulated  # only bfloat16 is emulated anywhere
    if found.device != "cpu":
        from transformers.utils import is_torch_bf16_gpu_available

        if not is_torch_bf16_gpu_available():
            raise InputError(
                f"{name} is asked for, but torch cannot compute in it on this GPU; remove the "
                f"key: precision: auto chooses {found.best}"
            )
    where = "CPU" if found.device == "cpu" else "GPU"
    cost = (
        "it takes many times as long as float32 (docs/scaling.md)"
        if found.device == "cpu"
        else "it is slow, and takes more memory than float16"
    )
    return (
        f"{name} is asked for, but this {where} lacks it, so that torch emulates it: {cost}; "
        f"remove the key: precision: auto chooses {found.best} here"
    )


def goes_on(begun: Precision, now: Precision, found: Hardware) -> Precision | None:
    """The precision in which a stopped step resumes; None where it has to start again.

    Rows and weights of two precisions are not mixed: a step that was begun on other hardware keeps
    its precision if this hardware computes in it natively.

    Args:
        begun: the precision of its first attempt.
        now: the one that would be chosen today.
        found: what it runs on.
    """
    if replace(begun, why=now.why) == now:
        return now
    if not {begun.compute, begun.weights} <= set(found.natively):
        return None
    return replace(begun, why="as it was begun")


def describe_asked(recipes: Iterable[Recipe]) -> str:
    """What recipes (a sweep has several) ask for, without asking the hardware."""
    return " or ".join(dict.fromkeys(map(_asked, recipes)))


def _asked(recipe: Recipe) -> str:
    words = "auto, chosen where it runs" if recipe.precision == "auto" else recipe.precision
    older = {"dtype": recipe.dtype, "generation.dtype": recipe.generation.dtype}
    given = [f"{key} {value}" for key, value in older.items() if value != "auto"]
    trainers = {"trainer": recipe.trainer}
    trainers |= {f"stages.{name}.trainer": one.trainer for name, one in recipe.stages.items()}
    for place, trainer in trainers.items():
        options = {key: trainer.get(key) for key in AUTOCAST}
        given += [
            f"{place}.{key} {str(value).lower()}"
            for key, value in options.items()
            if value is not None
        ]
    return "; ".join([words, *given])


def refuse_float16(steps: Iterable[StepSpec], launch: Launch) -> None:
    """Refuse steps that ask for float16 on a CPU, before anything is loaded.

    Raises:
        InputError: when one does.
    """
    if launch.use_cpu and any(_asks_float16(step.options) for step in steps):
        raise InputError(_REFUSED)


def _asks_float16(options: Mapping[str, Any]) -> bool:
    trainer = options.get("trainer") or {}
    return options.get("dtype") == "float16" or bool(trainer.get("fp16"))


def _sixteen(precision: str) -> str | None:
    return None if precision == "float32" else precision
