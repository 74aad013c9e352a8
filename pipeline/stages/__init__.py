"""One file a method. Adding a method is a file here, a line in METHODS, and its test."""

METHODS = {
    "base": "pipeline.stages.base",
    "sft": "pipeline.stages.sft",
    "bash": "pipeline.stages.bash",
    "rac": "pipeline.stages.rac",
    "spin": "pipeline.stages.spin",
    "dpo": "pipeline.stages.dpo",
}
