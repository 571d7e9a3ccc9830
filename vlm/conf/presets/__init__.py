"""Complete runs by name, `model/stage`: one module a family of models, each with a `SPECS` dictionary."""

from vlm.conf.schema import TrainConfig
from vlm.registry import Registry

PRESETS: Registry[TrainConfig] = Registry(__name__, kind="preset")
