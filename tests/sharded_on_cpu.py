"""Runs bashrac with FSDP2 or DeepSpeed on CPUs, which accelerate does only where there is a GPU.

    torchrun --nproc_per_node 2 sharded_on_cpu.py step DIR/step.json

Only accelerate is changed, and only in what it takes for granted: that gloo and CPUs are a machine
to share a model on. All that follows is its, torch's and DeepSpeed's own.

With STOP_AT=n in the environment the main process gets a SIGTERM after n optimizer steps.
"""

import os
import signal
import sys

os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
os.environ.pop("ACCELERATE_USE_CPU", None)

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

_init = PartialState.__init__


def _as_if_on_gpus(self, cpu=False, **options):
    _init(self, cpu=False, **{name: value for name, value in options.items() if name != "backend"})


def _init_accelerator_state(self, *arguments, cpu=False, **options):
    _init_state(self, *arguments, cpu=False, **options)


_init_state = AcceleratorState.__init__
PartialState.__init__ = _as_if_on_gpus
AcceleratorState.__init__ = _init_accelerator_state
PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)


def _stop_at(number):
    from transformers.trainer_callback import CallbackHandler

    on_step_end = CallbackHandler.on_step_end

    def stop(self, args, state, control):
        if state.global_step == number and os.environ["RANK"] == "0":
            os.kill(os.getpid(), signal.SIGTERM)
        return on_step_end(self, args, state, control)

    CallbackHandler.on_step_end = stop


if "STOP_AT" in os.environ:
    _stop_at(int(os.environ["STOP_AT"]))

if __name__ == "__main__":
    from pipeline.cli.main import main

    sys.exit(main(sys.argv[1:]))
