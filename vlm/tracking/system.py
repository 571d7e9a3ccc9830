"""What the training process takes of its machine: memory, processor, GPU. Under `system/` in every tracker, from the main process alone."""

import importlib.util
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

SECONDS_BETWEEN_LOOKS = 1.0  # asking a GPU's driver takes milliseconds, and steps may be as short
STATM = Path("/proc/self/statm")  # Linux: sizes in pages, the second is the resident one


class SystemMetrics:
    """Asked after each step, it looks about once a second.

    `system/rss_gb` is the resident memory of the process in GB (10^9 bytes), `system/cpu_percent` its processor time since the last look, 100 for one core
    at work. On CUDA `system/gpu_gb` and `system/gpu_peak_gb` are what tensors take now and took at most, and `system/gpu_percent` is the share of time in
    which the device computed; the last needs the package nvidia-ml-py.
    """

    def __init__(self, device: Any, clock: Callable[[], float] = time.monotonic):
        """Begin.

        Args:
            device: The run's torch device.
            clock: Seconds.
        """
        self._device, self._clock = device, clock
        self._looked, self._worked = clock(), time.process_time()
        self._has_driver = device.type == "cuda" and importlib.util.find_spec("pynvml") is not None

    def __call__(self) -> Mapping[str, float]:
        """What there is to say now; nothing soon after the last look."""
        now = self._clock()
        if now - self._looked < SECONDS_BETWEEN_LOOKS:
            return {}
        worked = time.process_time()
        used = {"system/cpu_percent": 100 * (worked - self._worked) / (now - self._looked)}
        self._looked, self._worked = now, worked
        return _resident() | used | (self._gpu() if self._device.type == "cuda" else {})

    def _gpu(self) -> dict[str, float]:
        import torch

        values = {
            "system/gpu_gb": torch.cuda.memory_allocated(self._device) / 1e9,
            "system/gpu_peak_gb": torch.cuda.max_memory_allocated(self._device) / 1e9,
        }
        return values | ({"system/gpu_percent": float(torch.cuda.utilization(self._device))} if self._has_driver else {})


def _resident() -> dict[str, float]:
    if STATM.is_file():
        return {"system/rss_gb": int(STATM.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e9}
    if importlib.util.find_spec("psutil") is None:
        return {}
    import psutil

    return {"system/rss_gb": psutil.Process().memory_info().rss / 1e9}
