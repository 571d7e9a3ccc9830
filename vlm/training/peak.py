"""What a device can compute at most: a table of published peaks by name, and a measurement for devices that are not in it. Knows no model."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

from vlm.errors import UnknownNameError

TERA = 1e12

# Dense bf16 tensor-core FLOP/s with fp32 accumulation; makers often print twice that, for sparse matrices. Names are words of torch.cuda.get_device_name.
PEAKS = {
    "GB200": 2500 * TERA,  # NVIDIA GB200 NVL72 datasheet: 360 PF sparse by 72
    "B300": 2250 * TERA,  # NVIDIA HGX B300 datasheet: 36 PF sparse by 8
    "B200": 2250 * TERA,  # NVIDIA HGX B200 datasheet: 36 PF sparse by 8
    "GH200": 989.4 * TERA,  # NVIDIA GH200 datasheet: 1,979 sparse
    "H200": 989.4 * TERA,  # NVIDIA H200 SXM datasheet: 1,979 sparse
    "H100 NVL": 835.5 * TERA,  # NVIDIA H100 datasheet: 1,671 sparse
    "H100 PCIe": 756 * TERA,  # NVIDIA H100 PCIe product brief: 1,513 sparse
    "H100": 989.4 * TERA,  # NVIDIA H100 SXM datasheet: 1,979 sparse
    "H800": 989.4 * TERA,  # an H100 SXM with slower links
    "H20": 148 * TERA,  # NVIDIA H20 datasheet
    "A100": 312 * TERA,  # NVIDIA A100 datasheet, PCIe and SXM
    "A800": 312 * TERA,  # an A100 with slower links
    "A40": 149.7 * TERA,  # NVIDIA A40 datasheet: 299.4 sparse
    "A30": 165 * TERA,  # NVIDIA A30 datasheet
    "A10": 125 * TERA,  # NVIDIA A10 datasheet
    "L40S": 362 * TERA,  # NVIDIA L40S datasheet: 733 sparse
    "L40": 181 * TERA,  # NVIDIA L40 datasheet
    "L4": 121 * TERA,  # NVIDIA L4 datasheet: 242 sparse
    "RTX A6000": 154.8 * TERA,  # NVIDIA RTX A6000 datasheet: 309.7 sparse
    "RTX 6000 Ada": 364.2 * TERA,  # NVIDIA Ada whitepaper, professional edition
    "RTX 5090": 209.5 * TERA,  # NVIDIA RTX Blackwell whitepaper
    "RTX 4090": 165.2 * TERA,  # NVIDIA Ada whitepaper
    "RTX 4080": 97.5 * TERA,  # NVIDIA Ada whitepaper
    "RTX 3090": 71 * TERA,  # NVIDIA GA102 whitepaper
    "RTX 3080": 59.5 * TERA,  # NVIDIA GA102 whitepaper, the one of 10 GB
    "V100": 125 * TERA,  # NVIDIA V100 SXM2 datasheet; in fp16, it has no bf16
    "T4": 65 * TERA,  # NVIDIA T4 datasheet; in fp16, it has no bf16
    "MI325X": 1307.4 * TERA,  # AMD Instinct MI325X datasheet
    "MI300X": 1307.4 * TERA,  # AMD Instinct MI300X datasheet
}
OTHER_CHIPS = ("Laptop", "MIG", "D", "Ti", "SUPER", "Max-Q", "v2")  # the same word, another peak: an unlisted variant is measured
SIDE = {"cpu": 1024, "cuda": 8192}  # of the measured matrices: large enough for full speed, a fraction of a second
TRIES = 5


@dataclass(frozen=True)
class Peak:
    """A device's peak.

    Attributes:
        flops_per_second: What it could compute.
        origin: Where the number is from, in words.
    """

    flops_per_second: float
    origin: str


def peak_of(device: torch.device, dtype: torch.dtype) -> Peak:
    """The peak of a device of this machine: the table's for half precision on a GPU that is listed, else measured once a process.

    Args:
        device: The device.
        dtype: What the run's matrix products are computed in.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    published = listed_peak(name) if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16) else None
    return published or measured_peak(device, dtype)


def listed_peak(name: str) -> Peak | None:
    """The published peak of a GPU by its full name, or None if it is not in the table."""
    words = name.replace("-", " ").split()
    if any(word in OTHER_CHIPS for word in words):
        return None
    for known, flops in PEAKS.items():
        wanted = known.split()
        if any(words[i : i + len(wanted)] == wanted for i in range(len(words))) or all(word in words for word in wanted):
            return Peak(flops, f"published for {known}, bf16")
    return None


def named_peak(name: str) -> Peak:
    """The published peak of a GPU that a user names.

    Raises:
        UnknownNameError: If it is not in the table; the nearest are given.
    """
    known = {listed.lower(): listed for listed in PEAKS}
    key = name.lower().replace("-", " ")
    if key not in known:
        raise UnknownNameError("device", name, PEAKS)
    return Peak(PEAKS[known[key]], f"published for {known[key]}, bf16")


@cache
def measured_peak(device: torch.device, dtype: torch.dtype, *, clock: Callable[[], float] = time.perf_counter) -> Peak:
    """The best of some products of square matrices, a few hundred milliseconds in all; kept for the process.

    Args:
        device: The device.
        dtype: Type of the matrices.
        clock: Seconds, from any moment on.
    """
    side = SIDE.get(device.type, 4096)
    left = torch.ones(side, side, dtype=dtype, device=device)
    _product(left)  # the first one sets things up
    seconds = []
    for _ in range(TRIES):
        start = clock()
        _product(left)
        seconds.append(clock() - start)
    kind = str(dtype).removeprefix("torch.")
    return Peak(2 * side**3 / min(seconds), f"measured: a product of {side} x {side} matrices in {kind} on {device.type}")


def _product(matrix: torch.Tensor) -> None:
    matrix @ matrix
    if matrix.device.type != "cpu":
        torch.accelerator.synchronize()
