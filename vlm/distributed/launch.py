"""The World of this run, from what torchrun (or `accelerate launch`) put into the environment. Launches nothing itself."""

import atexit
import gc
import os

import torch

from vlm.errors import ConfigError
from vlm.types import World

DEVICES = ("auto", "cuda", "mps", "cpu")
PRECISIONS = ("auto", "fp32", "bf16-mixed", "bf16")


def launch(device: str = "auto") -> World:
    """Join the process group, if there is one, and choose this process's device. The group stays until the process ends, for further runs in it.

    Args:
        device: auto (CUDA, else mps, else cpu), cuda, mps or cpu.

    Raises:
        ConfigError: If the device does not exist here.
    """
    kind = choose_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return World.single(kind)
    kind = _check_shared(kind, device)
    from accelerate import PartialState

    if not torch.distributed.is_initialized():
        atexit.register(leave)
    state = PartialState(cpu=kind == "cpu")  # gloo on cpu, nccl on cuda
    return World(
        rank=state.process_index,
        size=state.num_processes,
        device=torch.device(state.device or kind),
        ranks_per_node=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
    )


def _check_shared(kind: str, asked: str) -> str:
    """The device of one process of several.

    Raises:
        ConfigError: If the machine has fewer GPUs than processes, or its device serves one process only.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if kind == "mps" and asked == "auto":
        return "cpu"
    if kind == "mps":
        raise ConfigError("--device mps serves one process. Start without torchrun, or use --device cpu.")
    if kind == "cuda" and processes > torch.cuda.device_count():
        raise ConfigError(f"{processes} processes for {torch.cuda.device_count()} GPU(s). Lower --nproc-per-node, or use --device cpu.")
    return kind


def choose_device(device: str) -> str:
    """`auto` resolved; anything else checked.

    Raises:
        ConfigError: If the device is unknown or does not exist here.
    """
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return next(name for name, exists in here.items() if exists)
    if device.startswith("cuda:"):
        number = device.partition(":")[2]
        raise ConfigError(f"--device {device}: a process takes the first GPU that it sees. Set CUDA_VISIBLE_DEVICES={number} and take --device cuda.")
    if device not in here:
        raise ConfigError(f"--device {device} is not one of {', '.join(DEVICES)}.")
    if not here[device]:
        raise ConfigError(
            f"--device {device} does not exist on this machine. Available: {', '.join(name for name, exists in here.items() if exists)}."
        )
    return device


def leave() -> None:
    """Close the process group, if one is open."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        # What refers to gloo's groups in cycles, sharded models above all, ends here: with the last of it end their threads. One that drops a tensor while
        # the interpreter is being finalized aborts the process (seen with CPython 3.11, which unwinds such a thread, and C++ takes that for an error).
        gc.collect()


def choose_precision(precision: str, device: torch.device) -> str:
    """`auto` resolved: bf16-mixed where the device computes faster in bf16 than in fp32, else fp32.

    Raises:
        ConfigError: If the precision is unknown.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"--precision {precision} is not one of {', '.join(PRECISIONS)}.")
    if precision != "auto":
        return precision
    fast = {"cuda": lambda: torch.cuda.is_bf16_supported(including_emulation=False), "cpu": _cpu_has_bf16_units}.get(device.type, lambda: False)
    return "bf16-mixed" if fast() else "fp32"


def _cpu_has_bf16_units() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("amx"))
