"""Image encoders of some ten thousand random weights for tests: the tiny vision backbones, the same weights everywhere.

`tiny-clip-image` and `tiny-siglip-image` are halves of the models that `tiny-clip-text` and `tiny-siglip-text` are halves of; `Load.source` may be a
folder that such a model was saved to.
"""

from dataclasses import replace
from functools import partial

from vlm.backbones.image.base import ImageSpec
from vlm.backbones.image.clip import clip, clip_spec
from vlm.backbones.image.dinov2 import dinov2, dinov2_spec
from vlm.backbones.image.fused import fused_spec
from vlm.backbones.image.siglip import siglip, siglip_spec
from vlm.backbones.vision.tiny import SPECS as VISION
from vlm.backbones.vision.tiny import seeded

SPECS: dict[str, ImageSpec] = {
    "tiny-clip-image": replace(clip_spec(VISION["tiny-clip"], width=8), build=partial(seeded, clip), source=None),
    "tiny-siglip-image": replace(siglip_spec(VISION["tiny-siglip"]), build=partial(seeded, siglip), source=None),
    "tiny-dinov2-image": replace(dinov2_spec(VISION["tiny-dinov2"]), build=partial(seeded, dinov2), source=None),
}
SPECS["tiny-fused-image"] = replace(fused_spec({name: SPECS[name] for name in ("tiny-dinov2-image", "tiny-siglip-image")}), source=None)
