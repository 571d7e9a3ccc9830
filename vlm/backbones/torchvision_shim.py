"""Makes torchvision importable where its compiled part is not: PyPI's torchvision beside a CPU build of torch (pytorch/vision#9085).

What imports torchvision, timm or open_clip calls `prepare_torchvision` first. Only torchvision's detection operators stay unavailable.
"""

import importlib
import importlib.util
import logging
import sys

import torch

log = logging.getLogger(__name__)

SCHEMAS = tuple(
    f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor" for name in ("nms", "qnms")
)  # that torchvision looks for at import
_libraries: list[torch.library.Library] = []  # an operator lives as long as its library


def prepare_torchvision() -> None:
    """Import torchvision, if it is installed, declaring the operators that its compiled part would have brought.

    Raises:
        RuntimeError: If torchvision fails for another reason.
    """
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        log.warning("The compiled part of torchvision does not fit this build of torch (%s); going on without its detection operators.", error)
        _forget()
        _libraries.append(torch.library.Library("torchvision", "FRAGMENT"))
        for schema in SCHEMAS:
            _libraries[-1].define(schema)
        importlib.import_module("torchvision")


def _forget() -> None:
    """Remove what a failed import left behind."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
