"""Which linear layers of a vision backbone its patch features come from; an adapter elsewhere would never learn. Knows no family."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vlm.backbones.lora import linear_layers


@torch.no_grad()
def layers_in_use(vision: Any) -> list[str]:
    """Names of the linear layers that run for patch features: without those behind the chosen layer and in pooling heads.

    They are seen in a pass on the meta device, which computes nothing.
    """
    seen: set[nn.Module] = set()
    hooks = [vision.get_submodule(name).register_forward_hook(lambda module, *_: seen.add(module)) for name in linear_layers(vision)]
    state: dict[str, Tensor] = {**dict(vision.named_parameters()), **dict(vision.named_buffers())}
    pixels = torch.empty(1, 3, vision.image_size, vision.image_size, dtype=torch.uint8, device="meta")
    try:
        functional_call(vision, {name: torch.empty_like(tensor, device="meta") for name, tensor in state.items()}, (pixels,))
    finally:
        for hook in hooks:
            hook.remove()
    return [name for name in linear_layers(vision) if vision.get_submodule(name) in seen]
