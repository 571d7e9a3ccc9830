"""Complete contrastive runs by name, `model/stage`; see `vlm.conf.presets`."""

from vlm.conf.contrastive import ContrastiveConfig
from vlm.registry import Registry

CONTRASTIVE_PRESETS: Registry[ContrastiveConfig] = Registry(__name__, kind="preset")
