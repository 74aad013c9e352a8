"""The precision that a step computes in: chosen where it runs, unless the recipe names one.

`precision: auto`, the default, takes what the hardware computes natively:

| hardware                                           | precision                         |
| -------------------------------------------------- | --------------------------------- |
| CUDA of compute capability 8.0 and newer, ROCm     | bfloat16                          |
| older CUDA (T4, V100, RTX 20)                      | float16, training scales its loss |
| CPU with avx512_bf16 or amx_bf16 (x86), bf16 (ARM) | bfloat16                          |
| any other CPU                                      | float32                           |
| XPU with bfloat16 conversions                      | bfloat16                          |
| any other XPU; MPS, for which torch does not say   | float32                           |

It decides the dtype of autocast in training, of a base frozen under an adapter, and of models that
generate rows or answers. Trained weights are float32 in every precision: in bfloat16 an update of
1e-5 of a weight is lost. What `auto` chooses is recorded but, like all hardware, not part of a
step's identity; a precision that the recipe names is. The older keys that it replaces (`dtype`,
`generation.dtype`, `trainer.bf16`, `trainer.fp16`) take precedence if they are given.

Only functions that query the hardware import torch.
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
    "float16 is requested (precision, dtype, generation.dtype or trainer.fp16), but it is slow and "
    "overflows on the CPU of this launch; write precision: auto, or float32, or launch on a GPU"
)
_NAMED = "set in the recipe"


@dataclass(frozen=True)
class Hardware:
    """What a device computes natively.

    Attributes:
        device: torch's device type: cuda, cpu, mps, xpu.
        best: the precision that `auto` chooses.
        why: the reason, printed after `best`.
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
        autocast: training's mixed precision; None if it computes in the dtype of the weights.
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
    def description(self) -> str:
        """Such as 'bfloat16 over float32 weights (this CPU has avx512_bf16)'."""
        return f"{self.short} ({self.why})"


def hardware(device: str) -> Hardware:
    """What this machine's device of a type computes natively (the table above)."""
    import torch

    with_bfloat16 = ("bfloat16", "float16", "float32")
    if device == "cuda":
        name = torch.cuda.get_device_name()
        # By default torch counts emulation as support, but it is slow and takes more memory.
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Hardware(device, "bfloat16", f"native on {name}", with_bfloat16)
        why = f"{name} has no native bfloat16"
        return Hardware(device, "float16", why, ("float16", "float32"))
    if device == "cpu":
        # Older versions of torch do not report what a CPU supports.
        known = getattr(torch.cpu, "get_capabilities", dict)()
        if found := next((name for name in _NATIVE_ON_CPUS if known.get(name)), None):
            return Hardware(device, "bfloat16", f"this CPU has {found}", ("bfloat16", "float32"))
        why = "this CPU has no native bfloat16" if known else "torch does not report its features"
        return Hardware(device, "float32", why, ("float32",))
    if device == "xpu" and torch.xpu.is_bf16_supported(including_emulation=False):
        return Hardware(device, "bfloat16", "native on this XPU", with_bfloat16)
    why = f"torch reports no native bfloat16 on this {device.upper()}"
    return Hardware(device, "float32", why, ("float16", "float32"))


def hardware_of_launch(*, use_cpu: bool) -> Hardware:
    """The hardware of a launch; if there is no GPU on this machine, that of a recent GPU."""
    import torch

    if use_cpu:
        return hardware("cpu")
    if (found := torch.accelerator.current_accelerator(check_available=True)) is not None:
        return hardware(found.type)
    why = "as on GPUs with native bfloat16; this machine has none to query"
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
    if trainer is None:  # the step generates rows or answers
        return Precision(weights, weights, None, found.why if asked == "auto" else _NAMED)
    named = named_autocast(trainer)
    autocast = named or found.best
    autocast = None if autocast == "float32" else autocast
    # The loss is scaled only under float16 autocast. Then the frozen base of an adapter may be
    # float16 too, since the trained adapter is float32.
    scaled = options["lora"] is not None and autocast == "float16"
    if asked == "auto" and (options["lora"] is None or (weights == "float16" and not scaled)):
        weights = "float32"
    elif weights == "float16" and not scaled:
        raise InputError(
            "dtype: float16 would train without scaling the loss, and small gradients would be 0; "
            "replace it by precision: float16, which scales the loss and trains float32 weights"
        )
    # `why` names the recipe if it decided what computes: autocast, or without it the weights.
    is_named = named if autocast or weights == "float32" else None
    is_named = is_named or (not autocast and asked != "auto")
    return Precision(autocast or weights, weights, autocast, _NAMED if is_named else found.why)


def of_earlier_version(options: Mapping[str, Any]) -> Precision:
    """The precision of a step with none in its record, when `auto` always meant bfloat16."""
    why = "made by an earlier version"
    try:
        return choose(options, Hardware("any", "bfloat16", why, ()))
    except InputError:  # float16 weights, which earlier versions trained
        return Precision("float16", "float16", None, why)


def read_precision(known: Any) -> Precision | None:
    """Parse the precision in a record or progress file; None if there is none."""
    try:
        return Precision(**known)
    except TypeError:
        return None


def warning(precision: Precision, found: Hardware) -> str | None:
    """Return a warning about a precision that the hardware only emulates, or None.

    Raises:
        InputError: if the hardware cannot even emulate it.
    """
    emulated = {precision.compute, precision.weights} - set(found.natively)
    if not emulated:
        return None
    (name,) = emulated  # only bfloat16 is emulated anywhere
    if found.device != "cpu":
        from transformers.utils import is_torch_bf16_gpu_available

        if not is_torch_bf16_gpu_available():
            raise InputError(
                f"{name} is requested, but torch does not support it on this GPU; remove the key: "
                f"precision: auto chooses {found.best}"
            )
    where = "CPU" if found.device == "cpu" else "GPU"
    cost = (
        "it takes many times as long as float32 (docs/scaling.md)"
        if found.device == "cpu"
        else "it is slow, and takes more memory than float16"
    )
    return (
        f"{name} is requested, but this {where} does not support it, so torch emulates it: {cost}; "
        f"remove the key: precision: auto chooses {found.best} here"
    )


def precision_to_resume(before: Precision, now: Precision, found: Hardware) -> Precision | None:
    """The precision in which a stopped step resumes; None if it has to start over.

    Rows and weights of two precisions are not mixed: a step started on other hardware keeps its
    precision if this hardware supports it natively.

    Args:
        before: the precision of its first attempt.
        now: what would be chosen now.
        found: the hardware it runs on.
    """
    if replace(before, why=now.why) == now:
        return now
    if not {before.compute, before.weights} <= set(found.natively):
        return None
    return replace(before, why="that of the first attempt")


def describe_asked(recipes: Iterable[Recipe]) -> str:
    """The precision that recipes (a sweep has several) request, without querying the hardware."""
    return " or ".join(dict.fromkeys(map(_requested, recipes)))


def _requested(recipe: Recipe) -> str:
    precision = "auto, chosen where it runs" if recipe.precision == "auto" else recipe.precision
    older = {"dtype": recipe.dtype, "generation.dtype": recipe.generation.dtype}
    given = [f"{key} {value}" for key, value in older.items() if value != "auto"]
    trainers = {"trainer": recipe.trainer}
    trainers |= {f"stages.{name}.trainer": stage.trainer for name, stage in recipe.stages.items()}
    for place, trainer in trainers.items():
        options = {key: trainer.get(key) for key in AUTOCAST}
        given += [
            f"{place}.{key} {str(value).lower()}"
            for key, value in options.items()
            if value is not None
        ]
    return "; ".join([precision, *given])


def refuse_float16(steps: Iterable[StepSpec], launch: Launch) -> None:
    """Refuse steps that request float16 on a CPU, before anything is loaded.

    Raises:
        InputError: if there is such a step.
    """
    if launch.use_cpu and any(_asks_float16(step.options) for step in steps):
        raise InputError(_REFUSED)


def _asks_float16(options: Mapping[str, Any]) -> bool:
    trainer = options.get("trainer") or {}
    return options.get("dtype") == "float16" or bool(trainer.get("fp16"))
