"""Readers of foreign file formats, one module a format; each yields `Sample`s, and `Dropped` for faulty rows."""

from vlm.data.formats.base import Format
from vlm.registry import Registry

FORMATS: Registry[Format] = Registry(__name__, kind="data format")
