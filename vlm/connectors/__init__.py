"""The connectors by name."""

from vlm.connectors.base import ConnectorSpec
from vlm.registry import Registry

CONNECTORS: Registry[ConnectorSpec] = Registry(__name__, kind="connector")
