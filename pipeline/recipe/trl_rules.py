"""Options of trl and peft that bashrac sets, that have a new name, or that change no result."""

from collections.abc import Callable

# What older recipes say, and what the installed versions call it.
RENAMED = {
    "max_seq_length": "max_length",
    "max_prompt_length": "max_prompt_length, at the top of the recipe",
    "torch_dtype": "precision, at the top of the recipe",
    "warmup_ratio": "warmup_steps (a value below 1 is a share of all steps)",
    "evaluation_strategy": "nothing: every stage is evaluated after training",
    "tokenizer": "nothing: the tokenizer comes with the model",
    "processing_class": "nothing: the tokenizer comes with the model",
    "no_cuda": "--launch cpu",
    "group_by_length": "train_sampling_strategy: group_by_length",
    "use_mps_device": "nothing: the device is found by accelerate",
    "per_gpu_train_batch_size": "batch_size, at the top of the recipe",
    "dataset_batch_size": "nothing: it is gone from trl",
    "num_of_sequences": "nothing: it is gone from trl",
    "chars_per_token": "nothing: it is gone from trl",
    "use_liger": "use_liger_kernel",
    "neftune_alpha": "neftune_noise_alpha",
    "lora_r": "lora: {r: ...}, at the top of the recipe",
    "overwrite_output_dir": "nothing: every step has a directory of its own",
    "rpo_alpha": "loss_type: [sigmoid, sft] with loss_weights",
    "generate_during_eval": "nothing: every stage is evaluated after training",
    "reference_free": "nothing: it is gone from trl",
    "precompute_ref_batch_size_per_gpu": "precompute_ref_batch_size",
    "is_encoder_decoder": "nothing: it is gone from trl",
    "ref_adapter_name": "nothing: bashrac sets the reference model",
    "model_adapter_name": "nothing: bashrac sets the reference model",
}

_NO_UPLOAD = "a run uploads nothing; `bashrac push` sends a finished stage"
_NO_SPACE = (
    "trackio writes below the runs folder; to send a run elsewhere, say so in the environment "
    "(TRACKIO_SPACE_ID)"
)
# Options that bashrac sets itself, and where the user says the same thing.
OWNED = {
    "output_dir": "the step's own directory is used",
    "per_device_train_batch_size": "use batch_size (global) and micro_batch_size",
    "gradient_accumulation_steps": "it follows from batch_size, processes and micro_batch_size",
    "seed": "use seeds: [0, 1, 2]",
    "data_seed": "use seeds: [0, 1, 2]",
    "resume_from_checkpoint": "a step resumes from its own last checkpoint",
    "dataset_kwargs": "rows are tokenised before they reach the trainer",
    "remove_unused_columns": "rows are tokenised before they reach the trainer",
    "model_init_kwargs": "use model:, revision: and precision:",
    "eos_token": "the end-of-turn token is found from the chat template",
    "chat_template_path": "training, generation and evaluation share the model's own template",
    "push_to_hub": _NO_UPLOAD,
    "do_train": "a step always trains",
    "use_cpu": "use launch: cpu",
    "trust_remote_code": "use trust_remote_code:, at the top of the recipe",
    "hub_token": "keys come from the environment only (HF_TOKEN)",
    "hub_model_id": _NO_UPLOAD,
    "hub_revision": _NO_UPLOAD,
    "hub_strategy": _NO_UPLOAD,
    "hub_always_push": _NO_UPLOAD,
    "trackio_space_id": _NO_SPACE,
    "trackio_bucket_id": _NO_SPACE,
    "trackio_static_space_id": _NO_SPACE,
    "deepspeed": "use launch: with your own accelerate config, which may name a DeepSpeed file",
    "fsdp": "use launch: with your own accelerate config",
    "fsdp_config": "use launch: with your own accelerate config",
    "parallelism_config": "use launch: with your own accelerate config",
    "logging_strategy": "steps are logged, as logging_steps says",
    "logging_first_step": "the first loss is always logged: DPO's must be ln 2",
    "logging_nan_inf_filter": "a NaN loss must be seen",
    "completion_only_loss": "the loss covers the answer only",
    "assistant_only_loss": "the loss covers the answer only",
    "shuffle_dataset": "rows are shuffled anyway",
    "truncation_mode": "rows are cut at the end",
    "dataset_text_field": "rows are tokenised before they reach the trainer",
    "pad_token": "the tokenizer's own is used",
    "eval_strategy": "every stage is evaluated after training",
    "eval_on_start": "every stage is evaluated after training",
    "load_best_model_at_end": "every stage is evaluated after training",
    "auto_find_batch_size": "use micro_batch_size, which does not change the result",
    "save_only_model": "checkpoints must be able to resume",
    "ignore_data_skip": "a resumed run must see the rows it has not seen",
    "packing": "rows are fed as they are, so that labels may differ from inputs",
}

# The same of LoRA's options. Some would read or write files, or import modules, that they name.
LORA_OWNED = {
    "base_model_name_or_path": "use model:, at the top of the recipe",
    "revision": "use revision:, at the top of the recipe",
    "auto_mapping": "the model's own class is used",
    "peft_type": "an adapter is a LoRA adapter",
    "peft_version": "it is noted by peft",
    "inference_mode": "a step always trains",
    "megatron_config": "models are those of transformers",
    "megatron_core": "models are those of transformers",
    "corda_config": "a step does not look at data before it adds an adapter",
    "eva_config": "a step does not look at data before it adds an adapter",
    "lora_ga_config": "a step does not look at data before it adds an adapter",
    "arrow_config": "a stage trains one adapter",
    "loftq_config": "a base stays as it is",
    "kasa_config": "a base stays as it is, and KaSA cuts its weights down",
    "layer_replication": "a base keeps its layers: two that share weights cannot be merged into",
    "monteclora_config": "it needs a loss of its own, which TRL's trainers do not add",
    "alora_invocation_tokens": "an adapter acts on every token",
    "use_qalora": "it is for GPTQ, and a base in 4 bits is nf4 here",
    "qalora_group_size": "it is for GPTQ, and a base in 4 bits is nf4 here",
    "runtime_config": "an adapter lies where its base does",
}

# What numbers may be, and in words: trl and peft find out late, or never.
_NOT_NEGATIVE: tuple[Callable[[float], bool], str] = (lambda number: number >= 0, "0 or more")
_POSITIVE: tuple[Callable[[float], bool], str] = (lambda number: number > 0, "above 0")
_COUNT: tuple[Callable[[float], bool], str] = (lambda number: number >= 1, "1 or more")
_SHARE: tuple[Callable[[float], bool], str] = (
    lambda number: 0 <= number < 1,
    "0 or more and below 1",
)
RANGES = {
    "learning_rate": _NOT_NEGATIVE, "warmup_steps": _NOT_NEGATIVE, "weight_decay": _NOT_NEGATIVE,
    "max_grad_norm": _NOT_NEGATIVE, "neftune_noise_alpha": _NOT_NEGATIVE,
    "num_train_epochs": _POSITIVE, "beta": _POSITIVE, "lora_alpha": _POSITIVE,
    "adam_epsilon": _POSITIVE, "logging_steps": _POSITIVE,
    "max_length": _COUNT, "r": _COUNT,
    "lora_dropout": _SHARE, "adam_beta1": _SHARE, "adam_beta2": _SHARE,
    "max_steps": (
        lambda number: number >= 1 or number == -1,
        "1 or more, or -1 to train num_train_epochs",
    ),
}  # fmt: skip

# Ways to begin an adapter that change the base's own weights, or look at data before.
BASE_CHANGING = ("pissa", "olora", "loftq", "corda", "eva", "lora_ga")

# What `report_to` may name: trackers that can be told to write below the runs folder and to send
# nothing (pipeline/train/trainer.py tells them).
TRACKERS = ("tensorboard", "wandb", "trackio")

# Options that decide speed, logging or memory but not the trained weights: not part of a step's
# identity, so changing them never trains a finished step again.
NEUTRAL = frozenset(
    [
        "logging_steps",
        "log_on_each_node",
        "log_level",
        "log_level_replica",
        "include_num_input_tokens_seen",
        "disable_tqdm",
        "report_to",
        "run_name",
        "project",
        "save_strategy",
        "save_steps",
        "save_total_limit",
        "save_on_each_node",
        "enable_jit_checkpoint",
        "gradient_checkpointing",
        "gradient_checkpointing_kwargs",
        "activation_checkpointing",
        "activation_checkpointing_kwargs",
        "activation_offloading",
        "torch_empty_cache_steps",
        "dataloader_num_workers",
        "dataloader_pin_memory",
        "dataloader_persistent_workers",
        "dataloader_prefetch_factor",
        "dataloader_multiprocessing_context",
        "dataset_num_proc",
        "ddp_find_unused_parameters",
        "ddp_bucket_cap_mb",
        "ddp_broadcast_buffers",
        "ddp_static_graph",
        "ddp_backend",
        "ddp_timeout",
        "skip_memory_metrics",
        "precompute_ref_batch_size",
        "per_device_eval_batch_size",
    ]
)
