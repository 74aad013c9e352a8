"""What a recipe may say of options of trl and peft; trl_rules.toml holds it, by option."""

import tomllib
from pathlib import Path

_RULES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))

RENAMED: dict[str, str] = _RULES["renamed"]
GONE: dict[str, str] = _RULES["gone"]
OWNED: dict[str, str] = _RULES["owned"]
LORA_OWNED: dict[str, str] = _RULES["lora_owned"]
HELD_OUT: frozenset[str] = frozenset(_RULES["held_out"])
NEUTRAL: frozenset[str] = frozenset(_RULES["neutral"]) | HELD_OUT
TRACKERS: tuple[str, ...] = tuple(_RULES["trackers"])
BASE_CHANGING: tuple[str, ...] = tuple(_RULES["base_changing"])
_RANGES = {
    "0 or more": lambda number: number >= 0,
    "above 0": lambda number: number > 0,
    "1 or more": lambda number: number >= 1,
    "0 or more and below 1": lambda number: 0 <= number < 1,
    "1 or more, or -1 to train num_train_epochs": lambda number: number >= 1 or number == -1,
}
# Name -> whether a number may stand there, and which may, in words.
RANGES = {name: (_RANGES[words], words) for name, words in _RULES["ranges"].items()}
