"""Launch configs: those that come with bashrac, and those that would do something else."""

import pytest
import yaml

from pipeline.errors import InputError
from pipeline.recipe import shipped
from pipeline.recipe.shipped import _CONFIG, FSDP2, REPLICATED, read_launch
from pipeline.recipe.trl_fields import read_fields

CONFIGS = {
    "cpu": (1, 1, True, REPLICATED),
    "cpu_ddp": (2, 1, True, REPLICATED),
    "single_gpu": (1, 1, False, REPLICATED),
    "ddp": (8, 1, False, REPLICATED),
    "fsdp2": (8, 1, False, FSDP2),
    "zero2": (8, 1, False, "ZeRO-2"),
    "zero3": (8, 1, False, "ZeRO-3"),
    "two_nodes": (16, 2, False, FSDP2),
}


def test_every_launch_config_is_listed_here():
    assert {file.stem for file in shipped.folder("accelerate_configs").iterdir()} == set(CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_launch_config_is_read_alike_by_accelerate_and_by_us(name):
    """Accelerate raises for keys that it does not know."""
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    launch = read_launch(name)
    assert (launch.processes, launch.machines, launch.use_cpu, launch.kind) == CONFIGS[name]
    theirs = load_config_from_file(str(launch.path))
    assert (theirs.num_processes, theirs.num_machines, theirs.use_cpu) == CONFIGS[name][:3]
    options = vars(launch_command_parser().parse_args(["script.py"]))
    for key in (*theirs.fsdp_config, *theirs.deepspeed_config):
        assert key in options, f"accelerate would not read {key}"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_processes": 2, "use_cpu": True}, "accelerate starts one process, not 2"),
        ({"distributed_type": "MULTI_CPU", "num_processes": 2, "use_cpu": True}, "MULTI_GPU"),
        ({"distributed_type": "FSDP", "fsdp_config": {"fsdp_version": 2}, "use_cpu": True},
         "on a CPU accelerate turns FSDP into plain data parallelism"),
        ({"distributed_type": "DEEPSPEED", "use_cpu": True}, "on a CPU accelerate turns DEEPSPEED"),
        ({"distributed_type": "FSDP"}, "fsdp_version: 2"),
        ({"distributed_type": "XLA"}, "XLA is not known here"),
        ({"distributed_type": "MULTI_GPU", "num_processes": 3, "num_machines": 2}, "of the 2 machines"),
        ({"distributed_type": "DEEPSPEED", "num_processes": 2, "num_machines": 2}, "standard"),
        ({"distributed_type": "DEEPSPEED", "deepspeed_config": {"deepspeed_config_file": "a.json"}},
         "deepspeed_config_file changes results"),
        ({"distributed_type": "DEEPSPEED", "deepspeed_config": {"gradient_clipping": 0.5}},
         "gradient_clipping changes results"),
        ({"mixed_precision": "bf16"}, "precision: bfloat16"),
        ({"fp16": True}, "precision: bfloat16"),
        ({"parallelism_config": {"parallelism_config_tp_size": 2}}, "shares a row"),
        ({"num_procesess": 2}, "did you mean num_processes"),
        ({"num_processes": "2"}, "num_processes is '2'; write a whole number"),
        ({"fsdp_config": "x"}, "fsdp_config must be a mapping"),
    ],
)  # fmt: skip
def test_a_config_that_is_not_what_it_seems_is_a_sentence(tmp_path, change, said):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"distributed_type": "NO", "num_processes": 1} | change))
    with pytest.raises(InputError, match=said):
        read_launch(str(file))


def test_a_config_that_accelerate_itself_would_refuse_is_none(tmp_path):
    from accelerate.commands.config.config_args import ClusterConfig

    assert set(read_fields(_CONFIG)) == set(ClusterConfig.__dataclass_fields__)
    file = tmp_path / "mine.yaml"
    file.write_text("use_cpu: true\nnum_processes: 1\n")
    with pytest.raises(InputError, match="has no distributed_type"):
        read_launch(str(file))


def test_no_without_quotes_is_no(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("distributed_type: NO\nuse_cpu: true\nnum_processes: 1\n")
    assert read_launch(str(file)).kind == REPLICATED
