"""Answers against their references, one file for each kind of question; `MEASURES` has them by name."""

from vlm.evaluate.metrics.base import Measure
from vlm.registry import Registry

MEASURES: Registry[Measure] = Registry(__name__, kind="measure of answers")
